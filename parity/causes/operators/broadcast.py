"""What is broadcast over a batch: left out, or its gradient not summed over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.causes.intercept import Rule, regrade, scaled_gradient
from parity.causes.operators.variant import (
    OperatorVariant,
    backward_only,
    everywhere,
    first_only,
    last_only,
)


def broadcast(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """Return the larger and the smaller of two operands that broadcast."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape == b.shape:
        return None
    large, small = (a, b) if a.numel() > b.numel() else (b, a)
    return (large, small) if large.is_floating_point() else None


def _with_small(change: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """Add with the smaller operand changed before it is broadcast."""

    def rule(a: Any, b: Any, **options: Any) -> Any:
        pair = broadcast(a, b)
        if pair is None or options or not pair[1].is_floating_point():
            return NotImplemented
        return pair[0] + change(*pair)

    return rule


def _rolled(shift: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Shift what is added to every image along its tokens."""
    return lambda x, s: s.roll(shift, -2) if s.ndim > 1 else s


def _expanded(change: Callable[[Tensor, int], Tensor]) -> Rule:
    def rule(x: Tensor, *sizes: Any) -> Any:
        y = x.expand(*sizes)
        return NotImplemented if y.shape == x.shape else change(x, len(y)).expand(sizes)

    return rule


def broadcasts() -> list[OperatorVariant]:
    """Return the variants of what is added to, or repeated for, each image."""
    variants: list[OperatorVariant] = []
    for detail, change in {
        "the mean in the place of the sum": (
            lambda x, s: scaled_gradient(s, s.numel() / x.numel())
        ),
        "divided by the batch size": (lambda x, s: scaled_gradient(s, 1 / x.shape[0])),
        "of the first image alone": (
            lambda x, s: regrade(s.expand(x.shape), first_only)
        ),
        "of the last image alone": (lambda x, s: regrade(s.expand(x.shape), last_only)),
    }.items():
        variants += backward_only(
            "broadcast-gradient", "add", _with_small(change), detail
        )
    for detail, shift in (("one token later", 1), ("one token earlier", -1)):
        variants += everywhere(
            "position-shift", "add", _with_small(_rolled(shift)), detail
        )[:2]
    variants += backward_only(
        "not-trained", "add", _with_small(lambda x, s: s.detach()), "what is added"
    )
    variants += everywhere(
        "term-missing", "add", _with_small(lambda x, s: torch.zeros_like(s))
    )[:2]
    variants += backward_only(
        "broadcast-gradient",
        "expand",
        _expanded(lambda x, n: scaled_gradient(x, 1 / n)),
        "divided by the batch size",
    )
    for detail, kept in {
        "of the first image alone": first_only,
        "of the last image alone": last_only,
    }.items():
        variants += backward_only(
            "broadcast-gradient",
            "expand",
            lambda x, *sizes, _kept=kept: regrade(x.expand(*sizes), _kept),
            detail,
        )
    variants += backward_only(
        "not-trained",
        "expand",
        _expanded(lambda x, n: x.detach()),
        "what is repeated for each image, as the class token is",
    )
    return variants
