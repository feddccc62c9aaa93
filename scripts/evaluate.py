#!/usr/bin/env python3
"""Score a checkpoint on the test images of a data set, in NumPy or in PyTorch.

python scripts/evaluate.py runs/network1-numpy/last.safetensors --backend torch
"""

from parity.program import (
    Parser,
    answer_interrupts,
    check_target,
    main_of,
    positive,
    summary_of,
)

answer_interrupts()

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from parity.classifier import Classifier, add_normalisation_options
from parity.data import Dataset
from parity.files import write_json, write_text
from parity.plots import check_matplotlib, save
from parity.scores import Scores, score, worst_mistakes
from parity.sheets import confusion_matrix, mistakes_sheet
from parity.training import BACKENDS, Backend, check_fit, predict

# A table with more columns than this does not fit a terminal.
MOST_COLUMNS = 25
SHOWN_CONFUSIONS = 5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument(
        "--data", metavar="NAME", help="default: what the network was trained on"
    )
    add_normalisation_options(parser)
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write top1, top5, per_class, confusion (a row a true class), predictions",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write confusion.csv, confusion.png, mistakes.png and scores.json there",
    )
    parser.add_argument(
        "--mistakes",
        type=positive,
        default=24,
        metavar="N",
        help="the most confident mistakes to show (default: %(default)s)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    backend = Backend.load(args.backend)
    check_target("--json", args.json)
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {args.out}")
    if args.out is not None:
        check_matplotlib()
    network = Classifier.open(args.checkpoint, backend)
    dataset = network.open_data(args.data)
    check_fit(dataset, network.config)
    network.check_classes(dataset)
    # Images are normalised as they were in training, whatever they are.
    normalisation = network.normalisation(args.mean, args.std)
    backend.prepare()
    if args.threads:
        backend.set_threads(args.threads)
    part = dataset.test
    logits = predict(network.model, backend, part, **normalisation)
    scores = score(logits, part.labels, part.class_names)
    # Files first: whoever reads what is printed may stop reading.
    found = scores.to_dict() | {"predictions": logits.argmax(axis=1).tolist()}
    if args.json is not None:
        write_json(args.json, found)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "scores.json", found)
        write_text(args.out / "confusion.csv", table(scores))
        draw(args.out, dataset, logits, scores, args.mistakes)
    print(f"{args.checkpoint} in {backend.name} on {dataset.name}")
    print(report(scores))
    if args.out is not None:
        print(
            f"\nconfusion.csv, confusion.png, mistakes.png, scores.json in {args.out}"
        )
    return 0


def draw(
    folder: Path, dataset: Dataset, logits: Any, scores: Scores, count: int
) -> None:
    """Write the pictures."""
    part = dataset.test
    worst = worst_mistakes(logits, part.labels, count)
    right = f"{scores.top1:.2%} of {len(part):,} test images right"
    save(confusion_matrix(scores, f"{dataset.name}: {right}"), folder / "confusion.png")
    rows = np.array([mistake.index for mistake in worst], int)
    images = part.take(rows).images[:]
    wrong = len(part) - int(scores.confusion.trace())
    shown = f"the {len(worst)} most confident of {wrong:,} mistakes"
    if not wrong:
        shown = "no mistakes"
    elif len(worst) == wrong:
        shown = f"all {wrong:,} mistakes, the most confident first"
    title = f"{dataset.name}: {shown}"
    save(
        mistakes_sheet(worst, images, part.class_names, title), folder / "mistakes.png"
    )


def table(scores: Scores) -> str:
    """Return the confusion matrix as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["true class \\ predicted", *scores.class_names])
    for name, counts in zip(scores.class_names, scores.confusion, strict=True):
        writer.writerow([name, *counts.tolist()])
    return file.getvalue()


def report(scores: Scores) -> str:
    """Return the scores as text."""
    names = scores.class_names
    width = max(len("class"), *(len(name) for name in names))
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
    lines += [
        "precision: of the images taken for the class, the share that are of it",
        "recall: of the images of the class, the share taken for it",
        "F1: 2 · precision · recall / (precision + recall)",
    ]
    if len(names) <= MOST_COLUMNS:
        lines += ["", "true class by row, predicted by column:"]
        lines += matrix(scores)
    if worst := scores.confusions()[:SHOWN_CONFUSIONS]:
        lines += ["", "most often confused:"]
        most = len(str(worst[0][0]))
        lines += [
            f"{count:>{most}} of {names[true]} taken for {names[predicted]}"
            for count, true, predicted in worst
        ]
    return "\n".join(lines)


def matrix(scores: Scores) -> list[str]:
    """Return the lines of the confusion matrix, zeros as dots."""
    names = scores.class_names
    short = max(len(name) for name in names) <= 4
    heads = names if short else [str(k) for k in range(len(names))]
    cell = max(len(str(int(scores.confusion.max()))), *(len(head) for head in heads))
    # Long names head the rows alone; the columns are in the same order.
    labels = names if short else [f"{k} {name}" for k, name in enumerate(names)]
    width = max(len(label) for label in labels)
    lines = [" " * width + "  " + " ".join(head.rjust(cell) for head in heads)]
    for label, counts in zip(labels, scores.confusion, strict=True):
        cells = [(str(count) if count else "·").rjust(cell) for count in counts]
        lines.append(f"{label:<{width}}  {' '.join(cells)}")
    return lines


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
