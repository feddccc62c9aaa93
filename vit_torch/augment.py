"""Augmentation of a batch of images, by parameters that were drawn before.

The pixels are torchvision's to move: its functionals get each image's parameters.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_torch._torchvision import import_torchvision
from vit_torch.config import check_int
from vit_torch.draws import HorizontalFlip, PadCrop, Transform, draw


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

    def __call__(self, images: Tensor, epoch: int, indices: Sequence[int]) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); `indices` (B,) are places in the data set."""
        check_images(images, len(indices))
        for place, transform in enumerate(self.transforms):
            drawn = draw(transform, self.seed, epoch, indices, place)
            images = apply(transform, images, drawn)
        return images


def apply(transform: Transform, images: Tensor, drawn: Sequence[Any]) -> Tensor:
    """Do to each image what was drawn for it: (B, C, H, W) -> (B, C, H, W).

    Parameters
    ----------
    transform : Transform
    images : Tensor of shape (B, C, H, W)
        Of any dtype; left as they are.
    drawn : sequence
        One entry an image, as `vit_torch.draws.draw` returns.

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


def horizontal_flip(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Mirror the images that are marked."""
    functional = _functional()
    return torch.stack(
        [
            functional.horizontal_flip(image) if flip else image
            for image, flip in zip(images, flips, strict=True)
        ]
    )


def pad_crop(
    images: Tensor, corners: Sequence[tuple[int, int]], padding: int
) -> Tensor:
    """Cut each image out at its (top, left) corner, after padding with zeros."""
    functional = _functional()
    height, width = images.shape[2:]
    padded = functional.pad(images, [padding])
    cuts = [
        functional.crop(image, top, left, height, width)
        for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(cuts)


def check_images(images: Tensor, count: int) -> None:
    """Raise unless `images` is (B, C, H, W) with one image a drawn entry."""
    if images.ndim != 4 or len(images) != count:
        raise ValueError(
            f"images must have shape ({count}, C, H, W), one for each entry drawn, "
            f"got shape {tuple(images.shape)}"
        )


def _functional() -> Any:
    """Return torchvision's functionals, whose first import takes a second."""
    import_torchvision()
    return importlib.import_module("torchvision.transforms.v2.functional")
