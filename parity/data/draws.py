"""Random numbers keyed by what they are for, not by when they are drawn.

Every number is a pure function of (seed, epoch, image index, purpose), computed by the
counter-based generator Philox4x32-10.  So the order of an epoch can be had without
playing earlier ones, and the augmentation of an image depends neither on the batch it
travels in nor on what else was drawn.

References
----------
Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(
    counter: npt.NDArray[np.uint32], key: tuple[int, int]
) -> npt.NDArray[np.uint32]:
    """Return the 10-round Philox4x32 block of each counter.

    Parameters
    ----------
    counter : ndarray of shape (..., 4), uint32
        The counters, each word least significant first.
    key : tuple of two int
        The two 32-bit words of the key.

    Returns
    -------
    ndarray of shape (..., 4), uint32
    """
    a, b, c, d = (counter[..., i].astype(np.uint64) for i in range(4))
    key0, key1 = key
    for _ in range(10):
        # uint64 holds the whole 64-bit product of two 32-bit words.
        left = a * _MULTIPLIERS[0]
        right = c * _MULTIPLIERS[1]
        a = (right >> _32) ^ b ^ np.uint64(key0)
        b = right & _LOW
        c = (left >> _32) ^ d ^ np.uint64(key1)
        d = left & _LOW
        key0 = (key0 + _WEYL[0]) & 0xFFFFFFFF
        key1 = (key1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((a, b, c, d), axis=-1).astype(np.uint32)


def check_seed(seed: int) -> int:
    """Return `seed`, refused unless it is a whole number of 0 to 2**64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be at least 0 and below 2**64, got {seed}")
    return int(seed)


@dataclass(frozen=True)
class ImageDraws:
    """The random numbers of a batch of images, a row an image.

    Parameters
    ----------
    seed : int
        The seed of the run, 0 to 2**64 - 1.
    epoch : int
        The epoch, from 0.
    indices : ndarray of shape (B,), int64
        The index of each image in its data set part.

    Notes
    -----
    Different purposes are independent; the same purpose asked twice gives the same
    numbers, so ask once for as many as are needed.
    """

    seed: int
    epoch: int
    indices: npt.NDArray[np.int64]

    def words(self, purpose: str, count: int) -> npt.NDArray[np.uint64]:
        """Return (B, count) uniform 64-bit words."""
        blocks = -(-count // 2)
        counter = np.empty((len(self.indices), blocks, 4), np.uint32)
        counter[..., 0] = self.indices[:, None]
        counter[..., 1] = self.epoch
        counter[..., 2] = zlib.crc32(purpose.encode())
        counter[..., 3] = np.arange(blocks)
        block = philox4x32(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))
        high = block[..., 0::2].astype(np.uint64) << _32
        words = (high | block[..., 1::2]).reshape(len(self.indices), 2 * blocks)
        return words[:, :count]

    def uniform(self, purpose: str, count: int = 1) -> npt.NDArray[np.float64]:
        """Return (B, count) numbers, uniform in [0, 1), of 53 random bits each."""
        bits = self.words(purpose, count) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def integers(
        self, purpose: str, low: int, high: int, count: int = 1
    ) -> npt.NDArray[np.int64]:
        """Return (B, count) whole numbers, uniform in low to high - 1."""
        if high <= low:
            raise ValueError(f"high must be above low, got low={low}, high={high}")
        # With 53 random bits, off uniform by less than (high - low) / 2**53.
        return low + (self.uniform(purpose, count) * (high - low)).astype(np.int64)

    def generator(self, row: int, purpose: str) -> np.random.Generator:
        """Return a NumPy generator of its own for the image in `row`."""
        key = self.words(purpose, 2)[row]
        return np.random.Generator(np.random.Philox(key=key))


def permutation(
    seed: int, epoch: int, count: int, purpose: str = "order"
) -> npt.NDArray[np.int64]:
    """Return 0 … count - 1 in an order keyed by (seed, epoch, purpose).

    The order is that of one keyed 64-bit word an item, and so the same on every machine
    and every version of NumPy.
    """
    draws = ImageDraws(seed, epoch, np.arange(count))
    return np.argsort(draws.words(purpose, 1)[:, 0], kind="stable")
