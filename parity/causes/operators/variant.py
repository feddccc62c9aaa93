"""One wrong way to compute an operator, and the operators as they should be.

A rule takes the arguments of an operator and returns what a wrong implementation
would, or NotImplemented where the mistake cannot be made. Wrong derivatives are
written as functions that have them: a term that is detached is a term that backward
leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule, dropped, swap


@dataclass(frozen=True)
class OperatorVariant:
    """One way in which one operator goes wrong.

    Attributes
    ----------
    cause : str
        Name in `parity.causes.CAUSES`.
    operator : str
    rule : callable
    detail : str
        What distinguishes it from others of the same cause.
    way : {'both', 'forward', 'backward'}
        Where it is wrong.
    """

    cause: str
    operator: str
    rule: Rule
    detail: str = ""
    way: str = "both"


def everywhere(
    cause: str, operator: str, rule: Rule, detail: str = ""
) -> list[OperatorVariant]:
    """Return a wrong operator, wrong in both directions or in one alone."""
    original = ORIGINALS[operator]

    def forward_only(*args: Any, **kwargs: Any) -> Any:
        wrong = rule(*args, **kwargs)
        return wrong if wrong is NotImplemented else _swapped(wrong, args, kwargs)

    def _swapped(wrong: Tensor, args: Any, kwargs: Any) -> Any:
        right = original(*args, **kwargs)
        return NotImplemented if right.shape != wrong.shape else swap(wrong, right)

    def wrong_backward(*args: Any, **kwargs: Any) -> Any:
        wrong = rule(*args, **kwargs)
        if wrong is NotImplemented:
            return wrong
        right = original(*args, **kwargs)
        return NotImplemented if right.shape != wrong.shape else swap(right, wrong)

    def said(where: str) -> str:
        return f"{detail}, {where}" if detail else where

    return [
        OperatorVariant(cause, operator, rule, detail),
        OperatorVariant(
            cause, operator, forward_only, said("in forward only"), "forward"
        ),
        OperatorVariant(
            cause, operator, wrong_backward, said("in backward only"), "backward"
        ),
    ]


def backward_only(
    cause: str, operator: str, surrogate: Rule, detail: str = ""
) -> list[OperatorVariant]:
    """Return an operator with the derivative of another function."""
    return everywhere(cause, operator, surrogate, detail)[2:]


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _softmax(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    return torch.softmax(x, dim)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.relu(x)


ORIGINALS: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "relu": _relu,
    "tanh": torch.tanh,
    "softmax": _softmax,
    "layer_norm": F.layer_norm,
    "rms_norm": F.rms_norm,
    "linear": F.linear,
    "conv2d": F.conv2d,
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
    "matmul": torch.matmul,
    "transpose": torch.transpose,
    "mean": torch.mean,
    "expand": lambda x, *sizes: x.expand(*sizes),
    "getitem": lambda x, index: x[index],
    "flatten": torch.flatten,
    "cross_entropy": F.cross_entropy,
    "mse_loss": F.mse_loss,
    "interpolate": F.interpolate,
    "dropout": dropped,
}


def is_number(b: Any) -> bool:
    """Tell whether an operand is a number, not a tensor or a flag."""
    return isinstance(b, int | float) and not isinstance(b, bool)


def first_only(dy: Tensor) -> Tensor:
    """Return the gradient of the first image, and zeros for the others."""
    kept = torch.zeros_like(dy)
    kept[:1] = dy[:1]
    return kept


def last_only(dy: Tensor) -> Tensor:
    """Return the gradient of the last image, and zeros for the others."""
    kept = torch.zeros_like(dy)
    kept[-1:] = dy[-1:]
    return kept
