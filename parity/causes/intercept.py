"""Changing single operators of a reference while it runs, without touching its code.

A reference is any function of tensors. Under an `Intercept` each call of an operator,
by whichever spelling (``x + y``, ``torch.add``), may be answered by another function of
the same arguments. So one rule serves a layer, a whole network and a function of the
user's own.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Rule = Callable[..., Any]
"""Takes the arguments of an operator and returns another result, or NotImplemented."""

# In-place methods are left alone: a rule returns its result and writes to nothing.
_SPELLINGS = {
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__imul__": "mul",
    "multiply": "mul",
    "__truediv__": "div",
    "__itruediv__": "div",
    "divide": "div",
    "true_divide": "div",
    "__matmul__": "matmul",
    "bmm": "matmul",
    "mm": "matmul",
    "swapaxes": "transpose",
    "__getitem__": "getitem",
}
_HERE = str(Path(__file__).parent)
# Callers that tell one call of an operator from another.
_DEPTH = 6
ATTENTION = "scaled_dot_product_attention"


Site = tuple[tuple[str, int], ...]
"""A place in the code, with those that it is called from."""


def _calling(frame: FrameType | None) -> tuple[Site, str]:
    """Return where an operator is called, outside of torch, and that line of code."""
    site: list[tuple[str, int]] = []
    line = ""
    while frame is not None and len(site) < _DEPTH:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module != "torch" and code.co_filename != __file__:
            if code.co_filename.startswith(_HERE):
                break
            site.append((code.co_filename, frame.f_lasti))
            where = f"{Path(code.co_filename).name}:{frame.f_lineno}"
            text = getline(code.co_filename, frame.f_lineno).strip()
            # A layer that only hands on to torch says less than the line that uses it.
            if not line or "return F." in line:
                line = f"{where}, `{text}`"
        frame = frame.f_back
    return tuple(site), line


class Intercept(TorchFunctionMode):
    """Answers operators by rules, and counts what it meets.

    Fused attention is taken apart into products and a softmax, so that rules for these
    reach inside it. A product with a mask that is then divided by a number is one
    operator: ``dropout(x, keep, divisor)``.

    Parameters
    ----------
    rules : mapping of str to callable, default none
        By name of the operator.
    only : int or Site, optional
        The one call among those that a rule has an answer to, or all from one place in
        the code; all by default.
    but : Site, optional
        A place whose calls are left alone.

    Attributes
    ----------
    answered : int
        Calls that a rule had an answer to.
    sites : dict of Site to str
        Where the answered calls came from, with the line of code.
    met : Counter of str
        All calls, by name.
    heads : set of int
        Lengths of the second axis in softmax over (B, h, T, T).
    """

    def __init__(
        self,
        rules: Mapping[str, Rule] | None = None,
        only: int | Site | None = None,
        but: Site | None = None,
    ) -> None:
        super().__init__()
        self.rules = rules or {}
        self.only = only
        self.but = but
        self.answered = 0
        self.sites: dict[Site, str] = {}
        self.met: Counter[str] = Counter()
        self.heads: set[int] = set()
        self._masked: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        name = _SPELLINGS.get(name, name)
        if name == "mul" and _is_mask(args[-1]):
            product: Tensor = func(*args, **kwargs)
            # The product is kept, so that no other tensor gets its identity.
            self._masked[id(product)] = (*args, product)
            return product
        if name == "div" and id(args[0]) in self._masked:
            x, keep, _ = self._masked[id(args[0])]
            name, args, func = "dropout", (x, keep, args[1]), dropped
        self.met[name] += 1
        if name == "softmax" and args[0].ndim == 4:
            self.heads.add(args[0].shape[1])
        if name == ATTENTION:
            with self:
                return plain_attention(*args, **kwargs)
        rule = self.rules.get(name)
        answer = NotImplemented if rule is None else rule(*args, **kwargs)
        if answer is NotImplemented:
            return func(*args, **kwargs)
        self.answered += 1
        site, line = _calling(sys._getframe(1))
        self.sites.setdefault(site, line)
        if self.only not in (None, self.answered - 1, site) or self.but == site:
            return func(*args, **kwargs)
        return answer


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool


def dropped(x: Tensor, keep: Tensor, divisor: float) -> Tensor:
    """Return dropout with a given mask."""
    return x * keep / divisor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """Return softmax(scale q kᵀ) v, step by step."""
    if is_causal or dropout_p or options.get("enable_gqa"):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **options
        )
    logits = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if attn_mask is not None:
        filled = attn_mask.dtype == torch.bool
        logits = (
            logits.masked_fill(~attn_mask, -math.inf) if filled else logits + attn_mask
        )
    return logits.softmax(dim=-1) @ v


class _Swap(torch.autograd.Function):
    """One tensor's value with another's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return None, dy


class _Regrade(torch.autograd.Function):
    """The identity, with the gradient that passes it changed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.change = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return ctx.change(dy), None


def swap(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value`, to be differentiated as if it were `surrogate`."""
    result: Tensor = _Swap.apply(value.detach(), surrogate)  # type: ignore[no-untyped-call]
    return result


def regrade(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `x`; the gradient that comes back through it is passed to `change`."""
    result: Tensor = _Regrade.apply(x, change)  # type: ignore[no-untyped-call]
    return result


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x`, with its gradient multiplied."""
    return regrade(x, lambda dy: dy * factor)


def reaches(start: Tensor, end: Tensor) -> bool:
    """Tell whether `end` was computed from `start`, by their graph."""
    goal = start.grad_fn
    todo, seen = [end.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if (goal is not None and node is goal) or (goal is None and leaf is start):
            return True
        todo += [following for following, _ in node.next_functions]
    return False
