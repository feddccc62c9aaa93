"""One stream of batches for both backends.

The order of an epoch is a function of (seed, epoch) alone, so the two backends see the
same batches, and a run resumes at any epoch and step without playing the earlier ones.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from parity.data.augment import AnyTransform, Augmentation
from parity.data.draws import check_seed, permutation
from parity.data.registry import Part
from vit_numpy.config import check_int

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


class Batch(NamedTuple):
    """A batch.

    Attributes
    ----------
    images : ndarray of shape (B, C, H, W)
        float32 and normalised, or uint8 where the stream does not normalise.
    labels : ndarray of shape (B,), int64
        Or, where images are mixed, soft targets of shape (B, K), float32.
    indices : ndarray of shape (B,), int64
        The row of each image in its part.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]


def normalise(
    images: Pixels, mean: npt.ArrayLike, std: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Return ``(images / 255 - mean) / std`` in float32.

    Parameters
    ----------
    images : ndarray of shape (B, C, H, W), uint8 or float32
        Pixel values of 0 to 255.
    mean, std : array_like of shape (C,)
        Of values in [0, 1].

    Returns
    -------
    ndarray of shape (B, C, H, W), float32

    Raises
    ------
    TypeError
        If the images are of another dtype.
    ValueError
        If a mean or std is missing for a channel, a mean is not finite, or a std not
        above 0.
    """
    if images.dtype not in (np.uint8, np.float32):
        raise TypeError(
            f"images must be uint8 or float32, got {images.dtype}; cast them with "
            ".astype"
        )
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    channels = images.shape[1]
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"mean and std must have the shape ({channels},), one value a channel, "
            f"got {mean.shape} and {std.shape}"
        )
    if not np.isfinite(mean).all():
        raise ValueError(f"mean must be finite in every channel, got {mean.tolist()}")
    if not (std > 0).all():
        raise ValueError(
            f"std must be above 0 in every channel, got {std.tolist()}; a channel of "
            "one value in all images cannot be normalised, take other images"
        )
    # Two passes over the pixels: 255 is folded into the constants, in float64.
    shift = (255 * mean).astype(np.float32)[:, None, None]
    scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
    out = np.subtract(images, shift, dtype=np.float32)
    out *= scale
    return out


class BatchStream:
    """Batches of a part of a data set, in an order keyed by (seed, epoch).

    Parameters
    ----------
    part : Part
        ``dataset.train``, ``dataset.test``, or what ``dataset.split`` returns.
    batch_size : int
        Images a batch, B.
    seed : int
        0 to 2**64 - 1.
    drop_last : bool, default False
        Whether to leave out a last batch that is smaller than the others.
    shuffle : bool, default True
        Whether to change the order each epoch; if not, it is that of the part.
    augment : sequence of transforms, default ()
        What is done to the images: transforms of `vit_numpy.draws` and
        `parity.data.pixels`, keyed by (seed, epoch, index of the image), so that an
        image is changed in the same way whatever the batch it is in.
    normalise : bool, default True
        Whether images become float32, less the mean and over the standard deviation;
        if not, they are handed on as they are.
    mean, std : array_like of shape (C,), optional
        To normalise with other values than those of the training images.
    prefetch : int, default 0
        Batches that a thread makes ahead, while earlier ones are worked on. They are
        the same for any number. Worth it where training leaves a core free, as on a
        GPU; training in NumPy takes them all.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range or the part has no image (or, with `drop_last`,
        not one whole batch), and if images that are not normalised are to be mixed.

    Examples
    --------
    >>> from parity.data import BatchStream, load
    >>> stream = BatchStream(load("mnist-subset").train, batch_size=100, seed=0)
    >>> len(stream)
    100
    >>> images, labels, indices = next(stream.epoch(3, start=42))
    >>> images.shape, str(images.dtype)
    ((100, 1, 28, 28), 'float32')
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        seed: int,
        *,
        drop_last: bool = False,
        shuffle: bool = True,
        augment: Sequence[AnyTransform] = (),
        normalise: bool = True,
        mean: npt.ArrayLike | None = None,
        std: npt.ArrayLike | None = None,
        prefetch: int = 0,
    ) -> None:
        check_int("batch_size", batch_size, 1)
        check_int("prefetch", prefetch, 0)
        if (mean is None) != (std is None):
            missing = "mean" if mean is None else "std"
            raise ValueError(f"mean and std must be given together, got no {missing}")
        if not len(part):
            raise ValueError("the part must hold at least one image, got none")
        if drop_last and len(part) < batch_size:
            raise ValueError(
                f"with drop_last batch_size must be at most the {len(part)} images, "
                f"got {batch_size}; make it smaller"
            )
        self.augmentation = Augmentation(augment, len(part.class_names), seed)
        if self.augmentation.mixes and not normalise:
            raise ValueError(
                "images must be normalised to be mixed, got normalise=False; leave "
                "out mixup and cutmix, or normalise"
            )
        self.part = part
        self.batch_size = batch_size
        self.seed = check_seed(seed)
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.normalise = normalise
        self._mean = mean
        self._std = std
        self.prefetch = prefetch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of the part, (N,), in the order of this epoch."""
        check_int("epoch", epoch, 0)
        if not self.shuffle:
            return np.arange(len(self.part))
        return permutation(self.seed, epoch, len(self.part))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch (from 0), from batch number `start` on."""
        order = self.order(epoch)
        if not 0 <= start <= len(self):
            raise ValueError(
                f"start must be 0 to the {len(self)} batches of an epoch, got {start}"
            )
        steps = range(start, len(self))
        if self.prefetch:
            return self._made_ahead(epoch, order, steps)
        return (self._batch(epoch, order, step) for step in steps)

    def _batch(self, epoch: int, order: npt.NDArray[np.int64], step: int) -> Batch:
        part, augmentation = self.part, self.augmentation
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        indices, labels = rows.tolist(), part.labels[rows]
        images: Pixels = augmentation.change(part.images[rows], epoch, indices)
        if not self.normalise:
            return Batch(images, labels, rows)
        mean = part.mean if self._mean is None else self._mean
        std = part.std if self._std is None else self._std
        normalised = normalise(images, mean, std)
        if not augmentation.mixes:
            return Batch(normalised, labels, rows)
        return Batch(*augmentation.mix(normalised, labels, epoch, indices), rows)

    def _made_ahead(
        self, epoch: int, order: npt.NDArray[np.int64], steps: range
    ) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, "batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step in steps:
                    waiting.append(pool.submit(self._batch, epoch, order, step))
                    if len(waiting) > self.prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
