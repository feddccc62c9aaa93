"""The reference: what correct code may compute, and how far it may be off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from parity.bounds.decompositions import NoRuleError
from parity.bounds.rounding import Rounding

FACTOR = 4.0
"""K: how many times the measured error scale a candidate may be off."""

FloatArray = NDArray[np.float64]
Function = Callable[..., "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"]

# Noise for float64 is made at this unit, large enough to be computed in float64, and
# the spread scaled down to float64's own unit roundoff.
_FLOAT64_NOISE = 2.0**-30
_FLOAT64_UNIT = 2.0**-53
_FLOAT32_UNIT = 2.0**-24

# Runs are evaluated together up to this many numbers of input, to limit the memory.
_BATCH_NUMBERS = 2**21


@dataclass(frozen=True)
class Quantity:
    r"""One output or gradient of the reference.

    Attributes
    ----------
    value : ndarray of float64
        r, the truth.
    native : ndarray of the tested dtype
        t, what PyTorch computes in the tested dtype.
    spread : ndarray of float64
        s, the largest deviation of the perturbed evaluations from r.
    scale : ndarray of float64
        \|t − r\| + s + tiny: the error scale of which a candidate may use K times.
    """

    value: FloatArray
    native: NDArray[Any]
    spread: FloatArray
    scale: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(invalid="ignore"):
            deviation = np.abs(self.native.astype(np.float64) - self.value)
        # Where either is not finite there is no distance; `share` compares instead.
        deviation = np.where(np.isfinite(deviation), deviation, 0.0)
        tiny = float(np.finfo(self.native.dtype).tiny)
        object.__setattr__(self, "scale", deviation + self.spread + tiny)


@dataclass(frozen=True)
class Reference:
    """What a function computes on given inputs, and how far correct code may be off.

    Made by `reference`; computed once, it serves any number of candidates.

    Attributes
    ----------
    dtype : torch.dtype
        The tested precision.
    inputs : dict of str to ndarray
        The inputs, floating ones rounded to ``dtype``; give these to the candidate.
    cotangents : dict of str to ndarray
        The upstream gradient of each output, in ``dtype``; empty when not
        differentiated.
    quantities : dict of str to Quantity
        Outputs by name, then gradients as ``"d_" + input``.
    ambiguous_operators : tuple of str
        Operators whose branch decision rounding could turn either way.
    """

    dtype: torch.dtype
    inputs: dict[str, NDArray[Any]]
    cotangents: dict[str, NDArray[Any]]
    quantities: dict[str, Quantity]
    ambiguous_operators: tuple[str, ...]

    @property
    def ambiguous(self) -> bool:
        """Whether a branch hangs on rounding: draw other inputs, do not judge."""
        return bool(self.ambiguous_operators)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all quantities: outputs, then gradients."""
        return tuple(self.quantities)

    def bound(self, name: str, factor: float = FACTOR) -> FloatArray:
        """Say how far each element of a candidate may be from the truth."""
        bound: FloatArray = factor * self._quantity(name).scale
        return bound

    def mismatch(self, name: str, candidate: ArrayLike) -> str | None:
        """Say how a candidate differs in shape or dtype, or ``None`` if it does not."""
        expected = self._quantity(name).native
        got = np.asarray(candidate)
        if got.shape != expected.shape:
            return f"{name} must have shape {expected.shape}, got {got.shape}"
        if got.dtype != expected.dtype:
            return f"{name} must have dtype {expected.dtype}, got {got.dtype}"
        return None

    def share(
        self, name: str, candidate: ArrayLike, factor: float = FACTOR
    ) -> FloatArray:
        """Measure what share of its bound each element of a candidate uses.

        Parameters
        ----------
        name : str
            The quantity, one of `names`.
        candidate : array_like
            Of the same shape. The dtype is not looked at: see `mismatch`.
        factor : float
            K. Default 4.

        Returns
        -------
        ndarray of float64
            The candidate passes where this is at most 1. Infinite where the candidate
            is not finite unless PyTorch's own result is the same infinity or NaN, and
            where it is finite but the truth is not.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        quantity = self._quantity(name)
        got = np.asarray(candidate).astype(np.float64)
        if got.shape != quantity.value.shape:
            raise ValueError(self.mismatch(name, candidate))
        with np.errstate(invalid="ignore", over="ignore"):
            share = np.abs(got - quantity.value) / (factor * quantity.scale)
        finite = np.isfinite(got) & np.isfinite(quantity.value)
        native = quantity.native
        same = (got == native) | (np.isnan(got) & np.isnan(native))
        excused = same & ~np.isfinite(native)
        return np.where(excused, 0.0, np.where(finite, share, math.inf))

    def visible(
        self, name: str, standout: float = 10.0, factor: float = FACTOR
    ) -> float:
        """Measure what share of the elements stands well above their bound.

        Where it is zero a candidate may return zeros, and passing proves nothing.

        Parameters
        ----------
        name : str
            The quantity, one of `names`.
        standout : float
            How many times its bound an element must be to count. Default 10.
        factor : float
            K. Default 4.

        Returns
        -------
        float
            From 0 to 1; 1 for a quantity without elements.
        """
        value = self._quantity(name).value
        if not value.size:
            return 1.0
        return float(np.mean(np.abs(value) > standout * self.bound(name, factor)))

    def sensitivity(self, name: str, factor: float = FACTOR) -> float:
        """Find the smallest relative error common to all elements that is flagged.

        Infinite where every element is zero.
        """
        magnitude = np.abs(self._quantity(name).value)
        seen = (magnitude > 0) & np.isfinite(magnitude)
        if not seen.any():
            return math.inf
        return float(np.min(self.bound(name, factor)[seen] / magnitude[seen]))

    def _quantity(self, name: str) -> Quantity:
        try:
            return self.quantities[name]
        except KeyError:
            raise KeyError(
                f"name must be one of {', '.join(self.quantities)}, got {name!r}"
            ) from None


def reference(
    function: Function,
    inputs: Mapping[str, Tensor | ArrayLike],
    *,
    dtype: torch.dtype = torch.float32,
    differentiate: bool | Collection[str] = True,
    cotangents: Mapping[str, Tensor | ArrayLike] | None = None,
    runs: int = 16,
    seed: int = 0,
    batched: bool = True,
) -> Reference:
    """Evaluate a PyTorch function and measure how far correct code may be off.

    Parameters
    ----------
    function : callable
        Called as ``function(**inputs)``, returns a tensor (named ``"out"``), a tuple
        (``"out0"``, ``"out1"``, …) or a dict of tensors, all floating. Must work in
        the dtype of its inputs, be deterministic, and leave its inputs unchanged.
    inputs : mapping of str to tensor or array_like
        Floating ones are rounded to ``dtype``; integers and booleans are passed on.
    dtype : torch.float32 or torch.float64
        The tested precision. Default torch.float32.
    differentiate : bool or collection of str
        Whether gradients are wanted, or of which inputs: by default all floating ones.
        Give False for functions without a derivative, as optimizer steps.
    cotangents : mapping of str to tensor or array_like, optional
        The upstream gradient of each output. Default: standard normal, from the seed.
    runs : int
        R, how many perturbed evaluations. Default 16.
    seed : int
        Of cotangents and noise. Default 0.
    batched : bool
        Evaluate the runs together with ``torch.vmap`` where the function allows it,
        which is several times faster. Default True.

    Returns
    -------
    Reference
        Truth, bound and inputs.

    Raises
    ------
    NoRuleError
        If the function uses an operator whose rounding is unknown.
    TypeError
        If the function does not keep the dtype of its inputs, or returns anything but
        tensors.
    ValueError
        If ``dtype``, ``runs`` or a name is not valid.
    """
    _validate(dtype, runs)
    generator = torch.Generator().manual_seed(seed)
    rounded = {name: _rounded(value, dtype) for name, value in inputs.items()}
    wanted = _wanted(rounded, differentiate)

    native = _Evaluation(function, rounded, wanted)
    _check_outputs(native.outputs, dtype)
    upstream: dict[str, Tensor] = {}
    if wanted:
        upstream = _cotangents(native.outputs, cotangents, dtype, generator)
    native_results = native.results(upstream)

    wide = {name: _widened(value) for name, value in rounded.items()}
    wide_upstream = {name: _widened(value) for name, value in upstream.items()}
    sampler = _Sampler(function, wide, wanted, wide_upstream, dtype, generator, batched)
    truth, decisions = sampler.truth()
    spread = {name: torch.zeros_like(value) for name, value in truth.items()}
    undecided: list[str] = []
    for results, taken in sampler.perturbed(runs):
        for name, value in results.items():
            deviation = (value - truth[name]).abs().amax(0)
            torch.maximum(spread[name], deviation, out=spread[name])
        undecided += _undecided(decisions, taken)

    return Reference(
        dtype=dtype,
        inputs={name: value.numpy() for name, value in rounded.items()},
        cotangents={name: value.numpy() for name, value in upstream.items()},
        quantities={
            name: Quantity(
                value=value[0].numpy(),
                native=native_results[name].numpy(),
                # Where the truth is infinite or NaN so is every run: no distance.
                spread=spread[name][0].nan_to_num(nan=0.0).numpy() * sampler.unscale,
            )
            for name, value in truth.items()
        },
        ambiguous_operators=tuple(dict.fromkeys(undecided)),
    )


class _Evaluation:
    """One call of the function, or of ``runs`` copies of it side by side, and its vjp.

    The copies are made with ``vmap`` around the forward pass alone: autograd then sees
    ordinary operators on tensors with a leading axis, and as the copies are independent
    their gradients come out separately along that axis.
    """

    def __init__(
        self,
        function: Function,
        inputs: Mapping[str, Tensor],
        wanted: Collection[str],
        runs: int | None = None,
    ) -> None:
        self.runs = runs
        self.leaves = {
            name: self._copies(value) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        self.wanted = {
            name: self.leaves[name].requires_grad_()
            for name in inputs
            if name in wanted
        }

        def named(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
            return _named(function(**leaves))

        with torch.set_grad_enabled(bool(wanted)):
            if runs is None:
                self.outputs = named(self.leaves)
            else:
                axes = {
                    name: 0 if value.is_floating_point() else None
                    for name, value in self.leaves.items()
                }
                self.outputs = torch.vmap(
                    named, in_dims=(axes,), randomness="different"
                )(self.leaves)

    def _copies(self, value: Tensor) -> Tensor:
        if self.runs is None:
            return value.clone()
        return value.expand(self.runs, *value.shape).clone()

    def results(self, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Differentiate; return outputs and gradients, detached."""
        results = {name: out.detach() for name, out in self.outputs.items()}
        if not self.wanted:
            return results
        dependent = {n: out for n, out in self.outputs.items() if out.requires_grad}
        gradients: tuple[Tensor | None, ...] = (None,) * len(self.wanted)
        if dependent:
            gradients = torch.autograd.grad(
                list(dependent.values()),
                list(self.wanted.values()),
                [cotangents[n].expand_as(out) for n, out in dependent.items()],
                allow_unused=True,
            )
        for (name, leaf), gradient in zip(self.wanted.items(), gradients, strict=True):
            results[f"d_{name}"] = (
                torch.zeros_like(leaf).detach() if gradient is None else gradient
            )
        return results


Decisions = list[tuple[str, Tensor]]


class _Sampler:
    """Evaluates the reference in float64, without noise and with."""

    def __init__(
        self,
        function: Function,
        inputs: Mapping[str, Tensor],
        wanted: Collection[str],
        cotangents: Mapping[str, Tensor],
        dtype: torch.dtype,
        generator: torch.Generator,
        batched: bool,
    ) -> None:
        self.function = function
        self.inputs = inputs
        self.wanted = wanted
        self.cotangents = cotangents
        self.generator = generator
        self.batched = batched
        wide = dtype == torch.float64
        # Underflow of float64 cannot be imitated in float64, and subnormals are slow.
        self.underflow = 0.0 if wide else torch.finfo(dtype).tiny
        self.unit = _FLOAT64_NOISE if wide else _FLOAT32_UNIT
        self.unscale = _FLOAT64_UNIT / _FLOAT64_NOISE if wide else 1.0

    def truth(self) -> tuple[dict[str, Tensor], Decisions]:
        """Evaluate without noise; results have a leading axis of length 1."""
        if self.batched:
            try:
                return self._evaluate(1, unit=0.0)
            except NoRuleError:
                raise
            except (RuntimeError, ValueError, UserWarning):
                # vmap cannot do data-dependent control flow, .item(), some in-place
                # operators; what is wrong with the function itself fails again below.
                self.batched = False
        return self._evaluate(1, unit=0.0)

    def perturbed(self, runs: int) -> Iterator[tuple[dict[str, Tensor], Decisions]]:
        """Evaluate with noise, some runs at a time along the leading axis."""
        numbers = sum(x.numel() for x in self.inputs.values() if x.is_floating_point())
        together = max(1, _BATCH_NUMBERS // max(numbers, 1)) if self.batched else 1
        while runs > 0:
            size = min(runs, together)
            yield self._evaluate(size, self.unit)
            runs -= size

    def _evaluate(self, runs: int, unit: float) -> tuple[dict[str, Tensor], Decisions]:
        mode = Rounding(unit, underflow=self.underflow, generator=self.generator)
        # The fused attention kernels have no derivative that can be decomposed.
        with _slow_vmap_refused(), sdpa_kernel(SDPBackend.MATH), mode:
            evaluation = _Evaluation(
                self.function,
                self.inputs,
                self.wanted,
                runs if self.batched else None,
            )
            results = evaluation.results(self.cotangents)
        if not self.batched:
            results = {name: value.unsqueeze(0) for name, value in results.items()}
        return results, mode.decisions


@contextmanager
def _slow_vmap_refused() -> Iterator[None]:
    # Without a batching rule vmap loops over single operators, and then the decisions
    # of the runs cannot be told apart.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def _undecided(certain: Decisions, taken: Decisions) -> list[str]:
    """Name the operators that decided differently under noise."""
    if [name for name, _ in certain] != [name for name, _ in taken]:
        return ["control flow"]
    return [
        name
        for (name, without), (_, with_noise) in zip(certain, taken, strict=True)
        if _differ(without, with_noise)
    ]


def _differ(single: Tensor, several: Tensor) -> bool:
    """Compare a decision with those of several runs along some axis."""
    if single.shape != several.shape:
        axis = next(
            i
            for i, (a, b) in enumerate(zip(single.shape, several.shape, strict=True))
            if a != b
        )
        # vmap folds its axis in front of the one that it merges it with.
        several = several.reshape(
            *several.shape[:axis], -1, single.shape[axis], *several.shape[axis + 1 :]
        )
        single = single.unsqueeze(axis)
    return bool((several != single).any())


def _validate(dtype: torch.dtype, runs: int) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if runs < 2:
        raise ValueError(f"runs must be at least 2, got {runs}; 16 is well tested")


def _rounded(value: Tensor | ArrayLike, dtype: torch.dtype) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    kept = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(kept, copy=True)


def _widened(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _wanted(
    inputs: Mapping[str, Tensor], differentiate: bool | Collection[str]
) -> frozenset[str]:
    floating = {name for name, value in inputs.items() if value.is_floating_point()}
    if isinstance(differentiate, bool):
        return frozenset(floating if differentiate else ())
    unknown = sorted(set(differentiate) - floating)
    if unknown:
        raise ValueError(
            f"differentiate must name floating inputs, got {unknown[0]!r}; "
            f"there are {', '.join(sorted(floating)) or 'none'}"
        )
    return frozenset(differentiate)


def _named(outputs: Any) -> dict[str, Tensor]:
    if isinstance(outputs, Tensor):
        return {"out": outputs}
    named: dict[str, Any] = {"out": outputs}
    if isinstance(outputs, dict):
        named = outputs
    elif isinstance(outputs, tuple | list):
        named = {f"out{i}": out for i, out in enumerate(outputs)}
    for name, out in named.items():
        if not isinstance(out, Tensor):
            raise TypeError(
                "the reference must return a tensor, or a tuple or dict of tensors, "
                f"got {type(out).__name__} in {name}; wrap it in a function that does"
            )
    return dict(named)


def _check_outputs(outputs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    for name, out in outputs.items():
        if out.dtype != dtype:
            raise TypeError(
                f"the reference must keep the dtype of its inputs ({dtype}), got "
                f"{out.dtype} in {name}; a float64 constant promotes, a cast narrows"
            )


def _cotangents(
    outputs: Mapping[str, Tensor],
    given: Mapping[str, Tensor | ArrayLike] | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    if given is None:
        return {
            name: torch.randn(out.shape, generator=generator, dtype=dtype)
            for name, out in outputs.items()
        }
    if set(given) != set(outputs):
        raise ValueError(
            f"cotangents must have the outputs' names ({', '.join(outputs)}), "
            f"got {', '.join(given)}"
        )
    return {
        name: _rounded(given[name], dtype).expand_as(out)
        for name, out in outputs.items()
    }
