#!/usr/bin/env python3
"""Draw images of a training batch beside what augmentation makes of them.

python scripts/show_batch.py network3 --epoch 2 --out batch.png

They are the very images that both backends train on, in that epoch of that recipe.
"""

from parity.program import (
    Parser,
    answer_interrupts,
    check_picture,
    main_of,
    positive,
    summary_of,
)

answer_interrupts()

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from parity import recipes
from parity.plots import save
from parity.sheets import batch_sheet
from parity.training import open_data, open_stream, split_data


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument(
        "recipe",
        help=f"a .toml file (a run's too), or one of {', '.join(recipes.names())}",
    )
    parser.add_argument(
        "--data", metavar="NAME", help="another data set than the recipe's"
    )
    parser.add_argument(
        "--epoch", type=positive, default=1, metavar="N", help="from 1 (default)"
    )
    parser.add_argument(
        "--count", type=positive, default=16, metavar="N", help="images (16)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("batch.png"),
        metavar="FILE",
        help="default: %(default)s",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    check_picture("--out", args.out)
    recipe = recipes.load(args.recipe)
    if args.data is not None:
        recipe = recipe.replace({"data": args.data})
    part, _ = split_data(recipe, open_data(recipe))
    batch = next(open_stream(recipe, part).epoch(args.epoch - 1))
    count = min(args.count, len(batch.images))
    mean, std = part.mean[:, None, None], part.std[:, None, None]
    levels = 255 * (batch.images[:count] * std + mean)
    given = levels.round().clip(0, 255).astype(np.uint8)
    labels = [caption(label, part.class_names) for label in batch.labels[:count]]
    done = ", ".join(entry["name"] for entry in recipe.augment) or "no augmentation"
    title = f"{recipe.name}, epoch {args.epoch}: {done}"
    stored = part.images[batch.indices[:count]]
    save(batch_sheet(stored, given, labels, title), args.out)
    print(f"{count} images of {recipe.data} -> {args.out}")
    return 0


def caption(label: Any, names: tuple[str, ...]) -> str:
    """Return a class, or the shares of those that are mixed."""
    if not np.ndim(label):
        return names[int(label)]
    best = [k for k in np.argsort(-label, kind="stable")[:2] if label[k] > 0]
    return "\n".join(f"{label[k]:.0%} {names[k]}" for k in best)


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
