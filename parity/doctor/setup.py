"""What a port is, what a change of it is, and the parts that changes are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_numpy.config import ViTConfig

Weights = dict[str, Tensor]

Patch = Callable[[Any], None]


@dataclass(frozen=True)
class Setup:
    """All that the outputs depend on: what a change changes.

    Attributes
    ----------
    config : ViTConfig
    weights : dict of Tensor
    images : Tensor of shape (B, C, H, W)
    patches : tuple of (str, callable)
        Changes of the built model that no configuration names.
    outputs : tuple of callable
        What is done to the logits.
    """

    config: ViTConfig
    weights: Weights
    images: Tensor
    patches: tuple[tuple[str, Patch], ...] = ()
    outputs: tuple[Callable[[Tensor], Tensor], ...] = ()


@dataclass(frozen=True)
class Change:
    """One way in which the port may differ from the original.

    Attributes
    ----------
    name : str
        Stable, with hyphens; the part before the first colon is its kind, of which a
        port has at most one.
    says : str
        What the original does, and the port does not.
    fix : str
        What to change in the port.
    apply : callable
        From a setup to the changed one; raises ValueError where that makes no sense.
    """

    name: str
    says: str
    fix: str
    apply: Callable[[Setup], Setup]

    @property
    def kind(self) -> str:
        """The aspect of the network that it changes."""
        return self.name.partition(":")[0]


def as_given(
    config: ViTConfig, weights: dict[str, NDArray[Any]], images: NDArray[Any]
) -> Setup:
    """Return the port as it is: float64, and images as its user would give them."""
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {images.shape}")
    if images.shape[1] != config.in_chans and images.shape[3] == config.in_chans:
        images = np.moveaxis(images, 3, 1)
    if images.shape[1] != config.in_chans:
        raise ValueError(
            f"images must have {config.in_chans} channels, got shape {images.shape}"
        )
    x = torch.from_numpy(np.array(images, np.float64))
    if np.issubdtype(images.dtype, np.integer):
        x = x / 255
    size = (int(images.shape[2]), int(images.shape[3]))
    if size != config.image_hw:
        config = ViTConfig.from_dict(config.to_dict() | {"image_size": size})
    return Setup(
        config,
        {n: torch.from_numpy(np.array(w, np.float64)) for n, w in weights.items()},
        x,
    )


# --- parts that changes are made of ---------------------------------------------------


def with_config(**fields: Any) -> Callable[[Setup], Setup]:
    """Change fields of the configuration."""

    def apply(setup: Setup) -> Setup:
        config = ViTConfig.from_dict(setup.config.to_dict() | fields)
        return replace(setup, config=config)

    return apply


def on_weights(
    ending: str, function: Callable[[Tensor], Tensor]
) -> Callable[[Setup], Setup]:
    """Change every weight that `ends_with` names."""

    def apply(setup: Setup) -> Setup:
        weights = {
            n: function(w) if ends_with(n, ending) else w
            for n, w in setup.weights.items()
        }
        return replace(setup, weights=weights)

    return apply


def ends_with(name: str, ending: str) -> bool:
    """Tell whether a name ends with that of a weight; 'qkv.' is both of a layer's."""
    if ending.endswith("."):
        return f".{ending}" in f".{name}"
    return f".{name}".endswith(f".{ending}")


def renamed(parts: dict[str, str]) -> Callable[[Setup], Setup]:
    """Give weights whose names have one of these parts the name with the other."""

    def rename(name: str) -> str:
        for old, new in parts.items():
            if old in f".{name}":
                return f".{name}".replace(old, new)[1:]
        return name

    def apply(setup: Setup) -> Setup:
        weights = {rename(name): w for name, w in setup.weights.items()}
        return replace(setup, weights={n: weights[n] for n in sorted(weights)})

    return apply


def on_images(function: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    """Change the images."""
    return lambda setup: replace(setup, images=function(setup.images))


def on_outputs(function: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    """Change the logits, after what is done to them already."""
    return lambda setup: replace(setup, outputs=(*setup.outputs, function))


def patched(name: str, patch: Patch) -> Callable[[Setup], Setup]:
    """Change the built model; the name is part of what it is known by."""
    return lambda setup: replace(setup, patches=(*setup.patches, (name, patch)))
