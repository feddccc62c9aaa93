"""Softmax and attention: axes, scale, heads, and the terms of softmax backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.causes.intercept import Rule, regrade, scaled_gradient, swap
from parity.causes.operators.variant import (
    OperatorVariant,
    backward_only,
    everywhere,
    is_number,
)


def _over(x: Tensor, dim: int) -> Any:
    return torch.softmax(x, dim) if x.ndim >= -dim else NotImplemented


def _over_both(x: Tensor, dim: int = -1, **options: Any) -> Any:
    if x.ndim < 2:
        return NotImplemented
    return torch.softmax(x.flatten(-2), -1).view_as(x)


def _not_normalised(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    return torch.exp(x - x.amax(dim, keepdim=True))


def _wrong_maximum(x: Tensor, dim: int = -1, **options: Any) -> Any:
    if x.ndim < 2 or dim % x.ndim != x.ndim - 1:
        return NotImplemented
    e = torch.exp(x - x.amax(-2, keepdim=True).detach())
    return e / e.sum(-1, keepdim=True)


def _usual_softmax_backward(wrong: Rule) -> Rule:
    """Apply the formula of backward to what a wrong forward computed."""

    def rule(x: Tensor, dim: int = -1, **options: Any) -> Any:
        y = wrong(x, dim, **options)
        if y is NotImplemented:
            return y
        y = y.detach()
        return swap(
            y, regrade(x, lambda dy: y * (dy - (dy * y).sum(dim, keepdim=True)))
        )

    return rule


def _softmax_slope(slope: Callable[[Tensor, int], Tensor]) -> Rule:
    """Write a softmax's backward as dx = (something of y) dy."""

    def rule(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
        y = torch.softmax(x.detach(), dim)
        return x * slope(y, dim)

    return rule


def _softmax_sum_over(axis: int) -> Rule:
    def rule(x: Tensor, dim: int = -1, **options: Any) -> Any:
        if x.ndim + axis < 0 or dim % x.ndim == axis % x.ndim:
            return NotImplemented
        y = torch.softmax(x.detach(), dim)
        return regrade(x, lambda dy: y * (dy - (dy * y).sum(axis, keepdim=True)))

    return rule


def _softmax_unweighted_sum(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    y = torch.softmax(x.detach(), dim)
    return regrade(x, lambda dy: y * (dy - dy.sum(dim, keepdim=True)))


def _softmax_mean(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    y = torch.softmax(x.detach(), dim)
    return regrade(x, lambda dy: y * (dy - (dy * y).mean(dim, keepdim=True)))


def _softmax_plus(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    y = torch.softmax(x.detach(), dim)
    return regrade(x, lambda dy: y * (dy + (dy * y).sum(dim, keepdim=True)))


def _softmax_without_factor(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    y = torch.softmax(x.detach(), dim)
    return regrade(x, lambda dy: dy - (dy * y).sum(dim, keepdim=True))


def _rescaled(change: Callable[[Tensor, float], float]) -> Rule:
    def rule(a: Tensor, b: Any) -> Any:
        if not is_number(b) or b == 0 or a.ndim != 4:
            return NotImplemented
        return a * change(a, float(b))

    return rule


def _untransposed(x: Tensor, first: int, second: int) -> Any:
    shape = list(x.shape)
    shape[first], shape[second] = shape[second], shape[first]
    return x.reshape(shape) if x.ndim == 4 else NotImplemented


def _features_before_heads(x: Tensor, first: int, second: int) -> Any:
    if x.ndim != 4 or {first % 4, second % 4} != {1, 2}:
        return NotImplemented
    y = x.transpose(1, 2)
    return y.mT.reshape(y.shape)


def attention() -> list[OperatorVariant]:
    """Return the variants of softmax, of the scale of its logits, and of heads."""
    variants: list[OperatorVariant] = []
    for cause, rule, detail in (
        ("softmax-axis", lambda x, dim=-1, **_: _over(x, -2), "the axis before last"),
        ("softmax-axis", lambda x, dim=-1, **_: _over(x, -3), "the heads"),
        ("softmax-axis", lambda x, dim=-1, **_: torch.softmax(x, 0), "the batch"),
        ("softmax-axis", _over_both, "the last two axes together"),
        ("softmax-max-axis", _wrong_maximum, ""),
        ("softmax-not-normalised", _not_normalised, ""),
    ):
        variants += everywhere(cause, "softmax", rule, detail)
        usual = "with the usual formula in backward"
        variants += everywhere(
            cause,
            "softmax",
            _usual_softmax_backward(rule),
            f"{detail}, {usual}" if detail else usual,
        )[:1]
    for detail, rule in {
        "the diagonal y (1 - y) alone": _softmax_slope(lambda y, dim: y * (1 - y)),
        "y dy alone, without the sum": _softmax_slope(lambda y, dim: y),
        "the sum over the axis before the last": _softmax_sum_over(-2),
        "the sum of dy, not of dy y": _softmax_unweighted_sum,
        "a mean in the place of the sum": _softmax_mean,
        "the sum added, not subtracted": _softmax_plus,
        "without the factor y": _softmax_without_factor,
    }.items():
        variants += backward_only("softmax-backward", "softmax", rule, detail)
    variants += backward_only(
        "batch-division",
        "softmax",
        lambda x, dim=-1, **_: scaled_gradient(torch.softmax(x, dim), 1 / len(x)),
        "of softmax",
    )
    variants += backward_only(
        "softmax-backward",
        "softmax",
        lambda x, dim=-1, **_: scaled_gradient(
            torch.softmax(x.detach(), dim) * (1 - torch.softmax(x.detach(), dim)) * x,
            1 / len(x),
        ),
        "the diagonal y (1 - y) alone, divided by the batch size",
    )
    variants += backward_only(
        "backward-skipped", "softmax", lambda x, dim=-1, **_: x * 1, "of softmax"
    )
    for detail, change in {
        "left out": lambda a, c: 1.0,
        "by the width of all heads": lambda a, c: c / math.sqrt(a.shape[1]),
        "1 / head_dim, without the root": lambda a, c: c * c,
        "sqrt(head_dim), inverted": lambda a, c: 1 / c,
        "1 / sqrt(tokens)": lambda a, c: a.shape[-1] ** -0.5,
        "1 / dim, without the root": lambda a, c: c * c / a.shape[1],
        "1 / sqrt(heads)": lambda a, c: a.shape[1] ** -0.5,
    }.items():
        variants += everywhere("attention-scale", "mul", _rescaled(change), detail)
    variants += everywhere("head-merge", "transpose", _untransposed, "not moved")
    variants += everywhere(
        "head-merge", "transpose", _features_before_heads, "features before heads"
    )
    return variants
