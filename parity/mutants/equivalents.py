"""Mutants that compute the same, and why: the table, and its proof by trial.

What *the same* means needs care. Many of these mutants change how a sum is rounded, and
where terms cancel that moves a result by many of its own last places, or by any number
of them where it should be zero. The size of the result is then the wrong measure, and
so is that of the largest number beside it. The right one is what the terms would move
the result by if each were rounded in its last place. That is what the bounds of the
checks are built on and measure: the *error scale* of an element, `Quantity.scale`,
PyTorch's own error plus the spread of the reference when every operator's result is
moved within its rounding.

A mutant is equivalent if over a thousand cases that run it, of all regimes and in both
dtypes, no element of any output or gradient is more than `FEW` error scales from the
original's. That is a narrower path than the one that mutants are killed beside: there
the limit is four error scales, and from the truth.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.bounds import reference
from parity.checks import DTYPES, Trial
from parity.mutants.cases import Lines, Watch
from parity.mutants.operators import Mutant
from parity.mutants.runner import Change
from parity.mutants.tree import Tree
from parity.pair import Arrays, Pair
from parity.runs import one_thread
from parity.strategies import Case, drawn, generator

FEW = 3.0
"""How many error scales an equivalent mutant may be from the original."""

# So many cases of each regime are drawn in one go; of a pair that is to run a mutant,
# so many must not all miss it.
_TOGETHER = 16
_TO_RUN = 4

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
    """Compares changes with the original, on cases that are drawn once for all of them.

    Imports the package from `tree`, original and changed; use it in a process of its
    own.

    Parameters
    ----------
    tree : Tree
    pairs : sequence of Pair
        Where the cases come from, of all their regimes in turn.
    seed : int, default 0
    """

    def __init__(self, tree: Tree, pairs: Sequence[Pair], seed: int = 0) -> None:
        self._tree = tree
        self._samples = [_Samples(pair, tree, seed) for pair in pairs]

    def difference(self, change: Change, cases: int = 1000) -> tuple[float, int]:
        """Compare a change with the original on cases that run it.

        Returns
        -------
        difference : float
            The largest difference of two results, in error scales; infinite if names,
            shapes, dtypes or what is not finite differ, or if the change raises.
        count : int
            Cases compared: `cases`, unless too few of these pairs' run the change.
            Those whose branches hang on rounding are not among them.
        """
        tree = self._tree
        with one_thread():
            tree.restore(change.file)
            tree.install()
            running = list(islice(self._running(change, cases), cases))
            tree.replace(change.file, change.make())
            tree.install()
            try:
                repeated = [sample.repeated() for sample in running]
            finally:
                tree.restore(change.file)
                tree.install()
            found = [
                sample.difference(results)
                for sample, results in zip(running, repeated, strict=True)
            ]
        decided = [difference for difference in found if difference is not None]
        return max(decided, default=0.0), len(decided)

    def _running(self, change: Change, cases: int) -> Iterator[_Sample]:
        """Yield cases that run a change, one of each pair in turn."""
        turns = [
            samples.running(change, 2 * cases)
            for samples in self._samples
            if samples.may_run(change)
        ]
        while turns:
            for turn in list(turns):
                if (sample := next(turn, None)) is None:
                    turns.remove(turn)
                else:
                    yield sample


class _Samples:
    """The cases of one pair, drawn as they are asked for."""

    def __init__(self, pair: Pair, tree: Tree, seed: int) -> None:
        self._pair = pair
        self._tree = tree
        self._seed = seed
        self._cases: list[Case] = []
        self._samples: list[_Sample] = []
        self._lines: dict[Lines, Lines] = {}

    def may_run(self, change: Change) -> bool:
        """Tell whether one of the first cases runs a change."""
        few = _TO_RUN * len(self._pair.regimes)
        return any(True for _ in self.running(change, few))

    def running(self, change: Change, among: int) -> Iterator[_Sample]:
        """Yield those of so many cases that run a change."""
        for number in range(among):
            if change.seen_by((sample := self._sample(number)).lines):
                yield sample

    def _sample(self, number: int) -> _Sample:
        while number >= len(self._cases):
            self._cases += self._drawn(len(self._cases))
        while number >= len(self._samples):
            case = self._cases[len(self._samples)]
            sample = _Sample(self._pair, case, self._tree)
            # Most cases run the same lines, which are kept once.
            sample.lines = self._lines.setdefault(sample.lines, sample.lines)
            self._samples.append(sample)
        return self._samples[number]

    def _drawn(self, before: int) -> list[Case]:
        """Draw cases, the same number of each regime, after so many before."""
        seed = (self._seed << 32) + before
        regimes = [
            _draw(self._pair, regime, seed + number)
            for number, regime in enumerate(self._pair.regimes)
        ]
        return [case for row in zip(*regimes, strict=True) for case in row]


def _draw(pair: Pair, regime: str, seed: int) -> list[Case]:
    found = drawn(pair.draw, regime, seed, _TOGETHER)
    # Where there are few different cases, they are repeated with other numbers.
    return [
        replace(case, seed=case.seed + seed + lap)
        for lap in range(-(-_TOGETHER // len(found)))
        for case in found
    ][:_TOGETHER]


class _Sample:
    """A case, and what the original computes of it in every dtype.

    Attributes
    ----------
    lines : frozenset of (str, int)
        File and number of the lines of the package that it runs.
    """

    def __init__(self, pair: Pair, case: Case, tree: Tree) -> None:
        watch = Watch(tree)
        watch.start()
        try:
            self._runs = [_Run(pair, case, dtype) for dtype in pair.dtypes]
        finally:
            watch.stop()
        self.lines: Lines = watch.taken()

    def repeated(self) -> list[Arrays | None]:
        """Compute it again, with the package as it is now."""
        return [run.repeated() for run in self._runs]

    def difference(self, repeated: Sequence[Arrays | None]) -> float | None:
        """Return the largest difference; None where a branch hangs on rounding."""
        found = [
            run.difference(results)
            for run, results in zip(self._runs, repeated, strict=True)
        ]
        decided = [difference for difference in found if difference is not None]
        return max(decided) if len(decided) == len(found) else None


class _Run:
    """A case in one dtype: how to run it, and what the original makes of it."""

    def __init__(self, pair: Pair, case: Case, dtype: str) -> None:
        self._make = partial(Trial, pair, case, dtype)
        self._upstream: Arrays = {}
        self.results = self._computed()

    def repeated(self) -> Arrays | None:
        """Return what comes out now; None if anything is raised."""
        try:
            return self._computed()
        except Exception:
            return None

    def _computed(self) -> Arrays:
        """Run forward and backward; return outputs and gradients by name."""
        trial = self._make()
        problem = trial.problem
        outputs, vjp = trial.forward(
            {
                name: np.array(x, trial.dtype if _is_floating(x) else None)
                for name, x in problem.inputs.items()
            }
        )
        if problem.differentiate and not self._upstream:
            self._upstream = _cotangents(trial, outputs)
        upstream = {name: dy.copy() for name, dy in self._upstream.items()}
        made = outputs | trial.backward(vjp, upstream)
        return {name: np.array(value) for name, value in made.items()}

    @cached_property
    def scales(self) -> dict[str, NDArray[np.float64]] | None:
        """The error scale of every element; None where a branch hangs on rounding."""
        trial = self._make()
        measured = reference(
            trial.problem.function,
            trial.problem.inputs,
            dtype=DTYPES[trial.dtype],
            differentiate=trial.problem.differentiate,
            cotangents=self._upstream or None,
            seed=trial.case.seed,
            batched=trial.problem.batched,
        )
        if measured.ambiguous:
            return None
        return {name: q.scale for name, q in measured.quantities.items()}

    def difference(self, results: Arrays | None) -> float | None:
        """Return the largest difference; None where a branch hangs on rounding."""
        if results is None or results.keys() != self.results.keys():
            return math.inf
        if _same(results, self.results):
            return 0.0
        scales = self.scales
        if scales is None:
            return None
        return max(
            in_scales(results[name], original, scales[name])
            for name, original in self.results.items()
        )


def _cotangents(trial: Trial, outputs: Arrays) -> Arrays:
    """Return the upstream gradients: those of the problem, or drawn by the seed."""
    given_cotangents = trial.problem.cotangents
    if given_cotangents is None:
        given_cotangents = {
            name: generator(trial.case.seed, f"u_{name}").standard_normal(np.shape(out))
            for name, out in outputs.items()
        }
    return {n: np.asarray(x).astype(trial.dtype) for n, x in given_cotangents.items()}


def _is_floating(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


def _same(a: Arrays, b: Arrays) -> bool:
    """Tell whether results of the same names are the same bits."""
    return all(
        x.shape == b[name].shape
        and x.dtype == b[name].dtype
        and np.array_equal(x, b[name], equal_nan=True)
        for name, x in a.items()
    )


def in_scales(
    got: NDArray[Any], expected: NDArray[Any], scale: NDArray[np.float64]
) -> float:
    """Return the largest difference of two arrays, in error scales of the element.

    Infinite if shape, dtype or the place of anything that is not finite differs.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got.astype(np.float64) - expected) / scale
    apart = np.where(same, 0.0, np.where(np.isfinite(apart), apart, math.inf))
    return float(apart.max(initial=0.0))
