"""A dispatch mode that rounds at random, with one rule for each kind of operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from parity.bounds.decompositions import (
    DECOMPOSITIONS,
    Decomposition,
    NoRuleError,
    borrowed_decomposition,
)


class Operation(NamedTuple):
    """One call of an operator, as a rule sees it.

    Attributes
    ----------
    op : torch._ops.OpOverload
        The operator.
    args, kwargs
        Its arguments; for an in-place operator as they were before the call.
    out
        Its result, unperturbed: a tensor or a tuple of tensors.
    """

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def on_magnitudes(self) -> Any:
        """Apply the operator to the absolute values of its arguments with a fraction.

        For an operator that is linear in each argument this is the sum of the
        magnitudes of all the terms that it adds, whatever cancels among them.
        """
        kwargs = {
            name: abs(value) if name in ("alpha", "beta") else _magnitude(value)
            for name, value in self.kwargs.items()
        }
        return self.op(*map(_magnitude, self.args), **kwargs)

    def term_counts(self) -> Tensor:
        """Count the terms, other than 0, that an operator adds into each element."""
        ones = ((a != 0).to(a.real.dtype) if _is_rounded(a) else a for a in self.args)
        counts: Tensor = self.op(*ones, **self.kwargs)
        return counts


Rule = Callable[[Operation], Any]
"""From an operation to the scale of its rounding error in units of u: a tensor that
broadcasts to the result, ``None`` where the result is exact, or a tuple of these where
the result is a tuple."""


# --- rules ----------------------------------------------------------------------------


def exact(call: Operation) -> None:
    """Compute without rounding."""


def elementwise(ulps: float = 1.0) -> Rule:
    """Round each element by itself.

    Parameters
    ----------
    ulps : float
        By how many units of roundoff: 1 for correctly rounded operators (the
        default), 2 for transcendental functions.
    """

    def rule(call: Operation) -> Tensor:
        scale: Tensor = call.out.abs()
        return scale if ulps == 1.0 else scale.mul_(ulps)

    return rule


def accumulation(terms: Callable[[Operation], float]) -> Rule:
    """Add n terms, whose rounding errors add up like a random walk.

    Parameters
    ----------
    terms : callable
        Gives n for an operation.
    """

    def rule(call: Operation) -> Tensor:
        scale: Tensor = call.on_magnitudes()
        return scale.mul_(math.sqrt(terms(call)))

    return rule


def _summation(call: Operation) -> Tensor | None:
    terms = call.args[0].numel() // max(call.out.numel(), 1)
    if terms <= 1:
        return None
    scale: Tensor = call.on_magnitudes()
    return scale.mul_(math.sqrt(terms))


def _scatter(call: Operation) -> Tensor:
    """Add by a pattern that the operator alone knows, so it is asked to count."""
    scale: Tensor = call.on_magnitudes()
    counts = call.term_counts()
    return scale.mul_(torch.where(counts > 1, counts.sqrt(), 0.0))


def _index_put(call: Operation) -> Tensor | None:
    accumulates = len(call.args) > 3 and call.args[3]
    return _scatter(call) if accumulates else None


def _addition(call: Operation) -> Tensor:
    """Add, after multiplying by ``alpha``, which need not be fused."""
    scale: Tensor = call.out.abs()
    alpha = call.kwargs.get("alpha", 1)
    if _is_power_of_two(alpha):
        return scale
    scaled = call.args[0 if _name(call.op) == "rsub" else 1]
    return scale.add_(abs(alpha) * abs(scaled))


def _scaling(call: Operation) -> Tensor | None:
    """Multiply or divide, without rounding where a factor is a power of two."""
    factors = call.args[:2] if _name(call.op) == "mul" else call.args[1:2]
    if any(_is_power_of_two(factor) for factor in factors):
        return None
    scale: Tensor = call.out.abs()
    return scale


def _polar_part(call: Operation) -> Tensor | None:
    """Find size or direction, which of a real number is its absolute value or sign."""
    if not call.args[0].is_complex():
        return None
    scale: Tensor = call.out.abs()
    return scale


def _fourier(call: Operation) -> Tensor:
    """Add n terms, as the product with the matrix of a Fourier transform does."""
    x, dims, normalization = call.args[:3]
    n, magnitudes = math.prod(x.shape[dim] for dim in dims), x.abs()
    if not call.out.is_complex():
        # Half is given of what is added: the rest are conjugates.
        n, magnitudes = n // x.shape[dims[-1]] * call.args[3], 2 * magnitudes
    terms = magnitudes.sum(dims, keepdim=True)
    divisor = (1.0, math.sqrt(n), float(n))[normalization]
    scale: Tensor = terms * (math.sqrt(n) / divisor)
    return scale


def _convolution_backward(call: Operation) -> tuple[Tensor | None, ...]:
    dy, _, weight = call.args[:3]
    transposed, groups = call.args[7], call.args[9]
    channels = weight.shape[1] if transposed else weight.shape[0] // groups
    positions = dy.numel() / max(dy.shape[1], 1)
    terms = (channels * math.prod(weight.shape[2:]), positions, positions)
    return tuple(
        None if scale is None else scale.mul_(math.sqrt(n))
        for scale, n in zip(call.on_magnitudes(), terms, strict=True)
    )


def _conversion(call: Operation) -> None:
    """Widen, exactly; what narrows would make the truth no better than a candidate."""
    source = call.args[0]
    if (
        isinstance(source, Tensor)
        and source.dtype in _WIDE
        and _is_rounded(call.out)
        and call.out.dtype not in _WIDE
    ):
        raise TypeError(
            "the reference must keep the dtype of its inputs, got a conversion from "
            f"{_dtype_name(source.dtype)} to {_dtype_name(call.out.dtype)} inside it; "
            "remove the .float() or .to(dtype)"
        )


def _inner_size(call: Operation) -> int:
    size: int = call.args[0].shape[-1]
    return size


def _inner_size_and_bias(call: Operation) -> int:
    # The bias takes part in the accumulation.
    return int(call.args[1].shape[-1]) + 1


def _convolution_terms(call: Operation) -> int:
    _, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    channels = weight.shape[0] // groups if transposed else weight.shape[1]
    return int(channels * math.prod(weight.shape[2:])) + (bias is not None)


def _pool_window(call: Operation) -> int:
    return math.prod(call.args[1]) if isinstance(call.args[1], list | tuple) else 1


def _adaptive_pool_window(call: Operation) -> int:
    return -(-int(call.args[0].numel()) // max(int(call.out.numel()), 1))


_MOVES = """
    _reshape_alias _reshape_copy _unsafe_view alias alias_copy as_strided
    broadcast_in_dim cat clone collapse_view constant_pad_nd contiguous copy detach
    diagonal diagonal_backward expand expand_copy flip lift_fresh lift_fresh_copy
    movedim permute permute_copy repeat reshape resolve_conj resolve_neg roll
    select_backward select_scatter set slice slice_backward slice_scatter split
    split_dim split_with_sizes squeeze squeeze_copy stack t transpose transpose_copy
    tril triu unbind unfold unsafe_chunk unsafe_split unsqueeze view view_copy view_of
"""
_SELECTIONS = """
    _unsafe_index amax amin argmax argmin clamp clamp_max clamp_min cummax cummin
    embedding gather index index_select masked_fill masked_scatter masked_select max
    max_pool2d_with_indices maximum median min minimum relu scatter select sort
    threshold threshold_backward topk value_selecting_reduction_backward where
"""
_CONSTANTS = """
    arange empty empty_like empty_strided eye fill full full_like iota new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor zero
    zeros zeros_like
"""
_SIGNS = "neg sign round floor ceil trunc heaviside copysign"
_ROUNDED = "atan2 hypot reciprocal rsqrt sqrt square"
_TRANSCENDENTAL = """
    acos asin atan cos cosh erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2
    pow sigmoid sin sinh tan tanh
"""
_INDEXED_WRITES = "_index_put_impl _unsafe_index_put index_put"
_SCATTERS = """
    cumsum embedding_dense_backward index_add max_pool2d_with_indices_backward
    scatter_add unfold_backward
"""

RULES: dict[str, Rule] = {
    **dict.fromkeys((_MOVES + _SELECTIONS + _CONSTANTS + _SIGNS).split(), exact),
    **dict.fromkeys(_ROUNDED.split(), elementwise()),
    **dict.fromkeys(_TRANSCENDENTAL.split(), elementwise(2.0)),
    **dict.fromkeys(_SCATTERS.split(), _scatter),
    **dict.fromkeys(_INDEXED_WRITES.split(), _index_put),
    **dict.fromkeys(("add", "sub", "rsub"), _addition),
    **dict.fromkeys(("mul", "div"), _scaling),
    **dict.fromkeys(("sum", "mean"), _summation),
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), accumulation(_inner_size)),
    **dict.fromkeys(("addmm", "baddbmm"), accumulation(_inner_size_and_bias)),
    **dict.fromkeys(("_to_copy", "convert_element_type"), _conversion),
    **dict.fromkeys(("_fft_c2c", "_fft_c2r", "_fft_r2c"), _fourier),
    **dict.fromkeys(("abs", "sgn"), _polar_part),
    "complex": exact,
    "polar": elementwise(2.0),
    "convolution": accumulation(_convolution_terms),
    "convolution_backward": _convolution_backward,
    "avg_pool2d": accumulation(_pool_window),
    "_adaptive_avg_pool2d": accumulation(_adaptive_pool_window),
}

# What is known to round complex numbers as it does real ones: each part by itself, by
# some units of roundoff of the whole. In a product it is a sum of two products.
_COMPLEX_ULPS = 2.0
_COMPLEX = frozenset(
    (
        _MOVES
        + _CONSTANTS
        + _INDEXED_WRITES
        + _SCATTERS
        + """
        _conj _conj_physical _fft_c2c _fft_c2r _fft_r2c _to_copy _unsafe_index abs add
        addmm baddbmm bmm complex conj_physical convert_element_type div dot exp gather
        index index_select masked_fill mean mm mul mv neg polar reciprocal rsub sgn sub
        sum where
        """
    ).split()
)

_CLAMPS = "clamp clamp_min clamp_max"
_WITH_INDICES = "cummax cummin max median min max_pool2d_with_indices sort topk"
_STEPS = "argmax argmin ceil floor heaviside round sgn sign trunc"

# Which way an operator decided; results of type bool tell it by themselves.
_DECISIONS: dict[str, Callable[[Operation], Tensor | None]] = {
    "relu": lambda call: call.out > 0,
    "threshold": lambda call: call.args[0] > call.args[1],
    "threshold_backward": lambda call: call.args[1] > call.args[2],
    **dict.fromkeys(_CLAMPS.split(), lambda call: call.out != call.args[0]),
    **dict.fromkeys(
        _WITH_INDICES.split(),
        lambda call: call.out[1] if isinstance(call.out, list | tuple) else None,
    ),
    **dict.fromkeys(_STEPS.split(), lambda call: call.out),
}


# --- extension ------------------------------------------------------------------------


def register_rule(name: str, rule: Rule) -> None:
    """Say how an operator rounds.

    Parameters
    ----------
    name : str
        The operator without trailing underscore: ``"erfinv"``; with its namespace
        outside ``aten``: ``"mylib::norm"``; with its overload for that one alone:
        ``"var.correction"``.
    rule : callable
        `exact`, `elementwise`, `accumulation`, or a function from an `Operation` to
        the scale of its error in units of roundoff.

    Examples
    --------
    >>> register_rule("mylib::double_angle", elementwise(2.0))
    """
    RULES[name] = rule
    _plans.clear()


def register_decomposition(name: str, decomposition: Decomposition) -> None:
    """Say which operators with rules a fused operator consists of.

    Parameters
    ----------
    name : str
        As for `register_rule`.
    decomposition : callable
        Takes the operator's arguments and returns its result. An in-place operator
        is decomposed as if it were not.
    """
    DECOMPOSITIONS[name] = decomposition
    _plans.clear()


# --- the mode -------------------------------------------------------------------------


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, round the float64 result of every operator at random.

    Parameters
    ----------
    unit : float
        The unit roundoff u of the precision to imitate: 2**-24 for float32. With 0
        nothing is perturbed; operators are decomposed and decisions noted all the
        same, which gives the noise-free evaluation to compare with.
    underflow : float
        The smallest normal number of that precision. Default 0, no underflow.
    generator : torch.Generator, optional
        Where the noise comes from.

    Attributes
    ----------
    decisions : list of (str, Tensor)
        Operator and outcome of every branch taken, in order: masks and indices.

    Raises
    ------
    NoRuleError
        At an operator without rule, or one that draws random numbers.
    TypeError
        Where the function converts float64 to a narrower type.
    """

    def __init__(
        self,
        unit: float,
        *,
        underflow: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit = unit
        self.underflow = underflow
        self.generator = generator
        self.decisions: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(
        self,
        op: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        plan = _plans.get(op)
        if plan is None:
            plan = _plans[op] = _Plan.of(op)
        if plan.decomposition is not None:
            with self:
                out = plan.decomposition(*args, **options)
            if not plan.in_place:
                return out
            args[0].copy_(out)
            return args[0]
        before = args
        if plan.in_place and plan.rule is not exact:
            before = (args[0].clone(), *args[1:])
        out = op(*args, **options)
        call = Operation(op, before, options, out)
        self._note(plan, call)
        if not _any(_is_rounded, out):
            return out
        if (
            _any(_is_complex, (out, before))
            and not op.is_view
            and plan.name not in _COMPLEX
        ):
            raise NoRuleError(
                "an operator on complex numbers must have a rounding rule, got "
                f"{op}; write it with real numbers, or add a decomposition into "
                f'operators that have one: register_decomposition("{plan.name}", '
                "function)"
            )
        if plan.rule is None:
            raise NoRuleError(_no_rule_message(op, plan.name))
        if plan.rule is _conversion:
            _conversion(call)
        elif self.unit and plan.rule is not exact:
            self._perturb(out, plan.rule(call))
        return out

    def _note(self, plan: _Plan, call: Operation) -> None:
        if isinstance(call.out, Tensor) and call.out.dtype == torch.bool:
            self.decisions.append((plan.name, call.out.detach().clone()))
        elif plan.decision is not None and _any(_is_real, call.args):
            decision = plan.decision(call)
            if decision is not None:
                self.decisions.append((plan.name, decision.detach().clone()))

    def _perturb(self, out: Any, scale: Any) -> None:
        if isinstance(out, list | tuple):
            for one, its_scale in zip(out, scale, strict=True):
                self._perturb(one, its_scale)
            return
        if scale is None or out.dtype not in _WIDE or not out.numel():
            return
        if out.is_complex():
            scale = (_COMPLEX_ULPS * scale).unsqueeze(-1)
            out = torch.view_as_real(out)
        if self.underflow:
            scale = torch.where(scale > 0, scale + self.underflow, scale)
        noise = torch.empty_like(out)
        noise.uniform_(-_SQRT_3, _SQRT_3, generator=self.generator)
        # An infinite result (a mask of -inf) is exact, and inf - inf would be NaN.
        noise.mul_(scale).nan_to_num_(0.0, 0.0, 0.0)
        out.add_(noise, alpha=self.unit)


class _Plan(NamedTuple):
    """What to do with one operator, looked up once."""

    name: str
    in_place: bool
    rule: Rule | None = None
    decomposition: Decomposition | None = None
    decision: Callable[[Operation], Tensor | None] | None = None

    @classmethod
    def of(cls, op: OpOverload) -> _Plan:
        name = _name(op)
        in_place = op._schema.is_mutable and op._schema.name.endswith("_")
        if torch.Tag.nondeterministic_seeded in op.tags:
            raise NoRuleError(
                f"the reference must be deterministic, got the random operator {op}; "
                "draw masks and noise outside and pass them as inputs"
            )
        for key in (f"{name}.{op._overloadname}", name):
            if key in DECOMPOSITIONS:
                return cls(name, in_place, decomposition=DECOMPOSITIONS[key])
            if key in RULES:
                return cls(name, in_place, RULES[key], decision=_DECISIONS.get(name))
        if op.is_view:
            return cls(name, in_place, exact)
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            str(op._name), "CompositeImplicitAutograd"
        ):
            return cls(name, in_place=False, decomposition=op.decompose)
        return cls(name, in_place, decomposition=borrowed_decomposition(name, op))


_plans: dict[OpOverload, _Plan] = {}
_SQRT_3 = math.sqrt(3.0)
_WIDE = (torch.float64, torch.complex128)


def _name(op: OpOverload) -> str:
    """Name an operator without overload, in-place underscore and usual namespace."""
    name = op._schema.name
    for usual in ("aten::", "prims::"):
        name = name.removeprefix(usual)
    return name.rstrip("_")


def _no_rule_message(op: OpOverload, name: str) -> str:
    if name.startswith(("_foreach", "_fused")):
        return (
            f"an operator must have a rounding rule, got {op}, which works on whole "
            "lists of tensors; construct the optimizer with foreach=False"
        )
    return (
        f"an operator must have a rounding rule, got {op}; add one with "
        f'parity.bounds.register_rule("{name}", elementwise()) or exact, or with '
        f'register_decomposition("{name}", function)'
    )


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_rounded(value: Any) -> bool:
    """Tell whether a value is a tensor of numbers with a fraction."""
    return _is_real(value) or _is_complex(value)


def _any(holds: Callable[[Any], bool], value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_any(holds, one) for one in value)
    return holds(value)


def _magnitude(value: Any) -> Any:
    return value.abs() if _is_rounded(value) else value


def _is_power_of_two(value: Any) -> bool:
    if isinstance(value, Tensor):
        if value.dim():
            return False
        value = value.item()
    if not isinstance(value, int | float) or value == 0:
        return False
    return abs(math.frexp(value)[0]) == 0.5


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
