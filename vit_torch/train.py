"""Training a Vision Transformer, one step at a time, and evaluating it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from vit_torch.config import check_int, check_positive
from vit_torch.ema import EMA
from vit_torch.layers.dropout import Dropout, MaskSource
from vit_torch.loss import CrossEntropy
from vit_torch.masks import KeyedMasks
from vit_torch.model import VisionTransformer, check_kind
from vit_torch.optim import (
    SGD,
    Adam,
    AdamW,
    check_state,
    check_step,
    clip_grad_norm,
    grad_norm,
)
from vit_torch.schedule import Schedule

# The parts of a trainer's state that are arrays, and what messages call them.
_PARTS = {"model": "state", "optimizer": "optimizer state", "ema": "average"}


class StepMasks(Protocol):
    """A mask source for each step, and for each part of a batch: `KeyedMasks`."""

    def at(self, step: int) -> Self:
        """Return the source of another training step's masks."""
        ...

    def shard(self, start: int, stop: int) -> MaskSource:
        """Return the source of the same masks for a part of the batch."""
        ...


class StepResult(NamedTuple):
    """What one training step measured, before it updated the parameters.

    Attributes
    ----------
    step : int
        Counts from 1, as messages and files do: the steps made with this one.
    loss : float
    accuracy : float
        Share of the batch whose largest logit is its label's, dropout included.
    grad_norm : float
        Norm of all gradients together, before clipping.
    lr : float
        The learning rate of the update.
    """

    step: int
    loss: float
    accuracy: float
    grad_norm: float
    lr: float


class Trainer:
    """Trains a model: forward, backward, clipping, update.

    Parameters
    ----------
    model : VisionTransformer
    optimizer : SGD, Adam or AdamW
        Over the parameters that are trained: the model's others are frozen. Its
        learning rate at this moment is the base rate.
    schedule : Schedule, optional
        What the base rate is multiplied by at each step; constant by default.
    loss : CrossEntropy or MeanSquaredError, optional
        `CrossEntropy()` by default.
    clip_norm : float, optional
        Largest norm of all gradients together; None does not clip.
    seed : int, at least 0, default 0
        Of the dropout masks, which depend on (seed, step) alone.
    accumulate : int, at least 1, default 1
        Parts that a batch is worked through in, one after the other, so that less
        memory is needed; their gradients add up to that of the batch.
    ema : EMA, optional
        An average of the model's parameters, updated after each step.
    amp : bool, default False
        Compute the model's forward in bfloat16 where torch's autocast holds that to be
        safe; loss, parameters, gradients and updates stay as they are. torch only.
    compile : bool, default False
        Run the model through `torch.compile`; torch only.

    Attributes
    ----------
    steps : int
        Steps made so far.
    masks : KeyedMasks, or None
        The source of dropout masks; None for a model that drops nothing.

    Raises
    ------
    TypeError, ValueError
        If `clip_norm` is not above 0, `seed` is below 0 or `accumulate` below 1; if the
        optimizer holds a parameter that is not, or no longer, the model's of that name.
    """

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: SGD | Adam | AdamW,
        schedule: Schedule | None = None,
        loss: nn.Module | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
        accumulate: int = 1,
        ema: EMA | None = None,
        *,
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        check_int("seed", seed, 0)
        check_int("accumulate", accumulate, 1)
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.loss = loss or CrossEntropy()
        self.clip_norm = clip_norm
        self.seed = seed
        self.base_lr = optimizer.lr
        self.steps = 0
        self.masks: StepMasks | None = KeyedMasks(seed) if drops(model) else None
        self.accumulate = accumulate
        self.ema = ema
        self.amp = amp
        self._eager_masks = _EagerMasks() if compile else None
        self._forward = torch.compile(model) if compile else model
        trained = _trained(model, optimizer)
        for name, param in model.named_parameters():
            param.requires_grad_(name in trained)

    def step(self, images: Tensor, labels: Tensor) -> StepResult:
        """Learn from one batch: images (B, C, H, W), targets as the loss takes them.

        Raises
        ------
        FloatingPointError
            If the loss or a gradient is not finite. The parameters are then still those
            of the step before.
        TypeError, ValueError
            As the model's forward and the loss.
        """
        check_kind(images)
        batch_size = len(images)
        if len(labels) != batch_size:
            raise ValueError(
                "labels must be as many as images, "
                f"got {len(labels)} labels, {batch_size} images"
            )
        model = self.model.train()
        masks = None if self.masks is None else self.masks.at(self.steps)
        self.optimizer.lr = self.base_lr * self.schedule.factor(self.steps)
        self.optimizer.zero_grad()
        pieces = min(self.accumulate, max(batch_size, 1))
        total = torch.zeros((), dtype=images.dtype, device=images.device)
        correct = 0
        for piece in range(pieces):
            start = batch_size * piece // pieces
            stop = batch_size * (piece + 1) // pieces
            part, targets = images[start:stop], labels[start:stop]
            part_masks = None if masks is None else masks.shard(start, stop)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
                logits = self._forward(part, self._eager(part_masks))
            logits = logits.to(images.dtype)
            loss = self.loss(logits, targets, batch_size)
            if not loss.isfinite():
                values = dict(model.named_parameters())
                values |= model.intermediates(part, part_masks)
                self._fail("loss", loss.item(), values)
            loss.backward()
            total += loss.detach()
            correct += count_correct(logits, targets)
        grads = {
            name: param.grad
            for name, param in model.named_parameters()
            if param.grad is not None
        }
        norm = grad_norm(grads)
        if not norm.isfinite():
            self._fail("gradient norm", norm.item(), grads)
        if self.clip_norm is not None:
            clip_grad_norm(grads, self.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.steps += 1
        return StepResult(
            self.steps,
            total.item(),
            correct / batch_size,
            norm.item(),
            self.optimizer.lr,
        )

    def _eager(self, masks: MaskSource | None) -> MaskSource | None:
        """Return masks that a compiled model can ask for."""
        if masks is None or self._eager_masks is None:
            return masks
        self._eager_masks.source = masks
        return self._eager_masks

    def _fail(self, what: str, value: float, tensors: Mapping[str, Tensor]) -> None:
        """Raise the error of a step that is not finite."""
        bad = (name for name, tensor in tensors.items() if not tensor.isfinite().all())
        raise FloatingPointError(failure(what, value, self, next(bad, None)))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: `step`, `seed`, `model`, `optimizer`, `ema`.

        The last three are dicts of arrays, which are the trainer's own and not copies;
        `ema` is there if the trainer has one.
        """
        state = {
            "step": self.steps,
            "seed": self.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: every later step gives the same bits.

        The learning rate, the schedule and the batches are the caller's to restore.

        Raises
        ------
        TypeError, ValueError
            If a part or an array is missing, an array is unknown or of another shape,
            or a step or the seed no count from 0 on; nothing is changed then.
        """
        if (self.ema is not None) != ("ema" in state):
            has, wants = ("an", "none") if self.ema is None else ("no", "one")
            raise ValueError(
                f"the state has {has} average of the parameters, but the trainer "
                f"{wants}; give the same ema to both"
            )
        own = self.state_dict()
        for name in own:
            if name not in state:
                raise ValueError(
                    f"the training state has no {name!r}; give all of state_dict()"
                )
        check_int("step", state["step"], 0)
        check_int("seed", state["seed"], 0)
        for part, kind in _PARTS.items():
            if part in own:
                check_state(kind, _shapes(own[part]), _shapes(state[part]))
            if part in own and part != "model":
                check_step(kind, state[part]["step"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.steps = state["step"]
        if state["seed"] != self.seed:
            self.seed = state["seed"]
            self.masks = KeyedMasks(self.seed) if drops(self.model) else None


class _EagerMasks:
    """Draws masks outside of the graph of a compiled model.

    The same object serves every step, as a new one would have the model compiled anew.
    """

    def __init__(self) -> None:
        self.source: MaskSource | None = None
        self._draw = torch.compiler.disable(self._keep)

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name`: False with probability `p`."""
        return self._draw(name, shape, p)

    def _keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        if self.source is None:
            raise ValueError("masks must have a source before a step, got none")
        return self.source.keep(name, shape, p)


def evaluate(model: VisionTransformer, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W), without dropout.

    Parameters
    ----------
    model : VisionTransformer
    images : Tensor of shape (N, C, H, W)
    batch_size : int, at least 1, default 256
        Images run at a time.

    Raises
    ------
    TypeError, ValueError
        As the model's forward; if `batch_size` is no int, or below 1.
    """
    check_int("batch_size", batch_size, 1)
    check_kind(images)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            # An empty batch is the model's to refuse.
            parts = images.split(batch_size) if len(images) else [images]
            return torch.cat([model(part) for part in parts])
    finally:
        model.train(training)


def count_correct(logits: Tensor, targets: Tensor) -> int:
    """Return how many rows have their largest logit at the target's largest."""
    labels = targets.long() if targets.ndim == 1 else targets.argmax(dim=1)
    return int((logits.argmax(dim=1) == labels).sum())


def drops(model: VisionTransformer) -> bool:
    """Tell whether any layer of the model drops anything in training."""
    return any(
        isinstance(module, Dropout) and module.p > 0 for module in model.modules()
    )


def failure(what: str, value: float, trainer: Trainer, bad: str | None) -> str:
    """Return the message of a step whose loss or gradient is not finite."""
    tensor = f"first in {bad!r}; " if bad else ""
    clip = "a smaller" if trainer.clip_norm else "a"
    return (
        f"{what} is {value} at step {trainer.steps + 1}; {tensor}"
        f"try {clip} clip_norm or a lower rate than lr={trainer.optimizer.lr:g}"
    )


def _shapes(arrays: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _trained(model: VisionTransformer, optimizer: SGD | Adam | AdamW) -> set[str]:
    """Return the names of the optimizer's parameters; raise unless all are the model's.

    Any other parameter would be updated, and the model not.
    """
    own = dict(model.named_parameters())
    trained = set()
    for group in optimizer.param_groups:
        for name, param in zip(group["names"], group["params"], strict=True):
            if own.get(name) is not param:
                raise ValueError(
                    "optimizer must hold the model's own parameters, got another "
                    f"{name!r}; make it from this model, after to() and whatever else "
                    "replaces them"
                )
            trained.add(name)
    return trained
