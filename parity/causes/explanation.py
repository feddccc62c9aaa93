"""What is said about a failure: the causes that fit, how well, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity.causes.catalogue import Cause


@dataclass(frozen=True)
class Named:
    """A cause that fits.

    Attributes
    ----------
    cause : Cause
    detail : str
        Which of the ways of going wrong that share the cause's name.
    share : float
        The largest share of the variant's own bound.
    """

    cause: Cause
    detail: str = ""
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.cause.says} ({self.detail})" if self.detail else self.cause.says


@dataclass(frozen=True)
class Explanation:
    """What is known about a failure.

    Attributes
    ----------
    causes : tuple of Named
        Those that explain everything, the likeliest first; none where none does.
    tensors, cases : int
        What the cause accounts for: tensors that were wrong, and cases compared.
    facts : tuple of str
        What the numbers show by themselves.
    reservation : str
        Why the cause is possible only: what speaks against it, or is left unexplained.
    """

    causes: tuple[Named, ...] = ()
    tensors: int = 0
    cases: int = 0
    facts: tuple[str, ...] = ()
    reservation: str = ""

    @property
    def cause(self) -> str | None:
        """Name of the likeliest cause."""
        return self.causes[0].cause.name if self.causes else None

    @property
    def possible(self) -> bool:
        """Whether the cause is named with a reservation, not for certain."""
        return bool(self.reservation)

    @property
    def label(self) -> str:
        """What to call the cause."""
        return "possible cause" if self.possible else "likely cause"

    @property
    def confidence(self) -> str:
        """Say how well the cause fits."""
        if not self.causes:
            return "no known cause explains the numbers"
        if self.reservation:
            return f"not certain: {self.reservation}"
        if not self.tensors:
            return "shown by the check itself"
        wrong = "the wrong tensor" if self.tensors == 1 else f"all {self.tensors}"
        wrong += " wrong tensors" * (self.tensors > 1)
        fits = f"explains {wrong} within the bound, in {self.cases} cases"
        rivals = self.causes[1:]
        if rivals:
            fits += "; as well as: " + "; ".join(
                f"{named.cause.name}, {named}" for named in rivals
            )
        return fits

    @property
    def advice(self) -> str:
        """Say what to change."""
        return self.causes[0].cause.advice if self.causes else ""

    def lines(self) -> list[str]:
        """Return the explanation as lines of a report."""
        if not self.causes:
            return ["likely cause    none known fits", *(f"  {f}" for f in self.facts)]
        first = self.causes[0]
        return [
            f"{self.label:<16}{first.cause.name}: {first}",
            f"                {self.confidence}",
            f"what to change  {self.advice}",
            *(f"                {fact}" for fact in self.facts),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON can hold it."""
        return {
            "causes": [
                {"name": n.cause.name, "says": str(n), "bound_used": n.share}
                for n in self.causes
            ],
            "confidence": self.confidence,
            "possible": self.possible,
            "advice": self.advice,
            "facts": list(self.facts),
        }
