"""`parity demo`: what a defect looks like, without touching any file."""

from __future__ import annotations

import argparse
import inspect
import sys
from dataclasses import replace
from types import ModuleType

from parity.cli import AGREE

_MODULE = "vit_numpy.layers.attention"
_LINE = "dlogits -= row_dot(e, dlogits) / total"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line, which has no options."""


def run(args: argparse.Namespace) -> int:
    """Leave out the line, check attention, print what is said; 0 if it was noticed."""
    from parity.causes import explain_result
    from parity.pair import load
    from parity.pairs import PAIRS
    from parity.report import describe
    from parity.runs import run_pair

    source = inspect.getsource(sys.modules[load(f"{_MODULE}:Attention").__module__])
    if source.count(_LINE) != 1:
        raise ValueError(
            f"{_MODULE} must hold the line {_LINE!r} once, for the demo to leave it "
            f"out; got it {source.count(_LINE)} times"
        )
    broken = ModuleType("broken_attention", "vit_numpy's attention with a defect.")
    exec(
        compile(source.replace(_LINE, "pass"), "broken_attention", "exec"),
        vars(broken),
    )
    sys.modules[broken.__name__] = broken
    print(
        f"In the backward of {_MODULE}, in memory only, one line is left out:\n"
        f"  - {_LINE}\n"
        "The gradient of softmax loses a term: forward is right, shapes are right,\n"
        "and a network with this defect trains. Checking attention …"
    )
    try:
        row = next(pair for pair in PAIRS if pair.name == "attention")
        row = replace(row, candidate=f"{broken.__name__}:Attention", mirrored=False)
        result = run_pair(row, "float32", examples=14)
        result.explanation = explain_result(row, result)
    finally:
        del sys.modules[broken.__name__]
    print(describe(result))
    print(
        "(Run that command and it passes: the file on disk was never touched.)\n"
        "`parity check` does this for every layer."
    )
    if not result.failures:
        raise RuntimeError("the defect was not noticed")
    return AGREE
