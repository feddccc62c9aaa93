"""What explains a difference: some changes, and how near they bring the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parity.doctor.setup import Change


@dataclass(frozen=True)
class Explanation:
    """Some changes, and how near they bring the outputs.

    Attributes
    ----------
    changes : tuple of Change
    distance : float
        Norm of the outputs' difference relative to the norm of the original's, about
        their mean.
    share : float
        Of the error bound, for the worst element; agrees where it is at most 1.
        Infinite where it was not computed.
    """

    changes: tuple[Change, ...]
    distance: float
    share: float = math.inf

    @property
    def agrees(self) -> bool:
        """Whether the outputs are the original's, within rounding."""
        return self.share <= 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the changes."""
        return tuple(change.name for change in self.changes)
