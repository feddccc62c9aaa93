"""Random augmentations as data: what each image gets, drawn apart from doing it.

A transform here says only what is drawn; `augment.apply` does it to pixels. The draws
are pure Python and depend on (seed, epoch, image, transform) alone, so that both
backends change the same images in the same way, in any order and however batched.

This file is the same, byte for byte, in `vit_numpy` and `vit_torch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any

from .config import check_int, check_number


@dataclass(frozen=True, slots=True)
class HorizontalFlip:
    """Mirror an image left to right.

    Parameters
    ----------
    p : float in [0, 1], default 0.5
        Probability of a flip.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("p", self.p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be in [0, 1], got p={self.p}")

    def draw(self, rng: Random) -> bool:
        """Return whether to flip."""
        return rng.random() < self.p


@dataclass(frozen=True, slots=True)
class PadCrop:
    """Pad an image with zeros on all sides, and cut its own size out again.

    Parameters
    ----------
    padding : int, at least 1, default 4
        Pixels added on each side.

    References
    ----------
    He et al. 2016, "Deep Residual Learning", section 4.2.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        check_int("padding", self.padding, 1)

    def draw(self, rng: Random) -> tuple[int, int]:
        """Return the top and left of the cut, each in [0, 2 padding]."""
        return rng.randint(0, 2 * self.padding), rng.randint(0, 2 * self.padding)


Transform = HorizontalFlip | PadCrop


def draw(
    transform: Transform,
    seed: int,
    epoch: int,
    indices: Sequence[int],
    place: int = 0,
) -> list[Any]:
    """Return what `transform` does to each of some images in one epoch.

    Parameters
    ----------
    transform : Transform
    seed, epoch : int, at least 0
    indices : sequence of int
        The images' places in the data set.
    place : int, default 0
        Which transform of a sequence this is, so that two of a kind draw apart.

    Returns
    -------
    list
        One entry an image, as the transform's own `draw` makes it.
    """
    check_int("seed", seed, 0)
    check_int("epoch", epoch, 0)
    key = (type(transform).__name__, place, seed, epoch)
    return [transform.draw(_generator(*key, int(i))) for i in indices]


def _generator(*key: str | int) -> Random:
    """Return a generator of its own for each key."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "little"))
