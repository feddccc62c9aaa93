"""Training curves of both backends, from the same start on the same batches.

Rounding alone makes two correct runs part: a difference grows by a factor each step, so
after enough steps two runs of *one* backend that began one unit in the last place (ulp)
away have nothing in common. How close two curves must be is therefore measured, in two
ways:

free
    Both backends train on by themselves, beside runs of torch whose parameters are
    moved by a random ulp after every step. NumPy has left torch where their losses
    differ by `MARGIN` times more than any of these has differed from torch so far.
lockstep
    Every few steps NumPy gets torch's state, parameters and moments. Single steps are
    judged: the loss, every gradient and every updated array must be within the bound
    that `parity.bounds` computes at the state in which NumPy began the step.

In float64 the free run is sharp for hundreds of steps; float32 runs part within dozens,
so there the lockstep run decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from parity.bounds import Reference, reference
from parity.data import Batch, BatchStream, Dataset
from parity.diverge import StepDivergence, first_divergence
from parity.environment import environment
from parity.masks import TorchMasks
from parity.recipes import Recipe
from parity.training import Backend, build_model, build_trainer, open_stream
from vit_numpy.masks import KeyedMasks
from vit_numpy.optim import clip_grad_norm

Arrays = dict[str, NDArray[Any]]
Series = dict[str, list[float]]

MARGIN = 100.0
"""How many times further than the envelope so far a free run may go.

Each run amplifies its own rounding errors, and the amplification is exponential, so
that correct runs differ by a factor: over 200 steps of Network 1 in float64 NumPy was
at most 3 times further from torch than the envelope. A defect shows far above that.
"""

ENVELOPE_RUNS = 2
"""Perturbed runs of torch that a free run is measured by."""

JUDGED = 10
"""Windows of a lockstep run that are judged by default."""

PARTING_LOOKS = 10
"""About how many steps are looked at for one that is wrong by itself."""


def _series() -> Series:
    return {"numpy": [], "torch": []}


@dataclass
class Curves:
    """What both backends did, step by step.

    Attributes
    ----------
    loss, accuracy, grad_norm : dict of list of float
        By backend, ``'numpy'`` and ``'torch'``.
    drift : list of float
        Distance of NumPy's parameters from torch's after each step, relative to the
        norm of torch's, of the tensor where it is largest.
    drift_tensor : str
        The tensor where it is largest after the last step.
    """

    loss: Series = field(default_factory=_series)
    accuracy: Series = field(default_factory=_series)
    grad_norm: Series = field(default_factory=_series)
    drift: list[float] = field(default_factory=list)
    drift_tensor: str = ""

    @property
    def relative_difference(self) -> list[float]:
        """Difference of the losses relative to torch's, at each step."""
        return relative_difference(self.loss["numpy"], self.loss["torch"])

    def add(self, results: Mapping[str, Any], sides: Mapping[str, Side]) -> None:
        """Append a step of both backends."""
        for name, result in results.items():
            self.loss[name].append(result.loss)
            self.accuracy[name].append(result.accuracy)
            self.grad_norm[name].append(result.grad_norm)
        drift, self.drift_tensor = _drift(
            sides["numpy"].parameters(), sides["torch"].parameters()
        )
        self.drift.append(drift)

    def to_dict(self) -> dict[str, Any]:
        """Return the series as JSON can hold them."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "grad_norm": self.grad_norm,
            "drift": self.drift,
            "drift_tensor": self.drift_tensor,
            "relative_difference": self.relative_difference,
            "max_relative_difference": max(self.relative_difference),
        }


@dataclass(frozen=True)
class Envelope:
    """How far torch gets from itself by a random ulp after every step.

    Attributes
    ----------
    low, high : list of float
        Smallest and largest loss of torch's runs, at each step.
    difference : list of float
        Largest relative difference of a perturbed run's loss so far.
    """

    low: list[float]
    high: list[float]
    difference: list[float]


@dataclass(frozen=True)
class Verdict:
    """What judging single steps has shown.

    Attributes
    ----------
    steps : list of int
        The steps judged, counted from 1.
    max_bound_used : float
        Largest share of its bound that any element used; 1 is the limit.
    tensor : str
        The tensor of which that element is.
    failed_at : int or None
        The first step with an element beyond its bound.
    """

    steps: list[int]
    max_bound_used: float
    tensor: str
    failed_at: int | None


@dataclass(frozen=True)
class Comparison:
    """A recipe trained in both backends; made by `compare`.

    Attributes
    ----------
    recipe, data, dtype : str
    steps : int
    free : Curves
    envelope : Envelope
        Around the free run.
    lockstep : Curves or None
    verdict : Verdict or None
        Of the steps of the lockstep run that were judged.
    diverged_at : int or None
        The first step, counted from 1, that rounding does not explain.
    parting : StepDivergence or None
        The first step that is wrong by itself, with its layer and tensor, where one is.
    """

    recipe: str
    data: str
    dtype: str
    steps: int
    free: Curves
    envelope: Envelope
    lockstep: Curves | None
    verdict: Verdict | None
    diverged_at: int | None
    parting: StepDivergence | None

    @property
    def decisive(self) -> Curves:
        """The run that decides: in lockstep if there is one, else free."""
        return self.free if self.lockstep is None else self.lockstep

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; the run that decides comes first."""
        lockstep: dict[str, Any] = {}
        if self.verdict is not None:
            lockstep["lockstep"] = {
                "judged_steps": self.verdict.steps,
                "max_bound_used": _finite(self.verdict.max_bound_used),
                "tensor": self.verdict.tensor,
            }
            lockstep["free"] = self.free.to_dict()
        return {
            "recipe": self.recipe,
            "data": self.data,
            "dtype": self.dtype,
            "steps": self.steps,
            **self.decisive.to_dict(),
            "diverged_at": self.diverged_at,
            "parting": None if self.parting is None else self.parting.to_dict(),
            **lockstep,
            "envelope": vars(self.envelope),
            "environment": environment(),
        }


def compare(
    recipe: Recipe,
    dataset: Dataset,
    steps: int,
    *,
    resync: int | None = None,
    judged: int = JUDGED,
    progress: Callable[[int], object] = lambda count: None,
) -> Comparison:
    """Train a recipe in both backends, and say where they part.

    Parameters
    ----------
    recipe : Recipe
        Its dtype decides what is computed in.
    dataset : Dataset
    steps : int
        Optimizer steps, 1 or more; may pass the recipe's epochs.
    resync : int, optional
        Give NumPy torch's state every so many steps and judge single steps. By default
        1 in float32; in float64 the free run decides alone.
    judged : int, default 10
        How many windows between two resyncs are judged, spread evenly from first to
        last: one costs about 300 times as much as a step.
    progress : callable, optional
        Called with 1 after each step of either run.

    Raises
    ------
    ValueError
        If a number is below 1.
    """
    for name, value in (("steps", steps), ("resync", resync), ("judged", judged)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if resync is None and recipe.dtype == "float32":
        resync = 1
    free, envelope = run_free(recipe, dataset, steps, progress=progress)
    diverged_at = leaves(free.relative_difference, envelope.difference, recipe.dtype)
    lockstep = verdict = parting = None
    if resync is not None:
        lockstep, verdict = run_lockstep(
            recipe, dataset, steps, resync=resync, judged=judged, progress=progress
        )
        diverged_at = verdict.failed_at
    if diverged_at is not None:
        # One step that is wrong by itself tells more than where its effect has grown.
        parting = find_parting(recipe, dataset, diverged_at)
    return Comparison(
        recipe=recipe.name,
        data=dataset.name,
        dtype=recipe.dtype,
        steps=steps,
        free=free,
        envelope=envelope,
        lockstep=lockstep,
        verdict=verdict,
        diverged_at=diverged_at,
        parting=parting,
    )


def find_parting(recipe: Recipe, dataset: Dataset, steps: int) -> StepDivergence | None:
    """Return the first of some steps that is wrong by itself, and where; None if none.

    The first step is looked at, the last, and some in between.
    """
    stream = open_stream(recipe, dataset.train)
    numpy = Side(recipe, "numpy", stream)
    torch_side = Side(recipe, "torch", stream, SharedMasks(recipe.seed))
    every = max((steps - 1) // PARTING_LOOKS, 1)
    looked_at = batches(stream, steps)
    return first_divergence(numpy, torch_side, looked_at, every=every)


def run_free(
    recipe: Recipe,
    dataset: Dataset,
    steps: int,
    *,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Curves, Envelope]:
    """Train both backends by themselves, beside perturbed runs of torch."""
    stream = open_stream(recipe, dataset.train)
    start = Side(recipe, "numpy", stream)
    masks = SharedMasks(recipe.seed)
    sides = {"numpy": start, "torch": Side(recipe, "torch", stream, masks)}
    perturbed = [Side(recipe, "torch", stream, masks) for _ in range(ENVELOPE_RUNS)]
    for side in (sides["torch"], *perturbed):
        side.load(start.state())
    generator = torch.Generator().manual_seed(recipe.seed)
    curves = Curves()
    losses: list[list[float]] = []
    for batch in batches(stream, steps):
        results = {name: side.step(batch) for name, side in sides.items()}
        curves.add(results, sides)
        losses.append([side.step(batch).loss for side in perturbed])
        for side in perturbed:
            move_by_one_ulp(side.trainer.model, generator)
        progress(1)
    torch_loss = curves.loss["torch"]
    all_losses = [
        [own, *others] for own, others in zip(torch_loss, losses, strict=True)
    ]
    so_far = np.zeros(steps)
    for run in zip(*losses, strict=True):
        so_far = np.maximum(so_far, relative_difference(run, torch_loss))
    return curves, Envelope(
        low=[min(values) for values in all_losses],
        high=[max(values) for values in all_losses],
        difference=np.maximum.accumulate(so_far).tolist(),
    )


def run_lockstep(
    recipe: Recipe,
    dataset: Dataset,
    steps: int,
    *,
    resync: int = 1,
    judged: int = JUDGED,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Curves, Verdict]:
    """Train both backends, NumPy from torch's state every few steps; judge some."""
    stream = open_stream(recipe, dataset.train)
    numpy = Side(recipe, "numpy", stream)
    sides = {
        "numpy": numpy,
        "torch": Side(recipe, "torch", stream, SharedMasks(recipe.seed)),
    }
    sides["torch"].load(numpy.state())
    judge = Judge(recipe, numpy)
    windows = -(-steps // resync)
    chosen = set(np.linspace(0, windows - 1, min(judged, windows)).round().astype(int))
    curves = Curves()
    shares: dict[tuple[int, str], float] = {}
    failed: int | None = None
    for i, batch in enumerate(batches(stream, steps)):
        if i % resync == 0:
            numpy.load(sides["torch"].state())
        before = numpy.state() if i // resync in chosen and failed is None else None
        results = {name: side.step(batch) for name, side in sides.items()}
        curves.add(results, sides)
        if before is not None:
            used = judge.shares(before, batch, results["numpy"].loss)
            shares |= {(i + 1, name): share for name, share in used.items()}
            if not all(share <= 1 for share in used.values()):
                failed = i + 1
        progress(1)
    worst = max(shares, key=lambda key: shares[key])
    return curves, Verdict(
        steps=sorted({step for step, _ in shares}),
        max_bound_used=shares[worst],
        tensor=worst[1],
        failed_at=failed,
    )


def leaves(difference: list[float], envelope: list[float], dtype: str) -> int | None:
    """Return the first step, from 1, beyond `MARGIN` times the envelope; or None."""
    limit = MARGIN * np.maximum(envelope, float(np.finfo(dtype).eps))
    # A loss that is not a number is beyond every limit.
    beyond = np.flatnonzero(~(np.asarray(difference) <= limit))
    return int(beyond[0]) + 1 if beyond.size else None


def batches(stream: BatchStream, steps: int) -> Iterator[Batch]:
    """Yield so many batches, epoch after epoch."""
    for step in range(0, steps, len(stream)):
        epoch = stream.epoch(step // len(stream))
        yield from (batch for _, batch in zip(range(steps - step), epoch, strict=False))


class SharedMasks:
    """Deals any number of torch trainers the masks that `vit_numpy` draws.

    Trainers that are at the same step share one drawing of them.
    """

    def __init__(self, seed: int) -> None:
        self.source = KeyedMasks(seed)
        self.drawn: dict[str, Tensor] = {}

    def at(self, step: int) -> SharedMasks:
        """Return the source of another training step's masks."""
        if step != self.source.step:
            self.source = self.source.at(step)
            self.drawn = {}
        return self

    def shard(self, start: int, stop: int) -> SharedMasks:
        """Return this source: a `Side` takes each batch as one part."""
        return self

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name`: False with probability `p`."""
        if name not in self.drawn:
            self.drawn[name] = TorchMasks(self.source).keep(name, shape, p)
        return self.drawn[name]


class Side:
    """One backend that trains a recipe; its state goes in and out as NumPy arrays."""

    def __init__(
        self,
        recipe: Recipe,
        backend: str,
        stream: BatchStream,
        masks: SharedMasks | None = None,
    ) -> None:
        self.backend = Backend.load(backend)
        self.dtype = recipe.dtype
        # Neither changes a step that is compared: an average only follows the weights,
        # and parts of a batch add up to it.
        recipe = recipe.replace({"ema": 0.0, "accumulate": 1})
        model = build_model(recipe, self.backend)
        self.trainer = build_trainer(recipe, self.backend, model, len(stream))
        if masks is not None and self.trainer.masks is not None:
            self.trainer.masks = masks

    def step(self, batch: Batch) -> Any:
        """Make one step and return the trainer's StepResult."""
        return self.trainer.step(
            self.backend.array(batch.images, self.dtype),
            self.backend.array(batch.labels, self.dtype),
        )

    def parameters(self) -> Arrays:
        """Return the parameters themselves, by name."""
        named = self.trainer.model.named_parameters()
        return {name: self.backend.numpy(value) for name, value in named}

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        state: dict[str, Any] = self.trainer.state_dict()
        for part in ("model", "optimizer"):
            state[part] = {
                name: np.array(self.backend.numpy(value))
                for name, value in state[part].items()
            }
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the state of a side of either backend."""
        parts = {
            part: {
                name: np.array(value)
                if self.backend.name == "numpy"
                else torch.from_numpy(np.array(value))
                for name, value in state[part].items()
            }
            for part in ("model", "optimizer")
        }
        self.trainer.load_state_dict({**state, **parts})


class WatchedOptimizer:
    """Stands in for a NumPy trainer's optimizer, and keeps the gradients it was given.

    It clips them in the trainer's place, which would change them before they are seen.
    """

    def __init__(self, trainer: Any) -> None:
        self.optimizer = trainer.optimizer
        self.clip_norm = trainer.clip_norm
        self.gradients: Arrays = {}
        trainer.optimizer, trainer.clip_norm = self, None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        lr: float = self.optimizer.lr
        return lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optimizer.lr = lr

    def step(self, grads: Arrays) -> None:
        """Keep the gradients; clip and update as the trainer does."""
        self.gradients = {name: grad.copy() for name, grad in grads.items()}
        if self.clip_norm is not None:
            clip_grad_norm(grads, self.clip_norm)
        self.optimizer.step(grads)

    def state_dict(self) -> Arrays:
        """Return the optimizer's."""
        state: Arrays = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: Arrays) -> None:
        """Load the optimizer's."""
        self.optimizer.load_state_dict(state)


class Judge:
    """Judges single steps of a NumPy trainer by bounds computed from torch.

    A step is judged in two parts, each on the numbers that NumPy itself began it with:
    loss and gradients against the network, then the new parameters and moments against
    the optimizer, fed with NumPy's gradients.

    Among the many ReLUs of a batch a few are so near their kink that rounding decides
    them. Such steps are judged too: what flips in a perturbed evaluation is part of the
    spread.
    """

    def __init__(self, recipe: Recipe, side: Side) -> None:
        self.recipe = recipe
        self.side = side
        self.dtype = getattr(torch, recipe.dtype)
        self.torch = Backend.load("torch")
        self.twin = build_model(recipe, self.torch).train()
        self.loss = self.torch.module("loss").CrossEntropy(recipe.label_smoothing)
        self.watched = WatchedOptimizer(side.trainer)

    def shares(
        self, before: Mapping[str, Any], batch: Batch, loss: float
    ) -> dict[str, float]:
        """Return the largest share of its bound used by each tensor of the last step.

        Parameters
        ----------
        before : mapping
            The side's state before the step.
        batch : Batch
        loss : float
            What the step returned.
        """
        network = self._network(before, batch)
        used = {"loss": float(network.share("loss", np.float64(loss)))}
        for name, gradient in self.watched.gradients.items():
            used[f"d_{name}"] = _largest(network, f"d_{name}", gradient)
        return used | self._update(before)

    def _network(self, before: Mapping[str, Any], batch: Batch) -> Reference:
        """Return the reference of loss and gradients."""
        masks = SharedMasks(self.recipe.seed).at(before["step"])

        def function(
            images: Tensor, targets: Tensor, **parameters: Tensor
        ) -> dict[str, Tensor]:
            logits = functional_call(self.twin, parameters, (images, masks))
            return {"loss": self.loss(logits, targets)}

        return reference(
            function,
            {"images": batch.images, "targets": batch.labels, **before["model"]},
            dtype=self.dtype,
            differentiate=list(before["model"]),
            cotangents={"loss": torch.tensor(1.0)},
        )

    def _update(self, before: Mapping[str, Any]) -> dict[str, float]:
        """Return the shares of the arrays that the optimizer has updated."""
        optimizer = self.watched.optimizer
        keys = optimizer.state_names
        groups = optimizer.param_groups
        inputs: Arrays = {}
        results: Arrays = {}
        after = optimizer.state_dict()
        # Optimizers work element by element: a group is judged as one long array.
        for i, group in enumerate(groups):
            names = group["names"]
            inputs[f"param.{i}"] = _flat(before["model"], names)
            inputs[f"grad.{i}"] = _flat(self.watched.gradients, names)
            results[f"param.{i}"] = _flat(self.side.parameters(), names)
            for key in keys:
                paths = [f"{key}.{name}" for name in names]
                inputs[f"{key}.{i}"] = _flat(before["optimizer"], paths)
                results[f"{key}.{i}"] = _flat(after, paths)
        optim = self.torch.module("optim")
        spec = self.recipe.optimizer
        kind = getattr(optim, type(optimizer).__name__)
        step = torch.from_numpy(np.array(before["optimizer"]["step"]))

        def function(**inputs: Tensor) -> dict[str, Tensor]:
            numbers = range(len(groups))
            params = [inputs[f"param.{i}"].clone() for i in numbers]
            grads = [inputs[f"grad.{i}"] for i in numbers]
            if self.watched.clip_norm is not None:
                grads = _clipped(grads, self.watched.clip_norm)
            twin = kind(
                [
                    {
                        "names": [str(i)],
                        "params": [params[i]],
                        "weight_decay": group["weight_decay"],
                        "lr_scale": group.get("lr_scale", 1.0),
                    }
                    for i, group in enumerate(groups)
                ],
                lr=optimizer.lr,
                **spec.options,
            )
            moments = [f"{key}.{i}" for key in keys for i in numbers]
            twin.load_state_dict({"step": step} | {m: inputs[m] for m in moments})
            for i in numbers:
                params[i].grad = grads[i]
            twin.step()
            state = twin.state_dict()
            return {f"param.{i}": params[i] for i in numbers} | {
                m: state[m] for m in moments
            }

        # Built and stepped inside the function, an optimizer cannot be batched.
        expected = reference(
            function, inputs, dtype=self.dtype, differentiate=False, batched=False
        )
        used = {}
        for i, group in enumerate(groups):
            for key in ("param", *keys):
                share = expected.share(f"{key}.{i}", results[f"{key}.{i}"])
                end = 0
                for name in group["names"]:
                    start, end = end, end + before["model"][name].size
                    label = name if key == "param" else f"{key}.{name}"
                    used[f"new {label}"] = float(share[start:end].max())
        return used


def _clipped(grads: list[Tensor], max_norm: float) -> list[Tensor]:
    """Return the gradients, scaled to a common norm of at most `max_norm`.

    Written out here: torch's own works on a list of tensors at once, which no rounding
    rule describes.
    """
    norm = torch.stack([(grad * grad).sum() for grad in grads]).sum().sqrt()
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [grad * factor for grad in grads]


def move_by_one_ulp(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Move every parameter to the next number above or below, at random."""
    with torch.no_grad():
        for param in model.parameters():
            up = torch.rand(param.shape, generator=generator) < 0.5
            param.copy_(
                torch.nextafter(param, torch.where(up, math.inf, -math.inf).to(param))
            )


def relative_difference(
    values: Sequence[float], reference: Sequence[float]
) -> list[float]:
    """Return |value - reference| / |reference|, element by element."""
    theirs = np.asarray(reference)
    difference = np.abs(np.asarray(values) - theirs)
    # A loss of exactly zero is equal or infinitely far.
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = difference / np.abs(theirs)
    result: list[float] = np.where(difference == 0, 0.0, relative).tolist()
    return result


def _drift(ours: Arrays, theirs: Arrays) -> tuple[float, str]:
    """Return the largest relative distance of two tensors, and its name."""
    worst, where = 0.0, ""
    for name, tensor in theirs.items():
        distance = float(np.linalg.norm(ours[name] - tensor))
        if distance:
            relative = distance / (float(np.linalg.norm(tensor)) or distance)
            if not relative <= worst:
                worst, where = relative, name
    return worst, where


def _largest(expected: Reference, name: str, array: NDArray[Any]) -> float:
    return float(expected.share(name, array).max())


def _flat(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any]:
    return np.concatenate([arrays[name].ravel() for name in names])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
