"""Fused operators written as the primitives that a rounding rule exists for.

A fused kernel rounds many times inside; its result alone does not say how much. Each
function here takes the arguments of the operator it is named after and computes it
step by step, so that every step can be perturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, decomposition_table

Decomposition = Callable[..., Any]

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715


class NoRuleError(ValueError):
    """A reference with an operator whose rounding is unknown, and what to do then."""


def _native_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rstd = ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    y = centred * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y, mean, rstd


def _native_layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    outer = tuple(range(x.dim() - len(normalized_shape)))
    dims = tuple(range(len(outer), x.dim()))
    # The mean is taken anew for each use: were its error the same in both terms of dx,
    # they would cancel in some elements, as they need not in another formulation.
    x_hat = (x - x.mean(dims, keepdim=True)) * rstd
    dx = dweight = dbias = None
    if output_mask[0]:
        d = dy if weight is None else dy * weight
        d_mean = d.mean(dims, keepdim=True)
        projection = (d * ((x - mean) * rstd)).mean(dims, keepdim=True)
        dx = rstd * (d - d_mean - x_hat * projection)
    if output_mask[1] and weight is not None:
        dweight = (dy * x_hat).sum(outer) if outer else dy * x_hat
    if output_mask[2] and bias is not None:
        dbias = dy.sum(outer) if outer else dy.clone()
    return dx, dweight, dbias


def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def _softmax_backward(dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return y * (dy - (dy * y).sum(dim, keepdim=True))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _log_softmax_backward(
    dy: Tensor, y: Tensor, dim: int, dtype: torch.dtype
) -> Tensor:
    return dy - y.exp() * dy.sum(dim, keepdim=True)


def _gelu_tanh(x: Tensor) -> Tensor:
    return ((x + (x * x * x) * _TANH_CUBIC) * _SQRT_2_OVER_PI).tanh()


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return (0.5 * x) * (1.0 + _gelu_tanh(x))
    return (0.5 * x) * (1.0 + (x * _SQRT_HALF).erf())


def _gelu_backward(dy: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        t = _gelu_tanh(x)
        inner = (1.0 + (x * x) * (3.0 * _TANH_CUBIC)) * _SQRT_2_OVER_PI
        return dy * (0.5 * (1.0 + t) + (0.5 * x) * (1.0 - t * t) * inner)
    cdf = 0.5 * (1.0 + (x * _SQRT_HALF).erf())
    pdf = (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return dy * (cdf + x * pdf)


def _tanh_backward(dy: Tensor, y: Tensor) -> Tensor:
    return dy * (1.0 - y * y)


def _sigmoid_backward(dy: Tensor, y: Tensor) -> Tensor:
    return dy * (y * (1.0 - y))


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b) * value


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a / b) * value


def _lerp(x: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    return x * (1 - weight) + end * weight


def _real(x: Tensor) -> Tensor:
    """Return what has the same squares, of complex numbers those of the size."""
    return x.abs() if x.is_complex() else x


def _var_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    dims = tuple(dim) if dim else tuple(range(x.dim()))
    mean = x.mean(dims, keepdim=True)
    centred = _real(x - mean)
    count = x.numel() / max(mean.numel(), 1)
    divisor = max(count - (1 if correction is None else correction), 0)
    var = (centred * centred).sum(dims, keepdim=keepdim) / divisor
    return var, (mean if keepdim else mean.squeeze(dims))


def _var(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return _var_mean(x, dim, **options)[0]


def _std(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return _var_mean(x, dim, **options)[0].sqrt()


def _std_mean(
    x: Tensor, dim: Sequence[int] | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    var, mean = _var_mean(x, dim, **options)
    return var.sqrt(), mean


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dims = tuple(dim) if dim else tuple(range(x.dim()))
    x = _real(x)
    if ord == 2:
        return (x * x).sum(dims, keepdim=keepdim).sqrt()
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    raise NoRuleError(
        f"the norm's order must be 1, 2 or inf to have a rounding rule, got {ord}; "
        "write it with abs, pow and sum"
    )


DECOMPOSITIONS: dict[str, Decomposition] = {
    "native_layer_norm": _native_layer_norm,
    "native_layer_norm_backward": _native_layer_norm_backward,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax": _log_softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "tanh_backward": _tanh_backward,
    "sigmoid_backward": _sigmoid_backward,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "var.correction": _var,
    "var_mean.correction": _var_mean,
    "std.correction": _std,
    "std_mean.correction": _std_mean,
    "linalg_vector_norm": _vector_norm,
}

# PyTorch's own decompositions, beyond its core set, that are made of operators with
# rules; each is compared with its kernel by the tests.
_BORROWED = frozenset(
    {
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "hardtanh",
        "leaky_relu",
        "elu",
    }
)


def borrowed_decomposition(name: str, op: torch._ops.OpOverload) -> Any | None:
    """PyTorch's own decomposition of an operator, where it is one to trust."""
    if name in _BORROWED:
        return decomposition_table.get(op)
    return _core().get(op)


_core_table: dict[Any, Any] = {}


def _core() -> dict[Any, Any]:
    if not _core_table:
        _core_table.update(core_aten_decompositions())
    return _core_table
