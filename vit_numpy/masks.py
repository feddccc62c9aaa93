"""Dropout masks that depend on seed, step, layer and image, and on nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import check_int, check_rate
from vit_numpy.layers.dropout import Dropout, MaskSource
from vit_numpy.module import Module

__all__ = ["KeyedMasks", "MaskSource", "name_dropouts"]

# A block of the generator is 256 bits: 16 numbers of 16 bits.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class KeyedMasks:
    """A source of dropout masks, each a function of (seed, step, layer, image).

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
    An element is kept iff its 16-bit number is at least 65536 p, rounded, so that a
    rate is honoured to 1/131072: p = 0.1 drops 6554 in 65536.

    The numbers come from the counter-based generator Philox4x64-10, which jumps to any
    place at no cost: its key is (seed, hash of the layer's name), its counter (block
    within the batch, step), and every image starts a new block. So a shard's masks are
    the rows of the whole batch's, without drawing the rest.

    References
    ----------
    Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
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

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> NDArray[np.bool_]:
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
        ndarray of bool

        Raises
        ------
        TypeError, ValueError
            If `p` is no rate, or the first axis does not have the shard's length.
        """
        check_rate("p", p)
        rows = _shard_rows(shape, self.start, self.stop)
        size = math.prod(shape[1:])
        blocks = -(-size // _BLOCK)
        layer = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        philox = np.random.Philox(
            key=np.array([self.seed, layer], np.uint64),
            counter=np.array([self.start * blocks, self.step, 0, 0], np.uint64),
        )
        # Unlike `random_raw`, this lets other threads run meanwhile.
        words = np.random.Generator(philox)
        raw = words.integers(0, 2**64, rows * blocks * 4, np.uint64)
        # Little-endian, so that the masks are the same on every machine.
        numbers = raw.astype("<u8", copy=False).view("<u2")
        numbers = numbers.reshape(rows, blocks * _BLOCK)[:, :size]
        # Below 1, p must leave something, however close it is.
        keep: NDArray[np.bool_] = numbers >= min(round(65536 * p), 65535)
        return keep.reshape(shape)


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


def name_dropouts(root: Module) -> None:
    """Give every Dropout and DropPath its dotted path in `root` as its name.

    Each composite does so when it is built, and the outermost comes last.
    """
    for path, module in root.named_modules():
        if isinstance(module, Dropout) and path:
            module.name = path
