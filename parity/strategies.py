"""What the checks are run on: cases drawn by Hypothesis, numbers made from a seed.

Hypothesis draws configurations, shapes, a seed, a regime and a memory layout, never
elements: the numbers come from the seed, through NumPy. A case is therefore a short
line of JSON, and shrinking it makes the network smaller, not the numbers rounder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch
from zlib import crc32

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

from parity.names import unknown_name

Array = NDArray[Any]
Shape = tuple[int, ...]

REGIMES = (
    "normal",  # standard normal numbers
    "single",  # a batch of one
    "one_token",  # one token an image
    "constant_rows",  # the last axis constant, so that its variance is zero
    "offset",  # far from zero, where cancellation is worst
    "scales",  # one scale a case, from 1e-3 to 300
    "extreme",  # large enough to saturate a softmax
)
LAYOUTS = ("gaps", "reversed", "transposed")


@dataclass(frozen=True)
class Case:
    """One thing to check: how the layer is made and what it is given.

    Attributes
    ----------
    config : mapping of str to Any
        What the pair builds both sides from; JSON can hold it.
    shapes : mapping of str to tuple of int
        The shape of each input.
    seed : int
        Of every number in the case, the cotangents and the noise of the bound.
    regime : str
        How the inputs are distributed, one of `REGIMES`.
    layout : str
        How the check 'strided' lays out the inputs in memory, one of `LAYOUTS`.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    seed: int = 0
    regime: str = "normal"
    layout: str = "gaps"

    def to_json(self) -> str:
        """Return the case without its seed as one line of JSON."""
        fields = asdict(self)
        del fields["seed"]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, seed: int) -> Case:
        """Read a case back.

        Raises
        ------
        ValueError
            If the text is no JSON object with the fields of a case.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a case must be JSON, got {text!r}: {error}") from None
        if not isinstance(fields, dict) or not fields.keys() >= {"config", "shapes"}:
            raise ValueError(
                "a case must be a JSON object with config and shapes, and optionally "
                f"regime and layout, got {text!r}"
            )
        for key in fields.keys() - {"config", "shapes", "regime", "layout"}:
            raise ValueError(f"a case must have no other key, got {key!r}")
        for key, known in (("regime", REGIMES), ("layout", LAYOUTS)):
            if fields.setdefault(key, known[0]) not in known:
                raise unknown_name(key, str(fields[key]), known)
        for key in ("config", "shapes"):
            if not isinstance(fields[key], dict):
                raise ValueError(
                    f"{key} of a case must be an object, got {json.dumps(fields[key])}"
                )
        for name, shape in fields["shapes"].items():
            if not isinstance(shape, list) or not all(
                type(n) is int and n >= 0 for n in shape
            ):
                raise ValueError(
                    f"shapes of a case must be lists of whole numbers, got "
                    f"{json.dumps(shape)} for {name!r}"
                )
        shapes = {name: tuple(shape) for name, shape in fields["shapes"].items()}
        return cls(**(fields | {"shapes": shapes, "seed": seed}))


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the source of one tensor's numbers, which depends on no other tensor."""
    return np.random.default_rng([seed, crc32(name.encode())])


def numbers(case: Case, name: str) -> Array:
    """Return an input in float64, distributed as the case's regime says."""
    shape = case.shapes[name]
    rng = generator(case.seed, name)
    x: Array = rng.standard_normal(shape)
    if case.regime == "constant_rows" and x.ndim > 1:
        x = np.broadcast_to(x[..., :1], shape).copy()
    elif case.regime == "offset":
        x += 1e3
    elif case.regime == "scales":
        x *= 10 ** rng.uniform(-3, math.log10(300))
    elif case.regime == "extreme":
        x *= 50
    return x


def parameter(seed: int, name: str, shape: Shape) -> Array:
    """Return a random parameter in float64; initial values would hide errors.

    Matrices and kernels are scaled by the number of terms that each sums, so that a
    deep network neither explodes nor fades; everything else is standard normal, norm
    scales and biases too.
    """
    x: Array = generator(seed, name).standard_normal(shape)
    if name.endswith("weight") and len(shape) > 1:
        x /= math.sqrt(math.prod(shape[1:]))
    return x


def laid_out(x: Array, layout: str) -> Array:
    """Return an equal array that is not C-contiguous.

    'gaps' leaves every second element out, and NaN in between, so that reading one
    shows; 'reversed' has a negative stride along every axis; 'transposed' is in
    Fortran's order.
    """
    if layout == "gaps":
        shape = (*x.shape[:-1], 2 * x.shape[-1]) if x.ndim else (2,)
        wide = np.full(shape, trap(x.dtype), x.dtype)
        view: Array = wide[..., ::2] if x.ndim else wide[0, ...]
        view[...] = x
        return view
    if layout == "reversed":
        flip = (slice(None, None, -1),) * x.ndim
        reversed_view: Array = x[flip].copy()[flip]
        return reversed_view
    return np.asfortranarray(x)


def trap(dtype: np.dtype[Any]) -> float:
    """Return what shows, or is out of range, where memory between elements is read."""
    if dtype.kind == "b":
        return True
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).min


Configuration = tuple[dict[str, Any], dict[str, Shape]]
DrawConfiguration = Callable[[DrawFn, str], Configuration]


@contextmanager
def drawn_by_seed_alone() -> Iterator[None]:
    """Keep Hypothesis to its seed, so that the same one draws the same cases.

    Now and then it draws a number that stands in the source of a module that happens to
    be loaded: the cases would depend on the process, and on any edit.
    """
    # There is no setting for it; a version that names it otherwise draws as it likes.
    if not hasattr(providers, "_get_local_constants"):
        yield
        return
    none = type(providers._local_constants)
    with patch.object(providers, "_get_local_constants", none):
        # What may be drawn is kept from one test to the next.
        providers.CONSTANTS_CACHE.cache.clear()
        try:
            yield
        finally:
            providers.CONSTANTS_CACHE.cache.clear()


@st.composite
def cases(draw: DrawFn, configuration: DrawConfiguration, regime: str) -> Case:
    """Draw a case of one regime; `configuration` draws what the pair needs."""
    config, shapes = configuration(draw, regime)
    return Case(
        config=config,
        shapes=shapes,
        seed=draw(st.integers(0, 2**16 - 1)),
        regime=regime,
        layout=draw(st.sampled_from(LAYOUTS)),
    )


def batch(draw: DrawFn, regime: str, largest: int = 4) -> int:
    """Draw a batch size: 1 in the regime 'single', otherwise at least 2."""
    return 1 if regime == "single" else draw(st.integers(2, largest))


def rows(draw: DrawFn, regime: str) -> tuple[int, int]:
    """Draw a batch size and a number of tokens."""
    tokens = 1 if regime == "one_token" else draw(st.integers(2, 7))
    return batch(draw, regime), tokens


def width(largest: int = 17) -> SearchStrategy[int]:
    """Draw a width: mostly small and odd ones, where indexing errors show."""
    return st.integers(1, largest)


def rate() -> SearchStrategy[float]:
    """Draw a dropout rate, or none."""
    return st.sampled_from((0.0, 0.1, 0.5))


def drawn(
    configuration: DrawConfiguration, regime: str, seed: int, count: int
) -> list[Case]:
    """Return up to `count` different cases of one regime, the same for a seed.

    The first is always the smallest.
    """
    found: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(configuration, regime))
    def collect(case: Case) -> None:
        found.append(case)

    with drawn_by_seed_alone():
        collect()
    return found
