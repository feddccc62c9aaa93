"""What two arrays say about each other, without knowing what computed them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Beyond these sizes, orders of slices and shifts are not searched.
_SEARCHED = 256


@dataclass(frozen=True)
class Relation:
    """How a candidate's tensor follows from the true one.

    Attributes
    ----------
    kind : str
        'zero', 'factor', 'transposed', 'reversed', 'shifted', 'permuted', 'masked',
        'added' or 'ones'.
    detail : str
        Which one.
    """

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return _SENTENCES[self.kind].format(self.detail)


_SENTENCES = {
    "zero": "is zero throughout",
    "factor": "is {} times the reference",
    "transposed": "is the reference with its axes in the order {}",
    "reversed": "is the reference reversed along axis {}",
    "shifted": "is the reference shifted {}",
    "permuted": "is the reference with its slices along axis {} in another order",
    "masked": "is the reference with some elements set to zero",
    "added": "is the reference {}",
    "broadcast": "has the same value along axis {}",
}


@dataclass(frozen=True)
class Compared:
    """A candidate's tensor, the truth, and how far correct code may be off."""

    got: Floats
    truth: Floats
    bound: Floats

    def close(self, to: Floats, scale: float = 1.0) -> bool:
        """Tell whether the candidate is `to`, of which rounding is a multiple."""
        if to.shape != self.got.shape:
            return False
        slack = 4 * max(scale, 1.0) * float(self.bound.max(initial=0.0))
        with np.errstate(invalid="ignore"):
            return bool((np.abs(self.got - to) <= slack).all())


def relations(
    compared: Compared, factors: Mapping[str, float], others: Mapping[str, Floats]
) -> set[Relation]:
    """Return every relation that holds between candidate and truth.

    Parameters
    ----------
    compared : Compared
    factors : mapping of str to float
        Numbers with a meaning, such as the batch size, by what they are called.
    others : mapping of str to ndarray
        Tensors that could have been added or forgotten.
    """
    got, truth = compared.got, compared.truth
    if got.shape != truth.shape or not np.isfinite(got).all() or not got.size:
        return set()
    if not got.any():
        return {Relation("zero")}
    if compared.close(truth):
        # Too near for the numbers to tell what they were made from.
        return set()
    found: set[Relation] = set()
    for search in (_factor, _transposed, _reversed, _shifted, _permuted, _masked):
        found |= set(search(compared, factors))
    found |= set(_added(compared, others))
    return found


def _factor(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    norm = float(np.vdot(c.truth, c.truth))
    if norm == 0 or not math.isfinite(norm):
        return
    factor = float(np.vdot(c.truth, c.got)) / norm
    if not c.close(factor * c.truth, abs(factor)):
        return
    named = [
        name for name, f in factors.items() if math.isclose(f, factor, rel_tol=1e-5)
    ]
    for name in named:
        yield Relation("factor", name)
    yield Relation("factor", f"{factor:.6g}")


def _transposed(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    n = c.truth.ndim
    if not 2 <= n <= 4:
        return
    for axes in itertools.permutations(range(n)):
        if axes == tuple(range(n)):
            continue
        turned = c.truth.transpose(axes)
        if c.close(turned) and not np.array_equal(turned, c.truth):
            yield Relation("transposed", str(axes))
        elif turned.shape != c.truth.shape and c.close(turned.reshape(c.truth.shape)):
            yield Relation("transposed", f"{axes}, in the old shape")


def _reversed(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    for axis in range(c.truth.ndim):
        if c.truth.shape[axis] > 1 and c.close(np.flip(c.truth, axis)):
            yield Relation("reversed", str(axis))


def _shifted(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    for axis, length in enumerate(c.truth.shape):
        if not 3 <= length <= _SEARCHED:
            continue
        got, truth = np.moveaxis(c.got, axis, 0), np.moveaxis(c.truth, axis, 0)
        slack = 4 * float(c.bound.max(initial=0.0))
        for shift in range(1, min(length - 1, 4)):
            for by, a, b in (
                (shift, got[shift:], truth[:-shift]),
                (-shift, got[:-shift], truth[shift:]),
            ):
                if np.ptp(b) > slack and (np.abs(a - b) <= slack).all():
                    yield Relation("shifted", f"by {by:+d} along axis {axis}")


def _permuted(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    slack = 4 * float(c.bound.max(initial=0.0))
    for axis, length in enumerate(c.truth.shape):
        if not 2 <= length <= _SEARCHED:
            continue
        got = np.moveaxis(c.got, axis, 0).reshape(length, -1)
        truth = np.moveaxis(c.truth, axis, 0).reshape(length, -1)
        if got.shape[1] < 2:
            continue
        near = np.abs(got[:, None] - truth[None]).max(-1) <= slack
        if (near.sum(0) == 1).all() and (near.sum(1) == 1).all():
            yield Relation("permuted", str(axis))


def _masked(c: Compared, factors: Mapping[str, float]) -> Iterator[Relation]:
    zero = c.got == 0
    right = np.abs(c.got - c.truth) <= c.bound
    if zero.any() and right.any() and (zero | right).all():
        yield Relation("masked")


def _added(c: Compared, others: Mapping[str, Floats]) -> Iterator[Relation]:
    difference = c.got - c.truth
    for name, other in others.items():
        if other.shape != difference.shape or not other.any():
            continue
        for factor, said in ((1.0, "plus {}"), (-1.0, "minus {}")):
            if c.close(c.truth + factor * other):
                yield Relation("added", said.format(name))


def where_wrong(c: Compared) -> str | None:
    """Say where the wrong elements lie, if they lie together."""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(c.got - c.truth) <= c.bound)
    if wrong.all() or not wrong.any():
        return None
    for axis, length in enumerate(wrong.shape):
        rest = tuple(a for a in range(wrong.ndim) if a != axis)
        touched = np.flatnonzero(wrong.any(axis=rest))
        if len(touched) < length:
            first, last = int(touched[0]), int(touched[-1])
            together = last - first + 1 == len(touched)
            said = f"{first}" if first == last else f"{first} to {last}"
            said = said if together else ", ".join(map(str, touched[:6]))
            return f"only at {said} of {length} along axis {axis}"
    return f"in {np.mean(wrong):.0%} of its elements, scattered"


def named_factors(inputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return numbers that a factor may be, by what they are called."""
    sizes: dict[str, float] = {"2": 2.0}
    x = inputs.get("x", next(iter(inputs.values()), np.zeros(())))
    if x.ndim:
        sizes["the batch size"] = len(x)
        sizes["the number of rows"] = x.size / x.shape[-1] if x.shape[-1] else 0
        sizes["the number of elements"] = x.size
        sizes["the width"] = x.shape[-1]
        if x.ndim > 2:
            sizes["the number of tokens"] = x.shape[1]
    factors = {"-1": -1.0}
    powers: tuple[tuple[str, Callable[[float], float]], ...] = (
        ("{}", lambda n: n),
        ("1 / {}", lambda n: 1 / n),
        ("√({})", math.sqrt),
        ("1 / √({})", lambda n: 1 / math.sqrt(n)),
    )
    for name, size in sizes.items():
        if size > 1:
            factors |= {said.format(name): f(size) for said, f in powers}
    return factors
