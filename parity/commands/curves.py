"""`parity curves`: a recipe in both backends, step by step."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from parity.cli import AGREE, MISMATCH
from parity.program import check_picture, check_target, positive
from parity.progress import progress_bar

if TYPE_CHECKING:
    from parity.curves import Comparison
    from parity.recipes import Recipe

# What stands in for a data set that must be fetched: the digits that ship.
STAND_INS = {"mnist": "mnist-subset"}

# Steps in the table.
_ROWS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("recipe", help="a name, or a .toml file")
    parser.add_argument("--steps", type=positive, default=200, metavar="N")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument(
        "--resync",
        type=positive,
        metavar="K",
        help="give both the same state every K steps and judge single steps by the "
        "error bound; by default 1 in float32, and never in float64",
    )
    parser.add_argument(
        "--judge",
        type=positive,
        metavar="N",
        help="judge so many of the stretches between two resyncs, evenly spread "
        "(default 10)",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="by default the recipe's; for mnist the digits that ship",
    )
    parser.add_argument("--seed", type=int, metavar="S")
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="of either backend (default 1, the fastest for small networks)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG")


def run(args: argparse.Namespace) -> int:
    """Train, print, and return the exit status."""
    from parity import recipes
    from parity.files import write_json

    check_target("--json", args.json)
    check_picture("--plot", args.plot)
    recipe = recipes.load(args.recipe).replace({"dtype": args.dtype})
    data = args.data or STAND_INS.get(recipe.data, recipe.data)
    recipe = recipe.replace({"data": data})
    if args.seed is not None:
        recipe = recipe.replace({"seed": args.seed})
    comparison = measure(recipe, args.steps, args.resync, args.judge, args.threads)
    if args.json is not None:
        write_json(args.json, comparison.to_dict())
    if args.plot is not None:
        from parity.plots import plot_comparison

        plot_comparison(comparison, args.plot)
    print(table(comparison))
    print(summary(comparison))
    return AGREE if comparison.diverged_at is None else MISMATCH


def measure(
    recipe: Recipe,
    steps: int,
    resync: int | None = None,
    judged: int | None = None,
    threads: int = 1,
) -> Comparison:
    """Compare a recipe in both backends, with a progress bar."""
    from parity.curves import JUDGED, compare
    from parity.training import BACKENDS, Backend, fitted, open_data

    dataset = open_data(recipe)
    recipe = fitted(recipe, dataset)
    for backend in BACKENDS:
        Backend.load(backend).set_threads(threads)
    lockstep = resync is not None or recipe.dtype == "float32"
    with progress_bar("parity curves", steps * (1 + lockstep), "step") as advance:
        return compare(
            recipe,
            dataset,
            steps,
            resync=resync,
            judged=judged or JUDGED,
            progress=advance,
        )


def table(comparison: Comparison) -> str:
    """Return a row each few steps of the free run, and of the lockstep beside it."""
    c = comparison
    last = "     drift" if c.verdict is None else "  in lockstep"
    lines = [
        f"  step   loss, NumPy  loss, torch  difference  torch ± 1 ulp{last}",
        "  " + "─" * (58 + len(last)),
    ]
    for step in sorted({-(-c.steps * row // _ROWS) for row in range(1, _ROWS + 1)}):
        i = step - 1
        ours, theirs = c.free.loss["numpy"][i], c.free.loss["torch"][i]
        lines.append(
            f"{step:6}  {ours:12.6f} {theirs:12.6f}  "
            f"{c.free.relative_difference[i]:10.1e}  {c.envelope.difference[i]:13.1e}"
            + (
                f"  {c.free.drift[i]:8.1e}"
                if c.verdict is None
                else f"  {c.decisive.relative_difference[i]:11.1e}"
            )
        )
    return "\n".join(lines)


def summary(comparison: Comparison) -> str:
    """Return what the comparison has shown."""
    c = comparison
    largest = max(c.decisive.relative_difference)
    how = "free"
    if c.verdict is not None:
        how = (
            f"lockstep, {len(c.verdict.steps)} judged: at most "
            f"{c.verdict.max_bound_used:.2f} of the error bound ({c.verdict.tensor})"
        )
    text = (
        f"{c.recipe} on {c.data} in {c.dtype}: {c.steps} steps, {how}; "
        f"largest relative difference of the loss {largest:.1e}"
    )
    if c.diverged_at is None:
        return f"{text}; the curves agree"
    where = f"; first wrong by itself is {c.parting}" if c.parting else ""
    return f"{text}; the curves part at step {c.diverged_at}{where}"
