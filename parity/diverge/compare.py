"""Two networks side by side: configuration, weights, and then every layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diverge.networks import Network, NumpyNetwork, TorchNetwork, as_network
from parity.diverge.scale import MEASURED, Scales, largest, measure
from parity.diverge.trace import (
    EMBEDDING,
    IMAGES,
    LOGITS,
    Arrays,
    Trace,
    is_input,
    layer_of,
)

FORWARD, BACKWARD, PARAMETERS = "forward", "backward", "parameters"
UPDATE, STEP = "update", "step"
AGREES, DIFFERS, ABSENT = "agrees", "DIFFERS", "not compared"
NOT_FINITE = "not finite in both"

# What can be different without a forward in evaluation being so.
_NO_MATTER = (
    "patch_embed",
    "pos_drop",
    "attn_drop",
    "proj_drop",
    "act_drop",
    "mlp_drop",
    "drop_path",
)


@dataclass(frozen=True)
class WeightDifference:
    """A parameter that the two networks do not share.

    Attributes
    ----------
    name : str
    kind : {'missing in A', 'missing in B', 'shape', 'values'}
    largest : float or None
        Largest difference of an element.
    says : str
        Both shapes, or what explains the values.
    """

    name: str
    kind: str
    largest: float | None = None
    says: str = ""


@dataclass(frozen=True)
class Row:
    """One tensor, compared.

    Attributes
    ----------
    part : {'forward', 'backward', 'parameters', 'update', 'step'}
        A value, its gradient, the gradient of a parameter; of a training step what the
        optimizer made, or what the trainer reports.
    name : str
        An event of the trace (see `parity.diverge.trace`), or a parameter.
    difference, relative : float
        Largest difference of an element, and relative to the largest element.
    share : float
        Of what rounding can explain, for the element where it is largest.
    says : str
        What else is to be said, as two shapes.
    """

    part: str
    name: str
    difference: float
    relative: float
    share: float
    says: str = ""

    @property
    def agrees(self) -> bool:
        """Whether rounding can explain the difference."""
        return self.share <= 1

    @property
    def tensor(self) -> str:
        """What to call it."""
        marks = {BACKWARD: "d ", PARAMETERS: "d ", UPDATE: "new "}
        return marks.get(self.part, "") + self.name


@dataclass(frozen=True)
class Place:
    """Where two networks part.

    Attributes
    ----------
    layer : str
        The innermost layer that turns what agrees into what does not; '' is the network
        itself, outside its layers.
    tensor : str
        The first tensor that differs; a gradient has a 'd ' in front, what an optimizer
        made a 'new '.
    direction : {'forward', 'backward', 'update', 'step'}
    row : Row
        By how much.
    off : str
        Which of the two is off the truth, in float64: 'A', 'B', 'both' or ''.
    """

    layer: str
    tensor: str
    direction: str
    row: Row
    off: str = ""

    def __str__(self) -> str:
        """Say it."""
        where = self.layer or "the network itself, outside its layers"
        if self.direction == STEP:
            return f"the trainer ({self.tensor})"
        return f"{where}, {self.direction} (first tensor: {self.tensor})"


@dataclass
class NetworkComparison:
    """What comparing two networks has shown; made by `compare`.

    Attributes
    ----------
    a, b : str
        Their labels.
    dtype : str
    images : int
    configuration : list of (str, object, object)
        Fields that differ, with the values of A and of B.
    weights : list of WeightDifference
    uncompared : int
        Parameters of A or B that the other has under no name.
    scale : str
        How the bound was come by: 'measured' or 'coarse'.
    rows : list of Row
        What flows forward, in order, then gradients, from the logits back.
    first : Place or None
        Where they part.
    same_weights : Place or None
        Where they part when B is given A's weights, if the weights differ.
    tried_same_weights : bool
    refused : str
        Why nothing can be told, if nothing can.
    """

    a: str
    b: str
    dtype: str
    images: int
    configuration: list[tuple[str, Any, Any]] = field(default_factory=list)
    weights: list[WeightDifference] = field(default_factory=list)
    uncompared: int = 0
    scale: str = MEASURED
    rows: list[Row] = field(default_factory=list)
    first: Place | None = None
    same_weights: Place | None = None
    tried_same_weights: bool = False
    refused: str = ""

    @property
    def agree(self) -> bool:
        """Whether everything that was compared agrees, weights included."""
        return not (self.weights or self.first or self.refused)

    @property
    def conclusion(self) -> str:
        """What it comes to, in a sentence or two."""
        if self.refused:
            return self.refused
        weights_differ = [w for w in self.weights if w.kind == "values"]
        other = [w for w in self.weights if w.kind != "values"]
        if other:
            return (
                f"the networks are not the same: {_counted(len(other), 'parameter')} "
                f"missing or of another shape, {other[0].name} the first"
            )
        if weights_differ:
            text = f"the weights differ, in {_counted(len(weights_differ), 'tensor')}"
            if not self.tried_same_weights:
                return text
            if self.same_weights is None:
                return (
                    f"{text}; given the same weights the networks agree, so the "
                    "computation is the same"
                )
            return (
                f"{text}, and with the same weights the computation differs too: "
                f"it parts in {self.same_weights}"
            )
        if self.first is None:
            return (
                "the weights are the same, and so is the computation, within rounding"
            )
        matter = [f for f, _, _ in self.configuration if f not in _NO_MATTER]
        why = f"; the configurations differ in {', '.join(matter)}" if matter else ""
        off = {
            "A": f"; it is {self.a} that is off the float64 reference",
            "B": f"; it is {self.b} that is off the float64 reference",
        }.get(self.first.off, "")
        return (
            "the weights are the same, the computation differs: it parts in "
            f"{self.first}{why}{off}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        fields = asdict(self)
        places = [p for p in (fields["first"], fields["same_weights"]) if p is not None]
        for row in [*fields["rows"], *(place["row"] for place in places)]:
            _finite(row, "difference", "relative", "share")
        for weight in fields["weights"]:
            _finite(weight, "largest")
        fields["configuration"] = [
            {"field": name, "a": one, "b": other}
            for name, one, other in self.configuration
        ]
        return fields | {"agree": self.agree, "conclusion": self.conclusion}


def compare(
    a: Any,
    b: Any,
    images: NDArray[Any],
    *,
    dtype: str = "float64",
    seed: int = 0,
    scale: str | None = None,
) -> NetworkComparison:
    """Find the first layer and tensor at which two networks part.

    Parameters
    ----------
    a, b : Network, VisionTransformer of either twin, torch.nn.Module or callable
    images : ndarray of shape (B, C, H, W)
    dtype : {'float64', 'float32'}
        In float64 a difference is one of the formulas; in float32 it may be one of
        accuracy, too.
    seed : int
        Of the gradient that is sent back from the logits: standard normal numbers.
    scale : {'measured', 'coarse'}, optional
        See `parity.diverge.scale`.

    Returns
    -------
    NetworkComparison

    Raises
    ------
    TypeError
        If `a` or `b` is no network.
    ValueError
        If the images are not what either takes.
    """
    a, b = as_network(a), as_network(b)
    found = NetworkComparison(a.label, b.label, dtype, len(images))
    found.configuration = configuration_differences(a, b)
    found.weights, found.uncompared = weight_differences(a, b)
    for name in ("image_size", "in_chans"):
        for field_name, one, other in found.configuration:
            if field_name == name:
                found.refused = (
                    f"the networks take other images: {name} is {one} in A and "
                    f"{other} in B"
                )
                return found
    a, b = a.to(dtype), b.to(dtype)
    images = images.astype(dtype)
    pair = Pairing(a, b, images, random_cotangent(seed, dtype), scale)
    found.rows, found.first = pair.compare()
    found.scale = pair.kind
    blind = next((row.tensor for row in found.rows if row.says == NOT_FINITE), None)
    if blind is not None and found.first is None:
        found.refused = (
            f"{blind} is not finite in both networks, which shows nothing of what "
            "follows; give other weights or images"
        )
    given = with_weights(b, a.parameters()) if found.weights else None
    if given is not None:
        found.tried_same_weights = True
        pair = Pairing(a, given, images, random_cotangent(seed, dtype), scale)
        _, found.same_weights = pair.compare()
    return found


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def random_cotangent(seed: int, dtype: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what draws the gradient of the logits."""

    def draw(logits: NDArray[Any]) -> NDArray[Any]:
        numbers = np.random.default_rng(seed).standard_normal(logits.shape)
        return numbers.astype(dtype)

    return draw


def locate(
    a: Any,
    b: Any,
    images: NDArray[Any],
    dlogits: NDArray[Any],
    *,
    masks: Any = None,
    scale: str | None = None,
) -> Place | None:
    """Return the layer and tensor at which one forward and backward part, or None.

    Parameters
    ----------
    a, b : as `compare`
        Of the dtype of the images, and with the weights that they are to have.
    images : ndarray of shape (B, C, H, W)
    dlogits : ndarray of shape (B, K)
        The gradient that is sent back, through both.
    masks : mask source of `vit_numpy`, optional
        Dropout as in training; without one nothing is dropped.
    scale : {'measured', 'coarse'}, optional
    """
    pair = Pairing(
        as_network(a), as_network(b), images, lambda _: dlogits, scale, masks
    )
    return pair.compare()[1]


class Pairing:
    """Two networks of one dtype, run on the same images."""

    def __init__(
        self,
        a: Network,
        b: Network,
        images: NDArray[Any],
        cotangent: Callable[[NDArray[Any]], NDArray[Any]],
        kind: str | None,
        masks: Any = None,
    ) -> None:
        self.a, self.b = a, b
        self.images = images
        self.cotangent = cotangent
        self.asked_kind = kind
        self.kind = kind or MEASURED
        self.masks = masks

    def compare(self) -> tuple[list[Row], Place | None]:
        """Compare the model's intermediates, and look into the part that differs."""
        rows, traces, _ = self.rows(is_intermediate)
        first = next((row for row in rows if not row.agrees), None)
        if first is None:
            return rows, None
        order = [event for event in traces[0].order if event in set(traces[1].order)]
        inside = _between(order, rows, first)
        fine, traces, scales = self.rows(lambda event: event in inside)
        parted = next((row for row in fine if not row.agrees), first)
        return rows, self._place(parted, traces, scales)

    def rows(
        self, wanted: Callable[[str], bool]
    ) -> tuple[list[Row], tuple[Trace, Trace], Scales]:
        """Compare the events that are wanted; return what it was done with, too."""
        one = self.a.trace(self.images, self.cotangent, wanted, self.masks)
        # Both are sent the same gradient, whatever their logits are.
        sent = one.backward[LOGITS]
        other = self.b.trace(self.images, _matching(sent), wanted, self.masks)
        scales = self._scales(one, other, sent)
        self.kind = scales.kind
        return list(_compared(one, other, scales)), (one, other), scales

    def _scales(self, one: Trace, other: Trace, sent: NDArray[Any]) -> Scales:
        # The more it knows by name, the better a network serves as the reference.
        sides = sorted(((self.a, one), (self.b, other)), key=lambda s: not s[0].config)
        for network, trace in sides:
            twin = network.twin()
            if twin is not None:
                return measure(
                    twin,
                    self.images,
                    sent,
                    [e for e in trace.forward if e not in (IMAGES, LOGITS)],
                    masks=self.masks,
                    kind=self.asked_kind,
                )
        raise ValueError(
            "one of the two must be a network whose error bound can be measured, got "
            "two functions; give a torch module or a checkpoint"
        )

    def _place(
        self,
        row: Row,
        traces: tuple[Trace, Trace],
        scales: Scales,
    ) -> Place:
        direction = FORWARD if row.part == FORWARD else BACKWARD
        order = {event: i for i, event in enumerate(traces[0].order)}
        if row.part == PARAMETERS:
            layer = row.name.rpartition(".")[0]
        elif is_input(row.name) == (direction == BACKWARD):
            # What a layer made of what it was given, and that agrees.
            layer = layer_of(row.name)
        else:
            layer = _around(row.name, order)
        off = ""
        if row.name in scales.values[row.part] and not self._sides_differ():
            offs = [
                side
                for side, trace in zip("AB", traces, strict=True)
                if scales.share_of_truth(
                    row.part, row.name, getattr(trace, row.part)[row.name]
                )
                > 1
            ]
            off = "both" if len(offs) == 2 else "".join(offs)
        return Place(layer, row.tensor, direction, row, off)

    def _sides_differ(self) -> bool:
        """Tell whether the reference is the truth for one side alone."""
        one, other = self.a.parameters(), self.b.parameters()
        return (
            self.a.config is None
            or any(
                f not in _NO_MATTER
                for f, _, _ in configuration_differences(self.a, self.b)
            )
            or one.keys() != other.keys()
            or any(not _same(one[name], other[name]) for name in one)
        )


def is_intermediate(event: str) -> bool:
    """Tell whether an event is one of those that the model names itself."""
    parts = event.split(".")
    return event in (EMBEDDING, "pre_logits", "patch_embed") or (
        parts[0] == "blocks"
        and (parts[2:] in ([], ["attn"], ["mlp"]))
        and not is_input(event)
    )


def _compared(one: Trace, other: Trace, scales: Scales) -> list[Row]:
    """Compare two traces, in the order in which they were computed."""
    events = [event for event in one.order if event in other.forward]
    rows = [
        _row(FORWARD, event, one.forward[event], other.forward[event], scales)
        for event in events
        if event in one.forward
    ]
    gradients = [e for e in one.backward if e in other.backward]
    shared = [name for name in one.parameters if name in other.parameters]
    position = {event: i for i, event in enumerate(reversed(one.order))}
    # What a layer gives its parameters stands right before what it passes on; what
    # no layer that is watched owns, before the gradient of the images.
    keyed: list[tuple[tuple[int, int], str, str]] = [
        ((position[event], 1), BACKWARD, event) for event in gradients
    ]
    keyed += [((_owner(name, position), 0), PARAMETERS, name) for name in shared]
    for _, part, name in sorted(keyed, key=lambda k: k[0]):
        ours, theirs = getattr(one, part)[name], getattr(other, part)[name]
        rows.append(_row(part, name, ours, theirs, scales))
    return rows


def _owner(parameter: str, position: Mapping[str, int]) -> int:
    """Return where in the backward a parameter's gradient is made."""
    layer = parameter.rpartition(".")[0]
    while layer:
        if (where := position.get(f"{layer} (input)")) is not None:
            return where
        layer = layer.rpartition(".")[0]
    return position[IMAGES]


def _row(
    part: str, name: str, ours: NDArray[Any], theirs: NDArray[Any], scales: Scales
) -> Row:
    if ours.shape != theirs.shape:
        text = f"shape {ours.shape} in A, {theirs.shape} in B"
        return Row(part, name, math.inf, math.inf, math.inf, text)
    difference = largest(ours, theirs, 1.0)
    size = float(np.abs(ours).max()) if ours.size else 0.0
    relative = difference / size if size else (math.inf if difference else 0.0)
    if name not in scales.scales[part]:
        return Row(part, name, difference, relative, 0.0, ABSENT)
    share = scales.share(part, name, ours, theirs)
    blind = (~np.isfinite(ours) & ~np.isfinite(theirs)).any()
    return Row(part, name, difference, relative, share, NOT_FINITE if blind else "")


def _between(order: Sequence[str], rows: Sequence[Row], first: Row) -> set[str]:
    """Return the events from the last intermediate that agrees to one that does not."""
    if first.part == FORWARD:
        line = list(order)
        known = [row.name for row in rows if row.part == FORWARD]
    else:
        line = list(reversed(order))
        known = [row.name for row in rows if row.part == BACKWARD]
    place = {event: i for i, event in enumerate(line)}
    end: int
    if first.part == PARAMETERS:
        end = _owner(first.name, place)
        # The layer whose own gradient it is may lie a little further on.
        known_after = [place[n] for n in known if n in place and place[n] >= end]
        end = min(known_after, default=len(line) - 1)
    else:
        end = place[first.name]
    before = [place[n] for n in known if n in place and place[n] < end]
    start = max(before, default=0)
    return set(line[start : end + 1])


def _around(event: str, order: Mapping[str, int]) -> str:
    """Return the layer in which the layer of an event is called."""
    layer = layer_of(event)
    while layer:
        layer = layer.rpartition(".")[0]
        if f"{layer} (input)" in order:
            return layer
    return ""


def _matching(sent: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def give(logits: NDArray[Any]) -> NDArray[Any]:
        if logits.shape != sent.shape:
            raise ValueError(
                "the two networks must have logits of the same shape, got "
                f"{sent.shape} from A and {logits.shape} from B"
            )
        return sent.astype(logits.dtype)

    return give


def configuration_differences(a: Network, b: Network) -> list[tuple[str, Any, Any]]:
    """Return the fields that differ, with both values; none where one has none."""
    if a.config is None or b.config is None:
        return []
    return [
        (name, value, b.config.get(name))
        for name, value in a.config.items()
        if value != b.config.get(name)
    ]


def weight_differences(a: Network, b: Network) -> tuple[list[WeightDifference], int]:
    """Return the parameters that differ, and how many could not be compared.

    Where one side is another library's module, a name that only one side has is one
    that the map of names does not cover, not one that is missing.
    """
    ours, theirs = a.parameters(), b.parameters()
    found = []
    uncompared = 0
    both_known = a.config is not None and b.config is not None
    for name in list(ours) + [n for n in theirs if n not in ours]:
        if name not in theirs or name not in ours:
            side = "B" if name in ours else "A"
            if both_known:
                found.append(WeightDifference(name, f"missing in {side}"))
            else:
                uncompared += 1
            continue
        one, other = ours[name], theirs[name]
        if one.shape != other.shape:
            says = f"{one.shape} in A, {other.shape} in B"
            found.append(WeightDifference(name, "shape", says=says))
        elif not _same(one, other):
            wide = np.asarray(one, np.float64), np.asarray(other, np.float64)
            found.append(
                WeightDifference(
                    name, "values", largest(*wide, 1.0), _explained(one, other)
                )
            )
    return found, uncompared


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two tensors are the same, NaN where the other is NaN."""
    return np.array_equal(one, other, equal_nan=True)


def _explained(one: NDArray[Any], other: NDArray[Any]) -> str:
    """Say what simple change turns one tensor into the other, if one does."""
    for name, cast in (
        ("float32", lambda x: x.astype(np.float32)),
        ("bfloat16", _to_bfloat16),
        ("float16", lambda x: x.astype(np.float16)),
    ):
        with np.errstate(over="ignore"):
            if np.array_equal(cast(one), other):
                return f"B's are A's rounded to {name}"
            if np.array_equal(one, cast(other)):
                return f"A's are B's rounded to {name}"
    if one.ndim == 2 and one.shape[0] == one.shape[1] and np.array_equal(one.T, other):
        return "one is the other transposed"
    if np.array_equal(one, -other):
        return "of the other sign"
    if np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None)):
        return "the same numbers in another order"
    return ""


def _to_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """Round to the upper half of a float32, to nearest and ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def with_weights(network: Network, arrays: Arrays) -> Network | None:
    """Return a copy with other weights, or None where they do not fit."""
    own = network.parameters()
    if network.config is None or own.keys() != arrays.keys():
        return None
    if any(own[name].shape != array.shape for name, array in arrays.items()):
        return None
    if isinstance(network, NumpyNetwork):
        model = copy.deepcopy(network.model)
        model.load_state_dict(arrays)
        return NumpyNetwork(model, network.label)
    if isinstance(network, TorchNetwork):
        import torch

        model = copy.deepcopy(network.model)
        model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
        return TorchNetwork(model, network.label)
    return None


def _finite(table: dict[str, Any], *keys: str) -> None:
    """Replace what JSON has no number for."""
    for key in keys:
        if table[key] is not None and not math.isfinite(table[key]):
            table[key] = None
