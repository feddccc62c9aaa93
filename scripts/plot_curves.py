#!/usr/bin/env python3
"""Lay the training curves of any runs, finished or in progress, on one plot.

python scripts/plot_curves.py runs/network1-numpy runs/network1-torch --out curves.png
"""

from parity.program import Parser, answer_interrupts, main_of, positive, summary_of

answer_interrupts()

import argparse
import sys
from pathlib import Path

from parity.plots import compare_runs, read_metrics, save


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument(
        "run",
        type=Path,
        nargs="+",
        help="a run's folder, its metrics.jsonl, or a curve that was kept of it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help=".png, .svg or .pdf (default: %(default)s)",
    )
    parser.add_argument(
        "--smooth",
        type=positive,
        metavar="STEPS",
        help="steps in the running mean (default: a fiftieth of the run's; 1 is none)",
    )
    parser.add_argument(
        "--by",
        choices=("auto", "epoch", "step"),
        default="auto",
        help="what to lay along the axis (default: epochs, once each run has one)",
    )
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        help="draw the loss on a logarithmic axis (default: where it falls far)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    runs = {
        name: read_metrics(path)
        for name, path in zip(names(args.run), args.run, strict=True)
    }
    save(compare_runs(runs, args.smooth, args.by, args.log), args.out)
    print(f"{', '.join(runs)} -> {args.out}")
    return 0


def names(paths: list[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    whole = [path.resolve() for path in paths]
    # A run is called by its folder, a curve that was kept of one by its file.
    whole = [path.parent if path.name == "metrics.jsonl" else path for path in whole]
    whole = [p.with_suffix("") if p.suffix == ".jsonl" else p for p in whole]
    if len(set(whole)) < len(whole):
        raise ValueError("a run is named twice; give each once")
    depth = 1
    while True:
        ends = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(ends)) == len(ends):
            return ends
        depth += 1


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
