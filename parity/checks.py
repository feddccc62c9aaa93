"""The checks: each a named object that judges one case of one pair, or a pair.

A check yields findings, one a tensor. Names are stable, so that a failure can be
searched for; `CHECKS` and `PAIR_CHECKS` list them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity.bounds import FACTOR, Reference, reference
from parity.pair import Arrays, Pair, Problem, Vjp, construct
from parity.program import is_out_of_memory
from parity.strategies import Array, Case, generator, laid_out
from parity.transfer import copy_weights, weights

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# What only one of the backends has, by design.
_ONE_SIDED = frozenset({"device", "compile", "amp", "fused", "consume"})


@dataclass(frozen=True)
class Errors:
    """How far from the float64 truth both sides are, in one tensor of one case.

    In units of what rounding alone explains, the spread of the reference: its root
    mean square for the root mean squares, its maximum for the maxima.

    Attributes
    ----------
    candidate, torch : float
        Root mean squares over the tensor.
    candidate_max, torch_max : float
    """

    candidate: float
    torch: float
    candidate_max: float
    torch_max: float


@dataclass(frozen=True)
class Finding:
    """What a check says about one tensor.

    Attributes
    ----------
    check : str
        Name of the check.
    tensor : str
        'out' or the name of an output; 'd_' + the name of an input for its gradient.
    share : float
        Largest share of the bound that an element uses; above 1 is a failure, and
        infinity where there is nothing to measure.
    detail : str
        In words, where the numbers below do not say it all.
    index : tuple of int, optional
        The element with that share, and its values on either side and in truth.
    candidate, torch, truth : float, optional
        The candidate's value, PyTorch's in the same dtype, and the reference's.
    sensitivity : float, optional
        The smallest relative error in one element that would have been flagged.
    seen : float, optional
        Part of the elements in which a wrong value would have been flagged.
    errors : Errors, optional
        In float32, of both sides; float64 has no truth beyond it.
    """

    check: str
    tensor: str
    share: float = 0.0
    detail: str = ""
    index: tuple[int, ...] | None = None
    candidate: float | None = None
    torch: float | None = None
    truth: float | None = None
    sensitivity: float | None = None
    seen: float | None = None
    errors: Errors | None = None

    @property
    def failed(self) -> bool:
        """Whether this is a mismatch."""
        # Written so that NaN is a failure.
        return not self.share <= 1


@dataclass(frozen=True)
class Check:
    """A named check of a case.

    Attributes
    ----------
    name : str
    about : str
        What it shows, in one line.
    run : callable
        From a trial to findings.
    """

    name: str
    about: str
    run: Callable[[Trial], Iterable[Finding]]


@dataclass(frozen=True)
class PairCheck:
    """A named check of a pair as such, made once a run, with one of its cases."""

    name: str
    about: str
    run: Callable[[Pair, Case], Iterable[Finding]]


class CandidateError(Exception):
    """The candidate raised something; this says what."""


class Trial:
    """A case of a pair in one dtype, with everything computed once, when asked for."""

    def __init__(self, pair: Pair, case: Case, dtype: str) -> None:
        self.pair = pair
        self.case = case
        self.dtype = dtype

    @cached_property
    def problem(self) -> Problem:
        """The numbers and the two sides."""
        return self.pair.problem(self.pair, self.case)

    @cached_property
    def reference(self) -> Reference:
        """Truth, bounds, and the inputs rounded to the dtype.

        Raises
        ------
        TypeError, ValueError
            If the reference is none that bounds can be computed for, or raises.
        """
        problem = self.problem
        try:
            return reference(
                problem.function,
                problem.inputs,
                dtype=DTYPES[self.dtype],
                differentiate=problem.differentiate,
                cotangents=problem.cotangents,
                seed=self.case.seed,
                batched=problem.batched,
            )
        except (TypeError, ValueError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"the reference of {self.pair.name} must take what the case gives it, "
                f"got {type(error).__name__}: {error}; give it other inputs, or mend it"
            ) from error

    @cached_property
    def outputs(self) -> Arrays:
        """Outputs of the candidate, as they are before any backward."""
        outputs, _ = self._forward
        return {name: np.array(out) for name, out in outputs.items()}

    @cached_property
    def results(self) -> Arrays:
        """Outputs and gradients of the candidate, named as the reference names them."""
        outputs, (_, vjp) = self.outputs, self._forward
        return outputs | self.backward(vjp, self.fresh()[1])

    @cached_property
    def _forward(self) -> tuple[Arrays, Vjp]:
        return self.forward(self.fresh()[0])

    def fresh(self) -> tuple[Arrays, Arrays]:
        """Copy inputs and cotangents, for a candidate that may write into them."""
        return (
            {name: x.copy() for name, x in self.reference.inputs.items()},
            {name: dy.copy() for name, dy in self.reference.cotangents.items()},
        )

    def run(self, inputs: Arrays, cotangents: Arrays) -> Arrays:
        """Run the candidate forward and, if there are cotangents, backward."""
        outputs, vjp = self.forward(inputs)
        return outputs | self.backward(vjp, cotangents)

    def forward(self, inputs: Mapping[str, Array]) -> tuple[Arrays, Vjp]:
        """Run the candidate forward.

        Raises
        ------
        CandidateError
            If the candidate raises anything.
        """
        try:
            with np.errstate(all="ignore"):
                return self.problem.candidate(dict(inputs))
        except Exception as error:
            raise CandidateError(_raised("forward", error)) from error

    def backward(self, vjp: Vjp, cotangents: Arrays) -> Arrays:
        """Run the candidate backward; nothing comes of no cotangents."""
        if not cotangents:
            return {}
        try:
            with np.errstate(all="ignore"):
                gradients = vjp(dict(cotangents))
        except Exception as error:
            raise CandidateError(_raised("backward", error)) from error
        return {f"d_{name}": gradient for name, gradient in gradients.items()}

    @property
    def ambiguous(self) -> bool:
        """Whether a branch hangs on rounding, so that there is nothing to judge."""
        return self.reference.ambiguous


def judge(trial: Trial, skip: Collection[str] = ()) -> list[Finding]:
    """Run every check of a case but those that are skipped, by name."""
    findings: list[Finding] = []
    for check in CHECKS:
        if check.name in skip:
            continue
        try:
            findings += check.run(trial)
        except CandidateError as error:
            findings.append(Finding(check.name, "", math.inf, str(error)))
            break
        if any(f.failed and f.index is None for f in findings):
            # A tensor that is missing or misshapen: nothing else would be meaningful.
            break
    return findings


def judge_pair(pair: Pair, case: Case) -> list[Finding]:
    """Run every check of a pair as such."""
    return [finding for check in PAIR_CHECKS for finding in check.run(pair, case)]


# --- against the reference ------------------------------------------------------------


def _forward(trial: Trial) -> Iterator[Finding]:
    names = [name for name in trial.reference.names if not name.startswith("d_")]
    yield from _compare("forward", trial, trial.outputs, names)


def _dx(trial: Trial) -> Iterator[Finding]:
    yield from _compare("dx", trial, trial.results, _gradients(trial, parameters=False))


def _d_params(trial: Trial) -> Iterator[Finding]:
    names = _gradients(trial, parameters=True)
    yield from _compare("d_params", trial, trial.results, names)
    for name in trial.results.keys() - set(trial.reference.names):
        yield Finding(
            "d_params", name, math.inf, f"{name} is no tensor of the reference"
        )


def _strided(trial: Trial) -> Iterator[Finding]:
    """Judge the results on arrays that are not contiguous.

    They need not be the same bits, as NumPy sums in the order of memory, but they must
    be within the same bounds.
    """
    ref, layout = trial.reference, trial.case.layout
    inputs, cotangents = trial.fresh()
    inputs = {
        name: x if name in trial.problem.parameters else laid_out(x, layout)
        for name, x in inputs.items()
    }
    cotangents = {name: laid_out(dy, layout) for name, dy in cotangents.items()}
    results = trial.run(inputs, cotangents)
    worst = max(
        _compare("strided", trial, results, ref.names), key=lambda found: found.share
    )
    yield Finding(
        "strided",
        worst.tensor,
        worst.share,
        worst.detail or f"with inputs and cotangents laid out as {layout!r}",
        worst.index,
        worst.candidate,
        worst.torch,
        worst.truth,
    )


def _gradients(trial: Trial, *, parameters: bool) -> list[str]:
    return [
        name
        for name in trial.reference.names
        if name.startswith("d_")
        and (name.removeprefix("d_") in trial.problem.parameters) == parameters
    ]


def _compare(
    check: str, trial: Trial, results: Arrays, names: Iterable[str]
) -> Iterator[Finding]:
    ref = trial.reference
    for name in names:
        if name not in results:
            known = ", ".join(results)
            yield Finding(check, name, math.inf, f"{name} is missing among {known}")
            continue
        got = np.asarray(results[name])
        quantity = ref.quantities[name]
        if got.dtype.kind not in "fiub":
            kind = got.item() if got.dtype == object and not got.ndim else got.dtype
            wrong = f"{name} must be an array of real numbers, got {kind}"
            yield Finding(check, name, math.inf, wrong)
            continue
        if got.shape != quantity.value.shape:
            yield Finding(check, name, math.inf, str(ref.mismatch(name, got)))
            continue
        if not got.size:
            yield Finding(check, name)
            continue
        share = ref.share(name, got)
        index = tuple(int(i) for i in np.unravel_index(np.argmax(share), share.shape))
        yield Finding(
            check,
            name,
            float(share[index]),
            index=index,
            candidate=float(got[index]),
            torch=float(quantity.native[index]),
            truth=float(quantity.value[index]),
            sensitivity=_sensitivity(trial, name),
            seen=_seen(trial, name),
            errors=_errors_of(trial, name, got),
        )


def _counted(trial: Trial, name: str) -> NDArray[np.bool_]:
    """Mark the elements that the pair does not list as zero in truth."""
    counted = np.ones(trial.reference.quantities[name].value.shape, bool)
    for where in trial.pair.blinded(name, trial.case):
        counted[where] = False
    return counted


def _seen(trial: Trial, name: str) -> float:
    """Return the part of a tensor in which a wrong value would be flagged.

    An element is seen if it is larger than its own bound, so that zero in its place
    would fail, or if its bound is next to nothing, so that anything but zero would:
    what dropout or a ReLU switched off.
    """
    ref, counted = trial.reference, _counted(trial, name)
    magnitude, bound = np.abs(ref.quantities[name].value), ref.bound(name)
    tiny = 2 * FACTOR * float(np.finfo(trial.dtype).tiny)
    if not counted.any():
        return 1.0
    standing = magnitude > bound
    if not standing[counted].any():
        return 0.0
    return float(np.mean((standing | (bound <= tiny))[counted]))


def _sensitivity(trial: Trial, name: str) -> float | None:
    """Return the smallest relative error in one element that is flagged.

    At least a unit in the last place: less cannot be injected. None for a tensor that
    is zero.
    """
    ref = trial.reference
    magnitude = np.abs(ref.quantities[name].value)
    counted = _counted(trial, name) & (magnitude > 0) & np.isfinite(magnitude)
    if not counted.any():
        return None
    with np.errstate(over="ignore"):
        smallest = float(np.min(ref.bound(name)[counted] / magnitude[counted]))
    return max(smallest, float(np.finfo(trial.dtype).eps))


def _errors_of(trial: Trial, name: str, got: Array) -> Errors | None:
    """Measure both sides against the truth; None where no rounding could be seen."""
    if trial.dtype != "float32":
        return None
    quantity, counted = trial.reference.quantities[name], _counted(trial, name)
    counted &= np.isfinite(quantity.native) & np.isfinite(quantity.value)
    counted &= np.isfinite(got)
    truth, spread = quantity.value[counted], quantity.spread[counted]
    if not spread.any():
        return None
    off = [np.abs(side[counted] - truth) for side in (got, quantity.native)]
    candidate, torch = (_rms(errors) / _rms(spread) for errors in off)
    candidate_max, torch_max = (float(errors.max() / spread.max()) for errors in off)
    return Errors(candidate, torch, candidate_max, torch_max)


def _rms(x: Array) -> float:
    largest = float(np.abs(x).max())
    # Squares of subnormal numbers would vanish.
    return largest * math.sqrt(float(np.mean((x / largest) ** 2))) if largest else 0.0


# --- the candidate alone --------------------------------------------------------------


def _blind(trial: Trial) -> Iterator[Finding]:
    """Check that what a pair lists as zero in truth is zero, as far as can be seen."""
    for name, quantity in trial.reference.quantities.items():
        standing = np.abs(quantity.value) > trial.reference.bound(name)
        for where in trial.pair.blinded(name, trial.case):
            wrong = bool(standing[where].any())
            yield Finding(
                "blind",
                name,
                math.inf if wrong else 0.0,
                "listed as zero in truth, but stands above its bound" if wrong else "",
            )


def _dtype(trial: Trial) -> Iterator[Finding]:
    for name, array in trial.results.items():
        got = np.asarray(array).dtype.name
        wrong = got != trial.dtype
        yield Finding(
            "dtype",
            name,
            math.inf if wrong else 0.0,
            f"{trial.dtype} went in, {got} came out" if wrong else "",
        )


def _unmutated(trial: Trial) -> Iterator[Finding]:
    inputs, cotangents = trial.fresh()
    outputs, vjp = trial.forward(inputs)
    kept = {name: np.array(out) for name, out in outputs.items()}
    for name, x in trial.reference.inputs.items():
        yield _same_bits("unmutated", name, inputs[name], x, "forward wrote into it")
    trial.backward(vjp, cotangents)
    for name, x in trial.reference.inputs.items():
        yield _same_bits("unmutated", name, inputs[name], x, "backward wrote into it")
    for name, dy in trial.reference.cotangents.items():
        wrote = "backward wrote into the upstream gradient"
        yield _same_bits("unmutated", name, cotangents[name], dy, wrote)
    for name, out in kept.items():
        wrote = "backward wrote into the output"
        yield _same_bits("unmutated", name, np.asarray(outputs[name]), out, wrote)


def _repeatable(trial: Trial) -> Iterator[Finding]:
    inputs, cotangents = trial.fresh()
    outputs, vjp = trial.forward(inputs)
    gradients = trial.backward(vjp, cotangents)
    first = {name: np.array(value) for name, value in (outputs | gradients).items()}
    others = {
        name: _reordered(x)
        for name, x in inputs.items()
        if name not in trial.problem.parameters
    }
    other_vjp: Vjp | None = None
    # These inputs may make no sense to the candidate, which may then say so.
    with suppress(CandidateError):
        # What a layer keeps on itself, rather than in its cache, is now another's.
        _, other_vjp = trial.forward(inputs | others)
    for name, value in outputs.items():
        wrote = "a later forward wrote into this output"
        yield _same_bits("repeatable", name, np.asarray(value), first[name], wrote)
    if other_vjp is not None:
        with suppress(CandidateError):
            trial.backward(other_vjp, {name: -dy for name, dy in cotangents.items()})
    for name, value in gradients.items():
        wrote = "a later backward wrote into this gradient"
        yield _same_bits("repeatable", name, np.asarray(value), first[name], wrote)
    for name, value in trial.backward(vjp, cotangents).items():
        differs = (
            "a second backward on the same cache, after a forward of other inputs, "
            "gave another result"
        )
        yield _same_bits("repeatable", name, np.asarray(value), first[name], differs)
    again, _ = trial.forward(inputs)
    for name, value in again.items():
        differs = "a second forward on the same inputs gave another result"
        yield _same_bits("repeatable", name, np.asarray(value), first[name], differs)
    if trial.problem.inference is not None:
        for name, value in trial.problem.inference(inputs).items():
            differs = "a forward that must keep nothing gave another result, or a cache"
            got, expected = np.asarray(value), first.get(name, np.zeros(0))
            yield _same_bits("repeatable", name, got, expected, differs)


def _reordered(x: Array) -> Array:
    """Return other values of the same range, so that a logarithm's stay positive."""
    reordered: Array = x.reshape(-1)[::-1].reshape(x.shape).copy()
    if x.dtype.kind == "f" and np.array_equal(reordered, x):
        reordered /= 2
    return reordered


def _same_bits(
    check: str, tensor: str, got: NDArray[Any], expected: NDArray[Any], detail: str
) -> Finding:
    same = got.shape == expected.shape and got.tobytes() == expected.tobytes()
    return Finding(check, tensor, 0.0 if same else math.inf, "" if same else detail)


# Steps of the central differences, relative to the size of each tensor. The smallest
# resolves what LayerNorm's eps smooths; there, rounding is still some 1e-9.
_STEPS = tuple(2.0**-7 * 4.0**-k for k in range(8))


def _directional(trial: Trial) -> Iterator[Finding]:
    """Compare ⟨v, vjp(u)⟩ with the slope of ⟨u, f(x + h v)⟩ at h = 0, in float64.

    Notes
    -----
    Central differences D(h) at steps that shrink by 4, freed of their h² term,
    R(h) = (16 D(h/4) - D(h)) / 15, are off by truncation where h is large and by
    rounding where it is small. Where three in a row agree best, neither rules, and
    their disagreement estimates what is left. A kink closer than any h spoils all of
    them alike; it shows as a jump between the slopes on either side,
    S(h) = (f(h) - 2 f(0) + f(-h)) / h, which falls to zero with h for smooth f:
    (4 S(h/4) - S(h)) / 3 is what does not. And f is a sum of numbers that are rounded,
    by which differences may agree that are nothing but one unit in its last place. The
    tolerance is K times the sum of the three; where it leaves less than three digits,
    nothing is said.
    """
    ref = trial.reference
    if trial.dtype != "float64" or not ref.cotangents:
        return
    if any(
        name not in trial.results or trial.results[name].shape != quantity.value.shape
        for name, quantity in ref.quantities.items()
    ):
        # The checks that say so are skipped.
        return
    direction = {
        name: generator(trial.case.seed, f"v_{name}").standard_normal(x.shape)
        * _size(x)
        for name, x in ref.inputs.items()
        if f"d_{name}" in ref.quantities
    }

    def change(h: float) -> float:
        moved = {name: ref.inputs[name] + h * v for name, v in direction.items()}
        outputs, _ = trial.forward(trial.fresh()[0] | moved)
        return _total(
            float(np.vdot(u, np.asarray(outputs[name]) - trial.results[name]))
            for name, u in ref.cotangents.items()
        )

    sides = [(change(h), change(-h)) for h in _STEPS]
    central = [
        (up - down) / (2 * h) for (up, down), h in zip(sides, _STEPS, strict=True)
    ]
    bends = [(up + down) / h for (up, down), h in zip(sides, _STEPS, strict=True)]
    slopes = [(16 * b - a) / 15 for a, b in pairwise(central)]
    jumps = [abs(4 * b - a) / 3 for a, b in pairwise(bends)]
    eps = float(np.finfo(np.float64).eps)
    size = math.fsum(
        float(np.abs(u * trial.results[name]).sum())
        for name, u in ref.cotangents.items()
    )
    windows = [
        (
            max(slopes[i : i + 3])
            - min(slopes[i : i + 3])
            + jumps[i + 1]
            + eps * size / _STEPS[i + 3],
            slopes[i + 1],
        )
        for i in range(len(slopes) - 2)
    ]
    uncertainty, slope = min(windows)
    terms = [direction[name] * trial.results[f"d_{name}"] for name in direction]
    claimed = _total(float(term.sum()) for term in terms)
    scale = math.sqrt(math.fsum(float(np.vdot(term, term)) for term in terms))
    tolerance = FACTOR * (uncertainty + eps * scale)
    if not math.isfinite(slope) or not tolerance <= 1e-3 * max(scale, abs(slope)):
        return
    true = _total(
        float((v * ref.quantities[f"d_{name}"].value).sum())
        for name, v in direction.items()
    )
    if not abs(true - slope) <= tolerance or not math.isfinite(claimed):
        # The reference's gradients are not its slopes: it stops a gradient, or has
        # none that is finite. The comparison with them is all there is to say.
        return
    yield Finding(
        "directional",
        "vjp",
        abs(claimed - slope) / tolerance if claimed != slope else 0.0,
        f"⟨v, vjp(u)⟩ is {claimed:.17g}, its central difference {slope:.17g}",
    )


def _total(terms: Iterable[float]) -> float:
    """Add without rounding; NaN where a term is not finite, which fsum may refuse."""
    with np.errstate(all="ignore"):
        values = list(terms)
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _size(x: Array) -> float:
    """Return how far the numbers of a tensor are apart, or else how large they are."""
    apart = float(x.std())
    return apart if apart > 0 else float(np.abs(x).max(initial=0.0)) or 1.0


# --- the pair -------------------------------------------------------------------------


def _round_trip(pair: Pair, case: Case) -> Iterator[Finding]:
    problem = pair.problem(pair, case)
    if not pair.mirrored or not problem.parameters:
        return
    config = {k: v for k, v in case.config.items() if k != "masked"}
    there, back = (construct(pair.load_candidate(), config) for _ in range(2))
    twin = construct(pair.load_reference(), config)
    state = {
        name: problem.inputs[name].astype(np.float32) for name in problem.parameters
    }
    there.load_state_dict(state)
    if list(weights(there)) != list(weights(twin)):
        yield Finding(
            "round_trip",
            "",
            math.inf,
            f"the names differ: {list(weights(there))} and {list(weights(twin))}",
        )
        return
    copy_weights(there, twin)
    copy_weights(twin, back)
    for name, array in weights(back).items():
        yield _same_bits("round_trip", name, array, state[name], "came back different")


def _initial(pair: Pair, case: Case) -> Iterator[Finding]:
    """Compare new parameters: PyTorch's where they are not random, zeros elsewhere."""
    if not pair.mirrored or not pair.problem(pair, case).parameters:
        return
    config = {k: v for k, v in case.config.items() if k != "masked"}
    ours = weights(construct(pair.load_candidate(), config))
    twins = [weights(construct(pair.load_reference(), config)) for _ in range(2)]
    for name in twins[0].keys() & ours.keys():
        value = twins[0][name]
        random = not np.array_equal(value, twins[1][name])
        expected = np.zeros_like(value) if random else value
        differs = f"a new one must hold {expected.tolist()}, got {ours[name].tolist()}"
        yield _same_bits("initial", name, ours[name], expected, differs)


def _signature(pair: Pair, case: Case) -> Iterator[Finding]:
    if not pair.mirrored:
        return
    numpy, twin = pair.load_candidate(), pair.load_reference()
    callables = {"": (numpy, twin)}
    if hasattr(numpy, "forward"):
        callables["forward"] = (numpy.forward, twin.forward)
    for name, (ours, theirs) in callables.items():
        got, expected = _parameters(ours), _parameters(theirs)
        same = got == expected
        yield Finding(
            "signature",
            name or pair.name,
            0.0 if same else math.inf,
            "" if same else f"NumPy has {got}, PyTorch has {expected}",
        )


def _parameters(function: Any) -> list[str]:
    if getattr(function, "__init__", None) is torch.nn.Module.__init__:
        return []
    return [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(function).parameters.values()
        if p.name not in _ONE_SIDED
    ]


def _errors(pair: Pair, case: Case) -> Iterator[Finding]:
    calls: list[tuple[dict[str, Any], tuple[Any, ...] | None]]
    calls = [(arguments, None) for arguments in pair.refused]
    calls += pair.refused_calls
    for arguments, inputs in calls:
        numpy = _answer(pair.load_candidate(), arguments, inputs)
        twin = _answer(pair.load_reference(), _tensors(arguments), _tensors(inputs))
        same = numpy == twin and numpy.startswith(("TypeError: ", "ValueError: "))
        called = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        yield Finding(
            "errors",
            called,
            0.0 if same else math.inf,
            "" if same else f"NumPy: {numpy!r}; PyTorch: {twin!r}",
        )


def _answer(factory: Any, arguments: dict[str, Any], inputs: Any) -> str:
    try:
        made = construct(factory, arguments)
        if inputs is not None:
            made(*inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _tensors(value: Any) -> Any:
    """Return the same arguments with tensors in place of arrays."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, list | tuple):
        return type(value)(_tensors(item) for item in value)
    if isinstance(value, dict):
        return {name: _tensors(item) for name, item in value.items()}
    return value


def _raised(where: str, error: Exception) -> str:
    return f"{where} raised {type(error).__name__}: {error}"


CHECKS = (
    Check("forward", "outputs, within the bound", _forward),
    Check("dx", "gradients of the inputs, within the bound", _dx),
    Check(
        "d_params", "every parameter's gradient by name, within the bound", _d_params
    ),
    Check("blind", "what is listed as zero in truth is", _blind),
    Check("dtype", "float32 in gives float32 out, and float64 float64", _dtype),
    Check("unmutated", "inputs, parameters, outputs and cotangents stay", _unmutated),
    Check("repeatable", "forward and backward give the same bits twice", _repeatable),
    Check("strided", "arrays that are not contiguous, NaN in their gaps", _strided),
    Check("directional", "⟨v, vjp(u)⟩ against central differences", _directional),
)
PAIR_CHECKS = (
    PairCheck("round_trip", "weights go to PyTorch and back unchanged", _round_trip),
    PairCheck("initial", "new parameters are PyTorch's, or zero", _initial),
    PairCheck("signature", "the same parameters, order and defaults", _signature),
    PairCheck("errors", "the same error for the same bad input", _errors),
)
VISIBLE = "visible"
"""The check of a whole run: that every tensor was seen in some case. See `runs`."""
