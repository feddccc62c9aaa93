"""Checkpoints of every known family, in and out, without a model being built first.

A family is one file here and one row of `FAMILIES`. It says which files are its own,
and turns their names and layouts into those of `vit_numpy` and `vit_torch`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.weights import native
from parity.weights.files import AnyPath, Arrays, WeightFile, read, write_torch
from vit_numpy import checkpoint
from vit_numpy.config import ViTConfig, unknown
from vit_numpy.model import VisionTransformer

__all__ = ["FAMILIES", "Family", "identify", "inspect", "load", "save"]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of checkpoints, all of which name their weights alike.

    Parameters
    ----------
    name : str
    recognises : callable
        Tells from a file's names and header whether it is of this family.
    to_native : callable
        Returns configuration and weights under this project's names; is given the
        configuration that the caller insists on, or None.
    """

    name: str
    recognises: Callable[[WeightFile], bool]
    to_native: Callable[
        [WeightFile, Mapping[str, Any] | None], tuple[dict[str, Any], Arrays]
    ]


FAMILIES: tuple[Family, ...] = (
    Family(native.NAME, native.recognises, native.to_native),
)


def identify(file: WeightFile) -> Family:
    """Return the family of a file.

    Raises
    ------
    ValueError
        If it is of none that is known.
    """
    for family in FAMILIES:
        if family.recognises(file):
            return family
    some = ", ".join(sorted(file.arrays)[:3]) or "nothing"
    raise ValueError(
        f"{file.path} is of no known family; it holds {some}, … "
        f"(known: {', '.join(family.name for family in FAMILIES)})"
    )


def load(
    path: AnyPath, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Arrays]:
    """Read a checkpoint of any known family.

    Parameters
    ----------
    path : path
    config : dict, optional
        Fields of a `ViTConfig`, in place of the file's own or for a file that has none.

    Returns
    -------
    config : dict
        Fields of the `ViTConfig` that both `VisionTransformer`s take.
    arrays : dict of ndarray
        The weights under this project's names, float32 or float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of no known family, or without a configuration.
    """
    file = read(path)
    return identify(file).to_native(file, config)


def save(
    path: AnyPath,
    config: Mapping[str, Any],
    arrays: Arrays,
    preprocessing: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as a checkpoint of this project, whole or not at all.

    Parameters
    ----------
    path : path
        `.safetensors`, or `.pt` and `.pth` for `{"config": …, "state_dict": …}`.
    config : dict
        Fields of a `ViTConfig`.
    arrays : dict of ndarray
        All parameters of that model.
    preprocessing : dict, optional
        `mean` and `std`, a number a channel; a `.safetensors` file keeps them.
    metadata : dict, optional
        What else a `.safetensors` file is to keep, such as the names of classes.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the weights do not fit the configuration, are not all float32 or all float64,
        or the suffix is unknown.
    """
    model = VisionTransformer(ViTConfig.from_dict(config))
    dtypes = sorted({array.dtype.name for array in arrays.values()})
    if dtypes not in (["float32"], ["float64"]):
        raise ValueError(
            "weights must be all float32 or all float64, "
            f"got {', '.join(dtypes) or 'none'}; convert them first"
        )
    model.to(dtypes[0])
    model.load_state_dict(arrays)
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        checkpoint.save(path, model, preprocessing, metadata)
    elif suffix in (".pt", ".pth"):
        write_torch(path, model.config.to_dict(), model.state_dict())
    else:
        known = (".safetensors", ".pt", ".pth")
        raise ValueError(f"{path}: {unknown('suffix', suffix, known)}")


def inspect(path: AnyPath) -> dict[str, Any]:
    """Describe a checkpoint, of what JSON can hold.

    Returns
    -------
    dict
        `path`, `family`, `config` (None where the file has none), `tensors`,
        `parameters` (their elements), `dtypes` (tensors of each, as read), `shapes`,
        and what the file's header says of itself: `backend`, `versions`,
        `preprocessing`, `training`, `metadata`, each where it is there.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load`, but for the missing configuration.
    """
    file = read(path)
    family = identify(file)
    fields = file.header.get("config")
    _, arrays = family.to_native(file, fields if fields is not None else {})
    said = ("backend", "versions", "preprocessing", "training", "metadata")
    return {
        "path": str(path),
        "family": family.name,
        "config": fields,
        "tensors": len(arrays),
        "parameters": sum(array.size for array in arrays.values()),
        "dtypes": dict(Counter(array.dtype.name for array in arrays.values())),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
    } | {key: file.header[key] for key in said if key in file.header}
