"""Augmentation of a batch of images, by parameters that were drawn before.

Each image goes through the functionals of torchvision's transforms v2.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vit_torch._torchvision import import_torchvision
from vit_torch.config import check_int
from vit_torch.draws import (
    Affine,
    Box,
    Corner,
    CutMix,
    HorizontalFlip,
    Mixing,
    MixUp,
    PadCrop,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    Transform,
    Translation,
    VerticalFlip,
    draw,
)
from vit_torch.loss import check_labels


class Augment:
    """A sequence of random transforms.

    Parameters
    ----------
    transforms : sequence of Transform
        Applied in this order.
    seed : int, at least 0, default 0

    Raises
    ------
    ModuleNotFoundError
        In a call, if torchvision is not installed.
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
        height, width = images.shape[2:]
        for place, transform in enumerate(self.transforms):
            drawn = draw(transform, self.seed, epoch, indices, height, width, place)
            images = apply(transform, images, drawn)
        return images


class Mix:
    """Mixing of the images of a batch, and of their labels with them.

    An image is mixed once: where there are several transforms, a later one passes over
    the images that an earlier one has mixed, so that ``[MixUp(p=0.5), CutMix()]`` gives
    each to half of the images. The partner is always as it was before any mixing.

    Parameters
    ----------
    transforms : sequence of MixUp and CutMix
    num_classes : int, at least 1
        Width K of the soft targets.
    seed : int, at least 0, default 0

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range; in a call, if the lengths
        differ or the images are not floating-point.
    """

    def __init__(
        self, transforms: Sequence[Mixing], num_classes: int, seed: int = 0
    ) -> None:
        check_int("num_classes", num_classes, 1)
        check_int("seed", seed, 0)
        check_mixing(transforms)
        self.transforms = tuple(transforms)
        self.num_classes = num_classes
        self.seed = seed

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        epoch: int,
        indices: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B,) -> (B, C, H, W), (B, K) soft targets of the same dtype."""
        check_images(images, len(indices))
        check_labels(labels, len(images), self.num_classes)
        if not images.is_floating_point():
            raise TypeError(
                "images must be floating-point to be mixed, got "
                f"{str(images.dtype).removeprefix('torch.')}; normalise them first"
            )
        height, width = images.shape[2:]
        partners = images.roll(1, 0)
        own = torch.ones(len(images), dtype=torch.float64, device=images.device)
        for place, transform in enumerate(self.transforms):
            drawn = draw(transform, self.seed, epoch, indices, height, width, place)
            drawn = [
                d if o == 1 else None for d, o in zip(drawn, own.tolist(), strict=True)
            ]
            if isinstance(transform, MixUp):
                images, shares = mix_up(images, partners, drawn)
            else:
                images, shares = cut_mix(images, partners, drawn)
            own *= shares
        targets = one_hot(labels.long(), self.num_classes).to(images.dtype)
        share = own[:, None].to(images.dtype)
        rest = (1 - own)[:, None].to(images.dtype)
        return images, share * targets + rest * targets.roll(1, 0)


def apply(transform: Transform, images: Tensor, drawn: Sequence[Any]) -> Tensor:
    """Do to each image what was drawn for it: (B, C, H, W) -> (B, C, H, W).

    Parameters
    ----------
    transform : Transform
    images : Tensor of shape (B, C, H, W)
        uint8 or floating-point; left as they are. Interpolated uint8 images are
        rounded.
    drawn : sequence
        One entry an image, as `vit_torch.draws.draw` returns.

    Raises
    ------
    TypeError, ValueError
        If there is no such transform, or the lengths differ.
    """
    check_images(images, len(drawn))
    match transform:
        case HorizontalFlip():
            return horizontal_flip(images, drawn)
        case VerticalFlip():
            return vertical_flip(images, drawn)
        case PadCrop():
            return pad_crop(images, drawn, transform.padding)
        case RandomResizedCrop():
            return resized_crop(images, drawn)
        case Rotation():
            return rotate(images, drawn)
        case Translation():
            return translate(images, drawn)
        case Affine():
            return affine(images, drawn)
        case RandomErasing():
            return erase(images, drawn, transform.fill)
    raise TypeError(
        "transform must be one that changes images one by one, "
        f"got {type(transform).__name__}"
    )


def horizontal_flip(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Mirror the images that are marked, left to right."""
    marked = torch.tensor(flips, dtype=torch.bool, device=images.device)
    flipped = _functional().horizontal_flip(images)
    return torch.where(marked[:, None, None, None], flipped, images)


def vertical_flip(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Mirror the images that are marked, top to bottom."""
    marked = torch.tensor(flips, dtype=torch.bool, device=images.device)
    flipped = _functional().vertical_flip(images)
    return torch.where(marked[:, None, None, None], flipped, images)


def pad_crop(images: Tensor, corners: Sequence[Corner], padding: int) -> Tensor:
    """Cut each image out at its (top, left) corner, after padding with zeros."""
    functional = _functional()
    height, width = images.shape[2:]
    return _each(
        lambda image, corner: functional.crop(image, *corner, height, width),
        functional.pad(images, [padding]),
        corners,
        images,
    )


def translate(images: Tensor, shifts: Sequence[tuple[int, int]]) -> Tensor:
    """Shift each image by its pixels (right, down); zeros come in."""
    functional = _functional()
    return _each(
        lambda image, shift: functional.affine(
            image, angle=0.0, translate=list(shift), scale=1.0, shear=[0.0, 0.0]
        ),
        images,
        shifts,
        images,
    )


def resized_crop(images: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Scale each image's (top, left, height, width) to the whole, bilinearly.

    Without antialiasing.
    """
    functional = _functional()
    size = list(images.shape[2:])
    return _each(
        lambda image, box: functional.resized_crop(
            image, *box, size=size, interpolation=_bilinear(), antialias=False
        ),
        images,
        boxes,
        images,
    )


def rotate(images: Tensor, angles: Sequence[float]) -> Tensor:
    """Turn each image by its angle in degrees, counter-clockwise."""
    functional = _functional()
    return _each(
        lambda image, angle: functional.rotate(image, angle, _bilinear()),
        images,
        angles,
        images,
    )


def affine(
    images: Tensor, changes: Sequence[tuple[float, int, int, float, float]]
) -> Tensor:
    """Shear, scale, turn and shift each image around its centre.

    A change is (angle, pixels right, pixels down, magnification, shear angle); angles
    are in degrees, and turn counter-clockwise. Sampling is bilinear, and zero outside.
    """
    functional = _functional()

    def change(image: Tensor, values: tuple[float, int, int, float, float]) -> Tensor:
        angle, right, down, scale, shear = values
        return functional.affine(
            image,
            angle=-angle,  # torchvision's turns clockwise, unlike its rotate
            translate=[right, down],
            scale=scale,
            shear=[shear, 0.0],
            interpolation=_bilinear(),
        )

    return _each(change, images, changes, images)


def erase(images: Tensor, boxes: Sequence[Box | None], fill: float) -> Tensor:
    """Fill each image's (top, left, height, width), where it has one."""
    functional = _functional()
    value = images.new_full((1, 1, 1), fill)
    return _each(
        lambda image, box: functional.erase(image, *box, value) if box else image,
        images,
        boxes,
        images,
    )


def mix_up(
    images: Tensor, partners: Tensor, shares: Sequence[float | None]
) -> tuple[Tensor, Tensor]:
    """Return share · image + (1 - share) · partner, and the shares (B,).

    Where there is no share, the image stays.
    """
    own = torch.tensor(
        [1.0 if share is None else share for share in shares],
        dtype=torch.float64,
        device=images.device,
    )
    column = own[:, None, None, None]
    mixed = partners * (1 - column).to(images.dtype)
    mixed += images * column.to(images.dtype)
    return mixed, own


def cut_mix(
    images: Tensor, partners: Tensor, boxes: Sequence[Box | None]
) -> tuple[Tensor, Tensor]:
    """Return images with boxes of their partners, and the shares (B,) that stay.

    Boxes are (top, left, height, width); where there is none, the image stays.
    """
    mixed = images.clone()
    own = torch.ones(len(images), dtype=torch.float64, device=images.device)
    area = images.shape[2] * images.shape[3]
    for i, box in enumerate(boxes):
        if box is not None:
            top, left, rows, columns = box
            inside = (
                i,
                slice(None),
                slice(top, top + rows),
                slice(left, left + columns),
            )
            mixed[inside] = partners[inside]
            own[i] = 1 - rows * columns / area
    return mixed, own


def check_images(images: Tensor, count: int) -> None:
    """Raise unless `images` is (B, C, H, W) with one image a drawn entry."""
    if images.ndim != 4 or len(images) != count:
        raise ValueError(
            f"images must have shape ({count}, C, H, W), one for each entry drawn, "
            f"got shape {tuple(images.shape)}"
        )


def check_mixing(transforms: Sequence[Mixing]) -> None:
    """Raise unless every transform is a MixUp or a CutMix that meets some images."""
    for transform in transforms:
        if not isinstance(transform, MixUp | CutMix):
            raise TypeError(
                f"transforms must be MixUp or CutMix, got {type(transform).__name__}"
            )
    for earlier, later in pairwise(transforms):
        if earlier.p == 1:
            raise ValueError(
                f"{type(earlier).__name__} with p=1 mixes every image, and leaves none "
                f"to {type(later).__name__}; give it p=0.5"
            )


def _each(
    function: Callable[[Tensor, Any], Tensor],
    images: Tensor,
    drawn: Sequence[Any],
    like: Tensor,
) -> Tensor:
    """Return function(image, entry) of every image; without any, what is `like`."""
    changed = [function(i, d) for i, d in zip(images, drawn, strict=True)]
    return torch.stack(changed) if changed else like


def _functional() -> ModuleType:
    """Return torchvision's functionals, which take the parameters drawn."""
    try:
        import_torchvision()
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ModuleNotFoundError(
            "augmentation with vit_torch needs torchvision, which is not installed; "
            "pip install 'vit-parity[torch]'",
            name="torchvision",
        ) from None
    return import_module("torchvision.transforms.v2.functional")


def _bilinear() -> Any:
    return import_module("torchvision.transforms").InterpolationMode.BILINEAR
