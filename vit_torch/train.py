"""Training a Vision Transformer, one step at a time, and evaluating it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from vit_torch.config import check_int, check_positive
from vit_torch.layers.dropout import Dropout
from vit_torch.loss import CrossEntropy
from vit_torch.masks import KeyedMasks
from vit_torch.model import VisionTransformer
from vit_torch.optim import SGD, Adam, AdamW, clip_grad_norm, grad_norm
from vit_torch.schedule import Schedule


class StepMasks(Protocol):
    """A mask source for each step: `KeyedMasks`."""

    def at(self, step: int) -> Self:
        """Return the source of another training step's masks."""
        ...

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name`: False with probability `p`."""
        ...


class StepResult(NamedTuple):
    """What one training step measured, before it updated the parameters.

    Attributes
    ----------
    step : int
        Counts from 0.
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
        Over the model's parameters. Its learning rate at this moment is the base rate.
    schedule : Schedule, optional
        What the base rate is multiplied by at each step; constant by default.
    loss : CrossEntropy or MeanSquaredError, optional
        `CrossEntropy()` by default.
    clip_norm : float, optional
        Largest norm of all gradients together; None does not clip.
    seed : int, at least 0, default 0
        Of the dropout masks, which depend on (seed, step) alone.

    Attributes
    ----------
    steps : int
        Steps made so far.
    masks : KeyedMasks, or None
        The source of dropout masks; None for a model that drops nothing.

    Raises
    ------
    TypeError, ValueError
        If `clip_norm` is not above 0 or `seed` is below 0.
    """

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: SGD | Adam | AdamW,
        schedule: Schedule | None = None,
        loss: nn.Module | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        check_int("seed", seed, 0)
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.loss = loss or CrossEntropy()
        self.clip_norm = clip_norm
        self.seed = seed
        self.base_lr = optimizer.lr
        self.steps = 0
        self.masks: StepMasks | None = KeyedMasks(seed) if drops(model) else None

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
        logits = model(images, masks)
        loss = self.loss(logits, labels)
        if not loss.isfinite():
            values = dict(model.named_parameters()) | model.intermediates(images, masks)
            self._fail("loss", loss.item(), values)
        loss.backward()
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
        self.steps += 1
        return StepResult(
            self.steps - 1,
            loss.item(),
            count_correct(logits, labels) / batch_size,
            norm.item(),
            self.optimizer.lr,
        )

    def _fail(self, what: str, value: float, tensors: Mapping[str, Tensor]) -> None:
        """Raise the error of a step that is not finite."""
        bad = (name for name, tensor in tensors.items() if not tensor.isfinite().all())
        raise FloatingPointError(failure(what, value, self, next(bad, None)))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: `step`, `seed`, `model` and `optimizer`.

        The last two are dicts of arrays, which are the trainer's own and not copies.
        """
        return {
            "step": self.steps,
            "seed": self.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: every later step gives the same bits.

        The learning rate, the schedule and the batches are the caller's to restore.

        Raises
        ------
        ValueError
            If an array is missing or unknown, or its shape differs.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["step"]
        if state["seed"] != self.seed:
            self.seed = state["seed"]
            self.masks = KeyedMasks(self.seed) if drops(self.model) else None


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
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
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
        f"{what} is {value} at step {trainer.steps}; {tensor}"
        f"try {clip} clip_norm or a lower rate than lr={trainer.optimizer.lr:g}"
    )
