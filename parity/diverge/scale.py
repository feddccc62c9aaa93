"""How far two correct networks may be apart, at every event of a trace.

By default that is measured as everywhere in `parity`, by the reference in float64 under
stochastic arithmetic: `parity.bounds`. Its 17 evaluations are too much for a large
network, and it refuses operators that it has no rule for. There the scale is *coarse*:
one number a tensor, the largest difference of PyTorch in float32, with every input
moved by a random ulp, from PyTorch in float64, brought to the tested precision. It is
looser for elements that are much smaller than the largest of their tensor, and as sharp
for the others within a small factor.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity.bounds import FACTOR, NoRuleError, reference
from parity.diverge.networks import TorchNetwork
from parity.diverge.trace import IMAGES, LOGITS, Arrays, Trace

MEASURED, COARSE = "measured", "coarse"
_UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}

# Numbers that flow through the network and its parameters, beyond which the measured
# scale takes minutes.
_LARGE = 4_000_000

# Runs in float32: one alone may by chance be close to the truth in a small tensor.
_COARSE_RUNS = 4


def unit_roundoff(dtype: str) -> float:
    """Return half the distance from 1 to the next number of 'float32' or 'float64'."""
    return _UNIT[dtype]


@dataclass(frozen=True)
class Scales:
    """The truth and the error scale of every tensor of a trace.

    Attributes
    ----------
    kind : {'measured', 'coarse'}
    values, scales : dict of dict of ndarray
        By part of a `Trace`, 'forward', 'backward' and 'parameters', and name.
    """

    kind: str
    values: Mapping[str, Mapping[str, NDArray[Any]]]
    scales: Mapping[str, Mapping[str, NDArray[Any]]]

    def share(self, part: str, name: str, one: Any, other: Any) -> float:
        """Return how much of their common bound two candidates' distance is, at most.

        Each may be `FACTOR` scales from the truth, so twice that from the other.
        """
        return largest(one, other, 2 * FACTOR * self.scales[part][name])

    def share_of_truth(self, part: str, name: str, candidate: Any) -> float:
        """Return how much of its bound one candidate's distance from the truth is."""
        scale = FACTOR * self.scales[part][name]
        return largest(candidate, self.values[part][name], scale)


def largest(one: Any, other: Any, bound: Any) -> float:
    """Return the largest share of the bound that a difference is, by element."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if not one.size:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.abs(one - other) / bound
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return float(np.where(same, 0.0, np.nan_to_num(share, nan=np.inf)).max())


def measure(
    twin: TorchNetwork,
    images: NDArray[Any],
    dlogits: NDArray[Any],
    wanted: Collection[str],
    *,
    masks: Any = None,
    kind: str | None = None,
) -> Scales:
    """Measure the error scale of a network's events and gradients.

    Parameters
    ----------
    twin : TorchNetwork
        Of the dtype that is tested.
    images, dlogits : ndarray
        What goes in, and the gradient that comes back.
    wanted : collection of str
        Events; 'images' and 'logits' are always there.
    masks : optional
        The source of dropout masks; without one nothing is dropped.
    kind : {'measured', 'coarse'}, optional
        By default measured, unless the network is large or has an operator that
        `parity.bounds` does not know.
    """
    wanted = [event for event in wanted if event in twin.events]
    plain = twin.trace(images, lambda _: dlogits, lambda e: e in set(wanted), masks)
    # An event of which PyTorch has no value has no scale either.
    wanted = [event for event in wanted if event in plain.forward]
    if kind is None:
        numbers = sum(a.size for a in plain.forward.values())
        numbers += sum(a.size for a in plain.parameters.values())
        kind = COARSE if numbers > _LARGE else MEASURED
        if kind == MEASURED:
            try:
                return _measured(twin, images, dlogits, wanted, plain, masks)
            except NoRuleError:
                kind = COARSE
    if kind == MEASURED:
        return _measured(twin, images, dlogits, wanted, plain, masks)
    return _coarse(twin, images, dlogits, wanted, masks)


def _measured(
    twin: TorchNetwork,
    images: NDArray[Any],
    dlogits: NDArray[Any],
    wanted: Collection[str],
    plain: Trace,
    masks: Any,
) -> Scales:
    parameters = {
        name: array
        for name, array in twin.parameters().items()
        if name in plain.parameters
    }
    probes = {
        f"probe:{event}": np.zeros_like(plain.forward[event])
        for event in wanted
        if event in plain.backward
    }
    fixed = {
        f"probe:{event}": np.zeros_like(plain.forward[event])
        for event in wanted
        if event not in plain.backward
    }
    cotangents = dict.fromkeys(wanted, np.zeros((), images.dtype))
    found = reference(
        twin.function(list(wanted), masks),
        {IMAGES: images}
        | {f"param:{name}": array for name, array in parameters.items()}
        | probes
        | fixed,
        dtype=getattr(torch, images.dtype.name),
        differentiate=[IMAGES, *(f"param:{name}" for name in parameters), *probes],
        cotangents=cotangents | {LOGITS: dlogits},
    )
    keys = {
        "forward": {event: event for event in (*wanted, LOGITS)},
        "backward": {
            name.removeprefix("probe:"): f"d_{name}" for name in (IMAGES, *probes)
        },
        "parameters": {name: f"d_param:{name}" for name in parameters},
    }
    quantities = found.quantities
    values = {
        part: {name: quantities[key].value for name, key in names.items()}
        for part, names in keys.items()
    }
    scales = {
        part: {name: quantities[key].scale for name, key in names.items()}
        for part, names in keys.items()
    }
    _add_given(values, scales, images, dlogits)
    return Scales(MEASURED, values, scales)


def _coarse(
    twin: TorchNetwork,
    images: NDArray[Any],
    dlogits: NDArray[Any],
    wanted: Collection[str],
    masks: Any,
) -> Scales:
    chosen = set(wanted)

    def run(network: TorchNetwork, images: NDArray[Any]) -> Trace:
        sent = dlogits.astype(images.dtype)
        return network.trace(images, lambda _: sent, lambda e: e in chosen, masks)

    truth = run(twin.to("float64"), images.astype(np.float64))
    rng = np.random.default_rng(0)
    narrow = []
    for _ in range(_COARSE_RUNS):
        moved = copy.deepcopy(twin.to("float32"))
        with torch.no_grad():
            for parameter in moved.model.parameters():
                array = parameter.numpy()
                array[...] = _moved(array, rng)
        narrow.append(run(moved, _moved(images.astype(np.float32), rng)))
    unit = _UNIT[images.dtype.name]
    values: dict[str, Arrays] = {}
    scales: dict[str, Arrays] = {}
    for part in ("forward", "backward", "parameters"):
        values[part] = getattr(truth, part)
        scales[part] = {
            name: coarse_scale([getattr(n, part)[name] for n in narrow], array, unit)
            for name, array in values[part].items()
        }
    _add_given(values, scales, images, dlogits)
    return Scales(COARSE, values, scales)


def coarse_scale(
    narrow: Sequence[NDArray[Any]], wide: NDArray[Any], unit: float
) -> NDArray[np.float64]:
    """Return one error scale for a tensor, known in float32 and in float64."""
    if not wide.size:
        return np.zeros(())
    error = max(float(np.abs(one - wide).max()) for one in narrow)
    scale = error * (unit / _UNIT["float32"]) + unit * np.abs(wide).max()
    return np.asarray(scale + np.finfo(np.float64).tiny)


def _moved(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move every number to the next above or below, at random."""
    towards = np.where(rng.random(array.shape) < 0.5, np.inf, -np.inf)
    moved: NDArray[Any] = np.nextafter(array, towards.astype(array.dtype))
    return moved


def _add_given(
    values: dict[str, Arrays],
    scales: dict[str, Arrays],
    images: NDArray[Any],
    dlogits: NDArray[Any],
) -> None:
    """Add what both sides are given, where nothing may differ."""
    tiny = np.asarray(np.finfo(images.dtype).tiny, np.float64)
    for part, name, array in (
        ("forward", IMAGES, images),
        ("backward", LOGITS, dlogits),
    ):
        values[part][name] = array.astype(np.float64)
        scales[part][name] = tiny
