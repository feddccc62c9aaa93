"""Results for people and for programs: the table, the failures, the JSON."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from parity.checks import PAIR_CHECKS, Finding
from parity.environment import environment
from parity.runs import Accuracy, Failure, PairResult, Record
from parity.strategies import Case

_HEADERS = (
    "pair",
    "dtype",
    "cases",
    "tensors",
    "forward",
    "dx",
    "params",
    "sensitivity",
    "error",
    "time",
    "",
)
# More tensors than these are only named.
_SHOWN = 3
# What these find has nothing to do with the numbers of a case.
_OF_PAIRS = frozenset(check.name for check in PAIR_CHECKS)


def table(results: Sequence[PairResult]) -> str:
    """Return a row a pair and dtype.

    'forward', 'dx' and 'params' are the largest shares of the error bound that were
    used (1 is the limit), 'sensitivity' the smallest relative error in one element
    that is flagged, for the tensor where it is largest, and 'error' the candidate's
    float32 error against float64 in units of PyTorch's, likewise.
    """
    rows = [
        (
            result.pair,
            result.dtype,
            str(result.examples),
            str(result.tensors),
            _share(result.share("forward")),
            _share(result.share("dx")),
            _share(result.share("d_params")),
            "–" if result.sensitivity is None else f"{result.sensitivity:.0e}",
            _share(result.error_ratio),
            f"{result.seconds:.1f} s",
            "FAIL" if result.failures else "ok",
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(_HEADERS, *rows, strict=True)]
    lines = []
    for row in (_HEADERS, *rows):
        names = [cell.ljust(w) for cell, w in zip(row[:2], widths[:2], strict=True)]
        values = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(names + values).rstrip())
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)


def accuracy_notes(results: Sequence[PairResult]) -> list[str]:
    """Say which tensors are more than twice as far off as PyTorch's, and why."""
    return [
        f"{result.pair} {tensor}: {result.accuracies[tensor].ratio:.1f} times "
        f"PyTorch's float32 error: {reason or 'no reason is listed'}"
        for result in results
        for tensor, reason in result.less_accurate.items()
    ]


def summary(results: Sequence[PairResult], seconds: float) -> str:
    """Return the last line."""
    sums = totals(results, seconds)
    ambiguous = sum(result.ambiguous for result in results)
    drawn_again = f", {ambiguous} ambiguous cases drawn again" if ambiguous else ""
    pairs = "1 pair" if sums["pairs"] == 1 else f"{sums['pairs']} pairs"
    return (
        f"{pairs}, {sums['comparisons']:,} comparisons, "
        f"{sums['failures']} failures{drawn_again}, in {seconds:.1f} s"
    )


def describe(result: PairResult) -> str:
    """Say what is wrong with a pair, and how to see it again."""
    lines = []
    for case, failures in groupby(result.failures, key=lambda failure: failure.case):
        group = list(failures)
        first = group[0]
        # Other layouts say nothing that the contiguous one has not said.
        plain = [f for f in group if f.finding.check != "strided"] or group
        lines += ["", f"{first.pair} does not agree in {first.dtype}:"]
        for failure in plain[:_SHOWN]:
            lines += finding_lines(failure.finding)
        if len(plain) > _SHOWN:
            others = dict.fromkeys(
                f"{f.finding.check} {f.finding.tensor}".strip() for f in plain[_SHOWN:]
            )
            lines.append(f"  also: {', '.join(others)}")
        if any(f.finding.check not in _OF_PAIRS for f in group if f.run is None):
            lines.append(f"  smallest case   {_case_line(case)}")
        lines.append(f"  reproduce       {command(first, result.table)}")
    if result.explanation is not None:
        lines += [f"  {line}" for line in result.explanation.lines()]
    return "\n".join(lines)


def command(failure: Failure, table: str | None = None) -> str:
    """Return the command that shows a failure again; `table` is that of its pair."""
    words = ["parity", "check", *(["--pairs", table] if table else [])]
    words += ["--layer", failure.pair, "--dtype", failure.dtype]
    if failure.run is not None:
        examples, seed = failure.run
        return shlex.join([*words, "--examples", str(examples), "--seed", str(seed)])
    seed = failure.case.seed
    return shlex.join([*words, "--seed", str(seed), "--case", failure.case.to_json()])


def _case_line(case: Case) -> str:
    fields = case.config | case.config.get("config", {})
    config = [f"{k}={v!r}" for k, v in fields.items() if k != "config"]
    shapes = [f"{name} {shape}" for name, shape in case.shapes.items()]
    parts = [", ".join(config), ", ".join(shapes), f"regime {case.regime!r}"]
    return "; ".join(part for part in parts if part)


def finding_lines(finding: Finding) -> list[str]:
    """Say what a check found about one tensor."""
    lines = [f"  {finding.check}: {finding.tensor}".rstrip(": ")]
    if finding.detail:
        lines.append(f"    {finding.detail}")
    if finding.index is not None:
        where = f"[{', '.join(map(str, finding.index))}]"
        lines += [
            f"    {finding.tensor}{where}",
            f"      candidate  {finding.candidate!r}",
            f"      torch      {finding.torch!r}",
            f"      reference  {finding.truth!r}",
        ]
    if math.isfinite(finding.share):
        times = (
            f"{finding.share:,.0f}" if finding.share >= 10 else f"{finding.share:.2g}"
        )
        lines.append(f"      {times} times the error bound")
    return lines


def to_json(results: Sequence[PairResult], seconds: float) -> dict[str, Any]:
    """Return totals, a record a pair, dtype, check and tensor, and the environment."""
    return {
        "totals": totals(results, seconds),
        "pairs": [
            {
                "pair": result.pair,
                "dtype": result.dtype,
                "examples": result.examples,
                "ambiguous": result.ambiguous,
                "tensors": result.tensors,
                "sensitivity": result.sensitivity,
                "error_ratio": _finite(result.error_ratio),
                "less_accurate": result.less_accurate,
                "bound_used": {
                    regime: distribution(shares)
                    for regime, shares in result.shares.items()
                },
                "seconds": result.seconds,
                "failures": [_failure_json(f, result.table) for f in result.failures],
                "explanation": None
                if result.explanation is None
                else result.explanation.to_json(),
            }
            for result in results
        ],
        "records": [
            _record_json(result, record)
            for result in results
            for record in result.records.values()
        ],
        "environment": environment(),
    }


def totals(results: Sequence[PairResult], seconds: float) -> dict[str, Any]:
    """Count pairs, comparisons and failures, and find the largest share of a bound."""
    shares = [share for r in results if (share := r.share()) is not None]
    return {
        "pairs": len({result.pair for result in results}),
        "comparisons": sum(result.comparisons for result in results),
        "failures": sum(len(result.failures) for result in results),
        "max_bound_used": _finite(max(shares, default=0.0)),
        "seconds": seconds,
    }


def _record_json(result: PairResult, record: Record) -> dict[str, Any]:
    return {
        "pair": result.pair,
        "dtype": result.dtype,
        "check": record.check,
        "tensor": record.tensor,
        "comparisons": record.comparisons,
        "max_bound_used": _finite(record.share),
        "sensitivity": record.sensitivity,
        "seen": record.seen,
        "errors": None if record.accuracy is None else _accuracy_json(record.accuracy),
    }


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "cases": accuracy.cases,
        "candidate_rms": accuracy.candidate,
        "torch_rms": accuracy.torch,
        "rms_ratio": _finite(accuracy.ratio),
        "candidate_max": accuracy.candidate_max,
        "torch_max": accuracy.torch_max,
        "max_ratio": _finite(accuracy.max_ratio),
    }


BINS = 40
"""Of a histogram of shares from 0 to 1; one more counts those above."""


def distribution(shares: Sequence[float]) -> dict[str, Any]:
    """Return how many shares there are, their median and maximum, and a histogram."""
    histogram = [0] * (BINS + 1)
    for share in shares:
        # NaN is above, too.
        histogram[min(int(share * BINS), BINS - 1) if share <= 1 else BINS] += 1
    return {
        "count": len(shares),
        "median": _finite(statistics.median(shares)),
        "max": _finite(max(shares)),
        "histogram": histogram,
    }


def _failure_json(failure: Failure, table: str | None) -> dict[str, Any]:
    finding = failure.finding
    return {
        "check": finding.check,
        "tensor": finding.tensor,
        "detail": finding.detail,
        "index": None if finding.index is None else list(finding.index),
        "candidate": _finite(finding.candidate),
        "torch": _finite(finding.torch),
        "reference": _finite(finding.truth),
        "bound_used": _finite(finding.share),
        "case": json.loads(failure.case.to_json()) | {"seed": failure.case.seed},
        "command": command(failure, table),
    }


def _finite(value: float | None) -> float | str | None:
    """Return what JSON can hold: infinity and NaN as text."""
    return value if value is None or math.isfinite(value) else str(value)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
