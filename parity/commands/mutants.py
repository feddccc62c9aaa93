"""`parity mutants`: how many defects the checks find, and how often they cry wolf."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from parity.cli import AGREE, MISMATCH
from parity.files import write_json
from parity.names import unknown_name
from parity.program import at_least, check_target, positive
from parity.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--layer",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="judge only what these rows of the table run, by their own cases",
    )
    parser.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="judge N mutants, drawn by the seed; all by default",
    )
    parser.add_argument(
        "--examples",
        type=positive,
        metavar="N",
        help="cases a pair and dtype, as for parity check",
    )
    parser.add_argument(
        "--false-alarms",
        type=positive,
        metavar="N",
        help="also make at least N checks of correct code, and count what fails",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S")
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


def run(args: argparse.Namespace) -> int:
    """Judge the mutants, print, and return the exit status."""
    check_target("--json", args.json)
    if not hasattr(os, "fork"):
        raise ValueError("parity mutants needs a system that can fork, as Linux")
    from parity.mutants import run_mutants
    from parity.mutants.report import describe, to_json
    from parity.pairs import PAIRS
    from parity.runs import EXAMPLES

    by_name = {pair.name: pair for pair in PAIRS}
    for name in args.layer or ():
        if name not in by_name:
            raise unknown_name("layer", name, by_name)
    pairs = [by_name[name] for name in dict.fromkeys(args.layer or by_name)]
    examples = args.examples or EXAMPLES
    cases = examples * sum(len(pair.dtypes) for pair in pairs)
    with (
        progress_bar("references", cases, "case") as prepared,
        progress_bar("mutants", None, "mutant") as judged,
    ):
        outcome = run_mutants(
            pairs,
            only=bool(args.layer),
            sample=args.sample,
            examples=examples,
            seed=args.seed,
            workers=args.workers,
            preparing=prepared,
            judging=lambda count, total: judged(count),
        )
    alarms = None
    if args.false_alarms:
        from parity.mutants.alarms import count_false_alarms

        with progress_bar("correct code", args.false_alarms, "check") as checked:
            alarms = count_false_alarms(
                pairs,
                args.false_alarms,
                seed=args.seed,
                workers=args.workers,
                progress=checked,
            )
    if args.json is not None:
        write_json(args.json, to_json(outcome, alarms))
    print(describe(outcome, alarms))
    clean = not (outcome.survivors or outcome.disproved or outcome.missed)
    return AGREE if clean and not (alarms and alarms["failures"]) else MISMATCH
