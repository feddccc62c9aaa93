"""Training runs: a recipe, a backend, and the folder that a run leaves behind.

Nothing here imports torch unless the torch backend is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity.data import BatchStream, Dataset, Part
from parity.data import load as load_data
from parity.data.names import unknown_name
from parity.environment import environment
from parity.files import write_text
from parity.recipes import Recipe
from parity.recipes import load as load_recipe
from parity.scores import Scores, score

BACKENDS = ("numpy", "torch")
RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"
CURVES_FILE = "curves.png"

# What the recipe says of a network that is fine-tuned; the rest is the network's own.
_DROPS = ("pos_drop", "attn_drop", "proj_drop", "act_drop", "mlp_drop", "drop_path")

# Evaluation keeps nothing for a backward pass, so its batches can be large.
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Backend:
    """One of the two packages, and the arrays that it computes with.

    Attributes
    ----------
    name : {'numpy', 'torch'}
    device : str, default 'cpu'
        Where torch computes: 'cuda', 'cuda:1', 'mps'.
    amp : bool, default False
        Whether torch trains in bfloat16 where autocast holds that to be safe.
    compile : bool, default False
        Whether torch compiles the model.
    recompute : bool, default False
        Whether blocks are computed again in backward, to save memory; in both.
    """

    name: str
    device: str = "cpu"
    amp: bool = False
    compile: bool = False
    recompute: bool = False

    @classmethod
    def load(cls, name: str, **options: Any) -> Self:
        """Import the package of that name.

        Raises
        ------
        ValueError
            For an unknown name, for an option that is torch's alone, and for a device
            that is not there.
        ModuleNotFoundError
            If torch is wanted and not installed.
        """
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        backend = cls(name, **options)
        for option, value in backend.options.items():
            if name == "numpy" and option != "recompute":
                raise ValueError(
                    f"{option} is of backend 'torch' alone, got {option}={value!r}; "
                    "leave it out, or choose --backend torch"
                )
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
        if name == "torch":
            _check_device(backend.device)
        return backend

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not at their default, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name != "name" and getattr(self, f.name) != f.default
        }

    def module(self, name: str) -> Any:
        """Return a module of the package: ``'optim'`` is `vit_numpy.optim`, say."""
        return import_module(f"vit_{self.name}.{name}")

    def array(self, values: NDArray[Any], dtype: str) -> Any:
        """Return images or targets as this backend's array.

        Floating-point numbers get the dtype; labels stay integers.
        """
        if values.dtype.kind == "f":
            values = values.astype(dtype, copy=False)
        if self.name == "numpy":
            return values
        return _torch().from_numpy(values).to(self.device)

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


class TrainingStopped(Exception):
    """A training was asked to stop, and has saved where it is."""


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


class StopSignals:
    """Answers Ctrl-C and a termination by asking the training to stop, in a ``with``.

    The second of them ends the process as it would have without.

    Attributes
    ----------
    received : signal.Signals, optional
        What came.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def open_data(recipe: Recipe) -> Dataset:
    """Open the recipe's data set, and check that the network fits it.

    Raises
    ------
    DataNotFoundError, FileNotFoundError, ValueError
        If it is unknown or not there, or its images or classes are not the network's.
    """
    config = recipe.config()
    size: tuple[int, int] | None = config.image_hw
    if recipe.finetune is not None and not recipe.is_resolved:
        config = _source(recipe.finetune.source, Backend("numpy")).config
        if recipe.data.startswith("folder:"):
            size = recipe.model.get("image_size", config.image_hw)
        else:
            size = None
    dataset = load_data(recipe.data, image_size=size, channels=config.in_chans)
    check_fit(dataset, fitted(recipe, dataset).config())
    return dataset


def fitted(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe of a network that fits the data.

    Classes that the recipe does not name are the data's. A network that is fine-tuned
    is that of its file, for the data's images and classes, with the recipe's dropout.
    A recipe that spells out its whole network is left as it is.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file to start from is not there, or is none.
    """
    if recipe.is_resolved:
        return recipe
    if recipe.finetune is None:
        classes = {"num_classes": dataset.num_classes} | recipe.model
        return dataclasses.replace(recipe, model=classes)
    source = _source(recipe.finetune.source, Backend("numpy")).config.to_dict()
    own = recipe.config().to_dict()
    model = source | {name: own[name] for name in _DROPS}
    model["image_size"] = list(dataset.train_images.shape[2:])
    model["num_classes"] = dataset.num_classes
    model = {key: value for key, value in model.items() if value is not None}
    return dataclasses.replace(recipe, model=model)


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


def open_stream(recipe: Recipe, part: Part, prefetch: int = 0) -> BatchStream:
    """Return the batches of a recipe: the same for both backends, augmented alike."""
    return BatchStream(
        part,
        recipe.batch_size,
        recipe.seed,
        augment=recipe.transforms(),
        prefetch=prefetch,
    )


def split_data(recipe: Recipe, dataset: Dataset) -> tuple[Part, Part | None]:
    """Return the images to train on, and those to validate with, if there are any."""
    if not recipe.validation:
        return dataset.train, None
    return dataset.split(recipe.validation, recipe.seed)


def build_model(recipe: Recipe, backend: Backend) -> Any:
    """Return the recipe's network in its dtype: fresh, or from the file it starts from.

    Raises
    ------
    FileNotFoundError, ValueError
        If that file is not there, or its network is another.
    """
    config = backend.module("config").ViTConfig.from_dict(recipe.config().to_dict())
    if recipe.finetune is None:
        model = backend.module("model").VisionTransformer(config)
        backend.module("init").init_weights(
            model, recipe.seed, method=recipe.init, zero_head=recipe.zero_head
        )
    else:
        model = backend.module("finetune").adapt(
            _source(recipe.finetune.source, backend),
            config,
            mode=recipe.finetune.resize,
            seed=recipe.seed,
        )
    if backend.name == "numpy":
        model = model.to(recipe.dtype)
    else:
        model = model.to(backend.device, getattr(_torch(), recipe.dtype))
    model.recompute = backend.recompute
    return model


def check_processes(backend: Backend, processes: int | None) -> None:
    """Raise if several processes are asked of a backend that has but one.

    Raises
    ------
    ValueError
    """
    if backend.name != "numpy" and processes is not None and processes > 1:
        raise ValueError(
            f"processes is of backend 'numpy' alone, got processes={processes}; "
            "leave it out, or choose --backend numpy"
        )


def build_trainer(
    recipe: Recipe,
    backend: Backend,
    model: Any,
    steps_per_epoch: int,
    processes: int | None = 1,
) -> Any:
    """Return what makes the steps: optimizer, schedule, loss, clipping and average.

    In NumPy so many processes share a step; with None, as many as pay here.

    Raises
    ------
    ValueError
        If several are asked for where there can be but one.
    """
    check_processes(backend, processes)
    optim = backend.module("optim")
    if backend.name == "numpy":
        if processes is None:
            processes = backend.module("workers").usual_processes(model)
        # One buffer for all parameters: the optimizer then makes a few long passes.
        optim.flatten_parameters(model, shared=processes > 1)
    spec = recipe.optimizer
    frozen = recipe.finetune.frozen(recipe.config()) if recipe.finetune else ()
    ema = backend.module("ema").EMA(model, recipe.ema) if recipe.ema else None
    kinds = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}
    optimizer = kinds[spec.name](
        optim.param_groups(model, spec.weight_decay, spec.layer_decay, frozen),
        lr=spec.lr,
        **spec.options,
    )
    options: dict[str, dict[str, Any]] = {
        "numpy": {"processes": processes},
        "torch": {"amp": backend.amp, "compile": backend.compile},
    }
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
        accumulate=recipe.accumulate,
        ema=ema,
        **options[backend.name],
    )


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
    ValueError
        If the data does not fit the network, or there cannot be several processes.
    """
    recipe = fitted(recipe, dataset)
    check_fit(dataset, recipe.config())
    part, validation = split_data(recipe, dataset)
    # An accelerator leaves cores free, which make the next batches meanwhile.
    stream = open_stream(recipe, part, prefetch=0 if backend.device == "cpu" else 4)
    begun = folder.checkpoint.exists()
    # A run that goes on has its weights, and may have lost what it started from.
    fresh = dataclasses.replace(recipe, finetune=None) if begun else recipe
    model = build_model(fresh, backend)
    trainer = build_trainer(recipe, backend, model, len(stream), processes)
    checkpoint = backend.module("checkpoint")
    normalised = {"mean": part.mean.tolist(), "std": part.std.tolist()}
    metadata = {
        "recipe": recipe.name,
        "data": dataset.name,
        "class_names": list(dataset.class_names),
    }
    progress = Progress()
    if begun:
        header = checkpoint.load_training(folder.checkpoint, trainer)
        training = header["training"]
        progress = Progress(**training.get("progress", {"epoch": training["epoch"]}))
    saved = trainer.steps
    saved_at = time.monotonic()
    with (
        trainer if backend.name == "numpy" else nullcontext(),
        folder.open_metrics(progress.epoch, trainer.steps) as write,
    ):

        def scored(images: Part) -> Scores:
            return evaluate(model, backend, images, mean=part.mean, std=part.std)

        def save() -> None:
            nonlocal saved, saved_at
            checkpoint.save_training(
                folder.checkpoint,
                trainer,
                progress.epoch,
                normalised,
                metadata,
                asdict(progress),
            )
            saved, saved_at = trainer.steps, time.monotonic()

        def check_stop() -> None:
            if stop():
                if saved != trainer.steps:
                    save()
                raise TrainingStopped(
                    f"stopped at step {trainer.steps}; {folder.checkpoint} holds the "
                    "training, --resume continues it"
                )

        while progress.epoch < recipe.epochs and not _is_patience_over(
            recipe, progress
        ):
            started = time.perf_counter()
            for batch in stream.epoch(progress.epoch, start=progress.batch):
                try:
                    result = trainer.step(
                        backend.array(batch.images, recipe.dtype),
                        backend.array(batch.labels, recipe.dtype),
                    )
                except (FloatingPointError, ChildProcessError) as error:
                    raise type(error)(f"{error}; {folder.last_good(saved)}") from None
                step = Step(
                    step=result.step + 1,
                    epoch=progress.epoch + 1,
                    loss=result.loss,
                    accuracy=result.accuracy,
                    grad_norm=result.grad_norm,
                    lr=result.lr,
                )
                seconds = time.perf_counter() - started
                progress.add(len(batch.labels), step, seconds)
                write({"kind": "step"} | asdict(step))
                yield step
                late = 60 * (save_minutes or float("inf"))
                if (
                    save_steps and trainer.steps - saved >= save_steps
                ) or time.monotonic() - saved_at >= late:
                    save()
                check_stop()
                # What happened between two steps is not the training's time.
                started = time.perf_counter()
            started = time.perf_counter()
            with trainer.ema.applied() if trainer.ema else nullcontext():
                test = scored(dataset.test)
                held_out = None if validation is None else scored(validation)
            done = Epoch(
                epoch=progress.epoch + 1,
                step=trainer.steps,
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
                    "epoch": done.epoch,
                    "accuracy": judge.top1,
                    "chosen_by": "validation" if held_out else "test",
                }
                with trainer.ema.applied() if trainer.ema else nullcontext():
                    checkpoint.save(
                        folder.best, model, normalised, metadata | {"best": best}
                    )
            # The record first: one without its checkpoint is dropped when resuming.
            write({"kind": "epoch"} | asdict(done))
            save()
            yield done
            check_stop()


def _is_patience_over(recipe: Recipe, progress: Progress) -> bool:
    """Tell whether so many epochs brought nothing better that training stops."""
    waited = progress.epoch - progress.best_epoch
    return bool(recipe.patience) and waited >= recipe.patience


def evaluate(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> Scores:
    """Score a model on every image of a part, normalised as the data is by default."""
    logits = predict(model, backend, part, mean=mean, std=std)
    return score(logits, part.labels, part.class_names)


def predict(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
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
    epoch, ``last.safetensors`` the training state where it was saved last, and
    ``best.safetensors`` the weights of the epoch that did best on the validation
    images; without any, on the test images, so that its score there flatters it.

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
    def best(self) -> Path:
        """The file with the weights of the best epoch."""
        return self.path / BEST_FILE

    @property
    def curves(self) -> Path:
        """The picture of the training curves."""
        return self.path / CURVES_FILE

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
            for path in (self.checkpoint, self.best, self.curves, self.metrics):
                path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        text = recipe.resolved().to_toml()
        (self.path / RECIPE_FILE).write_text(text, encoding="utf-8")
        run = {
            "kind": "run",
            "backend": backend.name,
            "options": backend.options,
            "environment": environment(),
        }
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

    def check_backend(self, backend: Backend) -> None:
        """Raise unless the run in the folder was made by this backend and options."""
        with self.metrics.open(encoding="utf-8") as file:
            run = json.loads(file.readline())
        before = {"backend": run["backend"], **run.get("options", {})}
        now = {"backend": backend.name, **backend.options}
        for key in before | now:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.path} was run with {key}={before.get(key)!r}, "
                    f"got {now.get(key)!r}; resume it with the same"
                )

    def last_good(self, step: int) -> str:
        """Say which checkpoint is the last good one; it is of that step."""
        if not self.checkpoint.exists():
            return "no checkpoint was written before it"
        return f"the last good checkpoint is {self.checkpoint}, of step {step}"

    @contextmanager
    def open_metrics(
        self, epochs: int, steps: int
    ) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield a function that appends a record, after those up to a checkpoint.

        Records of later steps are dropped: they are made again.
        """
        kept = [
            line
            for line in self.metrics.read_text("utf-8").splitlines()
            if _is_before(line, epochs, steps)
        ]
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        with self.metrics.open("a", encoding="utf-8") as file:

            def write(record: dict[str, Any]) -> None:
                file.write(json.dumps(record) + "\n")
                file.flush()

            yield write


def exit_status(stop: StopSignals) -> int:
    """Return the status of a process that a signal ended: 128 and its number."""
    return 128 + (stop.received or signal.SIGINT)


def _is_before(line: str, epochs: int, steps: int) -> bool:
    """Tell whether a line of metrics is whole, and of no later epoch or step."""
    try:
        record = json.loads(line)
    except ValueError:
        # The process ended in the middle of the line.
        return False
    if record["kind"] == "epoch":
        return bool(record["epoch"] <= epochs)
    return bool(record.get("step", 0) <= steps)


def _source(path: str, backend: Backend) -> Any:
    """Open the network that a fine-tuning starts from."""
    return backend.module("checkpoint").from_pretrained(path)


def _check_device(device: str) -> None:
    """Raise unless torch can compute on a device."""
    torch = _torch()
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); "
            "choose another, or leave --device out for the CPU"
        ) from None


def _torch() -> Any:
    return import_module("torch")
