"""Augmentation of a batch of images, by parameters that were drawn before."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import check_int
from vit_numpy.draws import (
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
from vit_numpy.loss import check_labels

Images = NDArray[Any]

# Points that are interpolated at a time: their arrays fit into the cache.
_PIECE = 8192


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
        images: Images,
        labels: NDArray[np.integer[Any]],
        epoch: int,
        indices: Sequence[int],
    ) -> tuple[Images, Images]:
        """(B, C, H, W), (B,) -> (B, C, H, W), (B, K) soft targets of the same dtype."""
        check_images(images, len(indices))
        check_labels(labels, len(images), self.num_classes)
        if images.dtype.kind != "f":
            raise TypeError(
                f"images must be floating-point to be mixed, got {images.dtype.name}; "
                "normalise them first"
            )
        height, width = images.shape[2:]
        partners = np.roll(images, 1, axis=0)
        own = np.ones(len(images))
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
        targets = np.zeros((len(labels), self.num_classes), images.dtype)
        targets[np.arange(len(labels)), labels] = 1
        share = own[:, None].astype(images.dtype)
        rest = (1 - own)[:, None].astype(images.dtype)
        return images, share * targets + rest * np.roll(targets, 1, axis=0)


def apply(transform: Transform, images: Images, drawn: Sequence[Any]) -> Images:
    """Do to each image what was drawn for it: (B, C, H, W) -> (B, C, H, W).

    Parameters
    ----------
    transform : Transform
    images : ndarray of shape (B, C, H, W)
        uint8 or floating-point; left as they are. Interpolated uint8 images are
        computed in float32 and rounded.
    drawn : sequence
        One entry an image, as `vit_numpy.draws.draw` returns.

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


def horizontal_flip(images: Images, flips: Sequence[bool]) -> Images:
    """Mirror the images that are marked, left to right."""
    flipped = images.copy()
    marked = np.asarray(flips, bool)
    flipped[marked] = images[marked, :, :, ::-1]
    return flipped


def vertical_flip(images: Images, flips: Sequence[bool]) -> Images:
    """Mirror the images that are marked, top to bottom."""
    flipped = images.copy()
    marked = np.asarray(flips, bool)
    flipped[marked] = images[marked, :, ::-1]
    return flipped


def pad_crop(images: Images, corners: Sequence[Corner], padding: int) -> Images:
    """Cut each image out at its (top, left) corner, after padding with zeros."""
    top, left = np.asarray(corners, np.intp).reshape(-1, 2).T
    return _cut(images, top, left, padding, padding)


def translate(images: Images, shifts: Sequence[tuple[int, int]]) -> Images:
    """Shift each image by its pixels (right, down); zeros come in."""
    right, down = np.asarray(shifts, np.intp).reshape(-1, 2).T
    rows, columns = np.abs(down).max(initial=0), np.abs(right).max(initial=0)
    return _cut(images, rows - down, columns - right, rows, columns)


def resized_crop(images: Images, boxes: Sequence[Box]) -> Images:
    """Scale each image's (top, left, height, width) to the whole, bilinearly.

    A row of the result is a weighted mean of two rows of the image, and a column of two
    columns: a product with one small matrix from each side.
    """
    batch, channels, height, width = images.shape
    top, left, rows, columns = np.asarray(boxes, np.intp).reshape(-1, 4).T
    dtype = _working_dtype(images)
    result = np.empty_like(images)
    count = max(_PIECE // (height * width), 1)
    for first in range(0, batch, count):
        piece = slice(first, first + count)
        down = _interpolation(top[piece], rows[piece], height, dtype)
        across = _interpolation(left[piece], columns[piece], width, dtype)
        scaled = down[:, None] @ images[piece].astype(dtype, copy=False)
        scaled = scaled.reshape(-1, channels * height, width) @ across.mT
        result[piece] = _like(scaled, images).reshape(-1, channels, height, width)
    return result


def rotate(images: Images, angles: Sequence[float]) -> Images:
    """Turn each image by its angle in degrees, counter-clockwise."""
    return affine(images, [(angle, 0, 0, 1.0, 0.0) for angle in angles])


def affine(
    images: Images, changes: Sequence[tuple[float, int, int, float, float]]
) -> Images:
    """Shear, scale, turn and shift each image around its centre.

    A change is (angle, pixels right, pixels down, magnification, shear angle); angles
    are in degrees, and turn counter-clockwise. Sampling is bilinear, and zero outside.
    """
    height, width = images.shape[2:]
    dtype = _working_dtype(images)
    values = np.asarray(changes, np.float64).reshape(-1, 5)
    angle, right, down, scale, shear = values.T[:, :, None]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    tan = np.tan(np.radians(shear))
    # Where a pixel comes from: shifted back, turned back, scaled and sheared back.
    x = np.arange(width) - (width - 1) / 2 - right
    y = np.arange(height) - (height - 1) / 2 - down
    x_of_x, x_of_y = (cos + tan * sin) / scale * x, (tan * cos - sin) / scale * y
    y_of_x, y_of_y = sin / scale * x, cos / scale * y
    x_of_x += (width - 1) / 2
    y_of_y += (height - 1) / 2
    return _sample(
        images,
        x_of_x.astype(dtype)[:, None, :] + x_of_y.astype(dtype)[:, :, None],
        y_of_x.astype(dtype)[:, None, :] + y_of_y.astype(dtype)[:, :, None],
    )


def erase(images: Images, boxes: Sequence[Box | None], fill: float) -> Images:
    """Fill each image's (top, left, height, width), where it has one."""
    erased = images.copy()
    np.copyto(erased, images.dtype.type(fill), where=_inside(images, boxes))
    return erased


def mix_up(
    images: Images, partners: Images, shares: Sequence[float | None]
) -> tuple[Images, NDArray[np.float64]]:
    """Return share · image + (1 - share) · partner, and the shares (B,).

    Where there is no share, the image stays.
    """
    own = np.array([1.0 if share is None else share for share in shares])
    column = own[:, None, None, None]
    mixed = partners * (1 - column).astype(images.dtype)
    mixed += images * column.astype(images.dtype)
    return mixed, own


def cut_mix(
    images: Images, partners: Images, boxes: Sequence[Box | None]
) -> tuple[Images, NDArray[np.float64]]:
    """Return images with boxes of their partners, and the shares (B,) that stay.

    Boxes are (top, left, height, width); where there is none, the image stays.
    """
    height, width = images.shape[2:]
    pasted = [0 if box is None else box[2] * box[3] for box in boxes]
    mixed = np.where(_inside(images, boxes), partners, images)
    return mixed, 1 - np.array(pasted) / (height * width)


def check_images(images: Images, count: int) -> None:
    """Raise unless `images` is (B, C, H, W) with one image a drawn entry."""
    if images.ndim != 4 or len(images) != count:
        raise ValueError(
            f"images must have shape ({count}, C, H, W), one for each entry drawn, "
            f"got shape {images.shape}"
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


def _working_dtype(images: Images) -> Any:
    """Return the dtype to interpolate in: float32, or float64 where that is needed."""
    return np.result_type(images.dtype, np.float32)


def _like(values: Images, images: Images) -> Images:
    """Return interpolated values in the images' dtype, rounded to even if need be."""
    if images.dtype.kind != "f":
        np.rint(values, out=values)
    return values.astype(images.dtype, copy=False)


def _cut(
    images: Images,
    top: NDArray[np.intp],
    left: NDArray[np.intp],
    rows: int,
    columns: int,
) -> Images:
    """Cut H×W out at each image's corner, after padding so many rows and columns."""
    batch, channels, height, width = images.shape
    padded = np.zeros(
        (batch, channels, height + 2 * rows, width + 2 * columns), images.dtype
    )
    padded[:, :, rows : rows + height, columns : columns + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    cut: Images = windows[np.arange(batch), :, top, left]
    return cut


def _inside(images: Images, boxes: Sequence[Box | None]) -> NDArray[np.bool_]:
    """Return which pixels lie in their image's box: (B, 1, H, W)."""
    filled = np.array([box or (0, 0, 0, 0) for box in boxes], np.intp)
    top, left, rows, columns = filled.reshape(-1, 4).T[:, :, None]
    y, x = (np.arange(side) for side in images.shape[2:])
    in_rows = (top <= y) & (y < top + rows)
    in_columns = (left <= x) & (x < left + columns)
    inside: NDArray[np.bool_] = in_rows[:, None, :, None] & in_columns[:, None, None]
    return inside


def _interpolation(
    start: NDArray[np.intp], length: NDArray[np.intp], size: int, dtype: Any
) -> Images:
    """Return the matrices (B, size, size) that scale start:start+length to the whole.

    Pixels are areas: the centre of the first is at one half.
    """
    ratio = (length / size)[:, None]
    source = np.maximum((np.arange(size) + 0.5) * ratio - 0.5, 0)
    first = source.astype(np.intp)
    second = np.minimum(first + 1, length[:, None] - 1)
    weight = source - first
    matrices = np.zeros((len(start), size, size), dtype)
    image, row = np.ogrid[: len(start), :size]
    matrices[image, row, start[:, None] + first] = 1 - weight
    # At the last pixel both are the same.
    matrices[image, row, start[:, None] + second] += weight
    return matrices


def _sample(images: Images, x: Images, y: Images) -> Images:
    """Return images (B, C, H, W) at the points (B, H, W), bilinearly, zero outside."""
    batch, channels, height, width = images.shape
    # A frame of zeros, so that no point near the image needs a test.
    rows, columns = height + 3, width + 3
    framed = np.zeros((channels, batch, rows, columns), images.dtype)
    framed[:, :, 1:-2, 1:-2] = images.transpose(1, 0, 2, 3)
    pixels = framed.reshape(channels, -1)
    start = np.arange(batch).repeat(height)[:, None] * (rows * columns)
    x, y = x.reshape(-1, width), y.reshape(-1, width)
    sampled = np.empty((channels, batch * height, width), images.dtype)
    # In pieces, which stay in the cache.
    lines = max(_PIECE // width, 1)
    for first in range(0, batch * height, lines):
        piece = slice(first, first + lines)
        left_to_right, left = np.modf(np.clip(x[piece], -1, width) + 1)
        top_to_bottom, top = np.modf(np.clip(y[piece], -1, height) + 1)
        place = top.astype(np.intp) * columns + left.astype(np.intp) + start[piece]
        upper = _between(pixels, place, left_to_right)
        lower = _between(pixels, place + columns, left_to_right)
        lower -= upper
        lower *= top_to_bottom
        lower += upper
        sampled[:, piece] = _like(lower, images)
    sampled = sampled.reshape(channels, batch, height, width)
    return np.ascontiguousarray(sampled.transpose(1, 0, 2, 3))


def _between(pixels: Images, place: NDArray[np.intp], weight: Images) -> Images:
    """Return (1 - weight) · pixels[:, place] + weight · pixels[:, place + 1]."""
    start = pixels.take(place, axis=1).astype(weight.dtype, copy=False)
    value = pixels.take(place + 1, axis=1).astype(weight.dtype, copy=False)
    value -= start
    value *= weight
    value += start
    return value
