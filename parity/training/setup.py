"""What a recipe asks for, made: its data and batches, its network, its trainer."""

from __future__ import annotations

import dataclasses
from typing import Any

from parity.data import BatchStream, Dataset, Part
from parity.data import load as load_data
from parity.recipes import Recipe
from parity.training.backend import Backend

# What the recipe says of a network that is fine-tuned; the rest is the network's own.
_DROPS = ("pos_drop", "attn_drop", "proj_drop", "act_drop", "mlp_drop", "drop_path")


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
            own = recipe.finetune.image_size
            size = config.image_hw if own is None else (own, own)
        elif recipe.finetune.image_size is not None:
            raise ValueError(
                "finetune.image_size is for the pictures of folder:PATH, got "
                f"finetune.image_size={recipe.finetune.image_size} for {recipe.data}; "
                "leave it out"
            )
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


def refitted(recipe: Recipe) -> Recipe:
    """Return the recipe of a new fine-tuning, without a network that was fitted before.

    The recipe that a run left spells its network out, for the data that it had; all of
    it but the dropout is the file's and the data's to say.
    """
    if recipe.finetune is None:
        return recipe
    drops = {name: p for name, p in recipe.model.items() if name in _DROPS}
    return dataclasses.replace(recipe, model=drops)


def check_images(dataset: Dataset, config: Any) -> None:
    """Raise unless the images of the data set are such as the network takes.

    Raises
    ------
    ValueError
    """
    shape = tuple(dataset.train_images.shape[1:])
    expected = (config.in_chans, *config.image_hw)
    if shape != expected:
        raise ValueError(
            f"{dataset.name} has images of shape {shape}, the network takes "
            f"{expected}; choose other data, or a network with its image_size and "
            "in_chans"
        )


def check_fit(dataset: Dataset, config: Any) -> None:
    """Raise unless images and classes are the network's, and some are to test with.

    Raises
    ------
    ValueError
    """
    check_images(dataset, config)
    if dataset.num_classes != config.num_classes:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, the network "
            f"{config.num_classes}; choose other data, or a network with "
            f"num_classes={dataset.num_classes}"
        )
    if not len(dataset.test):
        raise ValueError(
            f"{dataset.name} has no test images; give it test_images and test_labels"
        )


def warmup_advice(recipe: Recipe, steps_per_epoch: int) -> str:
    """Say what to do if the learning rate would rise to the end, else nothing."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.schedule.warmup(steps_per_epoch)
    if warmup < total:
        return ""
    return (
        f"the warm-up of {warmup} steps takes the whole training of {total}; take more "
        f"epochs, or --set schedule.warmup_steps={total // 10} "
        "--set schedule.warmup_epochs=0"
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
        )
    model = backend.place(model, recipe.dtype)
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
        If several are asked for where there can be but one, or autocast of float64.
    """
    check_processes(backend, processes)
    if backend.amp and recipe.dtype != "float32":
        raise ValueError(
            f"amp computes float32 in bfloat16, got dtype={recipe.dtype!r}; "
            "leave one of them out"
        )
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
        warmup=plan.warmup(steps_per_epoch),
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


def _source(path: str, backend: Backend) -> Any:
    """Open the network that a fine-tuning starts from."""
    return backend.module("checkpoint").from_pretrained(path)
