"""How many defects the checks find: mutants of `vit_numpy`, each judged by them.

A check that has never failed proves little. So the real source of `vit_numpy` is broken
on purpose, in every small way that `operators` lists and in the ways of `defects`,
which people really break it in, and the checks are run on the result: what
they do not notice is a hole in them.

A mutant is *killed* if a check fails, if it raises, or if it exceeds its time or
memory. It *survives* if all cases of `parity check` pass. It is *equivalent* if it
computes the same within a few units in the last place, which `equivalents.toml` says of
few, with the reason, and a test shows on a thousand cases each.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeVar

from parity.defects import DEFECTS, Defect
from parity.mutants.cases import Prepared, prepare
from parity.mutants.equivalents import listed
from parity.mutants.operators import Mutant, function_lines, mutants, mutate
from parity.mutants.runner import Change, Verdict, judge_changes
from parity.mutants.tree import Tree, package_root
from parity.pair import Pair
from parity.runs import EXAMPLES

Item = TypeVar("Item")

SOURCES = (
    "layers/*.py",
    "functional.py",
    "model.py",
    "loss.py",
    "optim.py",
    "schedule.py",
)
"""What is mutated: everything that both backends compute from the same numbers.

Random draws (initial values, masks, augmentation) differ between them by design, and
the training loop, files and threads are judged by tests of their own.
"""


@dataclass
class Outcome:
    """What a run of mutants says.

    Attributes
    ----------
    verdicts : dict of Mutant to Verdict
        Of all mutants that were judged.
    equivalent : dict of Mutant to str
        Those of them that are listed as equivalent, with the reason.
    defects : dict of Defect to Verdict
        Of the hand-written ones.
    cases : int
        Cases that they were judged on.
    preparing, judging : float
        Seconds for references, and for mutants and defects.
    """

    verdicts: dict[Mutant, Verdict] = field(default_factory=dict)
    equivalent: dict[Mutant, str] = field(default_factory=dict)
    defects: dict[Defect, Verdict] = field(default_factory=dict)
    cases: int = 0
    preparing: float = 0.0
    judging: float = 0.0

    @property
    def killed(self) -> list[Mutant]:
        """Those that a check found, as they should be."""
        return [m for m, verdict in self.verdicts.items() if verdict.killed_by]

    @property
    def survivors(self) -> list[Mutant]:
        """Those that no check found, and that are not known to be equivalent."""
        return [
            mutant
            for mutant, verdict in self.verdicts.items()
            if not verdict.killed_by and mutant not in self.equivalent
        ]

    @property
    def disproved(self) -> list[Mutant]:
        """Those that are listed as equivalent, but were found."""
        return [m for m in self.equivalent if self.verdicts[m].killed_by]

    @property
    def missed(self) -> list[Defect]:
        """Hand-written defects that no check found."""
        return [d for d, verdict in self.defects.items() if not verdict.killed_by]

    @property
    def rate(self) -> float:
        """Part of the mutants that are not equivalent that was killed."""
        judged = len(self.verdicts) - len(self.equivalent) + len(self.disproved)
        return len(self.killed) / judged if judged else 1.0


def all_mutants(tree: Tree) -> list[Mutant]:
    """Return every mutant of `SOURCES`, in the order of files and lines."""
    return [
        mutant
        for file, source in tree.sources.items()
        if any(fnmatchcase(file, pattern) for pattern in SOURCES)
        for mutant in mutants(source, file)
    ]


def run_mutants(
    pairs: Sequence[Pair],
    *,
    only: bool = False,
    sample: int | None = None,
    with_defects: bool = True,
    examples: int = EXAMPLES,
    seed: int = 0,
    workers: int = 1,
    preparing: Callable[[int], object] = lambda count: None,
    judging: Callable[[int, int], object] = lambda count, total: None,
) -> Outcome:
    """Judge the mutants of the package by the cases of some pairs.

    Needs a system that can fork. What the process imported of `vit_numpy` is forgotten.

    Parameters
    ----------
    pairs : sequence of Pair
    only : bool, default False
        Judge only mutants in functions that these pairs run, of their own files and of
        ``functional.py``; otherwise all.
    sample : int, optional
        Judge so many, drawn by the seed; the same seed draws the same.
    with_defects : bool, default True
        Whether to judge the hand-written defects too; in a sample, as large a part.
    examples, seed, workers
        As for `parity.runs.run_pairs`.
    preparing : callable, optional
        Called with the number of cases that were prepared since.
    judging : callable, optional
        Called with the number of mutants that were judged since, and of all.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        If the package fails a check before it is mutated.
    RuntimeError
        If a module that takes part holds on to something of the package.
    """
    tree = Tree(package_root())
    started = time.perf_counter()
    prepared = prepare(
        pairs, tree, examples=examples, seed=seed, workers=workers, progress=preparing
    )
    prepared_at = time.perf_counter()
    chosen = all_mutants(tree)
    defects = list(DEFECTS) if with_defects else []
    if only:
        chosen = [m for m in chosen if _belongs(m.file, pairs) and _runs(m, prepared)]
        changes = {d: defect_change(d, tree) for d in defects}
        defects = [
            d
            for d in defects
            if _belongs(d.file, pairs)
            and any(changes[d].seen_by(p.lines) for p in prepared)
        ]
    if sample is not None and sample < len(chosen):
        rng = random.Random(seed)
        part = sample / len(chosen)
        defects = _sampled(rng, defects, round(part * len(defects)))
        chosen = _sampled(rng, chosen, sample)
    changes_made = [mutant_change(m, tree) for m in chosen]
    changes_made += [defect_change(d, tree) for d in defects]
    # And the package as it is, which must pass in the very way that mutants are run.
    total = len(changes_made) + 1
    verdicts = judge_changes(
        [*changes_made, _unchanged(tree)],
        tree,
        pairs,
        prepared,
        workers=workers,
        progress=lambda count: judging(count, total),
    )
    control = verdicts.pop()
    if control.killed_by:
        raise ValueError(
            "vit_numpy must pass when it is imported from memory, but fails "
            f"{control.killed_by}: {control.where}"
        )
    return Outcome(
        verdicts=dict(zip(chosen, verdicts[: len(chosen)], strict=True)),
        equivalent=listed(chosen),
        defects=dict(zip(defects, verdicts[len(chosen) :], strict=True)),
        cases=len(prepared),
        preparing=prepared_at - started,
        judging=time.perf_counter() - prepared_at,
    )


def mutant_change(mutant: Mutant, tree: Tree) -> Change:
    """Return how a mutant is made."""
    return Change(
        file=mutant.file,
        make=partial(mutate, tree.sources[mutant.file], mutant),
        lines=mutant.lines,
        local=mutant.local,
    )


def defect_change(defect: Defect, tree: Tree) -> Change:
    """Return how a hand-written defect is made."""
    source = tree.sources[defect.file]
    inside = function_lines(source)
    lines = frozenset(line for line in defect.lines(source) if line in inside)
    return Change(defect.file, partial(defect.applied, source), lines)


def _unchanged(tree: Tree) -> Change:
    """Return a change of nothing, in a file that most cases run."""
    file = "config.py"
    return Change(file, lambda: tree.sources[file])


def _belongs(file: str, pairs: Sequence[Pair]) -> bool:
    module = f"vit_numpy.{file.removesuffix('.py').replace('/', '.')}"
    own = {pair.candidate.partition(":")[0] for pair in pairs}
    return module in own or file == "functional.py"


def _runs(mutant: Mutant, prepared: Sequence[Prepared]) -> bool:
    """Tell whether a case runs the statement that the mutant is in."""
    change = Change(mutant.file, str, mutant.lines)
    return bool(mutant.lines) and any(change.seen_by(p.lines) for p in prepared)


def _sampled(rng: random.Random, items: list[Item], count: int) -> list[Item]:
    chosen = sorted(rng.sample(range(len(items)), count))
    return [items[i] for i in chosen]
