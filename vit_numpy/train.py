"""Training a Vision Transformer, one step at a time, and evaluating it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vit_numpy import parallel
from vit_numpy.config import ViTConfig, check_int, check_positive
from vit_numpy.ema import EMA
from vit_numpy.layers.dropout import Dropout, MaskSource
from vit_numpy.loss import CrossEntropy, Loss
from vit_numpy.masks import KeyedMasks
from vit_numpy.model import VisionTransformer, check_kind
from vit_numpy.module import Array, Grads, no_grad
from vit_numpy.optim import (
    Optimizer,
    check_state,
    check_step,
    clip_grad_norm,
    combined_norm,
    layer_of,
)
from vit_numpy.schedule import Schedule
from vit_numpy.workers import Unchanged, Workers, is_shared

# A second shard pays from about so many multiplications in each on, by processes; by
# threads, which wait for each other's calls, it does from more. More than two shards
# pay while each has so many rows as well: with fewer, products run at a lower rate, and
# calls and the sum of the shards' gradients show. Fitted on two cores, to steps of
# network1 to 3 with 100, 100 and 50 images.
_SECOND_WORK = 1 << 21
_SHARD_WORK = 1 << 25
_SHARD_ROWS = 1536
_MOST_SHARDS = 8

# Evaluation sums up nothing, so that its pieces can be smaller.
_PIECE_ROWS = 512

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


class _Shard(NamedTuple):
    """What a part of the batch adds to the whole."""

    loss: np.floating[Any]
    correct: int


class _Task(NamedTuple):
    """What a process needs to know of a step, beside the arrays.

    `spans` are its shards; `first` is the place in the batch of the arrays' first row.
    """

    spans: Sequence[tuple[int, int]]
    first: int
    batch_size: int
    masks: StepMasks | None
    loss: Loss


class Trainer:
    """Trains a model: forward, backward, clipping, update.

    Parameters
    ----------
    model : VisionTransformer
    optimizer : Optimizer
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
    processes : int, at least 1, default 1
        Processes that share the work of a step, this one included; with 1, threads of
        this process do. More pay for models of up to a few million parameters, which
        must lie in shared memory before the optimizer is made:
        ``flatten_parameters(model, shared=True)``. Powers of two are used up.

    Attributes
    ----------
    steps : int
        Steps made so far.
    masks : KeyedMasks, or None
        The source of dropout masks; None for a model that drops nothing.

    Raises
    ------
    TypeError, ValueError
        If `clip_norm` is not above 0, `seed` is below 0, or `accumulate` or `processes`
        below 1; if the optimizer holds an array that is not, or no longer, the model's
        of that name; if there are several processes, and the parameters are not in
        shared memory or the system cannot fork.

    Notes
    -----
    The batch is cut into shards (`num_shards`), which threads work through, and whose
    gradients are summed in fixed pairs as they come (`parallel.PairwiseSum`): the
    result is the same, bit for bit, for any number of threads.

    It is so for any number of processes too (`workers.Workers`): each works through
    neighbouring shards that the pairs join, so that only sums are exchanged. Processes
    are made here, and end with `close`, at the end of a ``with`` block, or when the
    trainer is let go; steps after `close` are made by threads, as they are once a
    worker has died or a step was interrupted. The model must stay as it is meanwhile,
    but for its parameters' values.
    """

    def __init__(
        self,
        model: VisionTransformer,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        loss: Loss | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
        accumulate: int = 1,
        ema: EMA | None = None,
        processes: int = 1,
    ) -> None:
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        check_int("seed", seed, 0)
        check_int("accumulate", accumulate, 1)
        check_int("processes", processes, 1)
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.loss: Loss = loss or CrossEntropy()
        self.clip_norm = clip_norm
        self.seed = seed
        self.base_lr = optimizer.lr
        self.steps = 0
        self.masks: StepMasks | None = KeyedMasks(seed) if drops(model) else None
        self.accumulate = accumulate
        self.ema = ema
        trained = _trained(model, optimizer)
        self._names = [n for n, _ in model.named_parameters() if n in trained]
        depth = model.config.depth
        self._first_layer = min(layer_of(name, depth) for name in self._names)
        self._workers: Workers | None = None
        if processes > 1:
            params = dict(model.named_parameters())
            if not all(is_shared(param) for param in params.values()):
                raise ValueError(
                    f"processes={processes} needs parameters in shared memory; call "
                    "flatten_parameters(model, shared=True) before making the optimizer"
                )
            shapes = {name: params[name].shape for name in self._names}
            self._unchanged = Unchanged(model)
            self._workers = Workers(
                partial(_work_through, model, self._names, self._first_layer),
                shapes,
                params[self._names[0]].dtype,
                processes - 1,
            )

    def close(self) -> None:
        """End the processes, if there are any; steps are then made by threads."""
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> Self:
        """Return the trainer; the end of the ``with`` block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def step(self, images: Array, labels: NDArray[Any]) -> StepResult:
        """Learn from one batch: images (B, C, H, W), targets as the loss takes them.

        Raises
        ------
        FloatingPointError
            If the loss or a gradient is not finite. The parameters are then still those
            of the step before.
        TypeError, ValueError
            As the model's forward and the loss.
        ChildProcessError
            If one of several processes has died. No step is made then.
        RuntimeError
            If there are several, and the model is no longer the one that they have.
        """
        check_kind(images)
        batch_size = len(images)
        if len(labels) != batch_size:
            raise ValueError(
                "labels must be as many as images, "
                f"got {len(labels)} labels, {batch_size} images"
            )
        model = self.model
        masks = None if self.masks is None else self.masks.at(self.steps)
        self.optimizer.lr = self.base_lr * self.schedule.factor(self.steps)

        # One part after the other: threads hold no more shards than there are threads.
        parts = min(self.accumulate, max(batch_size, 1))
        shards = parts * num_shards(model.config, batch_size // parts)
        spans = parallel.split(batch_size, shards)
        task = _Task(spans, 0, batch_size, masks, self.loss)

        workers = self._workers
        # What is not finite is looked for below, and named.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if (
                workers is not None
                and not workers.closed
                and len(spans) > 1
                and _are_arrays(images, labels)
            ):
                total, grads, squares = self._by_processes(
                    workers, task, images, labels
                )
            else:
                total, grads, squares = self._by_threads(task, images, labels)
            norm = combined_norm(np.sqrt(list(squares)))
        if not np.isfinite(total.loss):
            values = dict(model.named_parameters())
            with np.errstate(all="ignore"), no_grad():
                values |= model.intermediates(
                    images, None if masks is None else masks.shard(0, batch_size)
                )
            self._fail("loss", float(total.loss), values)
        if not np.isfinite(norm):
            self._fail("gradient norm", float(norm), grads)
        if self.clip_norm is not None:
            clip_grad_norm(grads, self.clip_norm)
        self.optimizer.step(grads)
        if self.ema is not None:
            self.ema.update()
        self.steps += 1
        return StepResult(
            self.steps,
            float(total.loss),
            total.correct / batch_size,
            float(norm),
            self.optimizer.lr,
        )

    def _by_threads(
        self, task: _Task, images: Array, labels: NDArray[Any]
    ) -> tuple[_Shard, Grads, Iterable[np.floating[Any]]]:
        """Work through all shards in this process."""
        sums = parallel.PairwiseSum(len(task.spans), self._names)

        def work(index: int) -> _Shard:
            return _run_shard(
                self.model,
                task,
                task.spans[index],
                images,
                labels,
                self._first_layer,
                partial(sums.add, index),
            )

        total = parallel.fold(work, range(len(task.spans)), _add)
        return total, sums.totals, sums.squares.values()

    def _by_processes(
        self, workers: Workers, task: _Task, images: Array, labels: NDArray[Any]
    ) -> tuple[_Shard, Grads, Iterable[np.floating[Any]]]:
        """Work through the first group of shards here, through the others there."""
        self._unchanged.check(self.model)
        own, *others = _groups(task.spans, len(workers.outputs))
        first = others[0][0][0]
        tasks = [task._replace(spans=spans, first=first) for spans in others]
        workers.start(tasks, [images[first:], labels[first:]])
        outputs = workers.outputs[: 1 + len(others)]
        with parallel.one_blas_thread():
            parts = _work_through(
                self.model,
                self._names,
                self._first_layer,
                task._replace(spans=own),
                (images, labels),
                outputs[0].hand_on,
            )
        for result in workers.finish():
            parts += result
        while len(outputs) > 1:
            for one, other in zip(outputs[::2], outputs[1::2], strict=False):
                np.add(one.flat, other.flat, out=one.flat)
            outputs = outputs[::2]
        grads = outputs[0].views
        with parallel.one_blas_thread():
            squares = [np.vdot(grad, grad) for grad in grads.values()]
        return reduce(_add, parts), grads, squares

    def _fail(self, what: str, value: float, tensors: Mapping[str, Array]) -> None:
        """Raise the error of a step that is not finite."""
        bad = (
            name for name, tensor in tensors.items() if not np.isfinite(tensor).all()
        )
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


def evaluate(model: VisionTransformer, images: Array, batch_size: int = 256) -> Array:
    """Return the logits (N, K) of images (N, C, H, W), without dropout.

    Parameters
    ----------
    model : VisionTransformer
    images : ndarray of shape (N, C, H, W)
    batch_size : int, at least 1, default 256
        Images run at a time.

    Raises
    ------
    TypeError, ValueError
        As the model's forward; if `batch_size` is no int, or below 1.
    """
    check_int("batch_size", batch_size, 1)
    check_kind(images)
    spans = []
    for start in range(0, max(len(images), 1), batch_size):
        size = min(batch_size, len(images) - start)
        count = _num_pieces(model.config, size, _SHARD_WORK, _PIECE_ROWS)
        pieces = parallel.split(size, count)
        spans += [(start + first, start + last) for first, last in pieces]
    with no_grad():
        if len(spans) == 1:
            # Too little for threads of its own, but not for those of its products.
            with parallel.all_blas_threads():
                logits: Array = model(images)
            return logits
        return np.concatenate(
            parallel.parallel_map(lambda span: model(images[slice(*span)]), spans)
        )


def num_shards(config: ViTConfig, batch_size: int) -> int:
    """Return the number of shards of a batch: 1, 2, 4 or 8, no more than images.

    It follows from the work in a batch, never from the machine, so that results do not
    depend on where they were computed.
    """
    pieces = _num_pieces(config, batch_size, _SECOND_WORK, _SHARD_ROWS)
    return min(pieces, _MOST_SHARDS)


def _num_pieces(
    config: ViTConfig, batch_size: int, second_work: int, least_rows: int
) -> int:
    """Return in how many pieces to work on a batch: a power of two.

    Two have at least `second_work` multiplications each; more have at least
    `_SHARD_WORK`, and `least_rows` rows.
    """
    tokens, dim = config.num_tokens, config.dim
    per_token = 4 * dim * dim + 2 * dim * config.mlp_dim + 2 * tokens * dim
    rows = batch_size * tokens
    work = rows * config.depth * per_token
    if batch_size < 2 or work < 2 * second_work:
        return 1
    most = min(batch_size, rows // least_rows, work // _SHARD_WORK)
    return 1 << max(most, 2).bit_length() - 1


def count_correct(logits: Array, targets: NDArray[Any]) -> int:
    """Return how many rows have their largest logit at the target's largest."""
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    return int((logits.argmax(axis=1) == labels).sum())


def drops(model: VisionTransformer) -> bool:
    """Tell whether any layer of the model drops anything in training."""
    return any(
        isinstance(module, Dropout) and module.p > 0
        for _, module in model.named_modules()
    )


def failure(what: str, value: float, trainer: Trainer, bad: str | None) -> str:
    """Return the message of a step whose loss or gradient is not finite."""
    tensor = f"first in {bad!r}; " if bad else ""
    clip = "a smaller" if trainer.clip_norm else "a"
    return (
        f"{what} is {value} at step {trainer.steps + 1}; {tensor}"
        f"try {clip} clip_norm or a lower rate than lr={trainer.optimizer.lr:g}"
    )


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: np.shape(array) for name, array in arrays.items()}


def _trained(model: VisionTransformer, optimizer: Optimizer) -> set[str]:
    """Return the names of the optimizer's parameters; raise unless all are the model's.

    Any other array would be updated, and the model not.
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


def _run_shard(
    model: VisionTransformer,
    task: _Task,
    span: tuple[int, int],
    images: Array,
    labels: NDArray[Any],
    first_layer: int,
    sink: Callable[[Grads], object],
) -> _Shard:
    """Run forward and backward for a part of the batch; gradients go to the sink."""
    part = slice(span[0] - task.first, span[1] - task.first)
    masks = None if task.masks is None else task.masks.shard(*span)
    logits, cache = model.forward(images[part], masks)
    if cache is None:
        raise ValueError("a training step must not run under no_grad()")
    value, c_loss = task.loss.forward(logits, labels[part], task.batch_size)
    correct = count_correct(logits, labels[part])
    model.backward(
        task.loss.backward(c_loss),
        cache,
        consume=True,
        input_grad=False,
        first_layer=first_layer,
        sink=sink,
    )
    return _Shard(value, correct)


def _work_through(
    model: VisionTransformer,
    names: Sequence[str],
    first_layer: int,
    task: _Task,
    arrays: Sequence[NDArray[Any]],
    hand_on: Callable[[str, Array], object],
) -> list[_Shard]:
    """Run a process's shards one after the other; hand on the sums of gradients."""
    images, labels = arrays
    sums = parallel.PairwiseSum(len(task.spans), names, hand_on)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return [
            _run_shard(
                model, task, span, images, labels, first_layer, partial(sums.add, i)
            )
            for i, span in enumerate(task.spans)
        ]


def _groups(
    spans: Sequence[tuple[int, int]], processes: int
) -> list[Sequence[tuple[int, int]]]:
    """Return the shards of each process: as many neighbours as a power of two.

    Those are what the fixed pairs add up to one sum before others are added to it.
    """
    size = 1
    while len(spans) > size * processes:
        size *= 2
    return [spans[i : i + size] for i in range(0, len(spans), size)]


def _are_arrays(images: Array, labels: NDArray[Any]) -> bool:
    """Tell whether both can be copied to processes; what cannot is an error anyway."""
    return all(
        isinstance(array, np.ndarray) and not array.dtype.hasobject
        for array in (images, labels)
    )


def _add(total: _Shard, shard: _Shard) -> _Shard:
    """Add a shard to the sum of those before it."""
    return _Shard(total.loss + shard.loss, total.correct + shard.correct)
