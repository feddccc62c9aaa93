"""Orders keyed by what they are for, not by when they are drawn.

The random numbers are those of `vit_numpy.draws`, which augmentations are drawn from.
"""

import numpy as np
import numpy.typing as npt

from vit_numpy.draws import random_blocks

_WORDS = 8


def check_seed(seed: int) -> int:
    """Return `seed`, refused unless it is a whole number of 0 to 2**64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be at least 0 and below 2**64, got {seed}")
    return int(seed)


def permutation(
    seed: int, epoch: int, count: int, purpose: str = "order"
) -> npt.NDArray[np.int64]:
    """Return 0 … count - 1 in an order keyed by (seed, epoch, purpose).

    The order is that of one keyed 64-bit word an item, and so the same on every machine
    and every version of NumPy.
    """
    blocks = random_blocks(f"{purpose} {seed} {epoch}", range(-(-count // _WORDS)))
    words = np.frombuffer(b"".join(blocks), "<u8")[:count]
    return np.argsort(words, kind="stable")
