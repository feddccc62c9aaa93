"""Recipes: everything that decides how a network is trained, in one TOML file.

A recipe names no backend: `vit_numpy` and `vit_torch` run the same file unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from parity.data.augment import AUGMENTATIONS, AnyTransform
from parity.names import is_utf8
from vit_numpy.config import (
    ViTConfig,
    check_between,
    check_choice,
    check_factor,
    check_int,
    check_positive,
    check_rate,
    preset,
    unknown,
)
from vit_numpy.draws import from_table
from vit_numpy.finetune import MODES, frozen_layers
from vit_numpy.init import METHODS
from vit_numpy.optim import check_betas, check_momentum, check_weight_decay
from vit_numpy.schedule import DECAYS

OPTIMIZERS = ("sgd", "adam", "adamw")
DTYPES = ("float32", "float64")

Table = Mapping[str, Any]
Spec = TypeVar("Spec", "Recipe", "OptimizerSpec", "ScheduleSpec", "FinetuneSpec")


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """The table ``[optimizer]`` of a recipe.

    Parameters
    ----------
    name : {'adamw', 'adam', 'sgd'}
    lr : float
        The learning rate that the schedule multiplies.
    weight_decay : float, default 0
        Not applied to biases, norms, tokens and positions.
    layer_decay : float in (0, 1], default 1
        What each layer's rate is multiplied by for each layer above it.
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
        Both for Adam and AdamW alone.
    momentum : float, default 0
    nesterov : bool, default False
        Both for SGD alone.
    """

    name: str
    lr: float
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False

    # The options that each optimizer knows, beside lr and weight_decay.
    OPTIONS: ClassVar[dict[str, tuple[str, ...]]] = {
        "sgd": ("momentum", "nesterov"),
        "adam": ("betas", "eps"),
        "adamw": ("betas", "eps"),
    }

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_positive("optimizer.lr", self.lr)
        check_factor("optimizer.layer_decay", self.layer_decay)
        others = {name for options in self.OPTIONS.values() for name in options}
        others -= self.options.keys()
        for f in dataclasses.fields(self):
            if f.name in others and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"optimizer.{f.name} is no option of {self.name!r}, "
                    f"which has {', '.join(self.OPTIONS[self.name])}"
                )
        check_weight_decay(self.weight_decay)
        check_betas(self.betas)
        check_positive("optimizer.eps", self.eps)
        check_momentum(self.momentum, self.nesterov)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of this optimizer, beside lr and weight_decay."""
        return {name: getattr(self, name) for name in self.OPTIONS[self.name]}


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The table ``[schedule]`` of a recipe: linear warm-up, then a decay.

    Parameters
    ----------
    warmup_steps : int, default 0
        Optimizer steps over which the learning rate rises to its full value.
    warmup_epochs : int, default 0
        In place of steps: for data of any size.
    decay : {'constant', 'step', 'cosine', 'linear'}, default 'constant'
    drop_after : tuple of int, default ()
        Epochs after which a step decay multiplies the rate by `drop_factor`, in order.
    drop_factor : float, default 0.1
    floor : float, default 0
        Share of the rate that is left when a cosine or linear decay ends.
    """

    warmup_steps: int = 0
    warmup_epochs: int = 0
    decay: str = "constant"
    drop_after: tuple[int, ...] = ()
    drop_factor: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_int("schedule.warmup_steps", self.warmup_steps, 0)
        check_int("schedule.warmup_epochs", self.warmup_epochs, 0)
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError(
                "a warm-up has steps or epochs, got schedule.warmup_steps="
                f"{self.warmup_steps}, schedule.warmup_epochs={self.warmup_epochs}; "
                "set one of them to 0"
            )
        check_choice("schedule.decay", self.decay, DECAYS)
        check_factor("schedule.drop_factor", self.drop_factor)
        check_between("schedule.floor", self.floor, 0, 1)
        if not isinstance(self.drop_after, tuple):
            raise TypeError(
                "schedule.drop_after must be an array of epochs, "
                f"got {self.drop_after!r}; write [{self.drop_after!r}]"
            )
        for epoch in self.drop_after:
            check_int("schedule.drop_after", epoch, 1)
        if any(a >= b for a, b in pairwise(self.drop_after)):
            raise ValueError(
                f"schedule.drop_after must increase, got {list(self.drop_after)}"
            )
        if (self.decay == "step") != bool(self.drop_after):
            raise ValueError(
                "schedule.drop_after belong to decay='step' and to it alone, "
                f"got decay={self.decay!r}, drop_after={list(self.drop_after)}"
            )

    def warmup(self, steps_per_epoch: int) -> int:
        """Return the steps of the warm-up."""
        return self.warmup_steps or self.warmup_epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """The table ``[finetune]`` of a recipe: the trained network that it starts from.

    Parameters
    ----------
    source : str
        A file that `from_pretrained` opens. The network is that of the file, with a new
        head, and the recipe's dropout; the classes, and the images' size where it is
        fixed, are the data's.
    image_size : int, optional
        To which the pictures of a folder are brought; by default the network's own.
    freeze : int, default 0
        Blocks from the first on that are not trained, nor the embedding with them.
    linear_probe : bool, default False
        Whether the new head alone is trained.
    resize : str, default 'bicubic'
        How learned positions get to another grid: a mode of `vit_numpy.finetune`.
    """

    source: str
    image_size: int | None = None
    freeze: int = 0
    linear_probe: bool = False
    resize: str = "bicubic"

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise TypeError(f"finetune.source must be a path, got {self.source!r}")
        if self.image_size is not None:
            check_int("finetune.image_size", self.image_size, 1)
        check_int("finetune.freeze", self.freeze, 0)
        if not isinstance(self.linear_probe, bool):
            raise TypeError(
                "finetune.linear_probe must be true or false, "
                f"got {self.linear_probe!r}"
            )
        if self.linear_probe and self.freeze:
            raise ValueError(
                "finetune.linear_probe freezes all blocks, "
                f"got finetune.freeze={self.freeze} too; leave one out"
            )
        check_choice("finetune.resize", self.resize, MODES)

    def frozen(self, config: ViTConfig) -> tuple[str, ...]:
        """Return what of a network is not trained, as `param_groups` takes it."""
        if self.freeze > config.depth:
            raise ValueError(
                f"finetune.freeze must be at most the {config.depth} blocks, "
                f"got finetune.freeze={self.freeze}"
            )
        blocks = config.depth + 1 if self.linear_probe else self.freeze
        return frozen_layers(config, blocks)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train one network; every value is checked at construction.

    Parameters
    ----------
    name : str
    data : str
        A name that `parity.data.load` knows.
    preset : str
        A name in `vit_numpy.PRESETS`.
    epochs, batch_size : int
    accumulate : int, default 1
        Parts that a batch is worked through in: less memory, the same steps.
    optimizer : OptimizerSpec
    schedule : ScheduleSpec, default constant
    model : dict, default {}
        Fields of `ViTConfig` that differ from the preset's.
    augment : tuple of dict, default ()
        Augmentations of the training images, in order: a ``name`` of
        `parity.data.AUGMENTATIONS` and its parameters.
    init : {'trunc_normal', 'xavier', 'mimetic'}, default 'trunc_normal'
    zero_head : bool, default True
        Whether the head starts from zero: see `vit_numpy.init.init_weights`.
    label_smoothing : float in [0, 1), default 0
    clip_norm : float, optional
        Largest global norm of the gradient; None never clips.
    ema : float in [0, 1), default 0
        Decay of an average of the weights, which is then what is scored and opened; 0
        keeps none.
    validation : float in [0, 1), default 0
        Share of the training images that is held out, by the seed, to choose the best
        epoch with. Without, the test images choose it.
    patience : int, default 0
        Epochs without a better score after which training stops; 0 trains them all.
        Needs images to validate with.
    target : float in (0, 1], optional
        Share of the test images that the recipe promises to get right.
    finetune : FinetuneSpec, optional
        Where the weights come from, if they are not fresh.
    dtype : {'float32', 'float64'}, default 'float32'
    seed : int, default 0
        Of the weights, the order of the batches, augmentation and dropout.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind, and for one that breaks a rule above.
    """

    name: str
    data: str
    preset: str
    epochs: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    dtype: str = "float32"
    init: str = "trunc_normal"
    zero_head: bool = True
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0
    validation: float = 0.0
    patience: int = 0
    target: float | None = None
    augment: tuple[dict[str, Any], ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    finetune: FinetuneSpec | None = None

    def __post_init__(self) -> None:
        for key in ("name", "data"):
            if not isinstance(getattr(self, key), str):
                raise TypeError(
                    f"{key} must be a string, got {key}={getattr(self, key)!r}"
                )
        check_int("epochs", self.epochs, 1)
        check_int("batch_size", self.batch_size, 1)
        check_int("accumulate", self.accumulate, 1)
        check_int("seed", self.seed, 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got seed={self.seed}")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("init", self.init, METHODS)
        if not isinstance(self.zero_head, bool):
            raise TypeError(f"zero_head must be true or false, got {self.zero_head!r}")
        if not is_utf8(self.data):
            raise ValueError(f"data must be named in UTF-8, got {self.data!a}")
        check_rate("label_smoothing", self.label_smoothing)
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)
        check_rate("ema", self.ema)
        check_rate("validation", self.validation)
        check_int("patience", self.patience, 0)
        if not isinstance(self.model, Mapping):
            raise TypeError(f"model must be a table, got {self.model!r}")
        if not isinstance(self.augment, tuple):
            raise TypeError(f"augment must be an array of tables, got {self.augment!r}")
        if self.patience and not self.validation:
            raise ValueError(
                "patience needs images to validate with, "
                f"got patience={self.patience}, validation=0; set validation=0.1"
            )
        if self.target is not None:
            check_factor("target", self.target)
        self.transforms()
        self.config()

    def config(self) -> ViTConfig:
        """Return the network's configuration: the preset with the recipe's changes."""
        return preset(self.preset, **self.model)

    def transforms(self) -> tuple[AnyTransform, ...]:
        """Return the augmentations, in order, as `BatchStream` takes them."""
        return tuple(from_table(entry, AUGMENTATIONS) for entry in self.augment)

    @classmethod
    def from_dict(cls, table: Table) -> Recipe:
        """Build a recipe from nested tables, as TOML gives them.

        Raises
        ------
        ValueError
            For a missing key, and for an unknown one; the nearest is named.
        """
        return _build(cls, table, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested tables; what is None is left out."""
        tables = dataclasses.asdict(self)
        return {key: value for key, value in tables.items() if value is not None}

    def replace(self, changes: Table) -> Recipe:
        """Return the recipe with some keys changed: ``{'optimizer.lr': 0.1}``.

        Raises
        ------
        ValueError
            For an unknown key; the nearest is named.
        """
        tables = self.to_dict()
        for key, value in changes.items():
            outer, dot, inner = key.partition(".")
            if not dot:
                tables[key] = value
                continue
            if outer not in _TABLES and outer != "model":
                known = ["model", *_TABLES]
                raise ValueError(unknown("recipe table", outer, known))
            tables.setdefault(outer, {})[inner] = value
        return Recipe.from_dict(tables)

    def resolved(self) -> Recipe:
        """Return the recipe with the whole model spelled out, none of it implied."""
        fields = self.config().to_dict()
        # TOML has no None; a field that is None is left to the preset.
        model = {key: value for key, value in fields.items() if value is not None}
        return dataclasses.replace(self, model=model)

    @property
    def is_resolved(self) -> bool:
        """Whether the whole model is spelled out: `resolved` would change nothing."""
        fields = self.config().to_dict()
        return all(
            value is None or self.model.get(key) == value
            for key, value in fields.items()
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that only recipes of the same training share.

        Name, seed and target do not count, nor which folder pictures are in and how
        many classes it has. Keys at their defaults do not count either, so that a new
        key leaves the fingerprints of before as they are.
        """
        told = _changed(self)
        for key in ("name", "seed", "target", "preset"):
            told.pop(key, None)
        told["data"] = "folder:" if self.data.startswith("folder:") else self.data
        told["model"] = _changed(self.config())
        told["model"].pop("num_classes", None)
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load` reads back."""
        tables = self.to_dict()
        lines = [
            f"{key} = {_toml(value)}"
            for key, value in tables.items()
            if not isinstance(value, dict)
        ]
        for key, value in tables.items():
            if isinstance(value, dict) and value:
                lines += ["", f"[{key}]"]
                lines += [
                    f"{k} = {_toml(v)}" for k, v in value.items() if v is not None
                ]
        return "\n".join(lines) + "\n"


def names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files(__name__)
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str | Path) -> Recipe:
    """Read a recipe by its name or from a path.

    Parameters
    ----------
    name : str or Path
        A name in `names`, or a file ending in ``.toml``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such recipe or file, or the file is no valid recipe.
    """
    name = str(name)
    if not name.endswith(".toml"):
        if name not in names():
            raise ValueError(unknown("recipe", name, names()))
        text = resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
        return Recipe.from_dict({"name": name} | tomllib.loads(text))
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no recipe file {name}; recipes by name: {', '.join(names())}"
        )
    try:
        # Some editors begin a file with the mark of UTF-8.
        tables = tomllib.loads(path.read_text("utf-8-sig"))
        return Recipe.from_dict({"name": path.stem} | tables)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not written in UTF-8 ({error})") from None
    except RecursionError:
        raise ValueError(f"{name} has arrays within arrays without end") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _key_of(name: str) -> str | None:
    """Return the full key of a name given without its table, or in another."""
    tables = {"model": ViTConfig, **_TABLES}
    for table, spec in tables.items():
        if name in {f.name for f in dataclasses.fields(spec)}:
            return f"{table}.{name}"
    return None


def _build(cls: type[Spec], table: Any, where: str) -> Spec:
    """Build one dataclass from its table, those below it first."""
    if not isinstance(table, Mapping):
        name = where.rstrip(".") or "a recipe"
        raise TypeError(f"{name} must be a table, got {table!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            meant = _key_of(key)
            if meant is not None:
                raise ValueError(
                    f"unknown recipe key {where + key!r}; did you mean {meant!r}?"
                )
            known = [where + name for name in fields]
            raise ValueError(unknown("recipe key", where + key, known))
        if key in _TABLES and not where:
            value = _build(_TABLES[key], value, f"{key}.")
        values[key] = tuple(value) if isinstance(value, list) else value
    for key, f in fields.items():
        required = (
            f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        )
        if required and key not in values:
            hint = ", or give --from" if where + key == "finetune.source" else ""
            raise ValueError(f"the recipe needs {where + key!r}; add it{hint}")
    return cls(**values)


_TABLES: dict[str, Any] = {
    "optimizer": OptimizerSpec,
    "schedule": ScheduleSpec,
    "finetune": FinetuneSpec,
}


def _changed(spec: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not at their defaults, as tables."""
    tables = {}
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if value != f.default:
            nested = dataclasses.is_dataclass(value)
            tables[f.name] = _changed(value) if nested else value
    return tables


def _toml(value: Any) -> str:
    """Write one value; a dict becomes an inline table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A TOML basic string is a JSON string that escapes the delete character too,
        # and no character by the surrogates of UTF-16.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {_toml(v)}' for k, v in value.items())} }}"
    return repr(value)
