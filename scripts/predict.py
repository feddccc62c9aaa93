#!/usr/bin/env python3
"""Let a network name what your own pictures show.

python scripts/predict.py runs/network1-numpy/last.safetensors photo.jpg --show seen.png

Pictures may have any size, be in colour or grey, transparent, turned by EXIF. For a
network of digits they may be dark on light or light on dark; what was done to each is
said beneath it, and drawn by --show.
"""

from parity.program import (
    BAD_INPUT,
    Parser,
    answer_interrupts,
    check_picture,
    main_of,
    positive,
    summary_of,
)

answer_interrupts()

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from parity.classifier import Classifier, add_picture_options
from parity.files import write_json
from parity.pictures import Prepared, prepare
from parity.plots import save
from parity.scores import probabilities
from parity.sheets import predictions_sheet
from parity.training import Backend


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("picture", type=Path, nargs="+")
    add_picture_options(parser)
    parser.add_argument(
        "--top", type=positive, default=3, metavar="K", help="classes to name (3)"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result as JSON; - is standard output, in place of the text",
    )
    parser.add_argument(
        "--show",
        type=Path,
        metavar="FILE",
        help="draw each picture beside what the network saw of it",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    check_picture("--show", args.show)
    network = Classifier.open(args.checkpoint, Backend.load(args.backend))
    style = args.style or network.style
    config = network.config
    prepared: dict[Path, Prepared] = {}
    for path in args.picture:
        try:
            prepared[path] = prepare(
                path, config.image_hw, config.in_chans, style, args.background
            )
        except (OSError, ValueError) as error:
            print(f"predict.py: {error}", file=sys.stderr)
    if not prepared:
        return BAD_INPUT
    images = np.stack([item.pixels for item in prepared.values()])
    logits = network.logits(network.inputs(images, args.mean, args.std))
    shares = probabilities(logits)
    top = min(args.top, len(network.class_names))
    results = [
        result(path, item, row, network.class_names, top)
        for (path, item), row in zip(prepared.items(), shares, strict=True)
    ]
    if args.json == "-":
        print(json.dumps(results, indent=1))
    else:
        print("\n".join(text(found) for found in results))
        if args.json is not None:
            write_json(Path(args.json), results)
    if args.show is not None:
        names = [path.name for path in prepared]
        figure = predictions_sheet(
            names, list(prepared.values()), shares, network.class_names, top
        )
        save(figure, args.show)
        if args.json != "-":
            print(f"{len(prepared)} shown in {args.show}")
    return 0 if len(prepared) == len(set(args.picture)) else BAD_INPUT


def result(
    path: Path, item: Prepared, shares: Any, names: tuple[str, ...], top: int
) -> dict[str, Any]:
    """Return what is known about a picture, as JSON can hold it."""
    best = np.argsort(-shares, kind="stable")[:top]
    return {
        "picture": str(path),
        "predictions": [
            {"class": names[k], "index": int(k), "probability": float(shares[k])}
            for k in best
        ],
        "prepared": list(item.steps),
    }


def text(found: dict[str, Any]) -> str:
    """Return the same for a person."""
    best = found["predictions"]
    width = max(len(row["class"]) for row in best)
    lines = [f"{found['picture']}"]
    for row in best:
        bar = "█" * round(24 * row["probability"])
        lines.append(
            f"  {row['class']:<{width}}  {row['probability']:7.2%}  {bar}".rstrip()
        )
    lines.append(f"  ({', '.join(found['prepared'])})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
