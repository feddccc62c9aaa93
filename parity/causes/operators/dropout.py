"""Dropout: mask and scale, forward and backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parity.causes.operators.variant import OperatorVariant, backward_only, everywhere


def _one_mask(x: Tensor, keep: Tensor, divisor: float) -> Any:
    return x * keep[:1] / divisor if len(keep) > 1 else NotImplemented


def _mask_per_sample(x: Tensor, keep: Tensor, divisor: float) -> Any:
    if keep.ndim < 2 or keep.shape != x.shape:
        return NotImplemented
    return x * keep.flatten(1)[:, 0].view(-1, *[1] * (x.ndim - 1)) / divisor


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
    variants += everywhere("dropout-mask-shape", op, _one_mask, "for the batch")
    variants += everywhere("dropout-mask-shape", op, _mask_per_sample, "for a sample")
    return variants
