"""Dropout masks that depend on seed, step, layer and image, and on nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor, nn

from vit_torch.config import check_int, check_rate
from vit_torch.layers.dropout import Dropout, MaskSource

__all__ = ["KeyedMasks", "MaskSource", "name_dropouts"]


@dataclass(frozen=True, slots=True)
class KeyedMasks:
    """A source of dropout masks, each a function of (seed, step, layer, image).

    The twin of `vit_numpy.masks`: the same rules, but torch's generator, so other bits.

    Parameters
    ----------
    seed : int in [0, 2⁶⁴)
    step : int, default 0
        The training step; `at` makes the source of another.
    start, stop : int, optional
        The images of the batch that masks are drawn for; `shard` sets them. By default
        from the first on, as many as are asked for.

    Raises
    ------
    TypeError, ValueError
        If one is no int, or out of range.

    Notes
    -----
    Each mask has a CPU generator of its own, seeded with a hash of (seed, step, name).
    It cannot jump: a shard draws the rows before its own too, and leaves them.
    """

    seed: int
    step: int = 0
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("step", self.step)):
            check_int(name, value, 0)
            if value >= 2**64:
                raise ValueError(f"{name} must be below 2**64, got {name}={value}")
        check_int("start", self.start, 0)
        if self.stop is not None:
            check_int("stop", self.stop, self.start)

    def at(self, step: int) -> KeyedMasks:
        """Return the source of another training step's masks."""
        return replace(self, step=step)

    def shard(self, start: int, stop: int) -> KeyedMasks:
        """Return the source of the same masks for images start:stop of the batch."""
        return replace(self, start=start, stop=stop)

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name`: False with probability `p`.

        Parameters
        ----------
        name : str
        shape : tuple of int
            Shape of the mask; the first axis runs over this shard's images.
        p : float in [0, 1)
            Probability of being dropped.

        Returns
        -------
        Tensor of bool, on the CPU

        Raises
        ------
        TypeError, ValueError
            If `p` is no rate, or the first axis does not have the shard's length.
        """
        check_rate("p", p)
        rows = _shard_rows(shape, self.start, self.stop)
        key = f"{self.seed} {self.step} {name}".encode()
        seed = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(self.start + rows, *shape[1:], generator=generator)
        return drawn[self.start :] >= p


def _shard_rows(shape: tuple[int, ...], start: int, stop: int | None) -> int:
    """Return the length of the first axis, which must be the shard's if one is set."""
    if not shape:
        raise ValueError("shape must have an axis that runs over images, got shape=()")
    if stop is not None and shape[0] != stop - start:
        raise ValueError(
            f"shape must start with the {stop - start} images of the shard "
            f"{start}:{stop}, got shape={tuple(shape)}"
        )
    return shape[0]


def name_dropouts(root: nn.Module) -> None:
    """Give every Dropout and DropPath its dotted path in `root` as its name.

    Each composite does so when it is built, and the outermost comes last.
    """
    for path, module in root.named_modules():
        if isinstance(module, Dropout) and path:
            module.name = path
