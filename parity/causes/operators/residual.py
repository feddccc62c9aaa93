"""Residual connections: a path left out or counted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parity.causes.intercept import Rule, reaches
from parity.causes.operators.variant import OperatorVariant, backward_only, everywhere


def _residual(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """Return what a sum skips with and what it adds, or None for another sum."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return None
    if reaches(a, b):
        return a, b
    return (b, a) if reaches(b, a) else None


def _sum_of(keep: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(a: Any, b: Any, **options: Any) -> Any:
        pair = _residual(a, b)
        return NotImplemented if pair is None or options else keep(*pair)

    return rule


def residuals() -> list[OperatorVariant]:
    """Return the variants of the sum of a branch and what it skips."""
    variants: list[OperatorVariant] = []
    variants += everywhere("residual-dropped", "add", _sum_of(lambda x, f: f * 1))
    variants += everywhere("branch-dropped", "add", _sum_of(lambda x, f: x * 1))
    variants += everywhere(
        "factor-missing", "add", _sum_of(lambda x, f: x - f), "subtracted, not added"
    )
    variants += everywhere(
        "residual-dropped", "add", _sum_of(lambda x, f: f + f), "the branch twice"
    )
    variants += backward_only(
        "residual-dropped", "add", _sum_of(lambda x, f: x + x + f), "counted twice"
    )
    return variants
