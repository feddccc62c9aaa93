"""Mutants that compute the same, and why: the table, and its proof by trial."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from numpy.typing import NDArray

from parity.checks import Trial
from parity.mutants.cases import Lines, Watch
from parity.mutants.operators import Mutant, mutate
from parity.mutants.runner import Change
from parity.mutants.tree import Tree
from parity.pair import Pair
from parity.strategies import Case, generator
from parity.strategies import cases as draw_cases

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


# --- the proof by trial ---------------------------------------------------------------


class Proof:
    """Compares mutants with the original, on cases that are drawn once for all of them.

    Imports the package from `tree`, original and mutated; use it in a process of its
    own.

    Parameters
    ----------
    tree : Tree
    pairs : sequence of Pair
        Where the cases come from; of all their regimes, in turn.
    seed : int, default 0
    """

    def __init__(self, tree: Tree, pairs: Sequence[Pair], seed: int = 0) -> None:
        self._tree = tree
        self._pairs = pairs
        self._seed = seed
        self._lines: dict[str, Lines] = {}
        self._drawn: dict[tuple[str, int], list[Case]] = {}

    def largest_difference(
        self, mutant: Mutant, cases: int = 1000
    ) -> tuple[float, int]:
        """Compare a mutant with the original on cases that run it, in both dtypes.

        Returns
        -------
        difference : float
            The largest difference of two results, in units in the last place of the
            largest number of their tensor; infinite if names, shapes, dtypes or what is
            raised differ.
        count : int
            Cases compared: `cases`, or 0 if none of these pairs runs the mutant.
        """
        tree = self._tree
        tree.restore(mutant.file)
        tree.install()
        change = Change(mutant.file, str, mutant.lines)
        running = [p for p in self._pairs if change.seen_by(self._run_by(p))]
        if not running:
            return 0.0, 0
        share = -(-cases // len(running))
        drawn = [(p, case) for p in running for case in self._cases(p, share)][:cases]
        expected = [_results(pair, case) for pair, case in drawn]
        tree.replace(mutant.file, mutate(tree.sources[mutant.file], mutant))
        tree.install()
        largest = 0.0
        for (pair, case), results in zip(drawn, expected, strict=True):
            largest = max(largest, _difference(_results(pair, case), results))
        tree.restore(mutant.file)
        return largest, len(drawn)

    def _run_by(self, pair: Pair) -> Lines:
        """Return the lines that some cases of a pair run."""
        if pair.name not in self._lines:
            watch = Watch(self._tree)
            watch.start()
            try:
                for case in self._cases(pair, len(pair.regimes) * 4):
                    _results(pair, case)
            finally:
                watch.stop()
            self._lines[pair.name] = watch.taken()
        return self._lines[pair.name]

    def _cases(self, pair: Pair, count: int) -> list[Case]:
        key = pair.name, count
        if key not in self._drawn:
            self._drawn[key] = _draw(pair, count, self._seed)
        return self._drawn[key]


def _draw(pair: Pair, count: int, seed: int) -> list[Case]:
    """Draw cases, the same number of each regime but for the remainder."""
    each = -(-count // len(pair.regimes))
    drawn = [
        _draw_regime(pair, regime, each, seed * len(pair.regimes) + number)
        for number, regime in enumerate(pair.regimes)
    ]
    return [case for row in zip(*drawn, strict=True) for case in row][:count]


def _draw_regime(pair: Pair, regime: str, count: int, seed: int) -> list[Case]:
    drawn: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw_cases(pair.draw, regime))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    # Where there are few different cases, they are repeated with other numbers.
    return [
        replace(case, seed=case.seed + lap)
        for lap in range(-(-count // len(drawn)))
        for case in drawn
    ][:count]


def _results(pair: Pair, case: Case) -> dict[str, NDArray[Any]] | str:
    """Run a case in every dtype; return what comes out, or what is raised."""
    results: dict[str, NDArray[Any]] = {}
    for dtype in pair.dtypes:
        trial = Trial(pair, case, dtype)
        try:
            inputs = {
                name: np.asarray(x).astype(dtype) if _is_floating(x) else np.asarray(x)
                for name, x in trial.problem.inputs.items()
            }
            outputs, vjp = trial.forward(inputs)
            given_cotangents = trial.problem.cotangents
            if not trial.problem.differentiate:
                upstream = {}
            elif given_cotangents is not None:
                upstream = {k: v.astype(dtype) for k, v in given_cotangents.items()}
            else:
                upstream = {
                    name: generator(case.seed, f"u_{name}")
                    .standard_normal(np.shape(out))
                    .astype(dtype)
                    for name, out in outputs.items()
                }
            made = outputs | trial.backward(vjp, upstream)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        results |= {f"{dtype} {name}": np.array(value) for name, value in made.items()}
    return results


def _is_floating(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


def _difference(
    got: dict[str, NDArray[Any]] | str, expected: dict[str, NDArray[Any]] | str
) -> float:
    if isinstance(got, str) or isinstance(expected, str):
        return 0.0 if got == expected else math.inf
    if got.keys() != expected.keys():
        return math.inf
    return max(
        (_units(got[name], value) for name, value in expected.items()), default=0.0
    )


def _units(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if np.array_equal(got, expected, equal_nan=True):
        return 0.0
    if not np.isfinite(expected).all() or not np.isfinite(got).all():
        return math.inf
    unit = float(np.spacing(np.abs(expected).max()))
    return float(np.abs(got - expected).max()) / unit
