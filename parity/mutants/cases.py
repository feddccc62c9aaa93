"""The cases that mutants are judged on: those that `parity check` draws.

Their references depend on the case alone. They are computed once, in processes that end
before the first mutant runs, together with the lines of `vit_numpy` that each case
runs, so that a mutant is judged only on the cases that run it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from parity.bounds import Reference
from parity.checks import Trial
from parity.mutants.tree import PACKAGE, Tree
from parity.pair import Pair
from parity.runs import EXAMPLES, PairResult, run_pair
from parity.strategies import Case
from parity.workers import in_processes

Lines = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Prepared:
    """A case with its reference.

    Attributes
    ----------
    pair : str
    dtype : str
    case : Case
    reference : Reference
    lines : frozenset of (str, int)
        File and number of the lines of the package that it runs.
    seconds : float
        Time that the checks took, with the reference and while lines were noted.
    """

    pair: str
    dtype: str
    case: Case
    reference: Reference
    lines: Lines
    seconds: float

    def trial(self, pair: Pair) -> Trial:
        """Return a trial that need not compute the reference again."""
        trial = Trial(pair, self.case, self.dtype)
        trial.reference = self.reference
        return trial


class Watch:
    """Notes which lines of the package run."""

    def __init__(self, tree: Tree) -> None:
        self._prefix = f"{tree.root}/"
        self._lines: set[tuple[str, int]] = set()

    def start(self) -> None:
        """Begin, in this thread."""
        _compute_anew()
        sys.settrace(self._on_call)

    def stop(self) -> None:
        """End; what was noted can still be taken."""
        sys.settrace(None)

    def taken(self) -> Lines:
        """Return what ran since the last time."""
        lines, self._lines = frozenset(self._lines), set()
        _compute_anew()
        return lines

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(self._prefix):
            return None
        file = path.removeprefix(self._prefix)
        lines = self._lines

        def on_line(frame: FrameType, event: str, arg: Any) -> Any:
            lines.add((file, frame.f_lineno))
            return on_line

        lines.add((file, frame.f_lineno))
        return on_line


def _compute_anew() -> None:
    """Clear what the package keeps for later calls: each case runs the lines itself."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def prepare(
    pairs: Sequence[Pair],
    tree: Tree,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Prepared]:
    """Draw the cases of some pairs, compute their references and see that they pass.

    Parameters
    ----------
    pairs : sequence of Pair
    tree : Tree
        The package, unchanged.
    examples, seed, workers, progress
        As for `parity.runs.run_pairs`.

    Returns
    -------
    list of Prepared

    Raises
    ------
    ValueError
        If the package as it is fails a check: mutants then prove nothing.
    ChildProcessError
        If a worker is killed, as when the system needs memory.
    """
    global _tree
    _tree = tree
    tasks = [
        (pair, dtype, examples, seed)
        for pair in reversed(pairs)
        for dtype in pair.dtypes
    ]
    prepared: list[Prepared] = []
    # Forked, so that the tree is there and nothing of the package is imported here.
    for result, cases in in_processes(_prepare_pair, tasks, workers, "fork"):
        if result.failures:
            finding = result.failures[0].finding
            raise ValueError(
                f"{PACKAGE} must pass before it is mutated, but {result.pair} "
                f"fails {finding.check} {finding.tensor} in {result.dtype}; see "
                f"parity check --layer {result.pair}"
            )
        prepared += cases
        progress(len(cases))
    return prepared


_tree: Tree | None = None


def _prepare_pair(
    task: tuple[Pair, str, int, int],
) -> tuple[PairResult, list[Prepared]]:
    pair, dtype, examples, seed = task
    if _tree is None:
        raise RuntimeError("prepare must have set the tree before the fork")
    _tree.install()
    watch = Watch(_tree)
    prepared: list[Prepared] = []
    started = time.perf_counter()

    def observe(trial: Trial) -> None:
        nonlocal started
        seconds = time.perf_counter() - started
        lines = watch.taken()
        prepared.append(
            Prepared(pair.name, dtype, trial.case, trial.reference, lines, seconds)
        )
        started = time.perf_counter()

    watch.start()
    try:
        result = run_pair(
            pair, dtype, examples=examples, seed=seed, shrink=False, observe=observe
        )
    finally:
        watch.stop()
    return result, prepared
