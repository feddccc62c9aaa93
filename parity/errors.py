"""The error that says two implementations differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity.causes import Explanation


class ParityError(AssertionError):
    """A candidate does not agree with its reference; the message is the whole report.

    Parameters
    ----------
    report : str
    explanation : Explanation, optional
        The likely cause.
    """

    def __init__(self, report: str, explanation: Explanation | None = None) -> None:
        super().__init__(report)
        self.explanation = explanation

    @property
    def cause(self) -> str | None:
        """Name of the likely cause, if one fits."""
        return None if self.explanation is None else self.explanation.cause
