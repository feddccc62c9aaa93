"""Checkpoints of this project, of either backend: nothing has to be renamed."""

from collections.abc import Mapping
from typing import Any

from parity.weights.files import Arrays, WeightFile
from vit_numpy.checkpoint import AVERAGE, OPTIMIZER

NAME = "vit-parity"


def recognises(file: WeightFile) -> bool:
    """Tell whether a file has this project's names, and no other library's header."""
    # safetensors' own writers leave {"format": "pt"} or the like in every file.
    said = file.header.keys() - {"format"}
    return "blocks.0.attn.qkv.weight" in file.arrays and (not said or "config" in said)


def to_native(
    file: WeightFile, config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Arrays]:
    """Return the configuration, and the weights without the rest of a training.

    As `from_pretrained` does, these are their averages where the file has some.

    Raises
    ------
    ValueError
        If the file has no configuration, and none was given.
    """
    fields = file.header.get("config") if config is None else config
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"{file.path} holds weights without a configuration; "
            "name one: --config b16 for a command, config=preset('b16') in Python, say"
        )
    others = (OPTIMIZER, AVERAGE)
    weights = {k: v for k, v in file.arrays.items() if not k.startswith(others)}
    averages = {
        name: file.arrays[AVERAGE + name]
        for name in weights
        if AVERAGE + name in file.arrays
    }
    return dict(fields), averages or weights
