"""What a run of mutants says, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from parity.environment import environment
from parity.mutants import Outcome
from parity.mutants.operators import OPERATORS, Mutant


def describe(outcome: Outcome, false_alarms: dict[str, Any] | None) -> str:
    """Return the table, what survived, and the rates."""
    lines = [*_table("file", outcome, lambda m: m.file), ""]
    for mutant in outcome.survivors:
        cases = outcome.verdicts[mutant].cases
        ran = f"{cases} cases run it" if cases else "no case runs it"
        lines.append(f"survived ({ran}): {mutant}")
    for mutant in outcome.disproved:
        by = outcome.verdicts[mutant].killed_by
        lines.append(f"listed as equivalent, but killed by {by}: {mutant}")
    lines += [f"missed: {d.name} ({d.cause})" for d in outcome.missed]
    if outcome.survivors or outcome.disproved or outcome.missed:
        lines.append("")
    total, equivalent = len(outcome.verdicts), len(outcome.equivalent)
    lines += [
        f"{total:,} mutants, {len(outcome.killed):,} killed, "
        f"{len(outcome.survivors)} survived, {equivalent} equivalent: "
        f"{outcome.rate:.2%} of those that are not equivalent were found",
        f"{len(outcome.defects)} hand-written defects, {len(outcome.missed)} missed",
        f"{outcome.cases:,} cases prepared in {outcome.preparing:.0f} s, "
        f"all judged in {outcome.judging:.0f} s",
    ]
    if false_alarms is not None:
        lines.append(
            f"{false_alarms['failures']} false alarms in {false_alarms['checks']:,} "
            f"checks of {false_alarms['cases']:,} cases of correct code"
        )
    return "\n".join(lines)


def to_json(outcome: Outcome, false_alarms: dict[str, Any] | None) -> dict[str, Any]:
    """Return counts, each mutant that was not killed, and what killed the others."""
    return {
        "mutants": len(outcome.verdicts),
        "killed": len(outcome.killed),
        "survivors": len(outcome.survivors),
        "equivalent": len(outcome.equivalent),
        "detection_rate": outcome.rate,
        "false_alarms": false_alarms,
        "by_file": _groups(outcome, lambda m: m.file),
        "by_operator": _groups(outcome, lambda m: m.operator),
        "killed_by": dict(
            Counter(v.killed_by for v in outcome.verdicts.values() if v.killed_by)
        ),
        "surviving": [
            _mutant_json(m) | {"cases": outcome.verdicts[m].cases}
            for m in outcome.survivors
        ],
        "equivalents": [
            _mutant_json(m) | {"reason": reason}
            for m, reason in outcome.equivalent.items()
        ],
        "disproved": [_mutant_json(m) for m in outcome.disproved],
        "defects": [
            {
                "name": defect.name,
                "file": defect.file,
                "cause": defect.cause,
                "killed_by": verdict.killed_by,
                "where": verdict.where,
            }
            for defect, verdict in outcome.defects.items()
        ],
        "cases": outcome.cases,
        "seconds": {"preparing": outcome.preparing, "judging": outcome.judging},
        "environment": environment(),
    }


def _groups(
    outcome: Outcome, key: Callable[[Mutant], str]
) -> dict[str, dict[str, int]]:
    every, killed, survived, same = (
        Counter(map(key, mutants))
        for mutants in (
            outcome.verdicts,
            outcome.killed,
            outcome.survivors,
            outcome.equivalent,
        )
    )
    return {
        name: {
            "mutants": count,
            "killed": killed[name],
            "survivors": survived[name],
            "equivalent": same[name],
        }
        for name, count in every.items()
    }


def _table(title: str, outcome: Outcome, key: Callable[[Mutant], str]) -> Iterable[str]:
    groups = _groups(outcome, key)
    rows = [[title, "mutants", "killed", "survived", "equivalent"]]
    rows += [[name, *map(str, counts.values())] for name, counts in groups.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, *values = row
        numbers = (v.rjust(w) for v, w in zip(values, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *numbers])


def _mutant_json(mutant: Mutant) -> dict[str, Any]:
    return {
        "file": mutant.file,
        "function": mutant.function,
        "line_number": mutant.line,
        "line": mutant.text,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "occurrence": mutant.occurrence,
        "what": OPERATORS[mutant.operator],
    }
