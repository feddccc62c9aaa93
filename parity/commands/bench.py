"""`parity bench`: how long each backend takes for the same work."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parity.cli import AGREE
from parity.program import check_picture, check_target, positive

if TYPE_CHECKING:
    from parity.bench.runs import Bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="NAME",
        help="presets to measure (default: network1 to network3, ti16, s16, b16)",
    )
    parser.add_argument(
        "--what",
        choices=("train", "infer", "layers", "growth"),
        default="train",
        help="training steps, inference, layers by themselves on one thread, or how "
        "a training step grows with batch, tokens, width, depth and threads",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="numpy torch torch-compile timm timm-compile torchvision transformers jax "
        "(default: those installed; growth: numpy and torch)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="that share a training step of numpy (default: as many as pay; "
        "1: threads alone)",
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="images a step")
    parser.add_argument(
        "--dropout",
        choices=("on", "off", "both"),
        default="both",
        help="for networks that have it (default: both)",
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="length of each backend's turn in a round (default 1)",
    )
    parser.add_argument(
        "--coretype",
        nargs="+",
        default=["native"],
        metavar="KERNEL",
        help="kernels that OpenBLAS is told to use, such as: native Haswell",
    )
    parser.add_argument(
        "--compile-limit",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds after which a backend that is not ready is given up",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the rows too")
    parser.add_argument(
        "--from-json",
        type=Path,
        metavar="FILE",
        help="measure nothing: show what an earlier run wrote",
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="MD",
        help="put the tables into this file, as docs/performance.md has them",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    check_target("--json", args.json)
    check_picture("--plot", args.plot)
    from parity.bench.runs import Bench
    from parity.bench.tables import markdown, plot, text, text_around, write_into
    from parity.files import write_json

    if args.into is not None:
        # What cannot be put there is told before minutes of measuring.
        text_around(args.what, args.into)
    if args.from_json is not None:
        try:
            bench = Bench.from_dict(json.loads(args.from_json.read_text("utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{args.from_json}: {error}; give a file that --json wrote"
            ) from None
    else:
        bench = _measure(args)
    print((markdown if args.markdown else text)(bench))
    if args.json is not None:
        write_json(args.json, bench.to_dict())
    if args.into is not None:
        write_into(bench, args.what, args.into)
    if args.plot is not None:
        plot(bench, args.plot)
    return AGREE


def _measure(args: argparse.Namespace) -> Bench:
    from parity.bench.runs import (
        NETWORKS,
        Bench,
        growth_workloads,
        measure,
        network_workloads,
    )
    from vit_numpy.parallel import get_num_threads

    threads = args.threads or get_num_threads()
    backends = args.backends
    if args.what == "growth":
        workloads = growth_workloads(threads)
        backends = backends or ["numpy", "torch"]
    else:
        networks = args.networks or list(NETWORKS)
        workloads = network_workloads(
            networks, args.what, threads, args.batch, args.dropout
        )
    bench = Bench()
    for coretype in args.coretype:
        part = measure(
            workloads,
            backends,
            args.rounds,
            args.seconds,
            "" if coretype == "native" else coretype,
            args.compile_limit,
            lambda line: print(line, file=sys.stderr, flush=True),
            args.processes,
        )
        bench.rows += part.rows
        bench.environment = bench.environment or part.environment
        for name, rate in part.matmul_gflops.items():
            kernel = "" if coretype == "native" else f", {coretype}"
            bench.matmul_gflops[name + kernel] = rate
    return bench
