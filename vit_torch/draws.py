"""Random augmentations as data: what each image gets, drawn apart from doing it.

A transform here says only what is drawn; `augment.apply` does it to pixels. The draws
are pure Python and depend on (seed, epoch, image, transform) alone, so that both
backends change the same images in the same way, in any order and however batched.
Ranges are torchvision's where it has the transform and none is said to differ.

This file is the same, byte for byte, in `vit_numpy` and `vit_torch`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from struct import Struct
from typing import Any, ClassVar, Protocol

from .config import (
    check_between,
    check_choice,
    check_int,
    check_positive,
    unknown,
)

Corner = tuple[int, int]
Box = tuple[int, int, int, int]

# Rectangles of a drawn area and shape may not fit into the image: so many are tried.
_TRIES = 10

_BLOCK_BYTES = 64
_BLOCK_WORDS = 8


class Drawable(Protocol):
    """What `draw` asks of a transform."""

    @property
    def uniforms(self) -> int:
        """How many numbers `draw` takes for one image."""
        ...

    def draw(self, u: Sequence[float], height: int, width: int) -> Any:
        """Turn numbers uniform in [0, 1) into what is done to one H×W image."""
        ...


@dataclass(frozen=True, slots=True)
class HorizontalFlip:
    """Mirror an image left to right.

    Parameters
    ----------
    p : float in [0, 1], default 0.5
        Probability of a flip.
    """

    p: float = 0.5

    uniforms: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def draw(self, u: Sequence[float], height: int, width: int) -> bool:
        """Return whether to flip."""
        return u[0] < self.p


@dataclass(frozen=True, slots=True)
class VerticalFlip:
    """Mirror an image top to bottom.

    Parameters
    ----------
    p : float in [0, 1], default 0.5
        Probability of a flip.
    """

    p: float = 0.5

    uniforms: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def draw(self, u: Sequence[float], height: int, width: int) -> bool:
        """Return whether to flip."""
        return u[0] < self.p


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

    uniforms: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_int("padding", self.padding, 1)

    def draw(self, u: Sequence[float], height: int, width: int) -> Corner:
        """Return the top and left of the cut, each in [0, 2 padding]."""
        return _whole(u[0], 0, 2 * self.padding), _whole(u[1], 0, 2 * self.padding)


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Cut a rectangle out, and scale it to the image's own size.

    The scaling is bilinear, without antialiasing.

    Parameters
    ----------
    scale : (float, float) in (0, 1], default (0.08, 1.0)
        Smallest and largest share of the image's area.
    ratio : (float, float) above 0, default (3/4, 4/3)
        Smallest and largest width over height; its logarithm is uniform.

    Notes
    -----
    After ten rectangles that do not fit, the largest around the centre within `ratio`
    is taken.

    References
    ----------
    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    uniforms: ClassVar[int] = 2 * _TRIES + 2

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale, 1)
        _check_scale("ratio", self.ratio, math.inf)

    def draw(self, u: Sequence[float], height: int, width: int) -> Box:
        """Return top, left, height and width of the cut, in pixels."""
        for i in range(_TRIES):
            h, w = _rectangle(u[2 * i : 2 * i + 2], height * width, self)
            if 0 < w <= width and 0 < h <= height:
                top = _whole(u[-2], 0, height - h)
                return top, _whole(u[-1], 0, width - w), h, w
        low, high = self.ratio
        h, w = height, width
        if width / height < low:
            h = round(width / low)
        elif width / height > high:
            w = round(height * high)
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True, slots=True)
class Rotation:
    """Turn an image around its centre; what comes in from outside is zero.

    Parameters
    ----------
    degrees : float in (0, 180], default 15
        The angle is uniform in [-degrees, degrees], counter-clockwise.
    """

    degrees: float = 15.0

    uniforms: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_positive("degrees", self.degrees)
        _check_most("degrees", self.degrees, 180)

    def draw(self, u: Sequence[float], height: int, width: int) -> float:
        """Return the angle in degrees."""
        return _between(u[0], -self.degrees, self.degrees)


@dataclass(frozen=True, slots=True)
class Translation:
    """Shift an image by whole pixels; what comes in from outside is zero.

    Parameters
    ----------
    fraction : float in (0, 1], default 0.1
        Largest shift to either side, as a share of the image's width and height.
    """

    fraction: float = 0.1

    uniforms: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_positive("fraction", self.fraction)
        _check_most("fraction", self.fraction, 1)

    def draw(self, u: Sequence[float], height: int, width: int) -> tuple[int, int]:
        """Return the pixels to the right and down."""
        return _shift(u, self.fraction, height, width)


@dataclass(frozen=True, slots=True)
class Affine:
    """Shear, scale, turn and shift at once, with a single interpolation.

    What comes in from outside is zero.

    Parameters
    ----------
    degrees : float in [0, 180], default 10
        The angle is uniform in [-degrees, degrees], counter-clockwise.
    fraction : float in [0, 1], default 0.1
        Largest shift to either side, as a share of width and height; whole pixels.
    scale : (float, float) in [0.01, 100], default (0.9, 1.1)
        Smallest and largest magnification.
    shear : float in [0, 60], default 0
        The horizontal shear is uniform in [-shear, shear] degrees.

    References
    ----------
    Simard, Steinkraus and Platt 2003, "Best Practices for Convolutional Neural
    Networks Applied to Visual Document Analysis", section 2.
    """

    degrees: float = 10.0
    fraction: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 0.0

    uniforms: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_between("degrees", self.degrees, 0, 180)
        check_between("fraction", self.fraction, 0, 1)
        _check_scale("scale", self.scale, 100, 0.01)
        check_between("shear", self.shear, 0, 60)

    def draw(
        self, u: Sequence[float], height: int, width: int
    ) -> tuple[float, int, int, float, float]:
        """Return angle, pixels right, pixels down, magnification and shear angle."""
        right, down = _shift(u[:2], self.fraction, height, width)
        angle = _between(u[2], -self.degrees, self.degrees)
        shear = _between(u[4], -self.shear, self.shear)
        return angle, right, down, _between(u[3], *self.scale), shear


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """Fill a rectangle of an image with one value.

    Parameters
    ----------
    p : float in [0, 1], default 0.5
        Probability that a rectangle is erased.
    scale : (float, float) in (0, 1], default (0.02, 0.33)
        Smallest and largest share of the image's area.
    ratio : (float, float) above 0, default (0.3, 3.3)
        Smallest and largest height over width; its logarithm is uniform.
    fill : float in [0, 255], default 0
        The value, as pixels are stored: 0 is black, 255 white.

    Notes
    -----
    After ten rectangles that do not fit, nothing is erased.

    References
    ----------
    Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: float = 0.0

    uniforms: ClassVar[int] = 2 * _TRIES + 3

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _check_scale("scale", self.scale, 1)
        _check_scale("ratio", self.ratio, math.inf)
        check_between("fill", self.fill, 0, 255)

    def draw(self, u: Sequence[float], height: int, width: int) -> Box | None:
        """Return top, left, height and width of the rectangle, if there is one."""
        if u[-3] >= self.p:
            return None
        for i in range(_TRIES):
            w, h = _rectangle(u[2 * i : 2 * i + 2], height * width, self)
            if 0 < h < height and 0 < w < width:
                top = _whole(u[-2], 0, height - h)
                return top, _whole(u[-1], 0, width - w), h, w
        return None


# A Beta variable takes so many numbers; see `_beta`.
_BETA_DRAWS = 16


@dataclass(frozen=True, slots=True)
class MixUp:
    """Mix an image and its label with those of the image before it in the batch.

    Parameters
    ----------
    alpha : float above 0, default 0.8 (torchvision's is 1)
        The image's own share is drawn from Beta(alpha, alpha), for each image.
    p : float in [0, 1], default 1
        Probability that an image is mixed.

    Notes
    -----
    torchvision draws one share for a whole batch; one an image is timm's mode 'elem'.

    References
    ----------
    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 2.
    """

    alpha: float = 0.8
    p: float = 1.0

    uniforms: ClassVar[int] = _BETA_DRAWS + 1

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        _check_probability(self.p)

    def draw(self, u: Sequence[float], height: int, width: int) -> float | None:
        """Return the image's own share, if it is mixed."""
        return _beta(u[:_BETA_DRAWS], self.alpha) if u[-1] < self.p else None


@dataclass(frozen=True, slots=True)
class CutMix:
    """Paste a rectangle of the image before it in the batch over an image.

    The labels are mixed in proportion to the areas.

    Parameters
    ----------
    alpha : float above 0, default 1
        The share that stays is drawn from Beta(alpha, alpha), for each image, before
        the rectangle is cut off at the image's edges.
    p : float in [0, 1], default 1
        Probability that an image is mixed.

    References
    ----------
    Yun et al. 2019, "CutMix", equations 1 and 2.
    """

    alpha: float = 1.0
    p: float = 1.0

    uniforms: ClassVar[int] = _BETA_DRAWS + 3

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        _check_probability(self.p)

    def draw(self, u: Sequence[float], height: int, width: int) -> Box | None:
        """Return top, left, height and width of the rectangle, if there is one."""
        if u[-1] >= self.p:
            return None
        half = 0.5 * math.sqrt(1 - _beta(u[:_BETA_DRAWS], self.alpha))
        y, x = _whole(u[-3], 0, height - 1), _whole(u[-2], 0, width - 1)
        h, w = int(half * height), int(half * width)
        top, left = max(y - h, 0), max(x - w, 0)
        return top, left, min(y + h, height) - top, min(x + w, width) - left


Transform = (
    HorizontalFlip
    | VerticalFlip
    | PadCrop
    | RandomResizedCrop
    | Rotation
    | Translation
    | Affine
    | RandomErasing
)
"""What is done to each image by itself."""

Mixing = MixUp | CutMix
"""What is done to each image with another of its batch, and to its label."""

TRANSFORMS: dict[str, type[Any]] = {
    "flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "pad_crop": PadCrop,
    "random_resized_crop": RandomResizedCrop,
    "rotation": Rotation,
    "translation": Translation,
    "affine": Affine,
    "random_erasing": RandomErasing,
    "mixup": MixUp,
    "cutmix": CutMix,
}


def from_table(
    table: Mapping[str, Any], kinds: Mapping[str, type[Any]] = TRANSFORMS
) -> Any:
    """Build a transform from its name and parameters, as a recipe gives them.

    Parameters
    ----------
    table : mapping
        ``{"name": "pad_crop", "padding": 4}``, say.
    kinds : mapping of str to type, default `TRANSFORMS`
        The transforms by name.

    Raises
    ------
    TypeError
        If `table` is no table, or a value is of the wrong kind.
    ValueError
        For an unknown name or parameter, naming the nearest; and for a value that is
        out of range.
    """
    if not isinstance(table, Mapping):
        raise TypeError(
            "augment must be a list of tables, "
            f'got {table!r} in it; write {{ name = "flip" }}'
        )
    if "name" not in table:
        raise ValueError(
            f"each augment must have a name, one of {', '.join(kinds)}, "
            f"got {dict(table)!r}"
        )
    name = table["name"]
    check_choice("augment", name, kinds)
    known = [f.name for f in fields(kinds[name])]
    values = {key: value for key, value in table.items() if key != "name"}
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown(f"{name} parameter", key, known))
        if isinstance(value, list):
            values[key] = tuple(value)
    return kinds[name](**values)


def draw(
    transform: Drawable,
    seed: int,
    epoch: int,
    indices: Iterable[int],
    height: int,
    width: int,
    place: int = 0,
) -> list[Any]:
    """Return what `transform` does to each of some images in one epoch.

    Parameters
    ----------
    transform : Transform, Mixing, or any Drawable
    seed, epoch : int, at least 0
    indices : iterable of int
        The images' places in the data set.
    height, width : int
        Size of the images in pixels.
    place : int, default 0
        Which transform of a sequence this is, so that two of a kind draw apart.

    Returns
    -------
    list
        One entry an image, as the transform's own `draw` makes it.
    """
    check_int("seed", seed, 0)
    check_int("epoch", epoch, 0)
    blocks = -(-transform.uniforms // _BLOCK_WORDS)
    unpack = Struct(f"<{transform.uniforms}Q").unpack_from
    key = f"{type(transform).__name__} {place} {seed} {epoch}"
    return [
        # A double holds the upper 53 bits exactly.
        transform.draw([(w >> 11) * 2.0**-53 for w in unpack(block)], height, width)
        for block in random_blocks(key, indices, blocks)
    ]


def random_blocks(key: str, indices: Iterable[int], blocks: int = 1) -> list[bytes]:
    """Return 64 · `blocks` random bytes an index: a pure function of (key, index).

    They are hashes (BLAKE2b) of the key, the index and a counter: independent of one
    another, the same on every machine, and had in any order.
    """
    base = blake2b(f"{key} ".encode(), digest_size=_BLOCK_BYTES)
    result = []
    for index in indices:
        parts = []
        for counter in range(blocks):
            block = base.copy()
            block.update(b"%d %d" % (index, counter))
            parts.append(block.digest())
        result.append(parts[0] if blocks == 1 else b"".join(parts))
    return result


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _whole(u: float, low: int, high: int) -> int:
    """Return a whole number uniform in low to high, both included."""
    return low + int(u * (high - low + 1))


def _shift(
    u: Sequence[float], fraction: float, height: int, width: int
) -> tuple[int, int]:
    right = round(_between(u[0], -fraction * width, fraction * width))
    return right, round(_between(u[1], -fraction * height, fraction * height))


def _rectangle(
    u: Sequence[float], area: int, spec: RandomResizedCrop | RandomErasing
) -> tuple[int, int]:
    """Return two sides of a drawn area; `ratio` is the second over the first."""
    share = _between(u[0], *spec.scale)
    low, high = spec.ratio
    ratio = math.exp(_between(u[1], math.log(low), math.log(high)))
    return round(math.sqrt(share * area / ratio)), round(
        math.sqrt(share * area * ratio)
    )


def _beta(u: Sequence[float], alpha: float) -> float:
    """Return a Beta(alpha, alpha) variable made from uniform ones.

    Ulrich's polar method above one half, Jöhnk's rejection below. The rejection accepts
    at least 78 % of its pairs, and the last of eight is taken as it is: fewer than one
    in 200 000 are off that way (Devroye 1986, "Non-Uniform Random Variate Generation",
    chapter IX, sections 3 and 4).
    """
    if alpha > 0.5:
        radius = math.sqrt(1 - (1 - u[0]) ** (2 / (2 * alpha - 1)))
        return 0.5 + 0.5 * radius * math.cos(2 * math.pi * u[1])
    for i in range(0, len(u), 2):
        # In logarithms, as the powers may underflow; 1 - u is never 0.
        log_x, log_y = math.log(1 - u[i]) / alpha, math.log(1 - u[i + 1]) / alpha
        if math.exp(log_x) + math.exp(log_y) <= 1:
            break
    difference = log_y - log_x
    return 1 / (1 + math.exp(difference)) if difference < 700 else 0.0


def _check_probability(p: Any) -> None:
    check_between("p", p, 0, 1)


def _check_most(name: str, value: float, most: float) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {name}={value}")


def _check_scale(name: str, value: Any, most: float, least: float = 0) -> None:
    """Raise unless `value` is a pair of rising numbers above 0, in [least, most]."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {name}={value!r}")
    for number in value:
        check_positive(name, number)
        _check_most(name, number, most)
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {name}={number}")
    if value[0] > value[1]:
        raise ValueError(
            f"{name} must be a smallest and a largest value, got {name}={value}"
        )
