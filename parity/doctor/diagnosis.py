"""The search for the fewest changes that make a port's outputs the original's."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.doctor.changes import all_changes
from parity.doctor.explanation import Explanation
from parity.doctor.positions import position_length
from parity.doctor.search import Search
from parity.doctor.setup import Change, as_given
from vit_numpy.config import ViTConfig

# Changes that the search puts together, and how many of the best it goes on from first.
MOST_CHANGES = 3
_BEAM = 12
_JUDGED = 6

# As near as single precision comes: what is to be judged now, not to be looked for.
_EQUAL = 1e-6


@dataclass
class Diagnosis:
    """What was tried, and what explains the difference; made by `diagnose`.

    Attributes
    ----------
    before : Explanation
        The port as it is; infinitely far if its positions are of another grid.
    found : list of Explanation
        Those with the fewest changes that make the outputs agree, best first. Several
        stand here if the outputs cannot tell them apart.
    closest : list of Explanation
        The best ones that do not.
    tried : int
        How many combinations of changes were run.
    complete : bool
        Whether the search came to its end; False if time ran out.
    seconds : float
    """

    before: Explanation
    found: list[Explanation] = field(default_factory=list)
    closest: list[Explanation] = field(default_factory=list)
    tried: int = 0
    complete: bool = True
    seconds: float = 0.0

    @property
    def conclusion(self) -> str:
        """What it comes to, in words."""
        if self.before.agrees:
            return "the outputs agree as they are: there is nothing to repair"
        if self.found:
            first = self.found[0].changes
            text = "the outputs agree if " + ", and ".join(c.says for c in first)
            if len(self.found) > 1:
                others = "; or if ".join(
                    ", and ".join(c.says for c in e.changes) for e in self.found[1:4]
                )
                text += f" (these outputs cannot tell that from: {others})"
            return text
        best = self.closest[0] if self.closest else self.before
        off = []
        if math.isfinite(self.before.distance):
            off.append(f"by {self.before.distance:.1e} of their size")
        if best.distance < 0.5 * self.before.distance:
            how = ", and ".join(c.says for c in best.changes)
            off.append(f"by {best.distance:.1e} if {how}")
        return (
            f"none of {self.tried:,} combinations of known changes makes the outputs "
            "agree"
        ) + ("; they are off " + ", and ".join(off) if off else "")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""

        def told(e: Explanation) -> dict[str, Any]:
            return {
                "changes": [
                    {"name": c.name, "says": c.says, "fix": c.fix} for c in e.changes
                ],
                "distance": e.distance if math.isfinite(e.distance) else None,
                "share_of_bound": e.share if math.isfinite(e.share) else None,
                "agrees": e.agrees,
            }

        return {
            "before": told(self.before),
            "found": [told(e) for e in self.found],
            "closest": [told(e) for e in self.closest],
            "tried": self.tried,
            "complete": self.complete,
            "seconds": self.seconds,
            "conclusion": self.conclusion,
        }


def diagnose(
    config: Any,
    weights: dict[str, NDArray[Any]],
    images: NDArray[Any],
    outputs: NDArray[Any],
    *,
    preprocessing: dict[str, Any] | None = None,
    seconds: float = 15.0,
) -> Diagnosis:
    """Find what makes a port's outputs those of the original.

    Parameters
    ----------
    config : ViTConfig or dict
        Of the port.
    weights : dict of ndarray
        Of the port, under this project's names.
    images : ndarray of shape (B, C, H, W), or (B, H, W, C)
        What the original was given; uint8, or floating.
    outputs : ndarray of shape (B, K)
        What it returned. Their dtype is that which it computed in.
    preprocessing : dict, optional
        `mean` and `std` that the port's file names.
    seconds : float
        How long to search; what takes longer is left out, and said to be.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If the shapes cannot belong together.
    """
    started = time.perf_counter()
    fields = config if isinstance(config, dict) else config.to_dict()
    base = as_given(ViTConfig.from_dict(fields), weights, images)
    outputs = np.asarray(outputs)
    if outputs.dtype not in (np.float32, np.float64):
        outputs = outputs.astype(np.float32)
    search = Search(base, outputs, started + seconds)
    mismatched = position_length(base) is not None
    before = Explanation((), math.inf) if mismatched else search.run(())
    if not mismatched and not math.isfinite(before.distance):
        raise ValueError(
            f"the port cannot be run on these images and outputs: {search.refusal}"
        )
    found = search.judged([before])[0]
    result = Diagnosis(found)
    if not found.agrees:
        changes = list(
            all_changes(base, preprocessing, np.issubdtype(images.dtype, np.integer))
        )
        _explore(search, changes, result)
    result.tried = search.tried
    result.complete = search.complete
    result.seconds = time.perf_counter() - started
    return result


def _explore(search: Search, changes: Sequence[Change], result: Diagnosis) -> None:
    """Try single changes, then more together; leave what is found in the result."""
    singles = _nearest(list(_single(search, changes)))
    if _settled(search, singles, result):
        return
    # First on from those that came nearest, as deep as it goes; then from all: one of
    # two right changes may bring the outputs no nearer by itself.
    for width in (_BEAM, len(changes)):
        level = singles
        for count in range(2, MOST_CHANGES + 1):
            starts = [e for e in level if math.isfinite(e.distance)]
            starts = starts[: width if count == 2 else _BEAM]
            level = _nearest(list(_extended(search, starts, changes)))
            if _settled(search, level, result):
                return


def _settled(search: Search, level: Sequence[Explanation], result: Diagnosis) -> bool:
    """Judge the nearest; tell whether they explain the outputs."""
    judged = search.judged(level[:_JUDGED])
    agreeing = [e for e in judged if e.agrees]
    if agreeing:
        # What three changes explain, two of them may explain as well.
        fewer = itertools.combinations(
            agreeing[0].changes, len(agreeing[0].changes) - 1
        )
        simpler = search.judged([search.run(changes) for changes in fewer if changes])
        result.found = [e for e in simpler if e.agrees] or agreeing
    others = {e.names: e for e in (*result.closest, *judged) if not e.agrees}
    result.closest = _nearest(list(others.values()))[:3]
    return bool(result.found)


def _single(search: Search, changes: Sequence[Change]) -> Iterator[Explanation]:
    """Yield each change by itself: several may explain the outputs equally well."""
    for change in changes:
        if search.late:
            search.complete = False
            return
        yield search.run((change,))


def _extended(
    search: Search, starts: Sequence[Explanation], changes: Sequence[Change]
) -> Iterator[Explanation]:
    """Yield each start with one more change, of a kind that it does not have yet."""
    place = {change.name: i for i, change in enumerate(changes)}
    done: set[tuple[str, ...]] = set()
    for start in starts:
        kinds = {change.kind for change in start.changes}
        for change in changes:
            if change.kind in kinds:
                continue
            # The order of the table is that in which they are to be applied.
            both = sorted((*start.changes, change), key=lambda c: place[c.name])
            together = tuple(both)
            key = tuple(c.name for c in together)
            if key in done:
                continue
            done.add(key)
            if search.late:
                search.complete = False
                return
            explained = search.run(together)
            yield explained
            if explained.distance < _EQUAL:
                return


def _nearest(explanations: Sequence[Explanation]) -> list[Explanation]:
    return sorted(explanations, key=lambda e: (e.distance, len(e.changes)))
