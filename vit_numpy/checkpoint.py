"""Checkpoints: a model, or the state of a training, in one safetensors file.

The arrays have the parameters' names; an entry of the file's header, `vit_parity`, is
JSON with the configuration, preprocessing, backend and versions. Either backend opens
the other's. A training state holds the optimizer's arrays too, under `optimizer.`, and
opens as a model like any other.
"""

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_numpy.config import ViTConfig, check_int
from vit_numpy.model import VisionTransformer, check_config
from vit_numpy.module import Array
from vit_numpy.train import Trainer

AnyPath = str | os.PathLike[str]

HEADER = "vit_parity"
FORMAT = 1
OPTIMIZER = "optimizer."
AVERAGE = "ema."
KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    config : dict
        The fields of the `ViTConfig`.
    arrays : dict of ndarray
        The parameters by name; a training's optimizer state under `optimizer.`, and the
        average of its parameters, if it keeps one, under `ema.`.
    header : dict
        `config`, `backend`, `versions`; `preprocessing` with the `mean` and `std` that
        images were normalised by, `training` with `step`, `seed`, `epoch` and
        `progress`, and `metadata`: each where it was given.
    """

    config: dict[str, Any]
    arrays: dict[str, Array]
    header: dict[str, Any]


def save(
    path: AnyPath,
    model: VisionTransformer,
    preprocessing: Mapping[str, Sequence[float]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a safetensors file, whole or not at all.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    model : VisionTransformer
    preprocessing : dict, optional
        `mean` and `std`, a number a channel, that images were normalised by.
    metadata : dict, optional
        Anything else to keep, of what JSON can hold.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If `metadata` holds what JSON cannot.
    ValueError
        If `preprocessing` lacks `mean` or `std`.
    """
    header = _header(model, preprocessing, metadata)
    _write(path, model.state_dict(), header)


def load(path: AnyPath) -> Checkpoint:
    """Read a file of this project's format, written by either backend.

    Half precision, float16 and bfloat16, is widened to float32, exactly.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, is cut short, or is not of this format.
    """
    arrays, metadata = read_safetensors(path)
    if HEADER not in metadata:
        raise ValueError(
            f"{path} holds no vit-parity configuration; "
            "convert it with `parity convert`, or open it with from_pretrained"
        )
    header = parse_header(path, metadata[HEADER])
    return Checkpoint(header["config"], arrays, header)


def from_pretrained(
    path: AnyPath, config: ViTConfig | None = None
) -> VisionTransformer:
    """Build the model that a checkpoint holds, with its weights.

    Parameters
    ----------
    path : path
        A file of this project, from either backend; with `parity` installed, any file
        that `parity.weights` knows.
    config : ViTConfig, optional
        In place of the file's own; needed for a file that holds weights alone.

    Returns
    -------
    VisionTransformer
        Of the file's dtype, float32 or float64. Its weights are those that the training
        was scored by: their average over the steps, where the file has one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `config` is no ViTConfig.
    ValueError
        If the file is damaged or unknown, or its weights do not fit its configuration.
    """
    if config is not None:
        check_config(config)
    if _is_own(path):
        fields, arrays, _ = load(path)
    else:
        fields, arrays = _load_foreign(path, config)
    model = _build(path, fields if config is None else config.to_dict())
    weights = _split(arrays)
    averages = weights[AVERAGE]
    averages.pop("step", None)
    _fill(path, model, averages or weights[""])
    return model


def save_training(
    path: AnyPath,
    trainer: Trainer,
    epoch: int = 0,
    preprocessing: Mapping[str, Sequence[float]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write all that a resumed training needs: model, optimizer, step, seed, epoch.

    Parameters
    ----------
    path, preprocessing, metadata
        As `save`.
    trainer : Trainer
    epoch : int, default 0
        Epochs finished.
    progress : dict, optional
        How far the training is beside, of what JSON can hold: numbers come back with
        every bit.
    """
    state = trainer.state_dict()
    header = _header(trainer.model, preprocessing, metadata)
    header["training"] = {"step": state["step"], "seed": state["seed"], "epoch": epoch}
    if progress is not None:
        header["training"]["progress"] = dict(progress)
    arrays = dict(state["model"])
    arrays |= {OPTIMIZER + name: v for name, v in state["optimizer"].items()}
    arrays |= {AVERAGE + name: v for name, v in state.get("ema", {}).items()}
    _write(path, arrays, header)


def load_training(path: AnyPath, trainer: Trainer) -> dict[str, Any]:
    """Put a trainer into the state that was saved; it continues bit for bit.

    Returns
    -------
    dict
        The file's header: see `Checkpoint`. `header["training"]["epoch"]` is the number
        of epochs finished.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no training state, a wrong one, or that of another model or
        optimizer; the trainer is as before then.
    """
    fields, arrays, header = load(path)
    if "training" not in header:
        raise ValueError(
            f"{path} holds a model without a training state; "
            "start from it with from_pretrained"
        )
    own = trainer.model.config.to_dict()
    for name, value in _config(path, fields).to_dict().items():
        if value != own[name]:
            raise ValueError(
                f"{path} was trained with {name}={value!r}, "
                f"but the model has {name}={own[name]!r}"
            )
    parts = _split(arrays)
    weights = parts[""]
    _check_dtypes(path, trainer.model, weights)
    training = header["training"]
    try:
        check_int("epoch", training["epoch"], 0)
        state = {
            "step": training["step"],
            "seed": training["seed"],
            "model": weights,
            "optimizer": parts[OPTIMIZER],
        }
        if parts[AVERAGE]:
            state["ema"] = parts[AVERAGE]
        trainer.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None
    return header


def read_safetensors(
    path: AnyPath,
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return any safetensors file's arrays, half precision widened, and its metadata.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file; if it is no safetensors file, or is cut short.
    """
    check_file(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            keys = file.keys()
            kinds = {key: file.get_slice(key).get_dtype() for key in keys}
            _check_kinds(path, kinds)
            arrays = {
                key: _widened(file.get_tensor(key))
                for key, kind in kinds.items()
                if kind != "BF16"
            }
    except SafetensorError as error:
        raise ValueError(_damaged(path, error)) from None
    halves = [key for key, kind in kinds.items() if kind == "BF16"]
    arrays |= _read_bfloat16(path, halves)
    return {key: arrays[key] for key in kinds}, metadata


def check_file(path: AnyPath) -> None:
    """Raise unless `path` is a file."""
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; give the path of a checkpoint file")


def parse_header(path: AnyPath, text: str) -> dict[str, Any]:
    """Read a header entry, and check that this version understands it.

    Raises
    ------
    ValueError
        If it is damaged, or of another version's format.
    """
    try:
        header = json.loads(text)
        written = header["format"]
        optional = header.keys() & {"metadata", "preprocessing", "training"}
        for key in ("config", *sorted(optional)):
            if not isinstance(header[key], dict):
                raise TypeError(f"{key} is no object")
        given = header.get("preprocessing")
        if given is not None and not {"mean", "std"} <= given.keys():
            raise ValueError("preprocessing must hold mean and std")
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: the header entry {HEADER!r} cannot be read ({error!r}); "
            "write the file again"
        ) from None
    if written != FORMAT:
        raise ValueError(
            f"{path} has format {written}, this version reads {FORMAT}; "
            "update vit-parity"
        )
    parsed: dict[str, Any] = header
    return parsed


def _split(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Return a file's arrays by the prefix of their names, and without it."""
    parts: dict[str, dict[str, Array]] = {"": {}, OPTIMIZER: {}, AVERAGE: {}}
    for name, array in arrays.items():
        prefix = next((p for p in (OPTIMIZER, AVERAGE) if name.startswith(p)), "")
        parts[prefix][name.removeprefix(prefix)] = array
    return parts


def _damaged(path: AnyPath, error: SafetensorError) -> str:
    """Return the message for what safetensors cannot read."""
    return (
        f"{path} is no safetensors file, or is damaged ({error}); "
        "fetch or write it again"
    )


def _check_kinds(path: AnyPath, kinds: Mapping[str, str]) -> None:
    """Raise for a dtype that has no exact place in float32 or float64."""
    for key, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(
                f"{path}: {key} has dtype {kind}, which is not read; "
                f"known: {', '.join(KINDS)}"
            )


def _widened(array: Array) -> Array:
    """Return half precision as float32, which holds it exactly."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _read_bfloat16(path: AnyPath, keys: Sequence[str]) -> dict[str, Array]:
    """Read bfloat16 tensors, which NumPy has no type for, as float32.

    A bfloat16 is the upper half of the float32 of the same value. The file is one that
    safetensors has just found valid.
    """
    if not keys:
        return {}
    arrays = {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        for key in keys:
            start, stop = entries[key]["data_offsets"]
            file.seek(8 + length + start)
            upper = np.frombuffer(file.read(stop - start), "<u2")
            bits = upper.astype(np.uint32) << 16
            arrays[key] = bits.view(np.float32).reshape(entries[key]["shape"])
    return arrays


def _is_own(path: AnyPath) -> bool:
    """Tell whether a file names this project's format in its header."""
    check_file(path)
    try:
        with safe_open(path, framework="np") as file:
            return HEADER in (file.metadata() or {})
    except SafetensorError as error:
        if Path(path).suffix == ".safetensors":
            raise ValueError(_damaged(path, error)) from None
        return False


def _load_foreign(
    path: AnyPath, config: ViTConfig | None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a file of another format through `parity.weights`."""
    try:
        from parity import weights
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} is not a vit-parity checkpoint; with parity installed, run "
            f"`parity convert {path} model.safetensors` and open that"
        ) from None
    fields, arrays = weights.load(path, config.to_dict() if config else None)
    return fields, dict(arrays)


def _build(path: AnyPath, fields: Mapping[str, Any]) -> VisionTransformer:
    """Build a model from a file's configuration; errors name the file."""
    return VisionTransformer(_config(path, fields))


def _config(path: AnyPath, fields: Mapping[str, Any]) -> ViTConfig:
    """Return a file's configuration; errors name the file."""
    try:
        return ViTConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _fill(path: AnyPath, model: VisionTransformer, weights: dict[str, Array]) -> None:
    """Load a file's weights into a model of their dtype; errors name the file."""
    dtypes = sorted({array.dtype.name for array in weights.values()})
    if dtypes == ["float64"]:
        model.to(np.float64)
    elif dtypes != ["float32"]:
        raise ValueError(
            f"{path}: weights must all be float32 or all float64, "
            f"got {', '.join(dtypes) or 'none'}"
        )
    try:
        model.load_state_dict(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_dtypes(
    path: AnyPath, model: VisionTransformer, weights: Mapping[str, Array]
) -> None:
    """Raise unless a training's weights have the model's dtype."""
    own = model.state_dict()
    for name, array in weights.items():
        if name in own and array.dtype != own[name].dtype:
            raise ValueError(
                f"{path}: {name} is {array.dtype.name}, but the model "
                f"{own[name].dtype.name}; convert the model before resuming"
            )


def _reason(error: Exception) -> str:
    """Return what an error says, on one line."""
    if isinstance(error, KeyError):
        return f"the training state has no {error}"
    return str(error)


def _header(
    model: VisionTransformer,
    preprocessing: Mapping[str, Sequence[float]] | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the header entry of a model's file."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "backend": "numpy",
        "versions": {
            "vit-parity": _own_version(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if preprocessing is not None:
        for key in ("mean", "std"):
            if key not in preprocessing:
                raise ValueError(
                    f"preprocessing must hold mean and std, got no {key}; "
                    "give a number a channel for each"
                )
        header["preprocessing"] = {
            key: [float(x) for x in preprocessing[key]] for key in ("mean", "std")
        }
    if metadata is not None:
        header["metadata"] = dict(metadata)
    return header


def _own_version() -> str:
    """Return the version of the distribution, if it is installed as one."""
    try:
        return version("vit-parity")
    except PackageNotFoundError:
        return "unknown"


def write_safetensors(
    path: AnyPath,
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str],
) -> None:
    """Write any arrays to a safetensors file, whole or not at all."""
    # safetensors writes the memory of an array as it lies there, whatever its strides.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, lambda part: save_file(contiguous, part, dict(metadata)))


def _write(path: AnyPath, arrays: Mapping[str, Array], header: dict[str, Any]) -> None:
    """Write arrays and header to a file of this format."""
    write_safetensors(path, arrays, {HEADER: json.dumps(header)})


def write_atomically(path: AnyPath, write: Callable[[str], None]) -> None:
    """Call `write` with a temporary name beside `path`, and rename that to `path`.

    Whoever opens `path` finds the file of before or the whole new one, even after a
    loss of power in between. Who may read it follows from the umask, as for any file.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    OSError
        If the file cannot be written, as to a full disk.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder {target.parent} does not exist; make it first")
    try:
        _replace(target, write)
    except SafetensorError as error:
        raise OSError(_unwritable(target, error)) from None
    except OSError as error:
        raise type(error)(_unwritable(target, error.strerror or error)) from None


def _replace(target: Path, write: Callable[[str], None]) -> None:
    """Write a temporary file and rename it."""
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}."
    ) as scratch:
        part = os.path.join(scratch, target.name)
        # What a new file is allowed is up to the process, and can only be tried out.
        with open(f"{part}.new", "xb") as new:
            mode = os.fstat(new.fileno()).st_mode
        write(part)
        os.chmod(part, mode & 0o777)
        _flush(part)
        os.replace(part, target)
    # A folder cannot be flushed everywhere; where it can, the new name is on disk too.
    with contextlib.suppress(OSError):
        _flush(target.parent)


def _unwritable(target: Path, reason: object) -> str:
    """Return the message for a file that the system did not take."""
    return (
        f"{target} cannot be written ({reason}); "
        "make room for it, or choose another folder"
    )


def _flush(path: AnyPath) -> None:
    """Have the system write a file or folder to disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
