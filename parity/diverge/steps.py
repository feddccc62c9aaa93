"""Where two training runs part: the first step, then the layer, then the tensor.

Rounding alone makes two correct runs part after some dozen steps, so each step is made
from the same state: the second run is given the first one's before it. Within a step
everything is looked at in the order in which it is computed: what flows forward, the
loss, the gradients from the logits back, what reaches the optimizer after clipping, and
what the optimizer makes of it, parameters and moments. Each part gets the same numbers
on both sides, so what is named is where a difference arises, not where it arrives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from parity.bounds import FACTOR
from parity.diverge.compare import (
    FORWARD,
    PARAMETERS,
    STEP,
    UPDATE,
    Pairing,
    Place,
    Row,
    is_intermediate,
)
from parity.diverge.networks import Network, NumpyNetwork, TorchNetwork
from parity.diverge.scale import COARSE, Scales, coarse_scale, largest, unit_roundoff
from parity.diverge.trace import LOGITS, Arrays
from vit_numpy.masks import KeyedMasks

State = Mapping[str, Any]

# Roundings one after the other: of a clipped gradient, the sum, the quotient and the
# product; from a gradient to Adam's step, the longest, of the first moment the product,
# the sum and the correction, of the second's root half of as many, its sum with eps,
# the quotient and the product with the rate. They add like independent errors: by the
# root of their number, as in `parity.bounds`; three are few enough to add up.
_CLIPPING_ROUNDINGS = 3
_STEP_ROUNDINGS = 8


class Run(Protocol):
    """A training run of either twin; `parity.curves.Side` is one.

    Attributes
    ----------
    trainer : Trainer
        Of `vit_numpy` or `vit_torch`, with the same settings as the other run's.
    """

    trainer: Any

    def step(self, batch: Any) -> Any:
        """Make one step with `batch.images` and `batch.labels`."""
        ...

    def state(self) -> dict[str, Any]:
        """Return a copy of `step`, `seed`, `model` and `optimizer`, in NumPy arrays."""
        ...

    def load(self, state: State) -> None:
        """Take such a state, of either run."""
        ...


@dataclass(frozen=True)
class StepDivergence:
    """The first step that rounding does not explain.

    Attributes
    ----------
    step : int
        Counted from 1.
    place : Place
    """

    step: int
    place: Place

    def __str__(self) -> str:
        """Say it."""
        return f"step {self.step}: {self.place}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        place = self.place
        return {
            "step": self.step,
            "layer": place.layer,
            "tensor": place.tensor,
            "direction": place.direction,
        }


def first_divergence(
    a: Run, b: Run, batches: Iterable[Any], *, every: int = 1
) -> StepDivergence | None:
    """Find the first step, layer and tensor at which two runs part.

    Parameters
    ----------
    a, b : Run
        The run in question, and one in PyTorch. They are trained on; dropout, drop
        path, weight decay groups, schedule and clipping are what their trainers have.
        Both draw the dropout masks that `vit_numpy` draws for the trainer's seed.
    batches : iterable
        With `images` (B, C, H, W) and `labels`; augmented as they are to be trained on.
    every : int, default 1
        Look at every so many steps only; those between are made, each by itself.

    Returns
    -------
    StepDivergence or None
        None if every step that was looked at agrees.

    Raises
    ------
    TypeError
        If `b` is no run of PyTorch.
    """
    if not isinstance(b.trainer.model, torch.nn.Module):
        raise TypeError(
            "b must be a run in PyTorch, which the bounds are taken from, got "
            f"{type(b.trainer.model).__module__}; give the runs in the other order"
        )
    for i, batch in enumerate(batches):
        if i % every:
            a.step(batch)
            continue
        b.load(a.state())
        if (place := _Step(a, b, batch).place()) is not None:
            return StepDivergence(i + 1, place)
    return None


class _Step:
    """One step of both runs, from the same state."""

    def __init__(self, a: Run, b: Run, batch: Any) -> None:
        self.a, self.b, self.batch = a, b, batch
        self.before = a.state()
        self.dtype = next(iter(self.before["model"].values())).dtype.name
        self.images = np.asarray(batch.images).astype(self.dtype)
        trainer = a.trainer
        drops = trainer.masks is not None
        self.masks = KeyedMasks(trainer.seed, trainer.steps) if drops else None

    def place(self) -> Place | None:
        """Make the step; return where the two part, or None."""
        network, scales = self._network()
        if network is not None:
            return network
        after = [self._made(run) for run in (self.a, self.b)]
        for row in self._reported(after[0][0], after[1][0], scales):
            if not row.agrees:
                return Place("", row.tensor, STEP, row)
        norms = after[0][0].grad_norm, after[1][0].grad_norm
        for row in self._clipped(after[0][1], after[1][1], scales, norms):
            if not row.agrees:
                return Place(_layer(row.name), row.tensor, STEP, row)
        rows = list(self._updated(after[0][1]))
        for row in rows:
            if not row.agrees:
                return Place(_layer(row.name), row.tensor, UPDATE, row)
        return None

    def _network(self) -> tuple[Place | None, Scales]:
        """Compare forward, loss and backward, without the trainers."""
        logits: list[NDArray[Any]] = []
        gradients = []

        def sent(array: NDArray[Any]) -> NDArray[Any]:
            logits.append(array)
            gradients.append(self._loss(self.a, array)[1])
            return gradients[-1]

        pair = Pairing(*self._networks(), self.images, sent, COARSE, self.masks)
        rows, _, scales = pair.rows(is_intermediate)
        forward = [row for row in rows if row.part == FORWARD]
        suspect = next((row for row in rows if not row.agrees), None)
        # The coarse scale is for looking, the measured one for judging.
        place = None
        if suspect is not None:
            place = Pairing(
                *self._networks(), self.images, sent, None, self.masks
            ).compare()[1]
        if all(row.agrees for row in forward) or place is None:
            for row in self._losses(logits[0]):
                if not row.agrees:
                    return Place("loss", row.tensor, FORWARD, row), scales
        return place, scales

    def _networks(self) -> tuple[Network, Network]:
        return _network_of(self.a), _network_of(self.b)

    def _loss(self, run: Run, logits: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        """Return a run's loss of these logits, and its gradient."""
        labels = np.asarray(self.batch.labels)
        loss = run.trainer.loss
        if not isinstance(run.trainer.model, torch.nn.Module):
            value, cache = loss.forward(logits, labels)
            return np.asarray(value), loss.backward(cache)
        x = torch.from_numpy(logits.copy()).requires_grad_()
        with torch.enable_grad():
            value = loss(x, torch.from_numpy(labels))
            (dlogits,) = torch.autograd.grad(value, x)
        return value.detach().numpy(), dlogits.numpy()

    def _losses(self, logits: NDArray[Any]) -> Iterator[Row]:
        ours, theirs = (self._loss(run, logits) for run in (self.a, self.b))
        wide = self._loss(self.b, logits.astype(np.float64))
        narrow = self._loss(self.b, logits.astype(np.float32))
        for i, name in enumerate(("loss", "d logits")):
            bound = self._bound(narrow[i], wide[i])
            yield _row(STEP, name, ours[i], theirs[i], bound)

    def _bound(self, narrow: Any, wide: Any) -> NDArray[Any]:
        """Return how far two results may be apart, by one in float32 and in float64."""
        unit = unit_roundoff(self.dtype)
        return 2 * FACTOR * coarse_scale([narrow], np.asarray(wide), unit)

    def _made(self, run: Run) -> tuple[Any, Arrays]:
        """Make a run's step; return its result and the gradients that were used."""
        optimizer = run.trainer.optimizer
        given: Arrays = {}
        if isinstance(run.trainer.model, torch.nn.Module):
            result = run.step(self.batch)
            for name, parameter in run.trainer.model.named_parameters():
                if parameter.grad is not None:
                    given[name] = parameter.grad.numpy().copy()
            return result, given
        step = optimizer.step

        def watched(grads: Arrays) -> None:
            given.update({name: grad.copy() for name, grad in grads.items()})
            step(grads)

        optimizer.step = watched
        try:
            return run.step(self.batch), given
        finally:
            del optimizer.step

    def _reported(self, ours: Any, theirs: Any, scales: Scales) -> Iterator[Row]:
        """Compare what the trainers say of the whole step."""
        bounds = {
            "loss": self._loss_bound(scales),
            # Of Python's own floats by one file, whose copies are the same: no rounding
            # of this step is in it.
            "lr": np.zeros(()),
            "grad_norm": self._norm_bound(scales),
        }
        for name, bound in bounds.items():
            one, other = getattr(ours, name), getattr(theirs, name)
            yield _row(STEP, name, one, other, bound)

    def _loss_bound(self, scales: Scales) -> NDArray[Any]:
        """Return how far the losses may be apart, by their logits and by themselves.

        Logits that are off by their bound move the loss by the sum of that times its
        gradient, to first order; the loss of equal logits has a bound of its own.
        """
        logits = scales.values[FORWARD][LOGITS]
        wide, dlogits = self._loss(self.b, logits)
        narrow = self._loss(self.b, logits.astype(np.float32))[0]
        moved = np.abs(dlogits) * 2 * FACTOR * scales.scales[FORWARD][LOGITS]
        return np.asarray(self._bound(narrow, wide) + moved.sum())

    def _norm_bound(self, scales: Scales) -> NDArray[Any]:
        """Return how far the norms of all gradients may be apart.

        A vector that is off has a norm that is off by the error's norm at most; the
        norm of equal gradients has a bound of its own.
        """
        values = scales.values[PARAMETERS]
        squares = (
            np.square(scale).max() * values[name].size
            for name, scale in scales.scales[PARAMETERS].items()
        )
        moved = 2 * FACTOR * float(np.sqrt(sum(squares)))
        wide = _norm(values)
        narrow = _norm({name: x.astype(np.float32) for name, x in values.items()})
        return np.asarray(self._bound(narrow, wide) + moved)

    def _clipped(
        self, ours: Arrays, theirs: Arrays, scales: Scales, norms: tuple[float, float]
    ) -> Iterator[Row]:
        """Compare the gradients that reach the optimizers, summed and clipped.

        Where they are clipped, by max_norm / (norm + 1e-6), all numbers become smaller
        by one factor, errors too; the factor's own error is what the norms, found to
        agree, are apart, and a rounding each of the sum, the quotient and the product.
        """
        unit = unit_roundoff(self.dtype)
        apart = abs(norms[0] - norms[1]) / (max(norms) or 1.0)
        for name, theirs_now in theirs.items():
            size = float(np.abs(scales.values[PARAMETERS][name]).max()) or 1.0
            largest_now = float(np.abs(theirs_now).max())
            factor = min(1.0, largest_now / size)
            scale = scales.scales[PARAMETERS][name] * factor
            bound = 2 * FACTOR * (scale + _CLIPPING_ROUNDINGS * unit * largest_now)
            bound = bound + apart * largest_now
            yield _row(STEP, f"d {name}", ours[name], theirs_now, bound)

    def _updated(self, gradients: Arrays) -> Iterator[Row]:
        """Compare what the optimizers make of the first run's gradients."""
        after = self.a.state()
        ours = after["model"] | _moments(after)
        theirs = self._replayed(gradients, self.dtype)
        wide = self._replayed(gradients, "float64")
        narrow = self._replayed(gradients, "float32")
        moves = {
            name: float(np.abs(array - self.before["model"][name]).max())
            for name, array in wide.items()
            if name in self.before["model"]
        }
        for name in theirs:
            # Where the step takes a parameter to near zero, its rounding is the larger.
            step = unit_roundoff(self.dtype) * moves.get(name, 0.0)
            bound = self._bound(narrow[name], wide[name])
            bound = bound + 2 * FACTOR * math.sqrt(_STEP_ROUNDINGS) * step
            yield _row(UPDATE, name, ours[name], theirs[name], bound)

    def _replayed(self, gradients: Arrays, dtype: str) -> Arrays:
        """Repeat the update in PyTorch with other gradients, in some dtype."""
        wanted = getattr(torch, dtype)
        model, optimizer = copy.deepcopy(
            (self.b.trainer.model, self.b.trainer.optimizer)
        )
        model.to(wanted)
        state = {
            part: {n: torch.from_numpy(np.array(x)) for n, x in arrays.items()}
            for part, arrays in self.before.items()
            if part in ("model", "optimizer")
        }
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        optimizer.lr = self.b.trainer.optimizer.lr
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name]).to(wanted)
        optimizer.step()
        moments = {"optimizer": optimizer.state_dict()}
        found = dict(model.named_parameters()) | _moments(moments)
        return {name: x.detach().numpy().copy() for name, x in found.items()}


def _moments(state: State) -> dict[str, Any]:
    return {n: x for n, x in state["optimizer"].items() if n != "step"}


def _norm(gradients: Mapping[str, NDArray[Any]]) -> Any:
    """Return the norm of all gradients taken as one vector, in their dtype."""
    each = [np.sqrt(np.vdot(x, x)) for x in gradients.values()]
    return np.sqrt(np.vdot(each, each))


def _network_of(run: Run) -> Network:
    model = run.trainer.model
    torch_side = isinstance(model, torch.nn.Module)
    return TorchNetwork(model, "b") if torch_side else NumpyNetwork(model, "a")


def _row(part: str, name: str, ours: Any, theirs: Any, bound: NDArray[Any]) -> Row:
    difference = largest(ours, theirs, 1.0)
    size = float(np.abs(theirs).max()) if np.size(theirs) else 0.0
    relative = difference / size if size else float(difference and np.inf)
    return Row(part, name, difference, relative, largest(ours, theirs, bound))


def _layer(name: str) -> str:
    """Return the layer of a parameter, or of its moment."""
    path = name.removeprefix("d ")
    for moment in ("exp_avg_sq.", "exp_avg.", "momentum_buffer.", "velocity."):
        path = path.removeprefix(moment)
    return path.rpartition(".")[0]
