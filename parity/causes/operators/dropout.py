"""Dropout: mask and scale, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parity.causes.intercept import Rule
from parity.causes.operators.variant import OperatorVariant, backward_only, everywhere


def _one_mask(x: Tensor, keep: Tensor, divisor: float) -> Any:
    return x * keep[:1] / divisor if len(keep) > 1 else NotImplemented


def _mask_per_sample(x: Tensor, keep: Tensor, divisor: float) -> Any:
    if keep.ndim < 2 or keep.shape != x.shape:
        return NotImplemented
    return x * keep.flatten(1)[:, 0].view(-1, *[1] * (x.ndim - 1)) / divisor


def _drawn_as(shape: Callable[[Tensor, Tensor], tuple[int, ...]]) -> Rule:
    """Draw the mask again, from its own source, in another shape."""

    def rule(x: Tensor, keep: Tensor, divisor: float) -> Any:
        other = shape(x, keep)
        redraw = getattr(keep, "redraw", None)
        if redraw is None or other == tuple(keep.shape):
            return NotImplemented
        return x * redraw(other) / divisor

    return rule


def _one_a_sample(x: Tensor, keep: Tensor) -> tuple[int, ...]:
    return (len(x),) + (1,) * (x.ndim - 1)


def _once_for_the_batch(x: Tensor, keep: Tensor) -> tuple[int, ...]:
    return tuple(x.shape if keep.shape == x.shape else (1,) * x.ndim)


def dropouts() -> list[OperatorVariant]:
    """Return the variants of dropout and drop path."""
    variants: list[OperatorVariant] = []
    op = "dropout"
    variants += everywhere("dropout-ignored", op, lambda x, keep, c: x * 1)[:2]
    for detail, surrogate in {
        "no mask": lambda x, keep, c: x / c,
        "neither mask nor scale": lambda x, keep, c: x * 1,
    }.items():
        variants += backward_only("dropout-backward", op, surrogate, detail)
    for detail, rule in {
        "not scaled": lambda x, keep, c: x * keep,
        "multiplied by p": lambda x, keep, c: x * keep * (1 - c),
        "multiplied by 1 - p": lambda x, keep, c: x * keep * c,
        "divided by p": lambda x, keep, c: x * keep / (1 - c),
        "divided by 1 - p twice": lambda x, keep, c: x * keep / (c * c),
    }.items():
        variants += everywhere("dropout-scale", op, rule, detail)
    for detail, rule in {
        "the mask inverted": lambda x, keep, c: x * ~keep / c,
        "scaled, without a mask": lambda x, keep, c: x / c,
    }.items():
        variants += everywhere("dropout-mask", op, rule, detail)
    for detail, shape in {
        "drawn for each element": lambda x, keep: tuple(x.shape),
        "drawn for each sample": _one_a_sample,
        "drop path drawn once for the batch": _once_for_the_batch,
        "drawn once for the batch": lambda x, keep: (1,) * x.ndim,
    }.items():
        variants += everywhere("dropout-mask-shape", op, _drawn_as(shape), detail)
    variants += everywhere("dropout-mask-shape", op, _one_mask, "for the batch")
    variants += everywhere("dropout-mask-shape", op, _mask_per_sample, "for a sample")
    return variants
