#!/usr/bin/env python3
"""Score a checkpoint on the test images of a data set, in NumPy or in PyTorch.

python scripts/evaluate.py runs/network1-numpy/last.safetensors --backend torch
"""

import argparse
import json
import sys
from pathlib import Path

from parity.data import load
from parity.program import main_of, positive
from parity.scores import Scores, score
from parity.training import BACKENDS, Backend, check_fit, predict, replace_text


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument(
        "--data", metavar="NAME", help="default: what the network was trained on"
    )
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write top1, top5, per_class, confusion (a row a true class), predictions",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    backend = Backend.load(args.backend)
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ValueError(f"the folder of --json {args.json} does not exist; make it")
    checkpoint = backend.module("checkpoint")
    model = checkpoint.from_pretrained(args.checkpoint)
    header = checkpoint.load(args.checkpoint).header
    name = args.data or header.get("metadata", {}).get("data")
    if name is None:
        raise ValueError(f"{args.checkpoint} names no data set; add --data NAME")
    config = model.config
    dataset = load(name, image_size=config.image_hw, channels=config.in_chans)
    check_fit(dataset, config)
    backend.prepare()
    if args.threads:
        backend.set_threads(args.threads)
    # Images are normalised as they were in training, whatever they are.
    normalisation = header.get("preprocessing", {})
    logits = predict(model, backend, dataset.test, **normalisation)
    scores = score(logits, dataset.test.labels, dataset.test.class_names)
    print(f"{args.checkpoint} in {backend.name} on {name}")
    print(report(scores))
    if args.json is not None:
        found = scores.to_dict() | {"predictions": logits.argmax(axis=1).tolist()}
        replace_text(args.json, json.dumps(found, indent=1) + "\n")
    return 0


def report(scores: Scores) -> str:
    """Return the scores as text."""
    width = max(len("class"), *(len(name) for name in scores.class_names))
    lines = [
        f"top-1 {scores.top1:.2%}   top-5 {scores.top5:.2%}   loss {scores.loss:.4f}",
        "",
        f"{'class':<{width}}  images  precision   recall       F1",
    ]
    for row in scores.per_class():
        shares = [row["precision"], row["recall"], row["f1"]]
        cells = ["–" if x is None else f"{x:.2%}" for x in shares]
        lines.append(
            f"{row['class']:<{width}}  {row['images']:6}  "
            f"{cells[0]:>9}  {cells[1]:>7}  {cells[2]:>7}"
        )
    lines += ["", "true class by row, predicted by column:"]
    largest = len(str(int(scores.confusion.max())))
    for name, counts in zip(scores.class_names, scores.confusion, strict=True):
        cells = [
            f"{count:>{largest}}" if count else "·".rjust(largest) for count in counts
        ]
        lines.append(f"{name:<{width}}  {' '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
