#!/usr/bin/env python3
"""Write the metrics of runs as TensorBoard logs.

python scripts/to_tensorboard.py runs/network1-numpy runs/network1-torch --out logs
tensorboard --logdir logs
"""

from parity.program import Parser, answer_interrupts, main_of, summary_of

answer_interrupts()

import argparse
import sys
from pathlib import Path

from parity.plots import read_metrics
from parity.tensorboard import TensorBoardLog


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument("run", type=Path, nargs="+", help="the folder of a run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder a run in it"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    names = [path.resolve().name for path in args.run]
    if len(set(names)) < len(names):
        raise ValueError("two runs have folders of one name; write them one by one")
    for name, path in zip(names, args.run, strict=True):
        records = read_metrics(path)
        folder = args.out / name
        if folder.is_dir() and any(folder.iterdir()):
            # TensorBoard would draw both as one line that runs back and forth.
            raise FileExistsError(f"{folder} is not empty; choose another --out")
        with TensorBoardLog(folder) as log:
            for record in records:
                log.write(record)
        print(f"{path} -> {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
