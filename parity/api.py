"""`assert_parity`: one line that proves a port right, or says what is wrong with it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis.strategies import DrawFn

from parity.candidates import BACKENDS, Signature, adapt, copy_buffers
from parity.causes import Explanation, explain
from parity.checks import CHECKS, DTYPES, Finding, Trial, judge
from parity.errors import ParityError
from parity.names import unknown_name
from parity.pair import Blind, Pair, Problem
from parity.report import finding_lines
from parity.strategies import (
    LAYOUTS,
    Array,
    Case,
    Configuration,
    generator,
    parameter,
)

_EXAMPLES = 3
_SHOWN = 3
# Cases drawn again where a branch hangs on rounding.
_REDRAWN = 20


@dataclass(frozen=True)
class Agreement:
    """What `assert_parity` measured on two that agree.

    Attributes
    ----------
    share : float
        The largest share of the error bound that was used; 1 is the limit.
    tensors : tuple of str
        What was compared: outputs, and gradients as 'd_' + name.
    sensitivity : float
        The smallest relative error in an element that would have been flagged, for the
        tensor where it is largest.
    """

    share: float
    tensors: tuple[str, ...]
    sensitivity: float

    def __str__(self) -> str:
        return (
            f"{len(self.tensors)} tensors agree within {self.share:.2f} of the bound; "
            f"relative errors from {self.sensitivity:.0e} on would be seen"
        )


def assert_parity(
    candidate: Any,
    reference: Callable[..., Any],
    inputs: Any,
    *,
    parameters: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    backward: Callable[..., Any] | None = None,
    backend: str | None = None,
    device: Any = None,
    dtype: str | Sequence[str] = ("float64", "float32"),
    differentiate: bool | Collection[str] = True,
    blind: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    examples: int = _EXAMPLES,
    seed: int = 0,
    name: str | None = None,
) -> Agreement:
    """Compare a candidate with a PyTorch reference, forward and backward.

    No tolerance is asked for: how far correct code may be off is computed from the
    reference, element by element.

    Parameters
    ----------
    candidate : callable or object
        One of: a NumPy function that returns ``y`` or ``(y, cache)``, with `backward`;
        a function that returns ``(y, vjp)``; an object with ``forward`` and
        ``backward``, which caches on itself or returns ``(y, cache)``; a torch module,
        ``autograd.Function`` or function, compiled or not; a JAX function.
    reference : callable
        A function of tensors or a `torch.nn.Module`.
    inputs : mapping, sequence or array
        In the order of the reference's arguments, with names for them or without. A
        tuple of int stands for standard normal numbers of that shape.
    parameters : mapping of str to array or shape, optional
        By the reference's names, given to it by keyword, as to a NumPy candidate;
        functions of torch or JAX are given them behind the inputs, in this order. Those
        of a module are found, and random numbers put in their place, as initial values
        hide errors.
    names : mapping of str to str, optional
        From the reference's names of parameters to the candidate's, where it is given
        them by name.
    backward : callable, optional
        ``backward(dy, *cache)``: returns a dict of gradients by name, ``(dx, dict)``, a
        tuple in the order of inputs and parameters, or dx. Without a cache it is given
        inputs and parameters.
    backend : {'numpy', 'torch', 'jax'}, optional
        What a plain function computes with; found out for all else.
    device : torch.device or str, optional
        Where a torch candidate runs; by default where its parameters are.
    dtype : {'float64', 'float32'} or both, default both
        The formula is checked in float64, the numerics in float32.
    differentiate : bool or collection of str, default True
        Whether gradients are compared, or of which inputs and parameters.
    blind : mapping of str to str, optional
        Gradients that are zero in truth ('d_k.bias'), and why.
    skip : collection of str
        Checks that are not run, by name, such as 'repeatable'.
    examples : int, default 3
        How often the numbers are drawn; the first time they are as given.
    seed : int, default 0
    name : str, optional
        What the report calls the candidate.

    Returns
    -------
    Agreement

    Raises
    ------
    ParityError
        If they do not agree, with the report and the likely cause. It is an
        AssertionError.
    TypeError, ValueError
        If an argument makes no sense.
    """
    dtypes = _dtypes("dtype", dtype)
    if backend is not None and backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    known = [check.name for check in CHECKS]
    for check in skip:
        if check not in known:
            raise unknown_name("check", check, known)
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got examples={examples}")
    pair = make_pair(
        name or str(getattr(candidate, "__name__", type(candidate).__name__)),
        candidate,
        reference,
        inputs,
        parameters=parameters,
        names=names,
        backward=backward,
        backend=backend,
        device=device,
        dtypes=dtypes,
        differentiate=differentiate,
        blind=blind,
        seed=seed,
    )
    findings: list[Finding] = []
    for one in dtypes:
        for trial in _trials(pair, one, examples, seed):
            found = judge(trial, skip)
            if any(f.failed for f in found):
                raise ParityError(*_report(trial, found))
            findings += found
    _refuse_blindness(pair, findings)
    shares = [f.share for f in findings if math.isfinite(f.share)]
    seen = [f for f in findings if f.sensitivity is not None and f.seen]
    return Agreement(
        max(shares, default=0.0),
        tuple(dict.fromkeys(f.tensor for f in findings if f.seen is not None)),
        max((f.sensitivity for f in seen if f.sensitivity is not None), default=0.0),
    )


def make_pair(
    name: str,
    candidate: Any,
    reference: Callable[..., Any],
    inputs: Any,
    *,
    parameters: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    backward: Callable[..., Any] | None = None,
    backend: str | None = None,
    device: Any = None,
    dtypes: str | Sequence[str] = ("float64", "float32"),
    differentiate: bool | Collection[str] = True,
    blind: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Pair:
    """Return a pair of any candidate and reference, for ``parity check --pairs``.

    Parameters are those of `assert_parity`; `dtypes` is its `dtype`, and `seed` the one
    for which the numbers are as given. A `Pair` made by hand can draw other shapes and
    configurations as well.

    Raises
    ------
    TypeError, ValueError
        If an argument makes no sense.
    """
    problem = _Given(
        candidate,
        reference,
        _arrays(_named(inputs, reference)),
        _arrays(_parameters(reference, parameters)),
        dict(names or {}),
        backward,
        backend,
        device,
        differentiate,
        seed,
    )
    for ours in problem.names:
        if ours not in problem.parameters:
            raise unknown_name("parameter in names", ours, problem.parameters)
    return Pair(
        name=name,
        candidate="",
        reference="",
        draw=problem.draw,
        problem=problem,
        regimes=("normal",),
        dtypes=_dtypes("dtypes", dtypes),
        blind=tuple(Blind(tensor, why) for tensor, why in (blind or {}).items()),
        mirrored=False,
    )


@dataclass(frozen=True)
class _Given:
    """Makes problems of what the user gave; callable as `Pair.problem` is."""

    candidate: Any
    reference: Callable[..., Any]
    inputs: dict[str, Array | tuple[int, ...]]
    parameters: dict[str, Array | tuple[int, ...]]
    names: dict[str, str]
    backward: Callable[..., Any] | None
    backend: str | None
    device: Any
    differentiate: bool | Collection[str]
    seed: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of everything that goes in."""
        return {
            name: x if isinstance(x, tuple) else x.shape
            for name, x in (self.inputs | self.parameters).items()
        }

    def draw(self, draw: DrawFn, regime: str) -> Configuration:
        """Draw nothing: shapes are given."""
        return {}, self.shapes()

    def __call__(self, pair: Pair, case: Case) -> Problem:
        numbers = {
            name: _numbers(
                name, x, case.seed, name in self.parameters, case.seed == self.seed
            )
            for name, x in (self.inputs | self.parameters).items()
        }
        floating = {n for n, x in numbers.items() if x.dtype.kind == "f"}
        wanted = floating if self.differentiate is True else self.differentiate
        differentiated = frozenset(wanted or ())
        signature = Signature(
            tuple(self.inputs),
            {name: self.names.get(name, name) for name in self.parameters},
            differentiated,
        )
        return Problem(
            inputs=numbers,
            candidate=adapt(
                self.candidate,
                signature,
                backward=self.backward,
                backend=self.backend,
                device=self.device,
            ),
            function=self._function(),
            parameters=frozenset(self.parameters),
            differentiate=differentiated or False,
        )

    def _function(self) -> Callable[..., Any]:
        module, order = self.reference, tuple(self.inputs)
        if not isinstance(module, torch.nn.Module):

            def function(**given: torch.Tensor) -> Any:
                positional = [given.pop(name) for name in order]
                return module(*positional, **given)

            return function

        def functional(**given: torch.Tensor) -> Any:
            buffers = copy_buffers(module, given.values())
            positional = tuple(given.pop(name) for name in order)
            return torch.func.functional_call(module, given | buffers, positional)

        return functional


def _dtypes(option: str, given: str | Sequence[str]) -> tuple[str, ...]:
    dtypes = (given,) if isinstance(given, str) else tuple(given)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown_name(option, str(dtype), DTYPES)
    if not dtypes:
        raise ValueError(f"{option} must name float64, float32 or both, got none")
    return dtypes


def _numbers(
    name: str, x: Array | tuple[int, ...], seed: int, owned: bool, as_given: bool
) -> Array:
    """Return an input: as given, or others like it for another seed."""
    if isinstance(x, tuple):
        return parameter(seed, name if owned else f"input {name}", x)
    if as_given or not x.size:
        return x
    rng = generator(seed, name)
    shuffled: Array = rng.permutation(x.reshape(-1)).reshape(x.shape)
    if x.dtype.kind != "f":
        return shuffled
    # Spread a little, so that no two draws of few numbers are the same.
    spread: Array = shuffled * (1 + 0.1 * rng.standard_normal(x.shape))
    return spread


def _named(inputs: Any, reference: Callable[..., Any]) -> dict[str, Any]:
    """Return inputs by name; those without take the reference's argument names."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    is_shape = isinstance(inputs, tuple) and all(isinstance(n, int) for n in inputs)
    listed = [inputs] if is_shape or not isinstance(inputs, list | tuple) else inputs
    try:
        forward = getattr(reference, "forward", reference)
        own = [
            p.name
            for p in inspect.signature(forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        # Functions of torch that are written in C++ have no signature.
        own = []
    own += [f"x{i}" for i in range(len(own), len(listed))]
    return dict(zip(own, listed, strict=False))


def _parameters(
    reference: Callable[..., Any], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(reference, torch.nn.Module):
        found = {n: tuple(p.shape) for n, p in reference.named_parameters()}
        for name in given or {}:
            if name not in found:
                raise unknown_name("parameter", name, found)
    return found | dict(given or {})


def _arrays(given: Mapping[str, Any]) -> dict[str, Array | tuple[int, ...]]:
    """Return arrays in float64, integers as they are, and shapes as they are."""
    arrays: dict[str, Array | tuple[int, ...]] = {}
    for name, value in given.items():
        if isinstance(value, tuple) and all(isinstance(n, int) for n in value):
            arrays[name] = value
            continue
        if isinstance(value, torch.Tensor):
            value = (
                value.detach().cpu().double() if value.is_floating_point() else value
            )
        array = np.array(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} must be an array, a tensor or a shape, "
                f"got {type(value).__name__}"
            )
        arrays[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
    return arrays


def _trials(pair: Pair, dtype: str, examples: int, seed: int) -> list[Trial]:
    """Return trials whose branches do not hang on rounding."""
    problem = pair.problem
    shapes = problem.shapes() if isinstance(problem, _Given) else {}
    trials: list[Trial] = []
    undecided: set[str] = set()
    for number in range(examples + _REDRAWN):
        layout = LAYOUTS[number % len(LAYOUTS)]
        trial = Trial(pair, Case({}, shapes, seed + number, layout=layout), dtype)
        undecided.update(trial.reference.ambiguous_operators)
        if not trial.ambiguous:
            trials.append(trial)
        if len(trials) == examples:
            return trials
    raise ValueError(
        "inputs must not lie on a kink or a tie, where rounding decides the branch, "
        f"got {', '.join(sorted(undecided))}; give other numbers"
    )


def _refuse_blindness(pair: Pair, findings: Sequence[Finding]) -> None:
    """Raise for a tensor in which a wrong value would not have been seen."""
    seen: dict[str, float] = {}
    for finding in findings:
        if finding.seen is not None:
            seen[finding.tensor] = max(seen.get(finding.tensor, 0.0), finding.seen)
    for tensor, part in seen.items():
        if part == 0 and not any(blind.tensor == tensor for blind in pair.blind):
            raise ParityError(
                f"{pair.name}: nothing of {tensor} stands above its error bound, so a "
                "wrong value would pass; give other inputs, or list it as "
                f"blind={{{tensor!r}: 'why it is zero'}}",
                None,
            )


def _report(
    trial: Trial, findings: Sequence[Finding]
) -> tuple[str, Explanation | None]:
    failed = [f for f in findings if f.failed]
    plain = [f for f in failed if f.check != "strided"] or failed
    lines = [f"{trial.pair.name} does not agree with the reference in {trial.dtype}:"]
    for finding in plain[:_SHOWN]:
        lines += finding_lines(finding)
    if len(plain) > _SHOWN:
        rest = dict.fromkeys(f"{f.check} {f.tensor}".strip() for f in plain[_SHOWN:])
        lines.append(f"  also: {', '.join(rest)}")
    shapes = ", ".join(f"{name} {shape}" for name, shape in trial.case.shapes.items())
    lines.append(f"  case            {shapes}; seed {trial.case.seed}")
    explanation = explain(trial, findings)
    lines += [f"  {line}" for line in explanation.lines()]
    return "\n".join(lines), explanation
