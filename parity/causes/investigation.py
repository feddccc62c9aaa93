"""Trying every variant that applies on all the evidence there is.

A cause is named only if its variant agrees with all that the candidate computed, within
the variant's own computed bound, on the failing case and on others drawn for the
purpose, while the reference itself does not. What explains most of it, or fits where
no numbers can be compared, is named as possible. Otherwise nothing is named, and what
the numbers show is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from parity.causes.catalogue import CAUSES
from parity.causes.evidence import (
    UPSTREAMS,
    Evidence,
    Variant,
    gather,
    intercepting,
    unaltered,
)
from parity.causes.explanation import Explanation, Named
from parity.causes.intercept import Intercept, Site, swap
from parity.causes.layouts import layouts
from parity.causes.numbers import Relation, named_factors, relations, where_wrong
from parity.causes.operators import OPERATORS, OperatorVariant
from parity.causes.situations import situations
from parity.causes.updates import UPDATES, Update, applies, updating_by, used_updates
from parity.checks import Trial
from parity.pair import Pair
from parity.strategies import Case, drawn

# Cases drawn to tell causes apart, and the seconds after which no more are.
_CASES = 20
_GATHERING = 1.0
# Seconds of processor time after which no more variants are tried.
_TRYING = 3.5
# Of those that fail, and of those that agree, so many are used.
_FAILING, _AGREEING = 6, 2
# Cancellation loses digits; what is off by more bounds than this is something else.
_INACCURATE = 1e5
# Variants that explain a part, and are then tried on every case.
_NEAR_MISSES = 24
# Of so few elements all may be dropped, or none, by chance; and of so few cases.
_FEW, _SUSPECT = 8, 3
# Variants that pass the first comparison and are then given bounds of their own.
_MEASURED = 8

# Of two causes that fit, the one that says more comes first.
_LAYOUT, _UNSPECIFIC = 1_000, 2_000
_VAGUE = {"factor-missing", "activation-kind", "term-missing"}


class Investigation:
    """Everything that is computed to explain one failing trial."""

    def __init__(self, trial: Trial) -> None:
        self.given = trial
        self.started = time.process_time()
        self.right_in_float64 = False
        self.near_misses: list[list[Variant]] = []
        self.evidence = self._gather()
        self.failing = [e for e in self.evidence if e.wrong]

    def _gather(self) -> list[Evidence]:
        """Return the failing case and others, in float64 if it fails there too."""
        trial = self.given
        dtypes = getattr(trial.pair, "dtypes", ("float64", "float32"))
        if trial.dtype != "float64" and "float64" in dtypes:
            wide = Trial(trial.pair, trial.case, "float64")
            found = gather(wide)
            self.right_in_float64 = found is not None and not found.wrong
            if found is not None and found.wrong:
                trial = wide
        first = gather(trial)
        self.dtype = trial.dtype
        failing = [first] if first else []
        agreeing: list[Evidence] = []
        for case in _more_cases(trial.pair, trial.case):
            found = gather(Trial(trial.pair, case, trial.dtype))
            if found is None:
                continue
            (failing if found.wrong else agreeing).append(found)
            enough = len(failing) > _FAILING and len(agreeing) >= _AGREEING
            if enough or time.process_time() - self.started > _GATHERING:
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
        if is_random(primary.trial):
            return self._random(primary)
        fitting = self._fitting(primary)
        if fitting:
            return Explanation(tuple(fitting), tensors, len(self.evidence))
        dropped = self._another_mask()
        if dropped is not None:
            return Explanation((dropped,), tensors, len(self.evidence))
        related = self._by_relation(tensors)
        if related.causes:
            return related
        possible, reservation = self._partly() or self._by_dropout() or (None, "")
        if possible is None:
            return related
        return Explanation(
            (possible,), tensors, len(self.evidence), related.facts, reservation
        )

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

    def _random(self, primary: Evidence) -> Explanation:
        met = primary.survey().met
        forward = {n for n in primary.wrong if not n.startswith("d_")}
        name = (
            "random-backward" if forward or not met["dropout"] else "dropout-backward"
        )
        fact = "the same call gives another result each time"
        return Explanation((Named(CAUSES[name], "drawn anew"),), facts=(fact,))

    def _fitting(self, primary: Evidence) -> list[Named]:
        """Return the causes whose variants fit all the evidence, likeliest first."""
        index = self.evidence.index(primary)
        for variants in self._rounds(index):
            everywhere: list[list[Variant]] = []
            sometimes: list[list[Variant]] = []
            for versions in variants:
                if self._spent > _TRYING:
                    break
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

    @property
    def _spent(self) -> float:
        return time.process_time() - self.started

    def _named(
        self, survivors: list[list[Variant]], evidence: list[Evidence]
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
        self, versions: list[Variant], index: int, among: list[Evidence]
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
            if i == index:
                near = evidence.agreeing(values)
                if near < set(evidence.names):
                    self._note(versions, evidence, near)
                    return False
            elif not evidence.explains(variant, values):
                return False
        return True

    def _note(
        self, versions: list[Variant], evidence: Evidence, near: set[str]
    ) -> None:
        """Remember what explains a good part of what is wrong, and spoils nothing."""
        if _explained(evidence, near) and versions[0].cause not in _VAGUE:
            self.near_misses.append(versions)

    def _partly(self) -> tuple[Named, str] | None:
        """Return the cause that explains most of what is wrong in every case."""
        best: tuple[float, Variant, set[str]] | None = None
        for versions in self.near_misses[:_NEAR_MISSES]:
            explained, rest = 0, set[str]()
            for evidence, variant in zip(self.evidence, versions, strict=True):
                values = evidence.evaluate(variant)
                near = evidence.agreeing(values or {})
                if evidence.wrong and not _explained(evidence, near):
                    break
                explained += len(evidence.wrong & near)
                rest |= evidence.wrong - near
            else:
                if best is None or explained > best[0]:
                    best = explained, versions[0], rest
        if best is None:
            return None
        _, variant, rest = best
        left = ", ".join(sorted(rest)[:4]) + ", ..." * (len(rest) > 4)
        return (
            Named(CAUSES[variant.cause], variant.detail),
            f"it explains the rest of what is wrong, but not {left}",
        )

    def _another_mask(self) -> Named | None:
        """Name dropout whose mask is not the reference's, whatever it is.

        Every element is then either dropped or what it is without a mask.
        """
        backward = all(n[:2] == "d_" for e in self.failing for n in e.wrong)
        drops = False
        seen: set[bool] = set()
        for evidence in self.failing:
            function = evidence.trial.problem.function
            rate = evidence.trial.case.config.get("p")
            if met := evidence.survey().met["dropout"]:
                rule = _unmasked_backward if backward else _unmasked
                wrong = OperatorVariant("dropout-mask", "dropout", rule)
                function, _ = intercepting(function, wrong)
            drops = drops or bool(met)
            values = evidence.evaluate(Variant("dropout-mask", "", function, 0))
            if values is None or not (met or (rate and not backward)):
                return None
            scale = 1.0 if met else 1 / (1 - float(rate or 0.0))
            for name in evidence.wrong:
                dropped = evidence.dropped(name, values[name] * scale)
                if dropped is None:
                    return None
                if dropped.size > _FEW:
                    seen |= {bool(one) for one in np.unique(dropped)}
        if seen != {False, True}:
            return None
        if backward:
            return Named(CAUSES["dropout-backward"], "by another mask than the forward")
        if drops:
            return Named(CAUSES["dropout-mask"], "another mask than the reference's")
        return Named(CAUSES["dropout-in-evaluation"])

    def _by_dropout(self) -> tuple[Named, str] | None:
        """Suspect dropout where all cases with it fail and all without agree."""
        if not _SUSPECT <= len(self.failing) < len(self.evidence):
            return None
        backward = all(n[:2] == "d_" for e in self.failing for n in e.wrong)
        active = [e for e in self.evidence if e.survey().met["dropout"]]
        asleep = [
            e for e in self.evidence if e not in active and _rates(e.trial.case.config)
        ]
        fail = "fail, and no other, but no variant gives the numbers"
        if active == self.failing:
            name = "dropout-backward" if backward else "dropout-mask"
            return Named(CAUSES[name]), f"the cases in which elements drop {fail}"
        if asleep == self.failing and not backward:
            said = f"the cases with a rate of dropout that is off {fail}"
            return Named(CAUSES["dropout-in-evaluation"]), said
        return None

    def _measured(self, versions: list[Variant], among: list[Evidence]) -> float:
        """Return the largest share of the variant's bound over the evidence."""
        largest = 0.0
        for evidence, variant in zip(self.evidence, versions, strict=True):
            if evidence not in among or evidence.evaluate(variant) is None:
                continue
            try:
                largest = max(largest, evidence.share(variant))
            except (RuntimeError, TypeError):
                # No bound can be computed for it: the first comparison stands.
                continue
            if largest > 1:
                break
        return largest

    def _rounds(self, index: int) -> Iterator[Iterator[list[Variant]]]:
        """Yield groups of variants, the simplest first; each has a version a case."""
        yield self._whole(index)
        yield self._single(index, "site")
        yield self._single(index, "all but one site")
        yield self._single(index, "call")

    def _whole(self, index: int) -> Iterator[list[Variant]]:
        evidence = self.evidence
        survey = evidence[index].survey()
        functions = [e.trial.problem.function for e in evidence]
        for detail, upstream in UPSTREAMS:
            cause = "upstream-ignored" if detail == "ones" else "batch-division"
            if evidence[index].cotangents:
                yield [
                    Variant(cause, "of the whole", f, _UNSPECIFIC, upstream)
                    for f in functions
                ]
        yield from self._situations(options=False)
        yield from self._updates(index)
        for rank, variant in self._applicable(survey, evidence[index]):
            yield [self._operator(f, variant, rank) for f in functions]
        yield from self._layouts()
        yield from self._situations(options=True)

    def _operator(
        self,
        function: Callable[..., Any],
        variant: OperatorVariant,
        rank: int,
        only: int | Site | None = None,
        place: str = "",
        but: Site | None = None,
    ) -> Variant:
        altered, used = intercepting(function, variant, only, but)
        detail = ", ".join(part for part in (variant.detail, place) if part)
        needed = only if isinstance(only, int) else 0
        return Variant(
            variant.cause,
            detail,
            altered,
            rank,
            altered=lambda: used().answered > needed,
        )

    def _applicable(
        self, survey: Intercept, evidence: Evidence
    ) -> Iterator[tuple[int, OperatorVariant]]:
        """Yield the operator variants that can be, with their ranks."""
        outputs_right = all(name[:2] == "d_" for name in evidence.wrong)
        for number, variant in enumerate(OPERATORS):
            # What is wrong in backward alone leaves the outputs right, and nothing else
            # does.
            backward = variant.way == "backward"
            if survey.met[variant.operator] and backward == outputs_right:
                yield number + _UNSPECIFIC * (variant.cause in _VAGUE), variant

    def _single(self, index: int, which: str) -> Iterator[list[Variant]]:
        """Yield operator variants at some places or calls, where there are several.

        A place in the code is called again by each of a network's blocks.
        """
        functions = [e.trial.problem.function for e in self.evidence]
        evidence = self.evidence[index]
        for rank, variant in self._applicable(evidence.survey(), evidence):
            everywhere, used = intercepting(functions[index], variant, None)
            probe = Variant(variant.cause, "", everywhere, 0)
            if evidence.evaluate(probe) is None or used().answered < 2:
                continue
            places: list[tuple[int | Site | None, Site | None, str]] = []
            sites = used().sites
            if which == "call":
                for i in range(min(used().answered, 12)):
                    places.append((i, None, f"in call {i + 1} of {variant.operator}"))
            elif which == "site" and len(sites) > 1:
                places += [(site, None, f"at {line}") for site, line in sites.items()]
            elif which == "all but one site" and len(sites) > 2:
                places += [
                    (None, site, f"everywhere but at {line}")
                    for site, line in sites.items()
                ]
            for only, but, place in places:
                yield [
                    self._operator(f, variant, rank, only, place, but)
                    for f in functions
                ]

    def _layouts(self) -> Iterator[list[Variant]]:
        """Yield layouts; those of other cases are found by their names."""
        found: list[dict[tuple[str, str], Variant]] = []
        for evidence in self.evidence:
            problem = evidence.trial.problem
            heads = evidence.survey().heads
            versions = {}
            for layout in layouts(evidence.inputs, problem.parameters, heads):

                def altered(
                    _f: Any = problem.function, _changes: Any = layout.changes, **x: Any
                ) -> Any:
                    return _f(**(x | {n: c(x[n]) for n, c in _changes.items()}))

                key = (layout.cause, layout.detail.split(" read as")[0])
                versions[key] = Variant(layout.cause, layout.detail, altered, _LAYOUT)
            found.append(versions)
        for key in dict.fromkeys(k for versions in found for k in versions):
            yield [
                versions.get(key) or unaltered(e, key[0])
                for versions, e in zip(found, self.evidence, strict=True)
            ]

    def _updates(self, index: int) -> Iterator[list[Variant]]:
        evidence = self.evidence[index]
        if evidence.cotangents:
            return
        used = used_updates(lambda: evidence.trial.problem.function(**evidence.inputs))
        for cause, detail, update in UPDATES:
            if not applies(update, used):
                continue
            yield [
                Variant(
                    cause,
                    detail,
                    partial(_updated, e.trial.problem.function, update),
                    0,
                )
                for e in self.evidence
            ]

    def _situations(self, *, options: bool) -> Iterator[list[Variant]]:
        """Yield references of which the configuration is read otherwise."""
        found: list[dict[tuple[str, str], Variant]] = []
        for evidence in self.evidence:
            found.append(
                {
                    (cause, detail): Variant(
                        cause,
                        detail,
                        function,
                        2 * _UNSPECIFIC * (cause == "configuration"),
                    )
                    for cause, detail, function in situations(evidence.trial)
                    if (cause == "configuration") == options
                }
            )
        for key in dict.fromkeys(k for versions in found for k in versions):
            yield [
                versions.get(key) or unaltered(e, key[0])
                for versions, e in zip(found, self.evidence, strict=True)
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
        wrong = [name for name in evidence.names if name in evidence.wrong]
        for name in dict.fromkeys((first, *wrong)):
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


def _more_cases(pair: Pair, case: Case) -> list[Case]:
    """Draw more cases of ordinary numbers, the same ones each time."""
    regime = "normal" if "normal" in pair.regimes else case.regime
    found = drawn(pair.draw, regime, case.seed, _CASES)
    # The smallest comes last: it shows least.
    found = found[1:] + found[:1]
    again = [replace(other, seed=other.seed + 1) for other in [case, *found]]
    return [one for both in zip(found, again, strict=False) for one in both]


def _updated(
    function: Callable[..., Any], update: Update, **inputs: Tensor
) -> dict[str, Tensor]:
    with updating_by(update):
        outputs: dict[str, Tensor] = function(**inputs)
    return outputs


def _first_wrong(evidence: Evidence) -> str:
    """Return what is computed first: outputs, then gradients from the last layer on."""
    outputs = [n for n in evidence.names if n in evidence.wrong and n[:2] != "d_"]
    if outputs:
        return outputs[0]
    parameters = evidence.trial.problem.parameters
    backward = [n for n in reversed(evidence.names) if n in evidence.wrong]
    owned = [n for n in backward if n.removeprefix("d_") in parameters]
    return (owned or backward)[0]


def _others(evidence: Evidence) -> dict[str, Any]:
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


def _explained(evidence: Evidence, near: set[str]) -> bool:
    """Tell whether most of what is wrong is near, and all that was right still is."""
    if set(evidence.names) - evidence.wrong - near:
        return False
    outputs = {name for name in evidence.wrong if name[:2] != "d_"}
    fixed = evidence.wrong & near
    return bool(fixed) and (
        (bool(outputs) and outputs <= fixed) or 2 * len(fixed) >= len(evidence.wrong)
    )


def _unmasked(x: Tensor, keep: Tensor, divisor: float) -> Tensor:
    return x / divisor


def _unmasked_backward(x: Tensor, keep: Tensor, divisor: float) -> Tensor:
    return swap(x * keep / divisor, x / divisor)


def _rates(config: Mapping[str, Any]) -> list[float]:
    """Return the rates of dropout in a configuration that are not zero."""
    found: list[float] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += _rates(value)
        elif isinstance(value, float) and value and (key == "p" or "drop" in key):
            found.append(value)
    return found


def is_random(trial: Trial) -> bool:
    """Tell whether the same calls keep giving other results."""
    runs = [trial.run(*trial.fresh()) for _ in range(4)]
    last, before = runs[-1], runs[-2]
    return any(not np.array_equal(last[n], before[n], equal_nan=True) for n in last)
