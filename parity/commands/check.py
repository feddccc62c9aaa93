"""`parity check`: every pair on drawn cases, a table, and what is wrong."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parity.cli import AGREE, MISMATCH
from parity.data.cache import cache_folder
from parity.names import unknown_name
from parity.program import at_least, check_target, make_folder, positive
from parity.progress import progress_bar

if TYPE_CHECKING:
    from parity.pair import Pair
    from parity.runs import PairResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--layer",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="the rows of the table to check; all by default",
    )
    parser.add_argument(
        "--pairs",
        metavar="MODULE:NAME",
        help="another table of pairs: a sequence of parity.Pair in a module",
    )
    parser.add_argument(
        "--dtype", choices=("float64", "float32", "both"), default="both"
    )
    parser.add_argument(
        "--examples",
        type=positive,
        metavar="N",
        help="cases a pair and dtype (default 42), at least two a regime",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S")
    parser.add_argument(
        "--case", metavar="JSON", help="one case, as a failure report gives it"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes; by default one a core, up to 8",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there as well"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.html, a page to read, report.json and junit.xml there",
    )


def run(args: argparse.Namespace) -> int:
    """Check, print, and return the exit status."""
    results, _ = checked(args)
    return MISMATCH if any(result.failures for result in results) else AGREE


def checked(args: argparse.Namespace) -> tuple[list[PairResult], float]:
    """Check, print and write; return the results, and how many seconds they took."""
    check_target("--json", args.json)
    if args.report is not None:
        make_folder("--report", args.report)
    # Hypothesis keeps notes, by default in a folder where the user happens to be.
    os.environ.setdefault(
        "HYPOTHESIS_STORAGE_DIRECTORY", str(cache_folder() / "hypothesis")
    )
    from parity.causes import explain_result
    from parity.files import write_json
    from parity.page import write_report
    from parity.report import accuracy_notes, describe, summary, table, to_json
    from parity.runs import EXAMPLES, checked_in, run_case, run_pairs
    from parity.strategies import Case

    pairs_at = args.pairs or "parity.pairs:PAIRS"
    by_name = {pair.name: pair for pair in _table(pairs_at)}
    for name in args.layer or ():
        if name not in by_name:
            raise unknown_name("layer", name, by_name)
    pairs = [by_name[name] for name in dict.fromkeys(args.layer or by_name)]
    dtypes = ("float64", "float32") if args.dtype == "both" else (args.dtype,)
    tasks = checked_in(pairs, dtypes)
    started = time.perf_counter()
    if args.case is not None:
        if len(pairs) != 1:
            raise ValueError(f"--case needs exactly one --layer, got {len(pairs)}")
        case = Case.from_json(args.case, args.seed)
        results = [run_case(pair, dtype, case) for pair, dtype in tasks]
    else:
        examples = args.examples or EXAMPLES
        total = examples * len(tasks)
        with progress_bar("parity check", total, "case") as advance:
            results = run_pairs(
                pairs,
                dtypes,
                examples=examples,
                seed=args.seed,
                workers=args.workers,
                progress=advance,
            )
    seconds = time.perf_counter() - started
    failed = [result for result in results if result.failures]
    for result in failed:
        result.table = args.pairs
        result.explanation = explain_result(by_name[result.pair], result)
    # Files first: whoever reads what is printed may stop reading.
    if args.json is not None:
        write_json(args.json, to_json(results, seconds))
    page = args.report and write_report(args.report, results, seconds)[0]
    print(table(results))
    for result in failed:
        print(describe(result))
    for note in accuracy_notes(results):
        print(note)
    print(summary(results, seconds))
    if page is not None:
        print(page)
    return results, seconds


def _table(path: str) -> Sequence[Pair]:
    """Import a table of pairs; a module may lie in the current folder."""
    from parity.pair import Pair, load, refuse_same_names

    if not re.fullmatch(r"[\w.]+:\w+", path):
        raise ValueError(
            f"--pairs must be 'module:name', got {path!r}; my_pairs:PAIRS, for example"
        )
    sys.path.insert(0, os.getcwd())
    try:
        pairs = load(path)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"--pairs cannot be imported, got {path!r}: {error}") from None
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ValueError(f"--pairs must name a sequence of pairs, got {path!r}")
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise ValueError(
                f"--pairs must name a sequence of parity.Pair, got {pair!r} in it"
            )
    refuse_same_names(pairs)
    return pairs
