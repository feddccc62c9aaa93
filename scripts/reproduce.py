#!/usr/bin/env python3
"""Run every recipe in both backends, and write down what comes of it.

python scripts/reproduce.py --budget 60

It can be stopped at any time, and goes on where it was. Each result is recorded as soon
as it is there. Several of these programs may share a folder of runs, each with recipes
or a backend and --results of its own; `--budget 0` then writes one page of all that is
finished.
"""

from parity.program import Parser, answer_interrupts, main_of, positive, summary_of

answer_interrupts()

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from parity import recipes
from parity.files import write_text
from parity.names import unknown_name
from parity.plots import check_matplotlib
from parity.results import (
    TIMES,
    Job,
    Result,
    Results,
    draw_curves,
    draw_times,
    keep_curves,
    page,
    plan,
)
from parity.training import (
    BACKENDS,
    RECIPE_FILE,
    Backend,
    StopSignals,
    exit_status,
)

TRAIN = Path(__file__).with_name("train.py")

# Statuses of a training that saved its state because it was asked to stop, and of one
# that was asked before it had begun.
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="stop after so long; 0 collects what --runs holds, and trains nothing",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="RECIPE", help="these recipes alone"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="this backend alone")
    parser.add_argument(
        "--folder", type=Path, help="pictures for folder-224, a sub-folder a class"
    )
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument("--device", help="where torch computes: cuda, cuda:1, mps")
    shorter = parser.add_argument_group("to try it out, in runs/trial")
    shorter.add_argument("--epochs", type=positive, metavar="N", help="fewer")
    shorter.add_argument("--data", metavar="NAME", help="other data")
    parser.add_argument("--runs", type=Path, help="default: runs/reproduce")
    parser.add_argument("--results", type=Path, help="default: docs/results.json")
    args = parser.parse_args(argv)
    # What is no result of a recipe must not stand in the way of one.
    trial = bool(args.epochs or args.data)
    args.runs = args.runs or Path("runs/trial" if trial else "runs/reproduce")
    args.results = args.results or Path(
        "runs/trial/results.json" if trial else "docs/results.json"
    )
    return args


def run(args: argparse.Namespace) -> int:
    for name in args.only or ():
        if name not in recipes.names():
            raise unknown_name("recipe", name, recipes.names())
    if "folder-224" in (args.only or ()) and args.folder is None:
        raise ValueError("folder-224 takes your own pictures; add --folder PATH")
    if args.results.suffix != ".json":
        raise ValueError(f"--results must end in .json, got {args.results}")
    check_matplotlib()
    if args.device:
        Backend.load(args.backend or "torch", device=args.device)
    jobs = [
        job
        for job in plan(folder=args.folder is not None)
        if (not args.only or job.recipe in args.only)
        and args.backend in (None, job.backend)
    ]
    results = Results(args.results)
    minutes = float("inf") if args.budget is None else args.budget
    deadline = time.monotonic() + 60 * minutes
    found = results.collect(args.runs)
    if results.by_name:
        publish(results, {job.recipe for job in found}, args)
    for job in found:
        print(f"{job.name}: found\n  {outcome(results, job, '')}", flush=True)
    if not any(unfinished(results, job, args) for job in jobs):
        print(
            f"{args.results} has all of these; to run them again, give other --results "
            "and other --runs"
        )
    failed = 0
    with StopSignals() as signals:
        for job in jobs:
            if not unfinished(results, job, args):
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                print(f"the budget of {args.budget:g} minutes is spent")
                break
            print(f"{job.name} …", flush=True)
            error = make(job, args, deadline, signals)
            folder = args.runs / job.name
            results.record(job, Result.read(job, folder), error)
            publish(results, {job.recipe}, args)
            print(f"  {outcome(results, job, error)}", flush=True)
            failed += bool(error)
            if signals:
                return exit_status(signals)
    return 1 if failed else 0


def wanted(job: Job, args: argparse.Namespace) -> recipes.Recipe:
    """Return the recipe of a job, with what the command line changes."""
    data = f"folder:{args.folder}" if job.recipe == "folder-224" else args.data
    changes = {"epochs": args.epochs, "data": data, "seed": job.seed}
    given = {key: value for key, value in changes.items() if value is not None}
    return recipes.load(job.recipe).replace(given)


def unfinished(results: Results, job: Job, args: argparse.Namespace) -> bool:
    """Tell whether a job has not been run to its end by its recipe as it is now."""
    known = results.by_name.get(job.name)
    if known is None or not known.finished:
        return True
    return known.fingerprint != wanted(job, args).fingerprint()


def publish(results: Results, changed: set[str], args: argparse.Namespace) -> None:
    """Write the page, and draw the curves of recipes with new ones or no picture."""
    folder = args.results.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in {result.recipe for result in results.by_name.values()}:
        path = folder / f"{recipe}.png"
        new = keep_curves(results, recipe, args.runs, folder)
        if new or recipe in changed or not path.exists():
            draw_curves(results, recipe, folder, path)
    draw_times(results, folder / TIMES)
    write_text(args.results.with_suffix(".md"), page(results, folder))


def make(
    job: Job, args: argparse.Namespace, deadline: float, signals: StopSignals
) -> str:
    """Run a job or go on with it, until it ends or time is up; return its error."""
    folder = args.runs / job.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), job.recipe, "--backend", job.backend]
    command += ["--out", str(folder)]
    recipe = wanted(job, args)
    if (folder / RECIPE_FILE).exists():
        if recipes.load(folder / RECIPE_FILE).fingerprint() != recipe.fingerprint():
            return f"{folder} holds a run of other settings; move it out of the way"
        command.append("--resume")
    else:
        command += ["--seed", str(recipe.seed), "--epochs", str(recipe.epochs)]
        command += ["--data", recipe.data]
    command += ["--threads", str(args.threads)] if args.threads else []
    if args.device and job.backend == "torch":
        command += ["--device", args.device]
    # A kernel that the environment forces would be measured instead of the CPU's own.
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    log = folder.with_suffix(".log")
    with log.open("a", encoding="utf-8") as output:
        before = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            # Ctrl-C reaches a whole group, and a second signal ends a training at once.
            process_group=0,
        )
        asked = False
        try:
            while process.poll() is None:
                if not asked and (signals or time.monotonic() >= deadline):
                    process.terminate()
                    asked = True
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    if process.returncode in (0, *STOPPED):
        return ""
    if process.returncode < 0:
        return f"train.py was ended by {signal.Signals(-process.returncode).name}"
    said = log.read_bytes()[before:].decode("utf-8", errors="replace")
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"train.py ended with status {process.returncode}"


def outcome(results: Results, job: Job, error: str) -> str:
    """Say on a line what came of a job."""
    result = results.by_name.get(job.name)
    if error:
        return f"failed: {error}"
    if result is None:
        return "stopped before its first epoch was finished"
    return (
        f"{result.epochs}/{result.planned_epochs} epochs, "
        f"test {result.test_accuracy:.2%}, {result.seconds / 60:.1f} min"
    )


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
