"""`parity all`: everything that `make parity` shows, into one folder."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from parity.cli import AGREE, MISMATCH
from parity.commands import check, curves
from parity.program import Parser, make_folder

STEPS = 200
RECIPE, DATA = "network1", "mnist-subset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/parity"),
        metavar="DIR",
        help="gets report.html, report.json, junit.xml and curves.png; by default "
        "runs/parity",
    )


def run(args: argparse.Namespace) -> int:
    """Check, transfer, compare; print, write, and return the exit status."""
    from parity import recipes
    from parity.files import write_json
    from parity.page import write_report
    from parity.plots import plot_comparison
    from parity.sections import curves_section, transfers_section

    make_folder("--out", args.out)
    report = args.out / "report.json"
    parser = Parser(prog="parity check")
    check.add_arguments(parser)
    checks, seconds = check.checked(parser.parse_args(["--report", str(args.out)]))
    failed = any(result.failures for result in checks)

    print(f"\nWeights both ways: {RECIPE}, trained for an epoch on {DATA}")
    recipe = recipes.load(RECIPE).replace({"data": DATA, "epochs": 1})
    transfers = transfer_both_ways(recipe)
    for found in transfers:
        print(
            f"  {found['from']:>5} to {found['to']:<5}  {found['tensors']} tensors, "
            f"{'equal bit for bit' if found['weights_equal'] else 'NOT EQUAL'}; "
            f"{found['same_predictions']:,} of {found['images']:,} predictions the same"
        )
        same = found["same_predictions"] == found["images"]
        failed |= not (found["weights_equal"] and same)

    print(f"\nCurves: {RECIPE}, {STEPS} steps in both")
    recipe = recipes.load(RECIPE).replace({"data": DATA, "dtype": "float64"})
    comparison = curves.measure(recipe, STEPS)
    print(curves.table(comparison))
    print(curves.summary(comparison))
    failed |= comparison.diverged_at is not None
    plot_comparison(comparison, args.out / "curves.png")

    # Once more, now that there is all to show.
    sections = [
        transfers_section(transfers, RECIPE, DATA),
        curves_section(comparison, curves.summary(comparison)),
    ]
    write_report(args.out, checks, seconds, sections)
    results = json.loads(report.read_text("utf-8"))
    results |= {"transfers": transfers, "curves": comparison.to_dict()}
    write_json(report, results)
    files = [args.out / name for name in ("report.html", "report.json", "curves.png")]
    print(f"\n{'FAILED' if failed else 'All agree'}: {', '.join(map(str, files))}")
    return MISMATCH if failed else AGREE


def transfer_both_ways(recipe: Any) -> list[dict[str, Any]]:
    """Train in each backend, open the file in the other, and compare the two."""
    import numpy as np

    from parity.training import BACKENDS, Backend, RunFolder, open_data, predict, train
    from parity.transfer import weights

    dataset = open_data(recipe)
    found = []
    for backend in BACKENDS:
        # Threads cost a network this small more than they save.
        Backend.load(backend).set_threads(1)
    for source, target in (BACKENDS, BACKENDS[::-1]):
        with tempfile.TemporaryDirectory() as scratch:
            folder = RunFolder(Path(scratch))
            folder.create(recipe, Backend.load(source), overwrite=False)
            for _ in train(recipe, Backend.load(source), dataset, folder):
                pass
            models = {
                name: Backend.load(name)
                .module("checkpoint")
                .from_pretrained(folder.checkpoint)
                for name in (source, target)
            }
        arrays = [weights(model) for model in models.values()]
        classes = [
            predict(model, Backend.load(name), dataset.test).argmax(axis=1)
            for name, model in models.items()
        ]
        found.append(
            {
                "from": source,
                "to": target,
                "tensors": len(arrays[0]),
                "weights_equal": arrays[0].keys() == arrays[1].keys()
                and all(
                    np.array_equal(arrays[0][name], arrays[1][name])
                    for name in arrays[0]
                ),
                "images": len(classes[0]),
                "same_predictions": int((classes[0] == classes[1]).sum()),
            }
        )
    return found
