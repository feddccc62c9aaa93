#!/usr/bin/env python3
"""Train a network by a recipe, in NumPy or in PyTorch.

python scripts/train.py network1 --backend numpy --data mnist-subset --epochs 3
"""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

from parity import recipes
from parity.data.progress import progress_bar
from parity.program import main_of, positive, summary_of
from parity.training import BACKENDS, Backend, Epoch, RunFolder, open_data, train


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary_of(__doc__))
    parser.add_argument(
        "recipe", help=f"a .toml file, or one of {', '.join(recipes.names())}"
    )
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument(
        "--data", metavar="NAME", help="another data set than the recipe's"
    )
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--lr", type=float, metavar="RATE")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--dtype", choices=recipes.DTYPES)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the recipe: model.depth=2, schedule.warmup_steps=50",
    )
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default runs/RECIPE-BACKEND"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run that --out holds"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that --out holds"
    )
    return parser.parse_args(argv)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe's keys that the command line sets."""
    flags = {
        "data": args.data,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "optimizer.lr": args.lr,
        "seed": args.seed,
        "dtype": args.dtype,
    }
    chosen = {key: value for key, value in flags.items() if value is not None}
    for item in args.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set needs KEY=VALUE, got {item!r}")
        try:
            chosen[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            # Quotes that a shell has taken away are not asked for again.
            chosen[key.strip()] = text
    return chosen


def run(args: argparse.Namespace) -> int:
    backend = Backend.load(args.backend)
    recipe = recipes.load(args.recipe).replace(changes(args))
    folder = RunFolder(args.out or Path("runs") / f"{recipe.name}-{backend.name}")
    if args.resume:
        check_same(folder.reopen(), recipe, folder)
    dataset = open_data(recipe)
    backend.prepare()
    if args.threads:
        backend.set_threads(args.threads)
    if not args.resume:
        folder.create(recipe, backend, overwrite=args.overwrite)
    images = f"{len(dataset.train)} images, {len(dataset.test)} to test with"
    print(
        f"{recipe.name} in {backend.name} on {recipe.data} ({images}) -> {folder.path}"
    )
    steps = -(-len(dataset.train) // recipe.batch_size)
    records = train(recipe, backend, dataset, folder)
    # One bar an epoch; between two, its line is printed.
    for record in records:
        done = record if isinstance(record, Epoch) else follow(records, steps)
        print(line(done, recipe.epochs), flush=True)
    return 0


def follow(records: Any, steps: int) -> Epoch:
    """Show the steps of an epoch, the first of which is made, and return its record."""
    with progress_bar("training", steps, "step") as advance:
        advance(1)
        for record in records:
            if isinstance(record, Epoch):
                return record
            advance(1)
    raise ValueError("the run ended in the middle of an epoch")


def line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}  "
        f"loss {epoch.train_loss:.4f}  train {epoch.train_accuracy:7.2%}  "
        f"test {epoch.test_accuracy:7.2%}  {epoch.seconds:.1f} s"
    )


def check_same(old: recipes.Recipe, new: recipes.Recipe, folder: RunFolder) -> None:
    """Raise if a run would be resumed by another recipe, but for more epochs."""
    before, after = flat(old.to_dict()), flat(new.resolved().to_dict())
    for key in after:
        if key != "epochs" and before.get(key) != after[key]:
            raise ValueError(
                f"{folder.path} was run with {key}={before.get(key)!r}, "
                f"got {after[key]!r}; resume it with the same settings"
            )


def flat(tables: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            result |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            result[key] = value
    return result


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
