"""Training runs: a recipe, a backend, and the folder that a run leaves behind.

Nothing here imports torch unless the torch backend is asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parity.data import BatchStream, Dataset, Part
from parity.data import load as load_data
from parity.data.names import unknown_name
from parity.environment import environment
from parity.recipes import Recipe
from parity.recipes import load as load_recipe
from parity.scores import Scores, score

BACKENDS = ("numpy", "torch")
RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "last.safetensors"

# Evaluation keeps nothing for a backward pass, so its batches can be large.
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Backend:
    """One of the two packages, and the arrays that it computes with.

    Attributes
    ----------
    name : {'numpy', 'torch'}
    """

    name: str

    @classmethod
    def load(cls, name: str) -> Self:
        """Import the package of that name.

        Raises
        ------
        ValueError
            For an unknown name.
        ModuleNotFoundError
            If torch is wanted and not installed.
        """
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        try:
            import_module(f"vit_{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                "backend 'torch' needs PyTorch, which is not installed; "
                "pip install 'vit-parity[torch]'",
                name="torch",
            ) from None
        return cls(name)

    def module(self, name: str) -> Any:
        """Return a module of the package: ``'optim'`` is `vit_numpy.optim`, say."""
        return import_module(f"vit_{self.name}.{name}")

    def array(self, values: NDArray[Any], dtype: str) -> Any:
        """Return images or targets as this backend's array.

        Floating-point numbers get the dtype; labels stay integers.
        """
        if values.dtype.kind == "f":
            values = values.astype(dtype, copy=False)
        return values if self.name == "numpy" else _torch().from_numpy(values)

    def numpy(self, values: Any) -> NDArray[Any]:
        """Return one of this backend's arrays as NumPy's, without a copy."""
        return np.asarray(values if self.name == "numpy" else values.detach().cpu())

    def prepare(self) -> None:
        """Set up this process for training, as a program may and a library may not."""
        if self.name == "numpy":
            self.module("allocator").keep_freed_memory()

    def set_threads(self, threads: int) -> None:
        """Let this process compute on so many threads."""
        if self.name == "numpy":
            self.module("parallel").set_num_threads(threads)
        else:
            _torch().set_num_threads(threads)


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

    `seconds` is the time of the steps alone, without the evaluation.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def open_data(recipe: Recipe) -> Dataset:
    """Open the recipe's data set, and check that the network fits it.

    Raises
    ------
    DataNotFoundError, FileNotFoundError, ValueError
        If it is unknown or not there, or its images or classes are not the network's.
    """
    config = recipe.config()
    dataset = load_data(
        recipe.data, image_size=config.image_hw, channels=config.in_chans
    )
    check_fit(dataset, config)
    return dataset


def check_fit(dataset: Dataset, config: Any) -> None:
    """Raise unless images and classes of the data set are those of the network."""
    shape = tuple(dataset.train_images.shape[1:])
    expected = (config.in_chans, *config.image_hw)
    if shape != expected:
        raise ValueError(
            f"{dataset.name} has images of shape {shape}, the network takes "
            f"{expected}; choose other data, or set model.image_size and model.in_chans"
        )
    if dataset.num_classes != config.num_classes:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, the network "
            f"{config.num_classes}; set model.num_classes={dataset.num_classes}"
        )


def open_stream(recipe: Recipe, part: Part) -> BatchStream:
    """Return the batches of a recipe: the same for both backends, augmented alike."""
    return BatchStream(
        part, recipe.batch_size, recipe.seed, augment=recipe.transforms()
    )


def build_model(recipe: Recipe, backend: Backend) -> Any:
    """Return the recipe's network with fresh weights, in its dtype."""
    config = backend.module("config").ViTConfig.from_dict(recipe.config().to_dict())
    model = backend.module("model").VisionTransformer(config)
    backend.module("init").init_weights(
        model, recipe.seed, method=recipe.init, zero_head=recipe.zero_head
    )
    dtype = recipe.dtype if backend.name == "numpy" else getattr(_torch(), recipe.dtype)
    model = model.to(dtype)
    if backend.name == "numpy":
        # One buffer for all parameters: the optimizer then makes a few long passes.
        backend.module("optim").flatten_parameters(model)
    return model


def build_trainer(
    recipe: Recipe, backend: Backend, model: Any, steps_per_epoch: int
) -> Any:
    """Return what makes the steps: optimizer, schedule, loss and clipping."""
    optim = backend.module("optim")
    spec = recipe.optimizer
    kinds = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}
    optimizer = kinds[spec.name](
        optim.param_groups(model, spec.weight_decay), lr=spec.lr, **spec.options
    )
    plan = recipe.schedule
    schedule = backend.module("schedule").Schedule(
        warmup=plan.warmup_steps,
        decay=plan.decay,
        total=recipe.epochs * steps_per_epoch,
        drops=tuple(epoch * steps_per_epoch for epoch in plan.drop_after),
        drop_factor=plan.drop_factor,
        floor=plan.floor,
    )
    return backend.module("train").Trainer(
        model,
        optimizer,
        schedule,
        backend.module("loss").CrossEntropy(recipe.label_smoothing),
        clip_norm=recipe.clip_norm,
        seed=recipe.seed,
    )


def train(
    recipe: Recipe, backend: Backend, dataset: Dataset, folder: RunFolder
) -> Iterator[Step | Epoch]:
    """Train a recipe, and yield every step and every epoch when it is done.

    What is yielded is in the folder's metrics by then, and after an epoch the training
    state is in its checkpoint. A folder that holds one is continued where it stopped.

    Raises
    ------
    FloatingPointError
        If the loss or a gradient is not finite; the last checkpoint is named.
    ValueError
        If the data does not fit the network.
    """
    check_fit(dataset, recipe.config())
    stream = open_stream(recipe, dataset.train)
    model = build_model(recipe, backend)
    trainer = build_trainer(recipe, backend, model, len(stream))
    checkpoint = backend.module("checkpoint")
    preprocessing = {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    metadata = {
        "recipe": recipe.name,
        "data": dataset.name,
        "class_names": list(dataset.class_names),
    }
    finished = 0
    if folder.checkpoint.exists():
        header = checkpoint.load_training(folder.checkpoint, trainer)
        finished = header["training"]["epoch"]
    with folder.open_metrics(finished) as write:
        for epoch in range(finished, recipe.epochs):
            steps = []
            seconds = 0.0
            for batch in stream.epoch(epoch):
                started = time.perf_counter()
                try:
                    result = trainer.step(
                        backend.array(batch.images, recipe.dtype),
                        backend.array(batch.labels, recipe.dtype),
                    )
                except FloatingPointError as error:
                    raise FloatingPointError(
                        f"{error}; {folder.last_good(finished)}"
                    ) from None
                seconds += time.perf_counter() - started
                step = Step(
                    step=result.step + 1,
                    epoch=epoch + 1,
                    loss=result.loss,
                    accuracy=result.accuracy,
                    grad_norm=result.grad_norm,
                    lr=result.lr,
                )
                steps.append((len(batch.labels), step))
                write({"kind": "step"} | asdict(step))
                yield step
            scores = evaluate(model, backend, dataset.test)
            images = sum(count for count, _ in steps)
            finished = epoch + 1
            done = Epoch(
                epoch=finished,
                step=trainer.steps,
                train_loss=sum(n * s.loss for n, s in steps) / images,
                train_accuracy=sum(n * s.accuracy for n, s in steps) / images,
                test_loss=scores.loss,
                test_accuracy=scores.top1,
                seconds=seconds,
            )
            checkpoint.save_training(
                folder.checkpoint, trainer, finished, preprocessing, metadata
            )
            write({"kind": "epoch"} | asdict(done))
            yield done


def evaluate(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Scores:
    """Score a model on every image of a part, normalised as the data is by default."""
    logits = predict(model, backend, part, mean=mean, std=std)
    return score(logits, part.labels, part.class_names)


def predict(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> NDArray[Any]:
    """Return the logits (N, K) of every image of a part, without dropout."""
    dtype = backend.numpy(model.patch_embed.proj.weight).dtype.name
    run = backend.module("train").evaluate
    stream = BatchStream(part, EVALUATION_BATCH, 0, shuffle=False, mean=mean, std=std)
    return np.concatenate(
        [
            backend.numpy(run(model, backend.array(batch.images, dtype)))
            for batch in stream.epoch(0)
        ]
    )


class RunFolder:
    """The folder of a run: recipe, metrics, checkpoint.

    ``recipe.toml`` is the recipe as it was run, ``metrics.jsonl`` a line a step and
    epoch, and ``last.safetensors`` the training state after the last whole epoch.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The file with the training state."""
        return self.path / CHECKPOINT_FILE

    @property
    def metrics(self) -> Path:
        """The file with a record a line."""
        return self.path / METRICS_FILE

    def create(self, recipe: Recipe, backend: Backend, *, overwrite: bool) -> None:
        """Make the folder for a new run, and write the recipe into it.

        Raises
        ------
        FileExistsError
            If it holds anything and may not be overwritten.
        """
        if self.path.is_file():
            raise FileExistsError(f"{self.path} is a file; choose a folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} is not empty; choose another folder, "
                    "--resume the run in it, or --overwrite it"
                )
            for name in (CHECKPOINT_FILE, METRICS_FILE, RECIPE_FILE):
                (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        text = recipe.resolved().to_toml()
        (self.path / RECIPE_FILE).write_text(text, encoding="utf-8")
        run = {"kind": "run", "backend": backend.name, "environment": environment()}
        self.metrics.write_text(json.dumps(run) + "\n", encoding="utf-8")

    def reopen(self) -> Recipe:
        """Return the recipe of the run that the folder holds, to continue it.

        Raises
        ------
        FileNotFoundError
            If it holds none.
        """
        path = self.path / RECIPE_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} holds no run to resume: {RECIPE_FILE} is not there"
            )
        return load_recipe(path)

    def last_good(self, finished: int) -> str:
        """Say which checkpoint is the last good one."""
        if not finished:
            return "no epoch was finished, so there is no checkpoint"
        return f"the last good checkpoint is {self.checkpoint}, of epoch {finished}"

    @contextmanager
    def open_metrics(self, finished: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield a function that appends a record, after those of finished epochs.

        Records of an epoch that was interrupted are dropped: it is run again.
        """
        kept = [
            line
            for line in self.metrics.read_text("utf-8").splitlines()
            if _is_of_epoch(line, finished)
        ]
        replace_text(self.metrics, "".join(f"{line}\n" for line in kept))
        with self.metrics.open("a", encoding="utf-8") as file:

            def write(record: dict[str, Any]) -> None:
                file.write(json.dumps(record) + "\n")
                file.flush()

            yield write


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _is_of_epoch(line: str, last: int) -> bool:
    """Tell whether a line of metrics is whole, and of no later epoch than `last`."""
    try:
        record = json.loads(line)
    except ValueError:
        # The process ended in the middle of the line.
        return False
    return bool(record.get("epoch", 0) <= last)


def _torch() -> Any:
    return import_module("torch")
