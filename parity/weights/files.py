"""Weight files by kind: what arrays and what description a file holds."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_numpy.checkpoint import (
    HEADER,
    check_file,
    parse_header,
    read_safetensors,
    write_atomically,
)
from vit_numpy.config import unknown

Arrays = dict[str, NDArray[Any]]
AnyPath = str | os.PathLike[str]


class WeightFile(NamedTuple):
    """A file as it was read, before anybody says what its names mean.

    Attributes
    ----------
    path : Path
    arrays : dict of ndarray
        Half precision is widened to float32.
    header : dict
        What the file says of itself; empty where it says nothing.
    """

    path: Path
    arrays: Arrays
    header: dict[str, Any]


def read(path: AnyPath) -> WeightFile:
    """Read a file by its suffix: `.safetensors`, or torch's `.pt` and `.pth`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the suffix is unknown, or the file is damaged or would have to be unpickled.
    """
    path = Path(path)
    check_file(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: {unknown('suffix', path.suffix, READERS)}")
    arrays, header = READERS[path.suffix](path)
    return WeightFile(path, arrays, header)


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    arrays, metadata = read_safetensors(path)
    header: dict[str, Any] = dict(metadata)
    if HEADER in metadata:
        header = parse_header(path, metadata[HEADER])
    return dict(arrays), header


def _read_torch(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read what `torch.save` wrote: a state dict, alone or beside its description."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} needs torch to be read: pip install 'vit-parity[torch]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles; the error below says it all
            content = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged file makes torch raise has no base class in common.
    except Exception:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and is not unpickled; "
            "write it again with torch.save(model.state_dict(), path)"
        ) from None
    state, header = content, {}
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                state = content[key]
                header = {k: v for k, v in content.items() if k != key}
                break
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{path} holds no state dict; "
            "write it again with torch.save(model.state_dict(), path)"
        )
    halves = (torch.float16, torch.bfloat16)
    arrays = {
        name: (value.float() if value.dtype in halves else value).detach().numpy()
        for name, value in state.items()
    }
    return arrays, header


def write_torch(path: AnyPath, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Write `{"config": …, "state_dict": …}` as `torch.save` does, whole or not at all.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder does not exist; if torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} needs torch to be written: pip install 'vit-parity[torch]'"
        ) from None
    state = {
        name: torch.from_numpy(np.asarray(array, order="C"))
        for name, array in arrays.items()
    }
    content = {"config": dict(config), "state_dict": state}
    write_atomically(path, lambda part: torch.save(content, part))


READERS: dict[str, Callable[[Path], tuple[Arrays, dict[str, Any]]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
