#!/usr/bin/env python3
"""Draw what a recipe's augmentation makes of some training images, as one picture.

python scripts/show_augmentation.py network3 --out augmentation.png
"""

import argparse
import sys
from pathlib import Path

from parity import recipes
from parity.data.sheet import augmentation_sheet
from parity.program import main_of, positive
from parity.training import open_data


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recipe", help=f"a .toml file, or one of {', '.join(recipes.names())}"
    )
    parser.add_argument(
        "--data", metavar="NAME", help="another data set than the recipe's"
    )
    parser.add_argument("--images", type=positive, default=8, metavar="N")
    parser.add_argument("--epochs", type=positive, default=8, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("augmentation.png"),
        metavar="FILE",
        help="a picture file (default: %(default)s)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    flags = {"data": args.data, "seed": args.seed}
    recipe = recipes.load(args.recipe).replace(
        {key: value for key, value in flags.items() if value is not None}
    )
    names = [entry["name"] for entry in recipe.augment]
    sheet = augmentation_sheet(
        open_data(recipe).train,
        recipe.transforms(),
        count=args.images,
        epochs=args.epochs,
        seed=recipe.seed,
        title=f"{recipe.name}: {', '.join(names) or 'no augmentation'}",
    )
    sheet.save(args.out)
    print(f"{recipe.name} on {recipe.data} -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
