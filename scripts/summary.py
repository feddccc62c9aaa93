#!/usr/bin/env python3
"""List the layers of a network, with shapes, parameters and operations.

python scripts/summary.py b16
python scripts/summary.py runs/network1-numpy/last.safetensors --batch-size 100
"""

from parity.program import Parser, answer_interrupts, main_of, positive, summary_of

answer_interrupts()

import argparse
import json
import sys
from pathlib import Path

from parity import recipes
from parity.files import write_json
from parity.summary import summarise
from vit_numpy.checkpoint import from_pretrained
from vit_numpy.config import PRESETS, ViTConfig, unknown


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument(
        "network",
        help="a checkpoint, a recipe (name or .toml file), or a preset: "
        + ", ".join(PRESETS),
    )
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the same as JSON; - is standard output, in place of the text",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    summary = summarise(find(args.network), args.batch_size)
    if args.json != "-":
        print(summary.text())
    if args.json is not None:
        found = summary.to_dict()
        if args.json == "-":
            print(json.dumps(found, indent=1))
        else:
            write_json(Path(args.json), found)
    return 0


def find(name: str) -> ViTConfig:
    """Return the configuration of a file, a recipe or a preset."""
    path = Path(name)
    if path.suffix == ".toml" or (name in recipes.names() and not path.is_file()):
        return recipes.load(name).config()
    if name in PRESETS and not path.is_file():
        return PRESETS[name]
    if path.is_file() or path.suffix or path.parent != Path():
        return from_pretrained(path).config
    known = dict.fromkeys([*PRESETS, *recipes.names()])
    raise ValueError(unknown("network", name, known))


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
