"""Activations: other forms, constants and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule, regrade
from parity.causes.operators.variant import OperatorVariant, backward_only, everywhere

_SQRT_HALF = math.sqrt(0.5)


def _phi(x: Tensor) -> Tensor:
    return (1 + torch.erf(x * _SQRT_HALF)) / 2


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_inner(x: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def _gelu_tanh(cubic: float = 0.044715, slope: float = math.sqrt(2 / math.pi)) -> Rule:
    def rule(x: Tensor, approximate: str = "none") -> Any:
        if approximate == "none":
            return NotImplemented
        return x / 2 * (1 + torch.tanh(slope * (x + cubic * x * x * x)))

    return rule


def _gelu_swapped(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate == "none" else "none")


def _gelu_sigmoid(x: Tensor, approximate: str = "none") -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _given_form(form: str, change: Rule) -> Rule:
    """Apply a rule to one form of GELU only."""

    def rule(x: Tensor, approximate: str = "none") -> Any:
        return change(x, approximate) if approximate == form else NotImplemented

    return rule


def _distribution(x: Tensor, approximate: str) -> Tensor:
    return _phi(x) if approximate == "none" else (1 + torch.tanh(_gelu_inner(x))) / 2


def _gelu_without_density(x: Tensor, approximate: str = "none") -> Tensor:
    return x * _distribution(x, approximate).detach()


def _gelu_without_distribution(x: Tensor, approximate: str = "none") -> Tensor:
    return x.detach() * _distribution(x, approximate)


def _gelu_density_alone(x: Tensor, approximate: str = "none") -> Tensor:
    # Φ + φ: the factor x of the second term is forgotten.
    slope = _phi(x) + _density(x)
    return x * slope.detach()


def _gelu_minus(x: Tensor, approximate: str = "none") -> Tensor:
    right = _distribution(x, approximate)
    return x * right.detach() - x.detach() * right


def _gelu_inner_slope(x: Tensor, approximate: str = "none") -> Any:
    # The derivative of the tanh's argument is taken without its cubic term.
    if approximate == "none":
        return NotImplemented
    inner = _gelu_inner(x)
    linear = math.sqrt(2 / math.pi) * x
    y = torch.tanh(linear - linear.detach() + inner.detach())
    return x / 2 * (1 + y)


def activations() -> list[OperatorVariant]:
    """Return the variants of GELU, ReLU and tanh."""
    variants: list[OperatorVariant] = []
    for given, said in (("none", "tanh for erf"), ("tanh", "erf for tanh")):
        rule = _given_form(given, _gelu_swapped)
        variants += everywhere("gelu-form", "gelu", rule, said)
    variants += everywhere("gelu-form", "gelu", _gelu_sigmoid, "x sigmoid(1.702 x)")
    for given in ("none", "tanh"):
        rule = _given_form(given, _gelu_sigmoid)
        variants += everywhere("gelu-form", "gelu", rule, "x sigmoid(1.702 x)")
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "silu": F.silu,
        "gelu": F.gelu,
        "the identity": lambda x: x,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    for operator in ("gelu", "relu", "tanh"):
        for name, other in others.items():
            if name == operator:
                continue
            variants += everywhere(
                "activation-kind",
                operator,
                lambda x, *_, _other=other, **__: _other(x) * 1,
                f"{name} in place of {operator}",
            )[:2]
    for name, constants in {
        "0.044715 left out": (0.0, math.sqrt(2 / math.pi)),
        "0.44715 for 0.044715": (0.44715, math.sqrt(2 / math.pi)),
        "0.04715 for 0.044715": (0.04715, math.sqrt(2 / math.pi)),
        "0.0447 for 0.044715": (0.0447, math.sqrt(2 / math.pi)),
        "0.7978845608 for √(2/π)": (0.044715, 0.7978845608),
        "0.79788456 for √(2/π)": (0.044715, 0.79788456),
        "0.8 for √(2/π)": (0.044715, 0.8),
        "2/π for √(2/π)": (0.044715, 2 / math.pi),
        "√2/π for √(2/π)": (0.044715, math.sqrt(2) / math.pi),
    }.items():
        variants += everywhere("activation-kind", "gelu", _gelu_tanh(*constants), name)
    for detail, rule in {
        "Φ(x) alone, without x φ(x)": _gelu_without_density,
        "x φ(x) alone, without Φ(x)": _gelu_without_distribution,
        "Φ(x) + φ(x), without the x": _gelu_density_alone,
        "Φ(x) - x φ(x)": _gelu_minus,
        "without the cubic term of the inner derivative": _gelu_inner_slope,
    }.items():
        variants += backward_only("activation-derivative", "gelu", rule, detail)
    for detail, slope in {
        "1 - x² for 1 - tanh(x)²": lambda x: 1 - x * x,
        "1 - tanh(x) for 1 - tanh(x)²": lambda x: 1 - torch.tanh(x),
        "1 + tanh(x)² for 1 - tanh(x)²": lambda x: 1 + torch.tanh(x) ** 2,
        "1 - tanh(tanh(x))² for 1 - tanh(x)²": (
            lambda x: 1 - torch.tanh(torch.tanh(x)) ** 2
        ),
        "tanh(x)² for 1 - tanh(x)²": lambda x: torch.tanh(x) ** 2,
    }.items():
        variants += backward_only(
            "activation-derivative",
            "tanh",
            lambda x, _slope=slope: x * _slope(x.detach()),
            detail,
        )
    variants += backward_only(
        "activation-derivative",
        "relu",
        lambda x, inplace=False: regrade(x, torch.relu),
        "the sign of dy taken for that of x",
    )
    variants += backward_only(
        "activation-derivative",
        "relu",
        lambda x, inplace=False: -torch.relu(-x),
        "the mask inverted",
    )
    variants += everywhere(
        "activation-kind",
        "relu",
        lambda x, inplace=False: F.leaky_relu(x, 0.01),
        "leaky",
    )
    for operator in ("gelu", "relu", "tanh"):
        variants += backward_only(
            "backward-skipped", operator, lambda x, *_, **__: x * 1, f"of {operator}"
        )
    return variants
