"""Products: weights transposed, terms of backward divided or left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule, regrade, scaled_gradient
from parity.causes.operators.variant import (
    OperatorVariant,
    backward_only,
    everywhere,
    first_only,
    last_only,
)


def _square(weight: Tensor) -> bool:
    return weight.ndim == 2 and weight.shape[0] == weight.shape[1] > 1


def _linear_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return F.linear(x, weight.mT, bias) if _square(weight) else NotImplemented


def _linear_dx_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _square(weight):
        return NotImplemented
    return F.linear(x, weight.detach().mT) + F.linear(x.detach(), weight, bias)


def _linear_dw_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _square(weight):
        return NotImplemented
    return F.linear(x, regrade(weight, lambda dw: dw.mT), bias)


def _without_bias(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return NotImplemented if bias is None else F.linear(x, weight)


def _linear_gradients(
    weight_factor: Callable[[Tensor], float], bias_factor: Callable[[Tensor], float]
) -> Rule:
    def rule(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = scaled_gradient(weight, weight_factor(x))
        if bias is not None:
            bias = scaled_gradient(bias, bias_factor(x))
        return F.linear(x, weight, bias)

    return rule


def _one(x: Tensor) -> float:
    return 1.0


def _per_image(x: Tensor) -> float:
    return 1 / len(x)


def _per_row(x: Tensor) -> float:
    return x.shape[-1] / x.numel()


def _kept_gradients(keep: Callable[[Tensor], Tensor], *names: str) -> Rule:
    """Let the weight, the bias or both take their gradient from a part of dy."""

    def rule(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        if len(x) < 2 or (bias is None and "weight" not in names):
            return NotImplemented
        limited = {
            "weight": F.linear(x.detach(), weight),
            "bias": torch.zeros(()) if bias is None else bias.expand(*x.shape[:-1], -1),
        }
        y = F.linear(
            x,
            weight.detach() if "weight" in names else weight,
            None if "bias" in names else bias,
        )
        if "bias" in names and bias is not None:
            y = y + bias.detach()
        for name in names:
            if name == "weight" or bias is not None:
                part = regrade(limited[name], keep)
                y = y + part - part.detach()
        return y

    return rule


def _flipped_kernel(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(x, weight.flip(2, 3), *args, **kwargs)


def _transposed_kernel(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    if weight.shape[2] != weight.shape[3]:
        return NotImplemented
    return F.conv2d(x, weight.mT, *args, **kwargs)


def _reversed_channels(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(x, weight.flip(1), *args, **kwargs)


def _conv_without_bias(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    if bias is None:
        return NotImplemented
    return F.conv2d(x, weight, None, *args, **kwargs)


def products() -> list[OperatorVariant]:
    """Return the variants of linear layers, convolutions and products."""
    variants: list[OperatorVariant] = []
    variants += everywhere("weight-transposed", "linear", _linear_transposed)
    variants += backward_only(
        "weight-transposed", "linear", _linear_dx_transposed, "in dx = dy W"
    )
    variants += backward_only(
        "weight-transposed", "linear", _linear_dw_transposed, "in dW = dyᵀ x"
    )
    variants += everywhere("bias-missing", "linear", _without_bias)
    variants += everywhere("bias-missing", "conv2d", _conv_without_bias)
    for detail, weight, bias in (
        ("of weight and bias", _per_image, _per_image),
        ("of the weight", _per_image, _one),
        ("of the bias", _one, _per_image),
        ("of weight and bias, by all rows", _per_row, _per_row),
        ("of the weight, by all rows", _per_row, _one),
        ("of the bias, by all rows", _one, _per_row),
    ):
        rule = _linear_gradients(weight, bias)
        variants += backward_only("batch-division", "linear", rule, detail)
    for image, keep in (("first", first_only), ("last", last_only)):
        for names in (("weight", "bias"), ("weight",), ("bias",)):
            variants += backward_only(
                "broadcast-gradient",
                "linear",
                _kept_gradients(keep, *names),
                f"of {' and '.join(names)}, of the {image} image alone",
            )
    variants += backward_only(
        "gradient-missing",
        "linear",
        lambda x, weight, bias=None: F.linear(x.detach(), weight, bias),
        "dx of a linear layer",
    )
    variants += everywhere(
        "conv-layout", "conv2d", _flipped_kernel, "the kernel flipped"
    )
    variants += everywhere(
        "conv-layout", "conv2d", _transposed_kernel, "rows and columns exchanged"
    )
    variants += everywhere("channel-order", "conv2d", _reversed_channels)
    for detail, missing in (("the first", 0), ("the second", 1)):

        def product(a: Tensor, b: Tensor, _missing: int = missing) -> Tensor:
            pair = [a, b]
            pair[_missing] = pair[_missing].detach()
            return pair[0] @ pair[1]

        variants += backward_only(
            "gradient-missing", "matmul", product, f"{detail} operand"
        )

    def transposed_operand(a: Tensor, b: Tensor) -> Any:
        if b.ndim < 2 or b.shape[-1] != b.shape[-2] or b.shape[-1] < 2:
            return NotImplemented
        return a @ b.mT

    variants += everywhere(
        "weight-transposed", "matmul", transposed_operand, "the second operand"
    )
    return variants
