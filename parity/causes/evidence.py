"""Evidence, and what is held against it: one case of a pair, and a wrong reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parity.bounds import reference
from parity.causes.intercept import Intercept, Site
from parity.causes.numbers import Compared
from parity.causes.operators import OperatorVariant
from parity.checks import DTYPES, CandidateError, Trial
from parity.strategies import Array


@dataclass
class Variant:
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


def intercepting(
    function: Callable[..., Any],
    variant: OperatorVariant,
    only: int | Site | None = None,
    but: Site | None = None,
) -> tuple[Callable[..., Any], Callable[[], Intercept]]:
    """Return the function with an operator changed, and what its last run met."""
    used = [Intercept()]

    def altered(**inputs: Tensor) -> Any:
        mode = Intercept({variant.operator: variant.rule}, only, but)
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


class Evidence:
    """One case: what goes in, what the candidate computed, and which of it is wrong."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        ref = trial.reference
        self.results = {
            name: np.asarray(value, np.float64)
            for name, value in trial.results.items()
            if np.asarray(value).dtype.kind in "fiub"
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

    def evaluate(self, variant: Variant) -> dict[str, Array] | None:
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

    def _near(self, name: str, value: Array | None, rough: float = 0.0) -> bool:
        got = self.results[name]
        if value is None or value.shape != got.shape:
            return False
        finite = np.isfinite(value)
        if not np.array_equal(value[~finite], got[~finite], equal_nan=True):
            return False
        wide = self.trial.dtype == "float64"
        floor = float(np.abs(value[finite]).max(initial=0.0))
        floor *= max(rough, 1e-9 if wide else 1e-4)
        slack = 20 * self.bounds[name].max(initial=0.0) + floor
        with np.errstate(invalid="ignore"):
            return bool((np.abs(got - value)[finite] <= slack).all())

    def explains(self, variant: Variant, values: Mapping[str, Array]) -> bool:
        """Tell whether a variant gives all that the candidate computed.

        What the variant itself cannot compute any better is judged by its own bound.
        """
        rest = set(self.names) - self.agreeing(values)
        if not all(self._near(name, values.get(name), rough=1e-3) for name in rest):
            return False
        return not rest or self.share(variant) <= 1

    def dropped(self, name: str, value: Array) -> NDArray[np.bool_] | None:
        """Mark the elements that are zero, if all others are the value's."""
        got = self.results[name]
        if value.shape != got.shape:
            return None
        slack = 20 * self.bounds[name].max(initial=0.0) + 1e-9 * np.abs(value).max(
            initial=0.0
        )
        kept = np.abs(got - value) <= slack
        return ~kept if (kept | (got == 0)).all() else None

    def survey(self) -> Intercept:
        """Return what operators the reference calls."""
        mode = Intercept()
        with mode:
            self.trial.problem.function(**self.inputs)
        return mode

    def share(self, variant: Variant) -> float:
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


def _ones(dy: Tensor, batch: int) -> Tensor:
    return torch.ones_like(dy)


def _per_image(dy: Tensor, batch: int) -> Tensor:
    return dy / batch


UPSTREAMS = (("ones", _ones), ("per image", _per_image))


def unaltered(evidence: Evidence, cause: str) -> Variant:
    """Return the reference itself, for a case that a variant does not apply to."""
    return Variant(
        cause, "", evidence.trial.problem.function, 9999, altered=lambda: False
    )


def gather(trial: Trial) -> Evidence | None:
    """Return the evidence of a trial, unless it is ambiguous or raises."""
    try:
        return None if trial.ambiguous else Evidence(trial)
    except CandidateError:
        return None
