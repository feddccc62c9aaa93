"""Factors: learned ones, and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parity.causes.intercept import Rule, scaled_gradient
from parity.causes.operators.broadcast import broadcast
from parity.causes.operators.variant import (
    OperatorVariant,
    backward_only,
    everywhere,
    is_number,
)


def _vector(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    pair = broadcast(a, b)
    if pair is None or not pair[1].is_floating_point() or pair[1].ndim == 0:
        return None
    return pair


def _scaled_by_vector(change: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(a: Any, b: Any) -> Any:
        pair = _vector(a, b)
        return NotImplemented if pair is None else change(*pair)

    return rule


def factors() -> list[OperatorVariant]:
    """Return the variants of learned and constant factors."""
    variants: list[OperatorVariant] = []
    variants += everywhere(
        "layer-scale", "mul", _scaled_by_vector(lambda x, g: x * 1), "not applied"
    )
    variants += backward_only(
        "layer-scale",
        "mul",
        _scaled_by_vector(lambda x, g: x + x.detach() * g),
        "dx = dy, not dy * gamma",
    )
    variants += backward_only(
        "layer-scale",
        "mul",
        _scaled_by_vector(lambda x, g: x * g.detach() + g),
        "dgamma = sum(dy), not sum(dy * x)",
    )
    variants += backward_only(
        "layer-scale",
        "mul",
        _scaled_by_vector(
            lambda x, g: x * g.detach() + (x * g).detach() * g  # dy * y
        ),
        "dgamma from the output, not from the input",
    )
    variants += backward_only(
        "broadcast-gradient",
        "mul",
        _scaled_by_vector(lambda x, g: x * scaled_gradient(g, g.numel() / x.numel())),
        "the mean in the place of the sum",
    )
    variants += backward_only(
        "broadcast-gradient",
        "mul",
        _scaled_by_vector(lambda x, g: x * scaled_gradient(g, 1 / len(x))),
        "divided by the batch size",
    )
    variants += backward_only(
        "not-trained", "mul", _scaled_by_vector(lambda x, g: x * g.detach()), "gamma"
    )

    def left_out(a: Any, b: Any, **options: Any) -> Any:
        if not isinstance(a, Tensor) or not is_number(b) or b == 1:
            return NotImplemented
        return a * 1

    variants += everywhere("factor-missing", "mul", left_out, "a product")
    variants += everywhere("factor-missing", "div", left_out, "a division")
    return variants
