"""Normalisation: eps, statistics, scale and shift, and the terms of its backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule, regrade, scaled_gradient, swap
from parity.causes.operators.variant import OperatorVariant, backward_only, everywhere

_EPS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.0)


class _Given(NamedTuple):
    """What layer normalisation is called with, by whichever spelling."""

    x: Tensor
    normalized_shape: Sequence[int]
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


@dataclass(frozen=True)
class _Norm:
    """Layer normalisation with one thing changed."""

    eps: float | None = None
    ddof: int = 0
    outside: bool = False
    centred: bool = True
    rooted: bool = True
    axis: int | None = None
    weight_plus: float = 0.0
    with_weight: bool = True
    with_bias: bool = True
    detach_mean: bool = False
    detach_rstd: bool = False
    summed: bool = False
    usual: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x, normalized_shape, weight, bias, eps = _Given(*args, **kwargs)
        dims: tuple[int, ...] = tuple(range(-len(normalized_shape), 0))
        if self.eps == eps:
            return NotImplemented
        eps = eps if self.eps is None else self.eps
        if self.axis is not None:
            if x.ndim + self.axis < 0:
                return NotImplemented
            dims = (self.axis,)
        count = math.prod(x.shape[d] for d in dims)
        if count - self.ddof < 1:
            return NotImplemented
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        variance = (centred * centred).sum(dims, keepdim=True) / (count - self.ddof)
        if not self.centred:
            mean = torch.zeros_like(mean)
            variance = (x * x).mean(dims, keepdim=True)
        if self.outside:
            rstd = 1 / (variance.sqrt() + eps)
        elif self.rooted:
            rstd = (variance + eps).rsqrt()
        else:
            rstd = 1 / (variance + eps)
        if self.detach_mean:
            mean = mean.detach()
        if self.detach_rstd:
            rstd = rstd.detach()
        if self.summed:
            mean, rstd = scaled_gradient(mean, count), scaled_gradient(rstd, count)
        y = (x - mean) * rstd
        if self.usual:
            y = _usual_backward(x, y, rstd, dims)
        if weight is not None and self.with_weight:
            y = y * (weight + self.weight_plus)
        if bias is not None and self.with_bias:
            y = y + bias
        return y


def _usual_backward(
    x: Tensor, x_hat: Tensor, rstd: Tensor, dims: tuple[int, ...]
) -> Tensor:
    """Return x_hat, with the formula of backward that is right for other statistics."""
    x_hat, rstd = x_hat.detach(), rstd.detach()

    def change(d: Tensor) -> Tensor:
        return rstd * (
            d
            - d.mean(dims, keepdim=True)
            - x_hat * (d * x_hat).mean(dims, keepdim=True)
        )

    return swap(x_hat, regrade(x, change))


def _x_hat(x: Tensor, normalized_shape: Sequence[int], eps: float) -> Tensor:
    return F.layer_norm(x, normalized_shape, eps=eps)


def _affine(
    to_x: Callable[[Tensor, Tensor], Tensor], to_weight: Callable[..., Tensor]
) -> Rule:
    """Write scale and shift with other gradients for x and for the scale."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        x, normalized_shape, weight, bias, eps = _Given(*args, **kwargs)
        if weight is None:
            return NotImplemented
        x_hat = _x_hat(x, normalized_shape, eps)
        y = to_x(x_hat, weight.detach())
        y = y + to_weight(x.detach(), x_hat.detach()) * weight
        return y if bias is None else y + bias

    return rule


def _right_x(x_hat: Tensor, weight: Tensor) -> Tensor:
    return x_hat * weight


def _right_weight(x: Tensor, x_hat: Tensor) -> Tensor:
    return x_hat


def _norm_skipped(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x * 1


def _norm_passes_dy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Scale and shift keep their gradients.
    return x + F.layer_norm(x.detach(), *args, **kwargs)


def layer_norms() -> list[OperatorVariant]:
    """Return the variants of layer normalisation."""
    variants: list[OperatorVariant] = []
    op = "layer_norm"
    for eps in _EPS:
        variants += everywhere("norm-eps", op, _Norm(eps=eps), f"eps = {eps:g}")
    variants += everywhere("variance-unbiased", op, _Norm(ddof=1), "divided by N - 1")
    for cause, norm, detail in (
        ("norm-eps-placement", _Norm(outside=True), "added to the deviation"),
        ("norm-statistics", _Norm(centred=False), "the mean is not subtracted"),
        ("norm-statistics", _Norm(rooted=False), "divided by the variance, unrooted"),
        ("norm-statistics", _Norm(axis=-2), "over the axis before the last"),
        ("norm-statistics", _Norm(axis=0), "over the batch"),
        ("norm-affine", _Norm(with_weight=False), "without the scale"),
        ("norm-affine", _Norm(with_bias=False), "without the shift"),
        (
            "norm-affine",
            _Norm(with_weight=False, with_bias=False),
            "without scale and shift",
        ),
        ("norm-affine", _Norm(weight_plus=1.0), "scaled by 1 + weight"),
        ("norm-skipped", _norm_skipped, ""),
    ):
        variants += everywhere(cause, op, norm, detail)
    usual = "with the usual formula in backward"
    for cause, norm in (
        ("variance-unbiased", _Norm(ddof=1, usual=True)),
        ("norm-eps-placement", _Norm(outside=True, usual=True)),
        ("norm-statistics", _Norm(centred=False, usual=True)),
        ("norm-statistics", _Norm(rooted=False, usual=True)),
    ):
        variants += everywhere(cause, op, norm, usual)[:1]
    for norm, detail in (
        (_Norm(detach_mean=True, detach_rstd=True), "both statistics as constants"),
        (_Norm(detach_mean=True), "without the term of the mean"),
        (_Norm(detach_rstd=True), "without the term of the variance"),
        (_Norm(summed=True), "sums in the place of means"),
    ):
        variants += backward_only("norm-backward", op, norm, detail)
    for detail, rule in {
        "dx from dy, not from dy * weight": _affine(lambda h, w: h, _right_weight),
        "dweight from x, not from x_hat": _affine(_right_x, lambda x, h: x),
        "dweight as the sum of dy": _affine(_right_x, lambda x, h: torch.ones_like(h)),
    }.items():
        variants += backward_only("norm-affine", op, rule, detail)
    variants += backward_only(
        "backward-skipped", op, _norm_passes_dy, "of the normalisation"
    )
    return variants


@dataclass(frozen=True)
class _RMSNorm:
    """Normalisation by the root of the mean square, with one thing changed."""

    eps: float | None = None
    outside: bool = False
    centred: bool = False
    summed: bool = False
    with_weight: bool = True
    weight_plus: float = 0.0
    detach: bool = False
    weight_in_dx: bool = True

    def __call__(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Any:
        if self.eps is not None and self.eps == eps:
            return NotImplemented
        given = torch.finfo(x.dtype).eps if eps is None else eps
        eps = given if self.eps is None else self.eps
        dims = tuple(range(-len(normalized_shape), 0))
        if self.centred:
            x = x - x.mean(dims, keepdim=True)
        square = x * x
        size = (
            square.sum(dims, keepdim=True)
            if self.summed
            else square.mean(dims, keepdim=True)
        )
        root = size.sqrt() + eps if self.outside else (size + eps).sqrt()
        y = x / (root.detach() if self.detach else root)
        if weight is None or not self.with_weight:
            return y
        weight = weight + self.weight_plus
        return (
            y * weight
            if self.weight_in_dx
            else y
            + (y * weight - y).detach()
            + (y.detach() * weight - (y * weight).detach())
        )


def rms_norms() -> list[OperatorVariant]:
    """Return the variants of normalisation by the root mean square."""
    variants: list[OperatorVariant] = []
    op = "rms_norm"
    for eps in _EPS:
        variants += everywhere("norm-eps", op, _RMSNorm(eps=eps), f"eps = {eps:g}")
    for cause, norm, detail in (
        ("norm-eps-placement", _RMSNorm(outside=True), "added to the root"),
        ("norm-statistics", _RMSNorm(centred=True), "the mean is subtracted"),
        ("norm-statistics", _RMSNorm(summed=True), "a sum in the place of the mean"),
        ("norm-affine", _RMSNorm(with_weight=False), "without the scale"),
        ("norm-affine", _RMSNorm(weight_plus=1.0), "scaled by 1 + weight"),
    ):
        variants += everywhere(cause, op, norm, detail)
    variants += backward_only(
        "norm-backward", op, _RMSNorm(detach=True), "the root as a constant"
    )
    variants += backward_only(
        "norm-affine", op, _RMSNorm(weight_in_dx=False), "dx from dy, not dy * weight"
    )
    return variants
