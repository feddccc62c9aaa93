"""Variants of operators: what each computes when it is wrong in a known way.

A rule takes the arguments of an operator and returns what a wrong implementation
would, or NotImplemented where the mistake cannot be made. Wrong derivatives are
written as functions that have them: a term that is detached is a term that backward
leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import (
    Rule,
    dropped,
    reaches,
    regrade,
    scaled_gradient,
    swap,
)

_SQRT_HALF = math.sqrt(0.5)
_EPS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.0)
_LOG_EPS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)


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


def _everywhere(
    cause: str, operator: str, rule: Rule, detail: str = ""
) -> list[OperatorVariant]:
    """Return a wrong operator, wrong in both directions or in one alone."""
    original = _ORIGINALS[operator]

    def forward_only(*args: Any, **kwargs: Any) -> Any:
        wrong = rule(*args, **kwargs)
        return wrong if wrong is NotImplemented else _swapped(wrong, args, kwargs)

    def _swapped(wrong: Tensor, args: Any, kwargs: Any) -> Any:
        right = original(*args, **kwargs)
        return NotImplemented if right.shape != wrong.shape else swap(wrong, right)

    def backward_only(*args: Any, **kwargs: Any) -> Any:
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
            cause, operator, backward_only, said("in backward only"), "backward"
        ),
    ]


def _backward(
    cause: str, operator: str, surrogate: Rule, detail: str = ""
) -> list[OperatorVariant]:
    """Return an operator with the derivative of another function."""
    return _everywhere(cause, operator, surrogate, detail)[2:]


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _softmax(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    return torch.softmax(x, dim)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return F.layer_norm(x, normalized_shape, weight, bias, eps)


def _rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return F.rms_norm(x, normalized_shape, weight, eps)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.relu(x)


def _cross_entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(logits, target, **options)


def _mse(outputs: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.mse_loss(outputs, target, **options)


_ORIGINALS: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "relu": _relu,
    "tanh": torch.tanh,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "linear": _linear,
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
    "cross_entropy": _cross_entropy,
    "mse_loss": _mse,
    "interpolate": F.interpolate,
    "dropout": dropped,
}


# --- activations ----------------------------------------------------------------------


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


def _activations() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    for given, said in (("none", "tanh for erf"), ("tanh", "erf for tanh")):
        rule = _given_form(given, _gelu_swapped)
        variants += _everywhere("gelu-form", "gelu", rule, said)
    variants += _everywhere("gelu-form", "gelu", _gelu_sigmoid, "x sigmoid(1.702 x)")
    for given in ("none", "tanh"):
        rule = _given_form(given, _gelu_sigmoid)
        variants += _everywhere("gelu-form", "gelu", rule, "x sigmoid(1.702 x)")
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
            variants += _everywhere(
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
        variants += _everywhere("activation-kind", "gelu", _gelu_tanh(*constants), name)
    for detail, rule in {
        "Φ(x) alone, without x φ(x)": _gelu_without_density,
        "x φ(x) alone, without Φ(x)": _gelu_without_distribution,
        "Φ(x) + φ(x), without the x": _gelu_density_alone,
        "Φ(x) - x φ(x)": _gelu_minus,
        "without the cubic term of the inner derivative": _gelu_inner_slope,
    }.items():
        variants += _backward("activation-derivative", "gelu", rule, detail)
    for detail, slope in {
        "1 - x² for 1 - tanh(x)²": lambda x: 1 - x * x,
        "1 - tanh(x) for 1 - tanh(x)²": lambda x: 1 - torch.tanh(x),
        "1 + tanh(x)² for 1 - tanh(x)²": lambda x: 1 + torch.tanh(x) ** 2,
        "1 - tanh(tanh(x))² for 1 - tanh(x)²": (
            lambda x: 1 - torch.tanh(torch.tanh(x)) ** 2
        ),
        "tanh(x)² for 1 - tanh(x)²": lambda x: torch.tanh(x) ** 2,
    }.items():
        variants += _backward(
            "activation-derivative",
            "tanh",
            lambda x, _slope=slope: x * _slope(x.detach()),
            detail,
        )
    variants += _backward(
        "activation-derivative",
        "relu",
        lambda x, inplace=False: regrade(x, torch.relu),
        "the sign of dy taken for that of x",
    )
    variants += _backward(
        "activation-derivative",
        "relu",
        lambda x, inplace=False: -torch.relu(-x),
        "the mask inverted",
    )
    variants += _everywhere(
        "activation-kind",
        "relu",
        lambda x, inplace=False: F.leaky_relu(x, 0.01),
        "leaky",
    )
    for operator in ("gelu", "relu", "tanh"):
        variants += _backward(
            "backward-skipped", operator, lambda x, *_, **__: x * 1, f"of {operator}"
        )
    return variants


# --- normalisation --------------------------------------------------------------------


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

    def __call__(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
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

    def rule(
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
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


def _norm_skipped(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return x * 1


def _norm_passes_dy(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    # Scale and shift keep their gradients.
    return x + F.layer_norm(x.detach(), normalized_shape, weight, bias, eps)


def _normalisation() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    op = "layer_norm"
    for eps in _EPS:
        variants += _everywhere("norm-eps", op, _Norm(eps=eps), f"eps = {eps:g}")
    variants += _everywhere("variance-unbiased", op, _Norm(ddof=1), "divided by N - 1")
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
        variants += _everywhere(cause, op, norm, detail)
    usual = "with the usual formula in backward"
    for cause, norm in (
        ("variance-unbiased", _Norm(ddof=1, usual=True)),
        ("norm-eps-placement", _Norm(outside=True, usual=True)),
        ("norm-statistics", _Norm(centred=False, usual=True)),
        ("norm-statistics", _Norm(rooted=False, usual=True)),
    ):
        variants += _everywhere(cause, op, norm, usual)[:1]
    for norm, detail in (
        (_Norm(detach_mean=True, detach_rstd=True), "both statistics as constants"),
        (_Norm(detach_mean=True), "without the term of the mean"),
        (_Norm(detach_rstd=True), "without the term of the variance"),
        (_Norm(summed=True), "sums in the place of means"),
    ):
        variants += _backward("norm-backward", op, norm, detail)
    for detail, rule in {
        "dx from dy, not from dy * weight": _affine(lambda h, w: h, _right_weight),
        "dweight from x, not from x_hat": _affine(_right_x, lambda x, h: x),
        "dweight as the sum of dy": _affine(_right_x, lambda x, h: torch.ones_like(h)),
    }.items():
        variants += _backward("norm-affine", op, rule, detail)
    variants += _backward(
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


def _rms_normalisation() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    op = "rms_norm"
    for eps in _EPS:
        variants += _everywhere("norm-eps", op, _RMSNorm(eps=eps), f"eps = {eps:g}")
    for cause, norm, detail in (
        ("norm-eps-placement", _RMSNorm(outside=True), "added to the root"),
        ("norm-statistics", _RMSNorm(centred=True), "the mean is subtracted"),
        ("norm-statistics", _RMSNorm(summed=True), "a sum in the place of the mean"),
        ("norm-affine", _RMSNorm(with_weight=False), "without the scale"),
        ("norm-affine", _RMSNorm(weight_plus=1.0), "scaled by 1 + weight"),
    ):
        variants += _everywhere(cause, op, norm, detail)
    variants += _backward(
        "norm-backward", op, _RMSNorm(detach=True), "the root as a constant"
    )
    variants += _backward(
        "norm-affine", op, _RMSNorm(weight_in_dx=False), "dx from dy, not dy * weight"
    )
    return variants


# --- products -------------------------------------------------------------------------


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


def _first_image_only(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = F.linear(x, weight.detach(), None)
    first = F.linear(x[:1].detach(), weight, bias)
    return torch.cat([y[:1] + first, y[1:]])


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


def _products() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    variants += _everywhere("weight-transposed", "linear", _linear_transposed)
    variants += _backward(
        "weight-transposed", "linear", _linear_dx_transposed, "in dx = dy W"
    )
    variants += _backward(
        "weight-transposed", "linear", _linear_dw_transposed, "in dW = dyᵀ x"
    )
    variants += _everywhere("bias-missing", "linear", _without_bias)
    variants += _everywhere("bias-missing", "conv2d", _conv_without_bias)
    for detail, weight, bias in (
        ("of weight and bias", _per_image, _per_image),
        ("of the weight", _per_image, _one),
        ("of the bias", _one, _per_image),
        ("of weight and bias, by all rows", _per_row, _per_row),
        ("of the weight, by all rows", _per_row, _one),
        ("of the bias, by all rows", _one, _per_row),
    ):
        rule = _linear_gradients(weight, bias)
        variants += _backward("batch-division", "linear", rule, detail)
    variants += _backward(
        "broadcast-gradient", "linear", _first_image_only, "of the first image alone"
    )
    variants += _backward(
        "gradient-missing",
        "linear",
        lambda x, weight, bias=None: F.linear(x.detach(), weight, bias),
        "dx of a linear layer",
    )
    variants += _everywhere(
        "conv-layout", "conv2d", _flipped_kernel, "the kernel flipped"
    )
    variants += _everywhere(
        "conv-layout", "conv2d", _transposed_kernel, "rows and columns exchanged"
    )
    variants += _everywhere("channel-order", "conv2d", _reversed_channels)
    for detail, missing in (("the first", 0), ("the second", 1)):

        def product(a: Tensor, b: Tensor, _missing: int = missing) -> Tensor:
            pair = [a, b]
            pair[_missing] = pair[_missing].detach()
            return pair[0] @ pair[1]

        variants += _backward(
            "gradient-missing", "matmul", product, f"{detail} operand"
        )

    def transposed_operand(a: Tensor, b: Tensor) -> Any:
        if b.ndim < 2 or b.shape[-1] != b.shape[-2] or b.shape[-1] < 2:
            return NotImplemented
        return a @ b.mT

    variants += _everywhere(
        "weight-transposed", "matmul", transposed_operand, "the second operand"
    )
    return variants


# --- softmax and attention ------------------------------------------------------------


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


def _scalar(b: Any) -> bool:
    return isinstance(b, int | float) and not isinstance(b, bool)


def _rescaled(change: Callable[[Tensor, float], float]) -> Rule:
    def rule(a: Tensor, b: Any) -> Any:
        if not _scalar(b) or b == 0 or a.ndim != 4:
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


def _attention() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    for cause, rule, detail in (
        ("softmax-axis", lambda x, dim=-1, **_: _over(x, -2), "the axis before last"),
        ("softmax-axis", lambda x, dim=-1, **_: _over(x, -3), "the heads"),
        ("softmax-axis", lambda x, dim=-1, **_: torch.softmax(x, 0), "the batch"),
        ("softmax-axis", _over_both, "the last two axes together"),
        ("softmax-max-axis", _wrong_maximum, ""),
        ("softmax-not-normalised", _not_normalised, ""),
    ):
        variants += _everywhere(cause, "softmax", rule, detail)
        usual = "with the usual formula in backward"
        variants += _everywhere(
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
        variants += _backward("softmax-backward", "softmax", rule, detail)
    variants += _backward(
        "batch-division",
        "softmax",
        lambda x, dim=-1, **_: scaled_gradient(torch.softmax(x, dim), 1 / len(x)),
        "of softmax",
    )
    variants += _backward(
        "softmax-backward",
        "softmax",
        lambda x, dim=-1, **_: scaled_gradient(
            torch.softmax(x.detach(), dim) * (1 - torch.softmax(x.detach(), dim)) * x,
            1 / len(x),
        ),
        "the diagonal y (1 - y) alone, divided by the batch size",
    )
    variants += _backward(
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
        variants += _everywhere("attention-scale", "mul", _rescaled(change), detail)
    variants += _everywhere("head-merge", "transpose", _untransposed, "not moved")
    variants += _everywhere(
        "head-merge", "transpose", _features_before_heads, "features before heads"
    )
    return variants


# --- structure ------------------------------------------------------------------------


def _residual(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """Return what a sum skips with and what it adds, or None for another sum."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return None
    if reaches(a, b):
        return a, b
    return (b, a) if reaches(b, a) else None


def _sum_of(keep: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(a: Any, b: Any, **options: Any) -> Any:
        pair = _residual(a, b)
        return NotImplemented if pair is None or options else keep(*pair)

    return rule


def _broadcast(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """Return the larger and the smaller of two operands that broadcast."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape == b.shape:
        return None
    large, small = (a, b) if a.numel() > b.numel() else (b, a)
    return (large, small) if large.is_floating_point() else None


def _with_small(change: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """Add with the smaller operand changed before it is broadcast."""

    def rule(a: Any, b: Any, **options: Any) -> Any:
        pair = _broadcast(a, b)
        if pair is None or options or not pair[1].is_floating_point():
            return NotImplemented
        return pair[0] + change(*pair)

    return rule


def _first_only(dy: Tensor) -> Tensor:
    kept = torch.zeros_like(dy)
    kept[:1] = dy[:1]
    return kept


def _last_only(dy: Tensor) -> Tensor:
    kept = torch.zeros_like(dy)
    kept[-1:] = dy[-1:]
    return kept


def _expanded(change: Callable[[Tensor, int], Tensor]) -> Rule:
    def rule(x: Tensor, *sizes: Any) -> Any:
        y = x.expand(*sizes)
        return NotImplemented if y.shape == x.shape else change(x, len(y)).expand(sizes)

    return rule


def _broadcasts() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    for detail, change in {
        "the mean in the place of the sum": (
            lambda x, s: scaled_gradient(s, s.numel() / x.numel())
        ),
        "divided by the batch size": (lambda x, s: scaled_gradient(s, 1 / x.shape[0])),
        "of the first image alone": (
            lambda x, s: regrade(s.expand(x.shape), _first_only)
        ),
        "of the last image alone": (
            lambda x, s: regrade(s.expand(x.shape), _last_only)
        ),
    }.items():
        variants += _backward("broadcast-gradient", "add", _with_small(change), detail)
    variants += _backward(
        "not-trained", "add", _with_small(lambda x, s: s.detach()), "what is added"
    )
    variants += _everywhere(
        "term-missing", "add", _with_small(lambda x, s: torch.zeros_like(s))
    )[:2]
    variants += _backward(
        "broadcast-gradient",
        "expand",
        _expanded(lambda x, n: scaled_gradient(x, 1 / n)),
        "divided by the batch size",
    )
    for detail, kept in {
        "of the first image alone": _first_only,
        "of the last image alone": _last_only,
    }.items():
        variants += _backward(
            "broadcast-gradient",
            "expand",
            lambda x, *sizes, _kept=kept: regrade(x.expand(*sizes), _kept),
            detail,
        )
    variants += _backward(
        "not-trained",
        "expand",
        _expanded(lambda x, n: x.detach()),
        "what is repeated for each image, as the class token is",
    )
    return variants


def _structure() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    variants += _everywhere("residual-dropped", "add", _sum_of(lambda x, f: f * 1))
    variants += _everywhere("branch-dropped", "add", _sum_of(lambda x, f: x * 1))
    variants += _everywhere(
        "factor-missing", "add", _sum_of(lambda x, f: x - f), "subtracted, not added"
    )
    variants += _everywhere(
        "residual-dropped", "add", _sum_of(lambda x, f: f + f), "the branch twice"
    )
    variants += _backward(
        "residual-dropped", "add", _sum_of(lambda x, f: x + x + f), "counted twice"
    )
    return variants + _broadcasts()


def _vector(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    pair = _broadcast(a, b)
    if pair is None or not pair[1].is_floating_point() or pair[1].ndim == 0:
        return None
    return pair


def _scaled_by_vector(change: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(a: Any, b: Any) -> Any:
        pair = _vector(a, b)
        return NotImplemented if pair is None else change(*pair)

    return rule


def _one_mask(x: Tensor, keep: Tensor, divisor: float) -> Any:
    return x * keep[:1] / divisor if len(keep) > 1 else NotImplemented


def _mask_per_sample(x: Tensor, keep: Tensor, divisor: float) -> Any:
    if keep.ndim < 2 or keep.shape != x.shape:
        return NotImplemented
    return x * keep.flatten(1)[:, 0].view(-1, *[1] * (x.ndim - 1)) / divisor


def _dropout() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    op = "dropout"
    variants += _everywhere("dropout-ignored", op, lambda x, keep, c: x * 1)[:2]
    for detail, surrogate in {
        "no mask": lambda x, keep, c: x / c,
        "neither mask nor scale": lambda x, keep, c: x * 1,
    }.items():
        variants += _backward("dropout-backward", op, surrogate, detail)
    for detail, rule in {
        "not scaled": lambda x, keep, c: x * keep,
        "multiplied by p": lambda x, keep, c: x * keep * (1 - c),
        "multiplied by 1 - p": lambda x, keep, c: x * keep * c,
        "divided by p": lambda x, keep, c: x * keep / (1 - c),
        "divided by 1 - p twice": lambda x, keep, c: x * keep / (c * c),
    }.items():
        variants += _everywhere("dropout-scale", op, rule, detail)
    for detail, rule in {
        "the mask inverted": lambda x, keep, c: x * ~keep / c,
        "scaled, without a mask": lambda x, keep, c: x / c,
    }.items():
        variants += _everywhere("dropout-mask", op, rule, detail)
    variants += _everywhere("dropout-mask-shape", op, _one_mask, "for the batch")
    variants += _everywhere("dropout-mask-shape", op, _mask_per_sample, "for a sample")
    return variants


def _factors() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    variants += _everywhere(
        "layer-scale", "mul", _scaled_by_vector(lambda x, g: x * 1), "not applied"
    )
    variants += _backward(
        "layer-scale",
        "mul",
        _scaled_by_vector(lambda x, g: x + x.detach() * g),
        "dx = dy, not dy * gamma",
    )
    variants += _backward(
        "layer-scale",
        "mul",
        _scaled_by_vector(lambda x, g: x * g.detach() + g),
        "dgamma = sum(dy), not sum(dy * x)",
    )
    variants += _backward(
        "layer-scale",
        "mul",
        _scaled_by_vector(
            lambda x, g: x * g.detach() + (x * g).detach() * g  # dy * y
        ),
        "dgamma from the output, not from the input",
    )
    variants += _backward(
        "broadcast-gradient",
        "mul",
        _scaled_by_vector(lambda x, g: x * scaled_gradient(g, g.numel() / x.numel())),
        "the mean in the place of the sum",
    )
    variants += _backward(
        "broadcast-gradient",
        "mul",
        _scaled_by_vector(lambda x, g: x * scaled_gradient(g, 1 / len(x))),
        "divided by the batch size",
    )
    variants += _backward(
        "not-trained", "mul", _scaled_by_vector(lambda x, g: x * g.detach()), "gamma"
    )

    def left_out(a: Any, b: Any, **options: Any) -> Any:
        if not isinstance(a, Tensor) or not _scalar(b) or b == 1:
            return NotImplemented
        return a * 1

    variants += _everywhere("factor-missing", "mul", left_out, "a product")
    variants += _everywhere("factor-missing", "div", left_out, "a division")
    return variants


# --- pooling --------------------------------------------------------------------------


def _tokens_cut(index: Any) -> slice | int | None:
    """Return which tokens an index of (B, T, D) takes, or None."""
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
        return None
    second = index[1]
    return second if isinstance(second, int | slice) else None


def _other_token(to: Callable[[int, int], int]) -> Rule:
    def rule(x: Any, index: Any) -> Any:
        cut = _tokens_cut(index)
        if not isinstance(cut, int) or x.ndim < 3 or not x.is_floating_point():
            return NotImplemented
        other = to(cut, x.shape[1])
        if other == cut or not 0 <= other < x.shape[1]:
            return NotImplemented
        return x[:, other]

    return rule


def _other_start(shift: int | None) -> Rule:
    def rule(x: Any, index: Any) -> Any:
        cut = _tokens_cut(index)
        if not isinstance(cut, slice) or cut.stop is not None or x.ndim < 3:
            return NotImplemented
        start = 0 if shift is None else (cut.start or 0) + shift
        if start == (cut.start or 0) or not 0 <= start < x.shape[1]:
            return NotImplemented
        return x[:, start:]

    return rule


def _mean_of(
    change: Callable[[Tensor, Any, bool], Tensor],
) -> Rule:
    def rule(x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
        return NotImplemented if dim is None else change(x, dim, keepdim)

    return rule


def _mean_of_all(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    whole = x._base
    if whole is None or whole.ndim != x.ndim or dim not in (1, (1,), [1]):
        return NotImplemented
    return whole.mean(1, keepdim=keepdim)


def _sum_over_all_count(
    x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    whole = x._base
    if whole is None or whole.ndim != x.ndim or dim not in (1, (1,), [1]):
        return NotImplemented
    return x.sum(1, keepdim=keepdim) / whole.shape[1]


def _flattened_otherwise(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    if x.ndim != 3 or start_dim != 1:
        return NotImplemented
    return x.mT.flatten(1)


def _pooling() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    for detail, other in {
        "the last token": lambda i, n: n - 1,
        "the next token": lambda i, n: i + 1,
        "the token before": lambda i, n: i - 1,
    }.items():
        variants += _everywhere("pooling", "getitem", _other_token(other), detail)
    for detail, shift in {
        "all tokens, the prefix too": None,
        "one token more": -1,
        "one token fewer": 1,
    }.items():
        variants += _everywhere("pooling", "getitem", _other_start(shift), detail)
    variants += _everywhere(
        "pooling", "mean", _mean_of(lambda x, d, k: x.sum(d, keepdim=k)), "a sum"
    )
    variants += _everywhere(
        "pooling",
        "mean",
        _mean_of(lambda x, d, k: x.amax(d, keepdim=k)),
        "the largest",
    )
    variants += _everywhere(
        "pooling", "mean", _mean_of_all, "all tokens, the prefix too"
    )
    variants += _everywhere(
        "pooling", "mean", _sum_over_all_count, "divided by the number of all tokens"
    )
    variants += _everywhere(
        "pooling", "flatten", _flattened_otherwise, "features before tokens"
    )
    return variants


# --- losses ---------------------------------------------------------------------------


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
) -> Rule:
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
        return _reduced(-(t * log_p(logits)).sum(1), reduction)

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


def _log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1)


def _loss_factor(factor: Callable[[Tensor], float]) -> Rule:
    def rule(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.cross_entropy(logits, target, *args, **options) * factor(logits)

    return rule


def _mean_of_loss(power: int) -> Rule:
    """Divide the sum of a loss by a power of its divisor."""

    def rule(a: Any, b: Any, **options: Any) -> Any:
        if not isinstance(a, Tensor) or a.ndim or not _scalar(b) or b == 1:
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


def _losses() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    op = "cross_entropy"
    for eps in _LOG_EPS:
        rule = _entropy(_log_of_sum(eps))
        variants += _everywhere("loss-log-eps", op, rule, f"log(p + {eps:g})")
    for eps in _LOG_EPS:
        rule = _entropy(_log_of_largest(eps))
        variants += _everywhere("loss-log-eps", op, rule, f"log(max(p, {eps:g}))")
    variants += _everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, _smoothed_over_others),
        "over the other K - 1 classes",
    )
    variants += _everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, _smoothed_divisor),
        "divided by K - 1, over all classes",
    )
    variants += _everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, lambda x, t, s: _target_weights(x, t, 0.0)),
        "left out",
    )
    variants += _everywhere(
        "label-smoothing",
        op,
        _entropy(
            _log_softmax, lambda x, t, s: _target_weights(x, t, 0.0) + s / x.shape[1]
        ),
        "the target not lowered by 1 - s",
    )
    variants += _everywhere(
        "label-smoothing",
        op,
        _entropy(_log_softmax, lambda x, t, s: (1 - s) * _target_weights(x, t, 0.0)),
        "the even share left out",
    )
    variants += _everywhere(
        "softmax-twice",
        op,
        _entropy(lambda x: torch.log_softmax(torch.softmax(x, 1), 1)),
    )
    variants += _everywhere(
        "softmax-axis",
        op,
        _entropy(lambda x: torch.log_softmax(x, 0)),
        "the batch, in the loss",
    )
    variants += _everywhere(
        "softmax-not-normalised",
        op,
        _entropy(lambda x: x - x.amax(1, keepdim=True)),
        "in the loss",
    )
    for name, factor in {
        "loss-averaged-twice": lambda x: 1 / len(x),
        "loss-not-averaged": lambda x: float(len(x)),
    }.items():
        variants += _everywhere(name, op, _loss_factor(factor))
        variants += _everywhere(name, "mse_loss", _square_factor(factor))
    for name, power in (("loss-averaged-twice", 2), ("loss-not-averaged", 0)):
        variants += _everywhere(name, "div", _mean_of_loss(power))
    variants += _everywhere(
        "loss-averaged-twice",
        op,
        _loss_factor(lambda x: 1 / x.shape[1]),
        "over the classes too",
    )
    variants += _everywhere(
        "loss-not-averaged",
        "mse_loss",
        _square_factor(lambda x: float(x.shape[-1])),
        "over the outputs",
    )
    variants += _everywhere(
        "factor-missing", "mse_loss", _square_factor(lambda x: 0.5), "half the square"
    )
    variants += _everywhere(
        "loss-not-averaged",
        "mse_loss",
        _square_factor(lambda x: float(x.numel())),
        "over all elements",
    )
    return variants


# --- positions, and what any operator can do to its upstream --------------------------


def _resized(**changes: Any) -> Rule:
    def rule(
        x: Tensor, size: Any = None, scale_factor: Any = None, **options: Any
    ) -> Any:
        given = {k: v for k, v in options.items() if v is not None}
        changed = given | changes
        if changed.get("mode", "nearest") in ("nearest", "area", "nearest-exact"):
            changed.pop("align_corners", None)
            changed.pop("antialias", None)
        if changed == given:
            return NotImplemented
        return F.interpolate(x, size=size, scale_factor=scale_factor, **changed)

    return rule


def _positions() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    modes: dict[str, dict[str, Any]] = {
        "bilinear": {"mode": "bilinear"},
        "bicubic": {"mode": "bicubic"},
        "nearest": {"mode": "nearest"},
        "antialias on": {"antialias": True},
        "antialias off": {"antialias": False},
        "align_corners on": {"align_corners": True, "antialias": False},
        "align_corners off": {"align_corners": False},
        "bilinear, antialias on": {"mode": "bilinear", "antialias": True},
        "bicubic, antialias on": {"mode": "bicubic", "antialias": True},
        "bicubic, align_corners on": {
            "mode": "bicubic",
            "align_corners": True,
            "antialias": False,
        },
        "bilinear, align_corners on": {
            "mode": "bilinear",
            "align_corners": True,
            "antialias": False,
        },
    }
    for detail, changes in modes.items():
        variants += _everywhere(
            "position-resize", "interpolate", _resized(**changes), detail
        )
    return variants


_UPSTREAM = ("gelu", "relu", "tanh", "softmax", "layer_norm", "linear", "conv2d")


def _upstream() -> list[OperatorVariant]:
    variants: list[OperatorVariant] = []
    for operator in _UPSTREAM:
        original = _ORIGINALS[operator]

        def ignoring(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
            return regrade(_original(*args, **kwargs), torch.ones_like)

        variants += _backward("upstream-ignored", operator, ignoring, f"of {operator}")
        if operator in ("gelu", "relu", "tanh", "layer_norm", "conv2d"):

            def divided(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
                y = _original(*args, **kwargs)
                return scaled_gradient(y, 1 / len(y))

            variants += _backward("batch-division", operator, divided, f"of {operator}")
    return variants


OPERATORS: tuple[OperatorVariant, ...] = tuple(
    _activations()
    + _normalisation()
    + _rms_normalisation()
    + _products()
    + _attention()
    + _structure()
    + _dropout()
    + _factors()
    + _pooling()
    + _losses()
    + _positions()
    + _upstream()
)
"""Every operator variant, the simplest of each kind first."""
