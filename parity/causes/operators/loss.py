"""Losses: averages, logarithms, smoothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule, swap
from parity.causes.operators.variant import OperatorVariant, everywhere, is_number

_LOG_EPS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)


def _target_weights(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[1]
    if target.ndim == 1:
        target = F.one_hot(target.long(), classes).to(logits.dtype)
    return (1 - smoothing) * target + smoothing / classes


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.sum() if reduction == "sum" else losses.mean()


def _entropy(
    log_p: Callable[[Tensor], Tensor],
    weights: Callable[[Tensor, Tensor, float], Tensor] = _target_weights,
    *,
    usual: bool = False,
) -> Rule:
    """Write the loss with another log p, or other weights of the classes.

    With ``usual`` its gradient comes of the usual formula, from what is taken for
    log p, as in an implementation that derived it once and changed forward later.
    """

    def rule(
        logits: Tensor,
        target: Tensor,
        weight: Any = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> Any:
        if logits.ndim != 2 or weight is not None:
            return NotImplemented
        t = weights(logits, target, label_smoothing)
        taken = log_p(logits)
        value = _reduced(-(t * taken).sum(1), reduction)
        if not usual:
            return value
        slope = (taken.exp() * t.sum(1, keepdim=True) - t).detach()
        return swap(value, _reduced((slope * logits).sum(1), reduction))

    return rule


def _smoothed_over_others(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[1]
    if target.ndim == 1:
        target = F.one_hot(target.long(), classes).to(logits.dtype)
    return (1 - smoothing) * target + smoothing / (classes - 1) * (1 - target)


def _smoothed_divisor(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[1]
    if target.ndim == 1:
        target = F.one_hot(target.long(), classes).to(logits.dtype)
    return (1 - smoothing) * target + smoothing / (classes - 1)


def _log_softmax_twice(x: Tensor) -> Tensor:
    return torch.log_softmax(torch.softmax(x, 1), 1)


def _log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1)


def _loss_factor(factor: Callable[[Tensor], float]) -> Rule:
    def rule(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.cross_entropy(logits, target, *args, **options) * factor(logits)

    return rule


def _mean_of_loss(power: int) -> Rule:
    """Divide the sum of a loss by a power of its divisor."""

    def rule(a: Any, b: Any, **options: Any) -> Any:
        if not isinstance(a, Tensor) or a.ndim or not is_number(b) or b == 1:
            return NotImplemented
        return a / b**power

    return rule


def _square_factor(factor: Callable[[Tensor], float]) -> Rule:
    def rule(outputs: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.mse_loss(outputs, target, *args, **options) * factor(outputs)

    return rule


def _log_of_sum(eps: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.log(torch.softmax(x, 1) + eps)


def _log_of_largest(eps: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.log(torch.softmax(x, 1).clamp_min(eps))


def losses() -> list[OperatorVariant]:
    """Return the variants of cross entropy and squared error."""
    variants: list[OperatorVariant] = []
    op = "cross_entropy"
    for eps in _LOG_EPS:
        rule = _entropy(_log_of_sum(eps))
        variants += everywhere("loss-log-eps", op, rule, f"log(p + {eps:g})")
        usual = _entropy(_log_of_sum(eps), usual=True)
        variants += everywhere("loss-log-eps", op, usual, f"log(p + {eps:g})")[:1]
    for eps in _LOG_EPS:
        rule = _entropy(_log_of_largest(eps))
        variants += everywhere("loss-log-eps", op, rule, f"log(max(p, {eps:g}))")
    variants += everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, _smoothed_over_others),
        "over the other K - 1 classes",
    )
    variants += everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, _smoothed_divisor),
        "divided by K - 1, over all classes",
    )
    variants += everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, lambda x, t, s: _target_weights(x, t, 0.0)),
        "left out",
    )
    variants += everywhere(
        "label-smoothing",
        op,
        _entropy(
            _log_softmax, lambda x, t, s: _target_weights(x, t, 0.0) + s / x.shape[1]
        ),
        "the target not lowered by 1 - s",
    )
    variants += everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, lambda x, t, s: (1 - s) * _target_weights(x, t, 0.0)),
        "the even share left out",
    )
    twice = _entropy(_log_softmax_twice)
    variants += everywhere("softmax-twice", op, twice)
    variants += everywhere(
        "softmax-twice",
        op,
        _entropy(_log_softmax_twice, usual=True),
        "with the usual formula in backward",
    )[:1]
    variants += everywhere(
        "softmax-axis",
        op,
        _entropy(lambda x: torch.log_softmax(x, 0)),
        "the batch, in the loss",
    )
    variants += everywhere(
        "softmax-not-normalised",
        op,
        _entropy(lambda x: x - x.amax(1, keepdim=True)),
        "in the loss",
    )
    for name, factor in {
        "loss-averaged-twice": lambda x: 1 / len(x),
        "loss-not-averaged": lambda x: float(len(x)),
    }.items():
        variants += everywhere(name, op, _loss_factor(factor))
        variants += everywhere(name, "mse_loss", _square_factor(factor))
    for name, power in (("loss-averaged-twice", 2), ("loss-not-averaged", 0)):
        variants += everywhere(name, "div", _mean_of_loss(power))
    variants += everywhere(
        "loss-averaged-twice",
        op,
        _loss_factor(lambda x: 1 / x.shape[1]),
        "over the classes too",
    )
    variants += everywhere(
        "loss-not-averaged",
        "mse_loss",
        _square_factor(lambda x: float(x.shape[-1])),
        "over the outputs",
    )
    variants += everywhere(
        "factor-missing", "mse_loss", _square_factor(lambda x: 0.5), "half the square"
    )
    variants += everywhere(
        "loss-not-averaged",
        "mse_loss",
        _square_factor(lambda x: float(x.numel())),
        "over all elements",
    )
    return variants
