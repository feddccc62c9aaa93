"""Pooling: other tokens, another divisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parity.causes.intercept import Rule
from parity.causes.operators.variant import OperatorVariant, everywhere


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


def pooling() -> list[OperatorVariant]:
    """Return the variants of taking and averaging tokens."""
    variants: list[OperatorVariant] = []
    for detail, other in {
        "the last token": lambda i, n: n - 1,
        "the next token": lambda i, n: i + 1,
        "the token before": lambda i, n: i - 1,
    }.items():
        variants += everywhere("pooling", "getitem", _other_token(other), detail)
    for detail, shift in {
        "all tokens, the prefix too": None,
        "one token more": -1,
        "one token fewer": 1,
    }.items():
        variants += everywhere("pooling", "getitem", _other_start(shift), detail)
    variants += everywhere(
        "pooling", "mean", _mean_of(lambda x, d, k: x.sum(d, keepdim=k)), "a sum"
    )
    variants += everywhere(
        "pooling",
        "mean",
        _mean_of(lambda x, d, k: x.amax(d, keepdim=k)),
        "the largest",
    )
    variants += everywhere(
        "pooling", "mean", _mean_of_all, "all tokens, the prefix too"
    )
    variants += everywhere(
        "pooling", "mean", _sum_over_all_count, "divided by the number of all tokens"
    )
    variants += everywhere(
        "pooling", "flatten", _flattened_otherwise, "features before tokens"
    )
    return variants
