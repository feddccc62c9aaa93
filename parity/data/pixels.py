"""Augmentations that Pillow does, on the CPU, for both backends at once.

What is drawn for an image is a list of operations with their values. The draws are
keyed like all others (`vit_numpy.draws`), and do not depend on threads.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from parity.data.pillow import pillow
from vit_numpy.config import check_int, check_number

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Operations: TypeAlias = list[tuple[str, float]]

# From about so many pixels on, Pillow's work is worth the hand-over to a thread.
_THREADED_PIXELS = 96 * 96
_MOST_THREADS = 4


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in an order of chance.

    Parameters
    ----------
    brightness, contrast, saturation : float, at least 0, default 0
        The factor is uniform in [max(0, 1 - value), 1 + value]; 1 leaves the image.
    hue : float in [0, 0.5], default 0
        The shift is uniform in [-hue, hue], as a share of the whole circle.

    Notes
    -----
    Grey images have neither saturation nor hue, and keep theirs.

    References
    ----------
    Howard 2013, "Some Improvements on Deep Convolutional Neural Network Based Image
    Classification", section 3.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    uniforms: ClassVar[int] = 8

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            value = getattr(self, name)
            check_number(name, value)
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {name}={value}")
        if self.hue > 0.5:
            raise ValueError(
                f"hue must be in [0, 0.5], half of the circle, got hue={self.hue}"
            )

    def draw(self, u: Sequence[float], height: int, width: int) -> Operations:
        """Return the operations, in the order to make them."""
        operations: Operations = []
        for (name, strength), place in zip(
            (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("color", self.saturation),
                ("hue", self.hue),
            ),
            u[:4],
            strict=True,
        ):
            if strength:
                middle = 0.0 if name == "hue" else 1.0
                low = middle - strength if name == "hue" else max(0.0, 1 - strength)
                operations.append((name, low + place * (middle + strength - low)))
        order = sorted(range(len(operations)), key=lambda i: u[4 + i])
        return [operations[i] for i in order]


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Do a few operations of chance, all of the same strength.

    Parameters
    ----------
    num_ops : int, at least 1, default 2
        Operations an image, drawn from fourteen, with replacement.
    magnitude : int in [0, 30], default 9
        Strength of all of them; 30 shears by 0.3, shifts by 45 % of the side, turns
        by 30°, changes colour, contrast, brightness and sharpness by 0.9, keeps 4 bits
        and inverts every value.

    Notes
    -----
    The operations and their ranges are torchvision's. What comes in from outside is
    black, and no pixel is interpolated (nearest neighbour).

    References
    ----------
    Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a
    Reduced Search Space", section 3.
    """

    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_int("num_ops", self.num_ops, 1)
        check_int("magnitude", self.magnitude, 0)
        if self.magnitude > 30:
            raise ValueError(
                f"magnitude must be at most 30, got magnitude={self.magnitude}"
            )

    @property
    def uniforms(self) -> int:
        """The uniform numbers that one image takes."""
        return 2 * self.num_ops

    def draw(self, u: Sequence[float], height: int, width: int) -> Operations:
        """Return the operations, in the order to make them."""
        strength = self.magnitude / 30
        names = tuple(_RAND_AUGMENT)
        operations = []
        for choice, sign in zip(u[0::2], u[1::2], strict=True):
            name = names[int(choice * len(names))]
            signed = strength if sign < 0.5 else -strength
            value = _RAND_AUGMENT[name](strength, signed, height, width)
            operations.append((name, value))
        return operations


PixelTransform: TypeAlias = ColorJitter | RandAugment

PIXEL_TRANSFORMS: dict[str, type[PixelTransform]] = {
    "color_jitter": ColorJitter,
    "rand_augment": RandAugment,
}


def apply_operations(
    images: npt.NDArray[np.uint8], drawn: Sequence[Operations]
) -> npt.NDArray[np.uint8]:
    """Do to each image what was drawn for it, with Pillow.

    Parameters
    ----------
    images : ndarray of shape (B, C, H, W), uint8
        Grey (C = 1) or RGB (C = 3); left as they are.
    drawn : sequence of list of (str, float)
        One entry an image.

    Returns
    -------
    ndarray of shape (B, C, H, W), uint8

    Raises
    ------
    ModuleNotFoundError
        If Pillow is not installed.
    TypeError, ValueError
        If the images are not uint8, or neither grey nor RGB.
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"images must be uint8 for Pillow to change them, got {images.dtype}; "
            "put color_jitter and rand_augment before what makes numbers of them"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(drawn):
        raise ValueError(
            f"images must have the shape ({len(drawn)}, 1 or 3, H, W), "
            f"got {images.shape}"
        )
    from_array = _pillow().fromarray
    changed = images.copy()

    def work(i: int) -> None:
        # No operation, or only such as leave the image: spared the way to Pillow.
        operations = [(n, v) for n, v in drawn[i] if n != "identity"]
        if not operations:
            return
        grey = images.shape[1] == 1
        pixels = images[i, 0] if grey else images[i].transpose(1, 2, 0)
        picture = from_array(np.ascontiguousarray(pixels))
        for name, value in operations:
            picture = _OPERATIONS[name](picture, value)
        result = np.asarray(picture)
        changed[i] = result if grey else result.transpose(2, 0, 1)

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    if threads > 1 and images.shape[2] * images.shape[3] >= _THREADED_PIXELS:
        with ThreadPoolExecutor(threads) as pool:
            # Consuming the results raises what a thread raised.
            list(pool.map(work, range(len(images))))
    else:
        for i in range(len(images)):
            work(i)
    return changed


def _pillow(module: str = "Image") -> Any:
    return pillow(module, "color_jitter and rand_augment")


def _enhance(kind: str) -> Callable[["Picture", float], "Picture"]:
    """Return what blends a picture with a form of it that lacks something."""

    def operation(picture: "Picture", factor: float) -> "Picture":
        enhanced: Picture = getattr(_pillow("ImageEnhance"), kind)(picture).enhance(
            factor
        )
        return enhanced

    return operation


def _sampled(
    matrix: Callable[[float], tuple[float, ...]],
) -> Callable[["Picture", float], "Picture"]:
    """Return what samples a picture where `matrix` says, from output to input."""

    def operation(picture: "Picture", value: float) -> "Picture":
        image = _pillow()
        return picture.transform(
            picture.size,
            image.Transform.AFFINE,
            matrix(value),
            image.Resampling.NEAREST,
        )

    return operation


def _rotate(picture: "Picture", degrees: float) -> "Picture":
    return picture.rotate(degrees)


def _contrast(picture: "Picture", factor: float) -> "Picture":
    """Blend with the mean grey, as Pillow's own operation does, which is slower."""
    image = _pillow()
    mean = int(np.asarray(picture.convert("L")).mean() + 0.5)
    grey = image.new("L", picture.size, mean).convert(picture.mode)
    blended: Picture = image.blend(grey, picture, factor)
    return blended


def _shift_hue(picture: "Picture", share: float) -> "Picture":
    if picture.mode == "L":
        return picture
    image = _pillow()
    hue, saturation, value = picture.convert("HSV").split()
    # Goes round from 255 to 0, as the circle of hues does.
    shifted = np.asarray(hue) + np.uint8(int(share * 255) & 255)
    hsv: Picture = image.merge("HSV", (image.fromarray(shifted), saturation, value))
    return hsv.convert(picture.mode)


def _on_values(
    change: Callable[[npt.NDArray[np.uint8], float], npt.NDArray[np.uint8]],
) -> Callable[["Picture", float], "Picture"]:
    """Return what maps each value to another by itself."""

    def operation(picture: "Picture", value: float) -> "Picture":
        mapped: Picture = _pillow().fromarray(change(np.asarray(picture), value))
        return mapped

    return operation


def _posterize(values: npt.NDArray[np.uint8], bits: float) -> npt.NDArray[np.uint8]:
    return values & np.uint8(256 - (1 << (8 - int(bits))))


def _solarize(values: npt.NDArray[np.uint8], threshold: float) -> npt.NDArray[np.uint8]:
    return np.where(values < threshold, values, ~values)


def _by_itself(kind: str) -> Callable[["Picture", float], "Picture"]:
    """Return what depends on the picture alone."""

    def operation(picture: "Picture", value: float) -> "Picture":
        changed: Picture = getattr(_pillow("ImageOps"), kind)(picture)
        return changed

    return operation


_OPERATIONS: dict[str, Callable[["Picture", float], "Picture"]] = {
    "shear_x": _sampled(lambda v: (1, v, 0, 0, 1, 0)),
    "shear_y": _sampled(lambda v: (1, 0, 0, v, 1, 0)),
    "translate_x": _sampled(lambda v: (1, 0, -v, 0, 1, 0)),
    "translate_y": _sampled(lambda v: (1, 0, 0, 0, 1, -v)),
    "rotate": _rotate,
    "brightness": _enhance("Brightness"),
    "color": _enhance("Color"),
    "contrast": _contrast,
    "sharpness": _enhance("Sharpness"),
    "hue": _shift_hue,
    "posterize": _on_values(_posterize),
    "solarize": _on_values(_solarize),
    "autocontrast": _by_itself("autocontrast"),
    "equalize": _by_itself("equalize"),
}

# An operation's value, from the strength in [0, 1] and the same with a sign of chance,
# and the height and width of the picture.
_RAND_AUGMENT: dict[str, Callable[[float, float, int, int], float]] = {
    "identity": lambda strength, signed, height, width: 0.0,
    "shear_x": lambda strength, signed, height, width: 0.3 * signed,
    "shear_y": lambda strength, signed, height, width: 0.3 * signed,
    "translate_x": lambda strength, signed, height, width: math.trunc(
        150 / 331 * width * signed
    ),
    "translate_y": lambda strength, signed, height, width: math.trunc(
        150 / 331 * height * signed
    ),
    "rotate": lambda strength, signed, height, width: 30 * signed,
    "brightness": lambda strength, signed, height, width: 1 + 0.9 * signed,
    "color": lambda strength, signed, height, width: 1 + 0.9 * signed,
    "contrast": lambda strength, signed, height, width: 1 + 0.9 * signed,
    "sharpness": lambda strength, signed, height, width: 1 + 0.9 * signed,
    "posterize": lambda strength, signed, height, width: 8 - round(4 * strength),
    "solarize": lambda strength, signed, height, width: 255 * (1 - strength),
    "autocontrast": lambda strength, signed, height, width: 0.0,
    "equalize": lambda strength, signed, height, width: 0.0,
}
