"""The same dropout masks for both backends."""

from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class NumpyMasks(Protocol):
    """A mask source of `vit_numpy`, such as its `KeyedMasks`."""

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> NDArray[np.bool_]:
        """Return the mask of the layer `name`: False with probability `p`."""
        ...


class TorchMasks:
    """Gives `vit_torch` the masks that a source of `vit_numpy` draws.

    Parameters
    ----------
    source : NumpyMasks
        Such as ``vit_numpy.masks.KeyedMasks(seed, step)``; with its `at` and `shard`,
        where a trainer is to ask.
    device : torch.device or str, default 'cpu'
        Where the masks are wanted.
    """

    def __init__(self, source: NumpyMasks, device: torch.device | str = "cpu") -> None:
        self.source = source
        self.device = device

    def at(self, step: int) -> Self:
        """Return the source of another training step's masks, for a `Trainer`."""
        source: Any = self.source
        return type(self)(source.at(step), self.device)

    def shard(self, start: int, stop: int) -> Self:
        """Return the source of the same masks for images start:stop of the batch."""
        source: Any = self.source
        return type(self)(source.shard(start, stop), self.device)

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name` as a bool tensor."""
        mask = self.source.keep(name, tuple(shape), p)
        keep = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device)
        # For whoever asks what a mask of another shape would have done.
        keep.redraw = lambda other: self.keep(name, other, p)  # type: ignore[attr-defined]
        return keep
