"""Finding the cause: the reference is run again under every variant that applies.

A cause is named only if its variant agrees with all that the candidate computed, within
the variant's own computed bound, on the failing case and on others drawn for the
purpose, while the reference itself does not. Otherwise nothing is named, and what the
numbers show is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from parity.bounds import reference
from parity.causes.catalogue import CAUSES, Cause
from parity.causes.intercept import Intercept, Site
from parity.causes.layouts import layouts
from parity.causes.numbers import (
    Compared,
    Relation,
    named_factors,
    relations,
    where_wrong,
)
from parity.causes.operators import OPERATORS, OperatorVariant
from parity.causes.updates import UPDATES, AdamUpdate, Update, updating_by, used_updates
from parity.checks import CHECKS, DTYPES, CandidateError, Finding, Trial, judge
from parity.pair import Pair
from parity.runs import PairResult
from parity.strategies import Array, Case, cases

# Cases drawn to tell causes apart, and the seconds after which no more are.
_CASES = 20
_SECONDS = 2.0
# Of those that fail, and of those that agree, so many are used.
_FAILING, _AGREEING = 6, 2
# Cancellation loses digits; what is off by more bounds than this is something else.
_INACCURATE = 1e5
# Variants that pass the first comparison and are then given bounds of their own.
_MEASURED = 8

# Of two causes that fit, the one that says more comes first.
_LAYOUT, _UNSPECIFIC = 1_000, 2_000
_VAGUE = {"factor-missing", "activation-kind", "term-missing"}


@dataclass(frozen=True)
class Named:
    """A cause that fits.

    Attributes
    ----------
    cause : Cause
    detail : str
        Which of the ways of going wrong that share the cause's name.
    share : float
        The largest share of the variant's own bound.
    """

    cause: Cause
    detail: str = ""
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.cause.says} ({self.detail})" if self.detail else self.cause.says


@dataclass(frozen=True)
class Explanation:
    """What is known about a failure.

    Attributes
    ----------
    causes : tuple of Named
        Those that explain everything, the likeliest first; none where none does.
    tensors, cases : int
        What the cause accounts for: tensors that were wrong, and cases compared.
    facts : tuple of str
        What the numbers show by themselves.
    """

    causes: tuple[Named, ...] = ()
    tensors: int = 0
    cases: int = 0
    facts: tuple[str, ...] = ()

    @property
    def cause(self) -> str | None:
        """Name of the likeliest cause."""
        return self.causes[0].cause.name if self.causes else None

    @property
    def confidence(self) -> str:
        """Say how well the cause fits."""
        if not self.causes:
            return "no known cause explains the numbers"
        if not self.tensors:
            return "shown by the check itself"
        wrong = "the wrong tensor" if self.tensors == 1 else f"all {self.tensors}"
        wrong += " wrong tensors" * (self.tensors > 1)
        fits = f"explains {wrong} within the bound, in {self.cases} cases"
        rivals = self.causes[1:]
        if rivals:
            fits += "; as well as: " + "; ".join(
                f"{named.cause.name}, {named}" for named in rivals
            )
        return fits

    @property
    def advice(self) -> str:
        """Say what to change."""
        return self.causes[0].cause.advice if self.causes else ""

    def lines(self) -> list[str]:
        """Return the explanation as lines of a report."""
        if not self.causes:
            return ["likely cause    none known fits", *(f"  {f}" for f in self.facts)]
        first = self.causes[0]
        return [
            f"likely cause    {first.cause.name}: {first}",
            f"                {self.confidence}",
            f"what to change  {self.advice}",
            *(f"                {fact}" for fact in self.facts),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON can hold it."""
        return {
            "causes": [
                {"name": n.cause.name, "says": str(n), "bound_used": n.share}
                for n in self.causes
            ],
            "confidence": self.confidence,
            "advice": self.advice,
            "facts": list(self.facts),
        }


def explain_result(pair: Pair, result: PairResult) -> Explanation | None:
    """Explain what a run of a pair found; None if no case shows it.

    Parameters
    ----------
    pair : Pair
    result : PairResult
        Of `parity.runs.run_pair`.
    """
    judged = {check.name for check in CHECKS}
    for failure in result.failures:
        if failure.finding.check in judged:
            trial = Trial(pair, failure.case, result.dtype)
            return explain(trial, judge(trial))
    return None


def explain(trial: Trial, findings: Sequence[Finding]) -> Explanation:
    """Say what is wrong with the candidate of a failing trial.

    Parameters
    ----------
    trial : Trial
        A case that fails.
    findings : sequence of Finding
        What the checks say about it.

    Returns
    -------
    Explanation
    """
    failed = [finding for finding in findings if finding.failed]
    raised = [f.detail for f in failed if " raised " in f.detail and not f.tensor]
    if raised:
        return Explanation(facts=(raised[0],))
    own = _by_check(trial, failed)
    numeric = {f.check for f in failed} & {"forward", "dx", "d_params"}
    if own.causes and not numeric and trial.dtype == "float32":
        # The formula was compared in float64; there is nothing to add.
        return own
    with torch.random.fork_rng(devices=[]):
        found = _Investigation(trial).explain()
    if found.causes or not own.causes:
        return found
    written = own.cause in ("aliasing", "stale-cache", "random-backward", "cache-kept")
    return own if written or not numeric else found


# --- checks that are their own explanation --------------------------------------------

_OWN = {
    "dtype": "dtype-promotion",
    "unmutated": "aliasing",
    "independent": "stale-cache",
    "strided": "strides-ignored",
}


def _by_check(trial: Trial, failed: Sequence[Finding]) -> Explanation:
    checks = {finding.check for finding in failed}
    facts = tuple(dict.fromkeys(f"{f.tensor}: {f.detail}" for f in failed[:3]))
    for check, name in _OWN.items():
        if check in checks:
            return Explanation((Named(CAUSES[name]),), facts=facts)
    if any(f.tensor == "cache" for f in failed):
        return Explanation((Named(CAUSES["cache-kept"]),), facts=facts)
    if "repeatable" in checks:
        name = "random-backward" if _is_random(trial) else "stale-cache"
        return Explanation((Named(CAUSES[name]),), facts=facts)
    return Explanation(facts=facts)


def _is_random(trial: Trial) -> bool:
    """Tell whether the same calls keep giving other results."""
    runs = [trial.run(*trial.fresh()) for _ in range(4)]
    last, before = runs[-1], runs[-2]
    return any(not np.array_equal(last[n], before[n], equal_nan=True) for n in last)


# --- variants as functions ------------------------------------------------------------


@dataclass
class _Variant:
    """A wrong reference.

    Attributes
    ----------
    cause, detail : str
    function : callable
    ones, per_image : bool
        Whether the upstream gradient is replaced by ones, or divided by the batch.
    applies : callable
        Whether the last call of the function differed from the reference at all.
    simple : int
        Smaller is likelier.
    """

    cause: str
    detail: str
    function: Callable[..., Any]
    simple: int
    upstream: Callable[[Tensor, int], Tensor] | None = None
    altered: Callable[[], bool] = field(default=lambda: True)


def _intercepting(
    function: Callable[..., Any], variant: OperatorVariant, only: int | Site | None
) -> tuple[Callable[..., Any], Callable[[], Intercept]]:
    used = [Intercept()]

    def altered(**inputs: Tensor) -> Any:
        mode = Intercept({variant.operator: variant.rule}, only)
        with mode:
            outputs = function(**inputs)
        used[0] = mode
        return outputs

    return altered, lambda: used[0]


def _evaluate(
    function: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
    upstream: Callable[[Tensor, int], Tensor] | None = None,
) -> dict[str, Array]:
    """Return outputs and gradients, named as a `Reference` names them."""
    leaves = {
        name: x.clone().requires_grad_(bool(cotangents) and x.is_floating_point())
        for name, x in inputs.items()
    }
    outputs = function(**leaves)
    if isinstance(outputs, Tensor):
        outputs = {"out": outputs}
    elif isinstance(outputs, tuple):
        outputs = {f"out{i}": out for i, out in enumerate(outputs)}
    results = {name: out.detach().numpy() for name, out in outputs.items()}
    if not cotangents:
        return results
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    dependent = {name: out for name, out in outputs.items() if out.requires_grad}
    given = {name: cotangents[name].expand_as(out) for name, out in dependent.items()}
    if upstream is not None:
        given = {name: upstream(dy, _batch(inputs)) for name, dy in given.items()}
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if dependent:
        gradients = torch.autograd.grad(
            list(dependent.values()),
            list(wanted.values()),
            list(given.values()),
            allow_unused=True,
        )
    for (name, x), dx in zip(wanted.items(), gradients, strict=True):
        dx = torch.zeros_like(x) if dx is None else dx
        results[f"d_{name}"] = dx.detach().numpy()
    return results


def _batch(inputs: Mapping[str, Tensor]) -> int:
    x = inputs.get("x", next(iter(inputs.values())))
    return len(x) if x.ndim else 1


# --- the investigation ----------------------------------------------------------------


class _Evidence:
    """One case: what goes in, what the candidate computed, and which of it is wrong."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        ref = trial.reference
        self.results = {
            name: np.asarray(value, np.float64) for name, value in trial.results.items()
        }
        self.names = [name for name in ref.names if name in self.results]
        self.bounds = {name: ref.bound(name) for name in self.names}
        self.wrong = {
            name
            for name in self.names
            if self.results[name].shape != ref.quantities[name].value.shape
            or not (ref.share(name, self.results[name]) <= 1).all()
        }
        self.inputs = {n: _double(x) for n, x in ref.inputs.items()}
        self.cotangents = {n: _double(x) for n, x in ref.cotangents.items()}

    @property
    def size(self) -> int:
        """Elements in tensors that are wrong."""
        return sum(self.results[name].size for name in self.wrong)

    def evaluate(self, variant: _Variant) -> dict[str, Array] | None:
        """Run a variant; None if it cannot be, or changes nothing by its nature."""
        try:
            return _evaluate(
                variant.function, self.inputs, self.cotangents, variant.upstream
            )
        except Exception:
            # A variant is tried on whatever the reference is: that it does not fit the
            # shapes at hand is an answer.
            return None

    def agreeing(self, values: Mapping[str, Array]) -> set[str]:
        """Return the tensors that are near the variant's, by a generous measure."""
        return {name for name in self.names if self._near(name, values.get(name))}

    def _near(self, name: str, value: Array | None) -> bool:
        got = self.results[name]
        if value is None or value.shape != got.shape:
            return False
        if not np.isfinite(value).all():
            return bool(np.array_equal(value, got, equal_nan=True))
        wide = self.trial.dtype == "float64"
        floor = float(np.abs(value).max(initial=0.0)) * (1e-9 if wide else 1e-4)
        slack = 20 * self.bounds[name].max(initial=0.0) + floor
        with np.errstate(invalid="ignore"):
            return bool((np.abs(got - value) <= slack).all())

    def share(self, variant: _Variant) -> float:
        """Return the largest share of the variant's own bound."""
        ref = self.trial.reference
        cotangents: dict[str, Any] = dict(ref.cotangents)
        if variant.upstream is not None:
            cotangents = {
                name: variant.upstream(torch.from_numpy(dy), _batch(self.inputs))
                for name, dy in cotangents.items()
            }
        measured = reference(
            variant.function,
            ref.inputs,
            dtype=DTYPES[self.trial.dtype],
            differentiate=[n.removeprefix("d_") for n in self.names if n[:2] == "d_"],
            cotangents=cotangents or None,
            seed=self.trial.case.seed,
            batched=False,
        )
        return max(
            float(measured.share(name, self.results[name]).max(initial=0.0))
            for name in self.names
        )

    def compared(self, name: str) -> Compared:
        """Return a tensor beside the truth."""
        quantity = self.trial.reference.quantities[name]
        return Compared(self.results[name], quantity.value, self.bounds[name])


def _double(x: Array) -> Tensor:
    tensor = torch.from_numpy(np.array(x))
    return tensor.double() if tensor.is_floating_point() else tensor


class _Investigation:
    """Everything that is computed to explain one failing trial."""

    def __init__(self, trial: Trial) -> None:
        self.given = trial
        self.right_in_float64 = False
        self.evidence = self._gather()
        self.failing = [e for e in self.evidence if e.wrong]

    def _gather(self) -> list[_Evidence]:
        """Return the failing case and others, in float64 if it fails there too."""
        trial = self.given
        dtypes = getattr(trial.pair, "dtypes", ("float64", "float32"))
        if trial.dtype != "float64" and "float64" in dtypes:
            wide = Trial(trial.pair, trial.case, "float64")
            found = _evidence(wide)
            self.right_in_float64 = found is not None and not found.wrong
            if found is not None and found.wrong:
                trial = wide
        first = _evidence(trial)
        self.dtype = trial.dtype
        failing = [first] if first else []
        agreeing: list[_Evidence] = []
        started = time.monotonic()
        for case in _drawn(trial.pair, trial.case):
            found = _evidence(Trial(trial.pair, case, trial.dtype))
            if found is None:
                continue
            (failing if found.wrong else agreeing).append(found)
            enough = len(failing) > _FAILING and len(agreeing) >= _AGREEING
            if enough or time.monotonic() - started > _SECONDS:
                break
        failing[1:] = sorted(failing[1:], key=lambda e: -e.size)[:_FAILING]
        return failing + agreeing[:_AGREEING]

    def explain(self) -> Explanation:
        """Return the causes that fit, or what else is known."""
        if not self.failing:
            return Explanation(facts=("no tensor is off in this or any other case",))
        if self.right_in_float64:
            return self._numerics()
        primary = max(self.failing, key=lambda e: e.size)
        tensors = len(set().union(*(e.wrong for e in self.failing)))
        if _is_random(primary.trial):
            return self._random(primary)
        fitting = self._fitting(primary)
        if not fitting:
            return self._by_relation(tensors)
        return Explanation(tuple(fitting), tensors, len(self.evidence))

    def _numerics(self) -> Explanation:
        """Explain what fails in float32 alone: the formula is right, its order is not.

        What is off by more than rounding can explain is not named.
        """
        evidence = self.failing[0]
        facts = ("in float64 the same case agrees, so the formula is right",)
        shares = {
            name: evidence.trial.reference.share(name, evidence.results[name])
            for name in evidence.wrong
            if evidence.compared(name).got.shape == evidence.compared(name).truth.shape
        }
        infinite = any(not np.isfinite(share).all() for share in shares.values())
        largest = max((float(s.max()) for s in shares.values()), default=math.inf)
        if infinite:
            return Explanation((Named(CAUSES["overflow"]),), facts=facts)
        if largest < _INACCURATE:
            return Explanation((Named(CAUSES["precision"]),), facts=facts)
        return Explanation(facts=facts)

    def _random(self, primary: _Evidence) -> Explanation:
        met = self._survey(primary).met
        forward = {n for n in primary.wrong if not n.startswith("d_")}
        name = (
            "random-backward" if forward or not met["dropout"] else "dropout-backward"
        )
        fact = "the same call gives another result each time"
        return Explanation((Named(CAUSES[name], "drawn anew"),), facts=(fact,))

    def _survey(self, evidence: _Evidence) -> Intercept:
        mode = Intercept()
        with mode:
            evidence.trial.problem.function(**evidence.inputs)
        return mode

    def _fitting(self, primary: _Evidence) -> list[Named]:
        """Return the causes whose variants fit all the evidence, likeliest first."""
        index = self.evidence.index(primary)
        for variants in self._rounds(index):
            everywhere: list[list[_Variant]] = []
            sometimes: list[list[_Variant]] = []
            for versions in variants:
                if self._survives(versions, index, self.failing):
                    fits = self._survives(versions, index, self.evidence)
                    (everywhere if fits else sometimes).append(versions)
            named = self._named(everywhere, self.evidence)
            # A mistake in one of several paths shows in some configurations alone.
            if not named and len(self.failing) > 1:
                named = self._named(sometimes, self.failing)
            if named:
                return named
        return []

    def _named(
        self, survivors: list[list[_Variant]], evidence: list[_Evidence]
    ) -> list[Named]:
        """Return the causes of those that stay within their own bounds."""
        named: dict[str, Named] = {}
        survivors.sort(key=lambda versions: versions[0].simple)
        for versions in survivors[:_MEASURED]:
            share = self._measured(versions, evidence)
            first = versions[0]
            if share <= 1 and first.cause not in named:
                named[first.cause] = Named(CAUSES[first.cause], first.detail, share)
        return list(named.values())

    def _survives(
        self, versions: list[_Variant], index: int, among: list[_Evidence]
    ) -> bool:
        """Tell whether a variant is near the candidate in every case."""
        order = [index] + [
            i for i, e in enumerate(self.evidence) if i != index and e in among
        ]
        for i in order:
            evidence, variant = self.evidence[i], versions[i]
            values = evidence.evaluate(variant)
            if values is None:
                # Where it cannot be applied, the reference must be right.
                if evidence.wrong:
                    return False
                continue
            if i == index and not variant.altered():
                return False
            if evidence.agreeing(values) < set(evidence.names):
                return False
        return True

    def _measured(self, versions: list[_Variant], among: list[_Evidence]) -> float:
        """Return the largest share of the variant's bound over the evidence."""
        largest = 0.0
        for evidence, variant in zip(self.evidence, versions, strict=True):
            if evidence not in among or evidence.evaluate(variant) is None:
                continue
            try:
                largest = max(largest, evidence.share(variant))
            except (NotImplementedError, RuntimeError, TypeError):
                # No bound can be computed for it: the first comparison stands.
                continue
            if largest > 1:
                break
        return largest

    def _rounds(self, index: int) -> Iterator[Iterator[list[_Variant]]]:
        """Yield groups of variants, the simplest first; each has a version a case."""
        yield self._whole(index)
        yield self._single(index, by_site=True)
        yield self._single(index, by_site=False)

    def _whole(self, index: int) -> Iterator[list[_Variant]]:
        evidence = self.evidence
        survey = self._survey(evidence[index])
        functions = [e.trial.problem.function for e in evidence]
        for detail, upstream in _UPSTREAMS:
            cause = "upstream-ignored" if detail == "ones" else "batch-division"
            if evidence[index].cotangents:
                yield [
                    _Variant(cause, "of the whole", f, _UNSPECIFIC, upstream)
                    for f in functions
                ]
        for rank, variant in self._applicable(survey, evidence[index]):
            yield [self._operator(f, variant, rank) for f in functions]
        yield from self._layouts(survey)
        yield from self._updates(index)
        yield from self._configurations()
        yield from self._schedules()

    def _operator(
        self,
        function: Callable[..., Any],
        variant: OperatorVariant,
        rank: int,
        only: int | Site | None = None,
        place: str = "",
    ) -> _Variant:
        altered, used = _intercepting(function, variant, only)
        detail = ", ".join(part for part in (variant.detail, place) if part)
        needed = only if isinstance(only, int) else 0
        return _Variant(
            variant.cause,
            detail,
            altered,
            rank,
            altered=lambda: used().answered > needed,
        )

    def _applicable(
        self, survey: Intercept, evidence: _Evidence
    ) -> Iterator[tuple[int, OperatorVariant]]:
        """Yield the operator variants that can be, with their ranks."""
        outputs_right = all(name[:2] == "d_" for name in evidence.wrong)
        for number, variant in enumerate(OPERATORS):
            # What is wrong in backward alone leaves the outputs right, and nothing else
            # does.
            backward = variant.way == "backward"
            if survey.met[variant.operator] and backward == outputs_right:
                yield number + _UNSPECIFIC * (variant.cause in _VAGUE), variant

    def _single(self, index: int, *, by_site: bool) -> Iterator[list[_Variant]]:
        """Yield operator variants at single places or calls, where there are several.

        A place in the code is called again by each of a network's blocks.
        """
        functions = [e.trial.problem.function for e in self.evidence]
        evidence = self.evidence[index]
        for rank, variant in self._applicable(self._survey(evidence), evidence):
            everywhere, used = _intercepting(functions[index], variant, None)
            probe = _Variant(variant.cause, "", everywhere, 0)
            if evidence.evaluate(probe) is None or used().answered < 2:
                continue
            places: dict[int | Site, str] = {}
            if not by_site:
                for i in range(min(used().answered, 12)):
                    places[i] = f"in call {i + 1} of {variant.operator}"
            elif len(used().sites) > 1:
                places |= {s: f"at {line}" for s, line in used().sites.items()}
            for only, place in places.items():
                yield [self._operator(f, variant, rank, only, place) for f in functions]

    def _layouts(self, survey: Intercept) -> Iterator[list[_Variant]]:
        """Yield layouts; those of other cases are found by their names."""
        found: list[dict[tuple[str, str], _Variant]] = []
        for evidence in self.evidence:
            problem = evidence.trial.problem
            heads = self._survey(evidence).heads
            versions = {}
            for layout in layouts(evidence.inputs, problem.parameters, heads):

                def altered(
                    _f: Any = problem.function, _changes: Any = layout.changes, **x: Any
                ) -> Any:
                    return _f(**(x | {n: c(x[n]) for n, c in _changes.items()}))

                key = (layout.cause, layout.detail.split(" read as")[0])
                versions[key] = _Variant(layout.cause, layout.detail, altered, _LAYOUT)
            found.append(versions)
        for key in dict.fromkeys(k for versions in found for k in versions):
            yield [
                versions.get(key) or _unaltered(e, key[0])
                for versions, e in zip(found, self.evidence, strict=True)
            ]

    def _updates(self, index: int) -> Iterator[list[_Variant]]:
        evidence = self.evidence[index]
        if evidence.cotangents:
            return
        used = used_updates(lambda: evidence.trial.problem.function(**evidence.inputs))
        for cause, detail, update in UPDATES:
            if ("adam" if isinstance(update, AdamUpdate) else "sgd") not in used:
                continue
            yield [
                _Variant(
                    cause,
                    detail,
                    partial(_updated, e.trial.problem.function, update),
                    0,
                )
                for e in self.evidence
            ]

    def _configurations(self) -> Iterator[list[_Variant]]:
        """Yield references that are built with another option."""
        known: list[dict[str, _Variant]] = []
        for evidence in self.evidence:
            trial, versions = evidence.trial, {}
            for detail, config in _other_options(trial.case.config):
                other = Trial(
                    trial.pair, replace(trial.case, config=config), trial.dtype
                )
                versions[detail] = _Variant(
                    "configuration", detail, partial(_rebuilt, other), 2 * _UNSPECIFIC
                )
            known.append(versions)
        for detail in dict.fromkeys(d for versions in known for d in versions):
            yield [
                versions.get(detail) or _unaltered(e, "configuration")
                for versions, e in zip(known, self.evidence, strict=True)
            ]

    def _schedules(self) -> Iterator[list[_Variant]]:
        """Yield schedules that are read at another step."""
        if "warmup" not in self.given.case.config:
            return
        for cause, detail, read in _SCHEDULES:
            yield [
                _Variant(cause, detail, partial(read, e.trial), 0)
                for e in self.evidence
            ]

    def _by_relation(self, tensors: int) -> Explanation:
        """Name what the numbers alone show, if it is the same in every case."""
        shared: dict[str, set[Relation]] = {}
        for evidence in self.failing:
            factors = named_factors({n: x.numpy() for n, x in evidence.inputs.items()})
            others = _others(evidence)
            for name in evidence.wrong:
                if evidence.compared(name).truth.size < 2:
                    continue
                found = relations(evidence.compared(name), factors, others)
                shared[name] = shared.get(name, found) & found
        causes = {_cause_of(name, found) for name, found in shared.items()}
        facts = tuple(self._facts(shared))
        if shared and len(causes) == 1 and None not in causes:
            (named,) = causes
            if named is not None:
                return Explanation((named,), tensors, len(self.evidence), facts)
        return Explanation(facts=facts)

    def _facts(self, shared: Mapping[str, set[Relation]]) -> Iterator[str]:
        evidence = self.failing[0]
        right = [name for name in evidence.names if name not in evidence.wrong]
        first = _first_wrong(evidence)
        if right:
            yield f"right: {', '.join(right)}"
        yield f"first wrong: {first}"
        for name in [first] + [n for n in evidence.names if n in evidence.wrong]:
            if name not in shared and name != first:
                continue
            compared = evidence.compared(name)
            if compared.got.shape != compared.truth.shape:
                yield (
                    f"{name} has shape {compared.got.shape}, "
                    f"the reference {compared.truth.shape}"
                )
                continue
            if not np.isfinite(compared.got).all():
                yield f"{name} is not finite"
            said = [str(r) for r in sorted(shared.get(name, ()), key=_order)]
            if said:
                yield f"{name} {said[0]}"
            elif (where := where_wrong(compared)) and name == first:
                yield f"{name} is wrong {where}"


def _evidence(trial: Trial) -> _Evidence | None:
    try:
        return None if trial.ambiguous else _Evidence(trial)
    except CandidateError:
        return None


def _drawn(pair: Pair, case: Case) -> list[Case]:
    """Draw more cases of ordinary numbers, the same ones each time."""
    drawn: list[Case] = []
    regime = "normal" if "normal" in pair.regimes else case.regime

    @hypothesis.seed(case.seed)
    @settings(
        max_examples=_CASES,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(pair.draw, regime))
    def collect(other: Case) -> None:
        drawn.append(other)

    collect()
    # The first that is drawn is always the smallest.
    drawn = drawn[1:] + drawn[:1]
    again = [replace(other, seed=other.seed + 1) for other in [case, *drawn]]
    return [one for both in zip(drawn, again, strict=False) for one in both]


def _ones(dy: Tensor, batch: int) -> Tensor:
    return torch.ones_like(dy)


def _per_image(dy: Tensor, batch: int) -> Tensor:
    return dy / batch


_UPSTREAMS = (("ones", _ones), ("per image", _per_image))


def _unaltered(evidence: _Evidence, cause: str) -> _Variant:
    return _Variant(
        cause, "", evidence.trial.problem.function, 9999, altered=lambda: False
    )


def _updated(
    function: Callable[..., Any], update: Update, **inputs: Tensor
) -> dict[str, Tensor]:
    with updating_by(update):
        outputs: dict[str, Tensor] = function(**inputs)
    return outputs


def _rebuilt(trial: Trial, **inputs: Tensor) -> Any:
    return trial.problem.function(**inputs)


def _other_options(
    config: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield configurations with one option changed, and which."""
    for key, value in config.items():
        if isinstance(value, bool):
            yield f"{key} inverted", {**config, key: not value}
        elif isinstance(value, int) and value > 0:
            yield f"{key} one lower", {**config, key: value - 1}
            yield f"{key} one higher", {**config, key: value + 1}
        elif isinstance(value, float):
            yield f"{key} ignored", {**config, key: 0.0}
            for factor in (10.0, 0.1, 2.0, 0.5):
                yield f"{key} times {factor:g}", {**config, key: value * factor}
        elif isinstance(value, Mapping):
            for detail, inner in _other_options(value):
                yield detail, {**config, key: inner}
        elif isinstance(value, list | tuple) and value:
            yield f"{key} reversed", {**config, key: [*reversed(value)]}
            if all(isinstance(v, int) for v in value):
                yield f"{key} one later", {**config, key: [v + 1 for v in value]}


def _at_step(trial: Trial, shift: int, step: Tensor) -> Any:
    return trial.problem.function(step=(step + shift).clamp_min(0))


def _zero_start(trial: Trial, step: Tensor) -> Any:
    factor = trial.problem.function(step=step)
    warmup = trial.case.config["warmup"]
    if not warmup:
        return factor
    return torch.where(step < warmup, factor * step / (step + 1), factor)


def _late_start(trial: Trial, step: Tensor) -> Any:
    return torch.where(step == 0, 0.0, trial.problem.function(step=step))


def _whole_length(trial: Trial, step: Tensor) -> Any:
    """Decay over all steps, the warm-up's too."""
    config = {**trial.case.config, "warmup": 0}
    other = Trial(trial.pair, replace(trial.case, config=config), trial.dtype)
    factor = trial.problem.function(step=step)
    decayed = other.problem.function(step=step)
    return torch.where(step < trial.case.config["warmup"], factor, decayed)


def _late(trial: Trial, step: Tensor) -> Any:
    return trial.problem.function(step=step + 1)


def _early(trial: Trial, step: Tensor) -> Any:
    return _at_step(trial, -1, step)


_SCHEDULES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("schedule-off-by-one", "the next step's", _late),
    ("schedule-off-by-one", "the step's before", _early),
    ("schedule-zero-start", "step / warmup", _zero_start),
    ("schedule-zero-start", "zero at step 0 alone", _late_start),
    ("configuration", "decay counted from the start, not the warm-up", _whole_length),
)


def _first_wrong(evidence: _Evidence) -> str:
    """Return what is computed first: outputs, then gradients from the last layer on."""
    outputs = [n for n in evidence.names if n in evidence.wrong and n[:2] != "d_"]
    if outputs:
        return outputs[0]
    parameters = evidence.trial.problem.parameters
    backward = [n for n in reversed(evidence.names) if n in evidence.wrong]
    owned = [n for n in backward if n.removeprefix("d_") in parameters]
    return (owned or backward)[0]


def _others(evidence: _Evidence) -> dict[str, Any]:
    """Return the tensors that may have been added or forgotten."""
    others = {name: x.numpy() for name, x in evidence.inputs.items()}
    others |= {
        f"the upstream gradient of {name}": dy.numpy()
        for name, dy in evidence.cotangents.items()
    }
    quantities = evidence.trial.reference.quantities
    return others | {name: q.value for name, q in quantities.items()}


def _order(relation: Relation) -> tuple[str, int, str]:
    named = relation.detail.replace(".", "").replace("-", "").isdigit()
    return relation.kind, named, relation.detail


def _cause_of(name: str, found: set[Relation]) -> Named | None:
    """Return the cause that a relation stands for."""
    kinds = {relation.kind for relation in found}
    details = {r.detail for r in found if r.kind == "factor"}
    if "zero" in kinds and name.startswith("d_"):
        return Named(CAUSES["not-trained"])
    if "-1" in details:
        return Named(CAUSES["sign"])
    if "1 / the batch size" in details or "the batch size" in details:
        return Named(CAUSES["batch-division"])
    if details:
        return Named(CAUSES["factor-missing"])
    for kind in ("transposed", "shifted", "permuted"):
        if kind in kinds:
            return Named(CAUSES[kind])
    return None
