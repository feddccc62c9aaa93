"""Mutants that compute the same, and why: the table, and its proof by trial."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files

from parity.mutants.operators import Mutant

Key = tuple[str, str, str, str, str, int]


@dataclass(frozen=True)
class Equivalent:
    """A mutant that cannot be told from the original.

    Attributes
    ----------
    key : tuple
        As `Mutant.key`: it holds as long as the mutant's own line is not changed.
    reason : str
        Why it computes the same.
    """

    key: Key
    reason: str


def equivalents() -> tuple[Equivalent, ...]:
    """Read the table, ``equivalents.toml``."""
    text = files("parity.mutants").joinpath("equivalents.toml").read_text("utf-8")
    return tuple(
        Equivalent(
            (
                entry["file"],
                entry["function"],
                entry["line"],
                entry["before"],
                entry["after"],
                entry.get("occurrence", 0),
            ),
            group["reason"],
        )
        for group in tomllib.loads(text).get("group", ())
        for entry in group["mutants"]
    )


def reasons() -> dict[Key, str]:
    """Return the reason for each mutant that is listed."""
    return {entry.key: entry.reason for entry in equivalents()}


def listed(mutants: list[Mutant]) -> dict[Mutant, str]:
    """Return those of the mutants that are listed, each with its reason."""
    known = reasons()
    return {m: known[m.key] for m in mutants if m.key in known}
