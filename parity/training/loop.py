"""The loop of a training: steps, epochs, and what is saved of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import asdict, dataclass
from typing import Any

from parity.data import Batch, Dataset, Part
from parity.recipes import Recipe
from parity.scores import Scores
from parity.training.backend import Backend
from parity.training.evaluation import evaluate, first_not_finite
from parity.training.folder import RunFolder
from parity.training.setup import (
    build_model,
    build_trainer,
    check_fit,
    fitted,
    open_stream,
    split_data,
)
from parity.training.stopping import TrainingStopped


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted from 1, and the batch it was made from."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    grad_norm: float
    lr: float


@dataclass(frozen=True)
class Epoch:
    """One epoch, counted from 1: means over its steps, then scores on the test images.

    `seconds` is the time of the steps and of making their batches, and
    `evaluation_seconds` that of the scoring. Where weights are averaged, the average is
    scored. What is of validation images is None where there are none.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    evaluation_seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass
class Progress:
    """How far a run is, beside the trainer's own state.

    Attributes
    ----------
    epoch : int
        Epochs finished.
    batch : int
        Batches of the epoch after these that are done.
    images, loss, accuracy, seconds
        Of those batches: their images, the sums of loss and accuracy over these, and
        the time that they took.
    best : float, optional
        The best score of an epoch so far.
    best_epoch : int
        The epoch that it is from, 0 for none.
    """

    epoch: int = 0
    batch: int = 0
    images: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0

    def add(self, images: int, step: Step, seconds: float) -> None:
        """Count a batch."""
        self.batch += 1
        self.images += images
        self.loss += images * step.loss
        self.accuracy += images * step.accuracy
        self.seconds += seconds

    def finish_epoch(self, score: float) -> bool:
        """Count an epoch, and tell whether its score is the best so far."""
        self.epoch += 1
        self.batch = self.images = 0
        self.loss = self.accuracy = self.seconds = 0.0
        is_best = self.best is None or score > self.best
        if is_best:
            self.best, self.best_epoch = score, self.epoch
        return is_best


def train(
    recipe: Recipe,
    backend: Backend,
    dataset: Dataset,
    folder: RunFolder,
    *,
    stop: Callable[[], object] = lambda: False,
    save_steps: int | None = None,
    save_minutes: float | None = None,
    processes: int | None = None,
) -> Iterator[Step | Epoch]:
    """Train a recipe, and yield every step and every epoch when it is done.

    What is yielded is in the folder's metrics by then, and after an epoch the training
    state is in its checkpoint. A folder that holds one is continued where it stopped,
    in the middle of an epoch too: the weights come out as if it had not.

    Parameters
    ----------
    recipe : Recipe
    backend : Backend
    dataset : Dataset
    folder : RunFolder
        Made by `create`, or of a run that is to go on.
    stop : callable, optional
        Asked after each step and epoch; true saves the state and stops.
    save_steps : int, optional
        Steps after which the state is saved within an epoch too.
    save_minutes : float, optional
        Minutes after which it is.
    processes : int, optional
        With how many the steps are made in NumPy, to the same bits; 1 is threads alone.
        By default as many as pay.

    Raises
    ------
    TrainingStopped
        If `stop` said so.
    FloatingPointError
        If the loss or a gradient is not finite; the last checkpoint is named.
    ChildProcessError
        If one of several processes has died; the last checkpoint is named.
    BlockingIOError
        If another process trains in the folder.
    ValueError
        If the data does not fit the network, or there cannot be several processes.
    """
    recipe = fitted(recipe, dataset)
    check_fit(dataset, recipe.config())
    with ExitStack() as stack:
        stack.enter_context(folder.held())
        folder.clear_leftovers()
        training = _Training(recipe, backend, dataset, folder, processes)
        progress, trainer = training.progress, training.trainer
        if backend.name == "numpy":
            stack.enter_context(trainer)
        write = stack.enter_context(folder.open_metrics(progress.epoch, trainer.steps))
        while not training.is_over:
            started = time.perf_counter()
            for batch in training.batches():
                step = training.step(batch, started)
                write({"kind": "step"} | asdict(step))
                yield step
                if training.is_unsaved_for(save_steps, save_minutes):
                    training.save()
                training.check_stop(stop)
                # What happened between two steps is not the training's time.
                started = time.perf_counter()
            epoch = training.finish_epoch()
            # The record first: one without its checkpoint is dropped when resuming.
            write({"kind": "epoch"} | asdict(epoch))
            training.save()
            yield epoch
            training.check_stop(stop)


class _Training:
    """A training under way: what it works with, how far it is, and its files.

    The parameters are those of `train`. Where the folder holds a checkpoint, it goes on
    from there.
    """

    def __init__(
        self,
        recipe: Recipe,
        backend: Backend,
        dataset: Dataset,
        folder: RunFolder,
        processes: int | None,
    ) -> None:
        self.recipe = recipe
        self.backend = backend
        self.dataset = dataset
        self.folder = folder
        self.part, self.validation = split_data(recipe, dataset)
        # An accelerator leaves cores free, which make the next batches meanwhile.
        prefetch = 0 if backend.device == "cpu" else 4
        self.stream = open_stream(recipe, self.part, prefetch=prefetch)
        self.checkpoint = backend.module("checkpoint")
        self.preprocessing = {
            "mean": self.part.mean.tolist(),
            "std": self.part.std.tolist(),
        }
        self.metadata = {
            "recipe": recipe.name,
            "data": dataset.name,
            "class_names": list(dataset.class_names),
        }
        begun = folder.checkpoint.exists()
        # A run that goes on has its weights, and may have lost what it started from.
        fresh = dataclasses.replace(recipe, finetune=None) if begun else recipe
        self.model = build_model(fresh, backend)
        self.trainer = build_trainer(
            recipe, backend, self.model, len(self.stream), processes
        )
        self.progress = Progress()
        if begun:
            header = self.checkpoint.load_training(folder.checkpoint, self.trainer)
            self._check_same_data(header)
            saved = header["training"]
            self.progress = Progress(**saved.get("progress", {"epoch": saved["epoch"]}))
        self._saved_step = self.trainer.steps
        self._saved_at = time.monotonic()

    def _check_same_data(self, header: dict[str, Any]) -> None:
        """Raise if the images or classes are not those that the run began with."""
        names = header.get("metadata", {}).get("class_names")
        if (
            header.get("preprocessing") != self.preprocessing
            or names != self.metadata["class_names"]
        ):
            raise ValueError(
                f"{self.dataset.name} has changed since {self.folder.path} was begun: "
                "its classes, or the mean and std of its images, are others; "
                "bring the data back, or start a new run"
            )

    @property
    def is_over(self) -> bool:
        """Whether all epochs are made, or so many brought nothing better."""
        patience, progress = self.recipe.patience, self.progress
        waited = progress.epoch - progress.best_epoch
        return progress.epoch >= self.recipe.epochs or 0 < patience <= waited

    def batches(self) -> Iterator[Batch]:
        """Yield what is left of the epoch."""
        with self._steps_kept():
            yield from self.stream.epoch(self.progress.epoch, self.progress.batch)

    def step(self, batch: Batch, started: float) -> Step:
        """Learn from a batch that was asked for at a time of `time.perf_counter`."""
        try:
            result = self.trainer.step(
                self.backend.array(batch.images, self.recipe.dtype),
                self.backend.array(batch.labels, self.recipe.dtype),
            )
        except (FloatingPointError, ChildProcessError) as error:
            last_good = self.folder.last_good(self._saved_step)
            raise type(error)(f"{error}; {last_good}") from None
        step = Step(
            step=result.step,
            epoch=self.progress.epoch + 1,
            loss=result.loss,
            accuracy=result.accuracy,
            grad_norm=result.grad_norm,
            lr=result.lr,
        )
        self.progress.add(len(batch.labels), step, time.perf_counter() - started)
        return step

    def finish_epoch(self) -> Epoch:
        """Score the network, and save its weights if they are the best so far."""
        progress = self.progress
        started = time.perf_counter()
        try:
            with self._steps_kept(), self._averaged():
                test = self._score(self.dataset.test)
                held_out = self._score(self.validation) if self.validation else None
        except FloatingPointError as error:
            last_good = self.folder.last_good(self._saved_step)
            raise FloatingPointError(
                f"after step {self.trainer.steps}: {error}; {last_good}"
            ) from None
        epoch = Epoch(
            epoch=progress.epoch + 1,
            step=self.trainer.steps,
            train_loss=progress.loss / progress.images,
            train_accuracy=progress.accuracy / progress.images,
            test_loss=test.loss,
            test_accuracy=test.top1,
            seconds=progress.seconds,
            evaluation_seconds=time.perf_counter() - started,
            validation_loss=held_out.loss if held_out else None,
            validation_accuracy=held_out.top1 if held_out else None,
        )
        judge = held_out or test
        if progress.finish_epoch(judge.top1):
            best = {
                "epoch": epoch.epoch,
                "accuracy": judge.top1,
                "chosen_by": "validation" if held_out else "test",
            }
            with self._averaged():
                self.checkpoint.save(
                    self.folder.best,
                    self.model,
                    self.preprocessing,
                    self.metadata | {"best": best},
                )
        return epoch

    def is_unsaved_for(self, steps: int | None, minutes: float | None) -> bool:
        """Tell whether so many steps or minutes have passed since the last saving."""
        late = 60 * (minutes or float("inf"))
        return bool(steps and self.trainer.steps - self._saved_step >= steps) or (
            time.monotonic() - self._saved_at >= late
        )

    def save(self) -> None:
        """Save the training state, if it is one to go on from.

        Raises
        ------
        FloatingPointError
            If a weight is not finite; the last good checkpoint stays.
        """
        weights = dict(self.model.named_parameters())
        bad = first_not_finite(weights, self.backend)
        if bad is not None:
            raise FloatingPointError(
                f"the update of step {self.trainer.steps} left {bad!r} not finite; "
                f"{self.folder.last_good(self._saved_step)}"
            )
        self.checkpoint.save_training(
            self.folder.checkpoint,
            self.trainer,
            self.progress.epoch,
            self.preprocessing,
            self.metadata,
            asdict(self.progress),
        )
        self._saved_step, self._saved_at = self.trainer.steps, time.monotonic()

    def check_stop(self, stop: Callable[[], object]) -> None:
        """Save and raise if `stop` says so."""
        if stop():
            if self._saved_step != self.trainer.steps:
                self.save()
            raise TrainingStopped(
                f"stopped at step {self.trainer.steps}; {self.folder.checkpoint} holds "
                "the training, --resume continues it"
            )

    @contextmanager
    def _steps_kept(self) -> Iterator[None]:
        """Save the steps already made when an error, as of a bad picture, ends the run.

        What has become no number is not saved, and the error is told whatever happens.
        """
        try:
            yield
        except FloatingPointError:
            raise
        except Exception:
            if self._saved_step != self.trainer.steps:
                with suppress(OSError):
                    self.save()
            raise

    def _averaged(self) -> AbstractContextManager[None]:
        """Let the model compute with the average of its weights, if there is one."""
        ema = self.trainer.ema
        averaged: AbstractContextManager[None] = ema.applied() if ema else nullcontext()
        return averaged

    def _score(self, part: Part) -> Scores:
        """Score the model on images normalised as those that it is trained on."""
        mean, std = self.part.mean, self.part.std
        return evaluate(self.model, self.backend, part, mean=mean, std=std)
