"""Augmentation of a batch of images, by parameters that were drawn before."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import check_int
from vit_numpy.draws import HorizontalFlip, PadCrop, Transform, draw

Images = NDArray[Any]


class Augment:
    """A sequence of random transforms.

    Parameters
    ----------
    transforms : sequence of Transform
        Applied in this order.
    seed : int, at least 0, default 0

    Raises
    ------
    TypeError, ValueError
        If `seed` is no int, or below 0; in a call, if the lengths differ.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int = 0) -> None:
        check_int("seed", seed, 0)
        self.transforms = tuple(transforms)
        self.seed = seed

    def __call__(self, images: Images, epoch: int, indices: Sequence[int]) -> Images:
        """(B, C, H, W) -> (B, C, H, W); `indices` (B,) are places in the data set."""
        check_images(images, len(indices))
        for place, transform in enumerate(self.transforms):
            drawn = draw(transform, self.seed, epoch, indices, place)
            images = apply(transform, images, drawn)
        return images


def apply(transform: Transform, images: Images, drawn: Sequence[Any]) -> Images:
    """Do to each image what was drawn for it: (B, C, H, W) -> (B, C, H, W).

    Parameters
    ----------
    transform : Transform
    images : ndarray of shape (B, C, H, W)
        Of any dtype; left as they are.
    drawn : sequence
        One entry an image, as `vit_numpy.draws.draw` returns.

    Raises
    ------
    TypeError, ValueError
        If there is no such transform, or the lengths differ.
    """
    check_images(images, len(drawn))
    if isinstance(transform, HorizontalFlip):
        return horizontal_flip(images, drawn)
    if isinstance(transform, PadCrop):
        return pad_crop(images, drawn, transform.padding)
    raise TypeError(
        f"transform must be HorizontalFlip or PadCrop, got {type(transform).__name__}"
    )


def horizontal_flip(images: Images, flips: Sequence[bool]) -> Images:
    """Mirror the images that are marked."""
    flipped = images.copy()
    marked = np.asarray(flips, bool)
    flipped[marked] = images[marked, :, :, ::-1]
    return flipped


def pad_crop(
    images: Images, corners: Sequence[tuple[int, int]], padding: int
) -> Images:
    """Cut each image out at its (top, left) corner, after padding with zeros."""
    height, width = images.shape[2:]
    sides = (padding, padding)
    padded = np.pad(images, ((0, 0), (0, 0), sides, sides))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    top, left = np.asarray(corners, np.intp).T
    cut: Images = windows[np.arange(len(images)), :, top, left]
    return cut


def check_images(images: Images, count: int) -> None:
    """Raise unless `images` is (B, C, H, W) with one image a drawn entry."""
    if images.ndim != 4 or len(images) != count:
        raise ValueError(
            f"images must have shape ({count}, C, H, W), one for each entry drawn, "
            f"got shape {images.shape}"
        )
