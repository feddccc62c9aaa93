"""A person's own pictures, made like those that a network was trained on.

Any size, colour or grey, with transparency, turned by EXIF, dark on light or light on
dark. What was done to a picture is said in words, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parity.data.folder import eight_bit, on_ground
from parity.data.pillow import pillow
from vit_numpy.config import check_choice

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Gray = NDArray[np.float32]
    Mask = NDArray[np.bool_]

STYLES = ("digit", "object", "photo")
BACKGROUNDS = ("auto", "light", "dark")

# What needs Pillow.
_USER = "pictures"

# A digit stands in a 20×20 box of MNIST's 28×28 field, its centre of mass in the
# middle of the field (LeCun et al. 1998, section III.A).
_DIGIT_BOX = 20 / 28

# What is found in a picture is found at this size at most: strokes stay wider than a
# pixel, and the noise of a camera is averaged away.
_WORKING_SIZE = 320
_SHOWN_SIZE = 480

# Grey levels between the darkest and the lightest spot of a picture that shows nothing.
_LEAST_CONTRAST = 24

# Strokes, as a share of the box: nine in ten of MNIST's are 0.11 to 0.22. Thinner ones
# would come out grey and broken at 20 pixels.
_THIN, _USUAL = 0.08, 0.12

# None of 10,000 digits of MNIST fills so much of its box, but for the bar of a 1.
_SOLID = 0.8


@dataclass(frozen=True)
class Prepared:
    """A picture as the network sees it, and how it came to be so.

    Attributes
    ----------
    original : ndarray of shape (h, w, 3), uint8
        The picture as it was given, upright, made smaller to be shown.
    pixels : ndarray of shape (C, H, W), uint8
        What the network is given, before it is normalised.
    steps : tuple of str
        What was done, in order.
    """

    original: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    steps: tuple[str, ...]


def prepare(
    path: Path,
    image_size: tuple[int, int],
    channels: int,
    style: str = "photo",
    background: str = "auto",
) -> Prepared:
    """Read a picture and make it like those that a network was trained on.

    Parameters
    ----------
    path : Path
        Any file that Pillow decodes.
    image_size : tuple of int
        Height and width that the network takes.
    channels : {1, 3}
        Grey or RGB.
    style : {'photo', 'digit', 'object'}
        ``'photo'`` scales the picture to cover the size and cuts it around its centre,
        as pictures of a folder are in training. The other two find what the picture
        shows on a plain background, make it light on dark and cut it out: a digit goes
        into MNIST's box by its centre of mass, its thin strokes made thicker; an object
        fills the whole field, as the clothes of Fashion-MNIST do.
    background : {'auto', 'light', 'dark'}
        Of a digit or an object. By default what the border of the picture shows.

    Returns
    -------
    Prepared

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModuleNotFoundError
        If Pillow is not installed.
    ValueError
        If it cannot be decoded, or shows no digit or object.
    """
    check_choice("style", style, STYLES)
    check_choice("background", background, BACKGROUNDS)
    if channels not in (1, 3):
        raise ValueError(
            f"a picture is grey or RGB, but the network takes {channels} channels"
        )
    picture, steps = _read(path, style)
    shown = picture.convert("RGB")
    shown.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE))
    original = np.asarray(shown)
    if style == "photo":
        pixels = _photo(picture, image_size, channels, steps)
    else:
        grey = picture if picture.mode == "L" else _grey(picture, steps)
        try:
            field = _on_dark(grey, image_size, style, background, steps)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        pixels = np.repeat(field[None], channels, axis=0)
    return Prepared(original, np.ascontiguousarray(pixels), tuple(steps))


def _read(path: Path, style: str) -> tuple[Picture, list[str]]:
    """Return a picture upright, opaque and of 8 bits, as L or RGB, and what was done.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file; if it cannot be decoded.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; give the path of a picture")
    image = pillow("Image", _USER)
    try:
        with image.open(path) as file:
            turn = file.getexif().get(0x0112, 1)
            picture = eight_bit(pillow("ImageOps", _USER).exif_transpose(file), image)
            picture.load()
    except (
        OSError,
        ValueError,
        SyntaxError,  # what Pillow raises for some damaged PNG files
        image.DecompressionBombError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no picture that can be read ({reason})") from None
    steps = [f"{picture.width}×{picture.height}"]
    if turn != 1:
        steps.append("turned upright by its EXIF entry")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        picture = _opaque(picture.convert("RGBA"), style, steps)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB"), steps


def _opaque(picture: Picture, style: str, steps: list[str]) -> Picture:
    """Put a picture with transparent parts on a background that shows what it holds."""
    alpha = np.asarray(picture.getchannel("A"))
    if alpha.min() == 255:
        return picture.convert("RGB")
    opacity = alpha.astype(np.float64)
    brightness = (np.asarray(picture.convert("L")) * opacity).sum() / max(
        opacity.sum(), 1
    )
    # White strokes on nothing would vanish on white.
    name = "black" if style != "photo" and brightness > 127 else "white"
    steps.append(f"transparent parts made {name}")
    return on_ground(picture, name, pillow("Image", _USER))


def _photo(
    picture: Picture, image_size: tuple[int, int], channels: int, steps: list[str]
) -> NDArray[np.uint8]:
    """Cover the size and cut around the centre: (C, H, W)."""
    height, width = image_size
    mode = "RGB" if channels == 3 else "L"
    if picture.mode != mode:
        steps.append("made grey" if mode == "L" else "grey made RGB")
    fitted = pillow("ImageOps", _USER).fit(
        picture.convert(mode),
        (width, height),
        method=pillow("Image", _USER).Resampling.BICUBIC,
    )
    if picture.size != (width, height):
        if picture.width * height != picture.height * width:
            steps.append("cut to its middle")
        steps.append(f"scaled to {width}×{height}")
    pixels: NDArray[np.uint8] = np.asarray(fitted).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1)


def _grey(picture: Picture, steps: list[str]) -> Picture:
    """Return a picture in grey, or its clearest channel where greys are alike."""
    grey = picture.convert("L")
    if np.ptp(_levels_between(grey)) >= _LEAST_CONTRAST:
        steps.append("made grey")
        return grey
    channels = dict(zip(("red", "green", "blue"), picture.split(), strict=True))
    name = max(channels, key=lambda name: np.ptp(_levels_between(channels[name])))
    steps.append(f"its {name} alone, as its greys are alike")
    return channels[name]


def _levels_between(picture: Picture) -> tuple[float, float]:
    """Return the darkest and the lightest level of a grey picture."""
    if min(picture.size) > 64:
        # A single pixel of noise is no contrast.
        picture = picture.filter(pillow("ImageFilter", _USER).BoxBlur(1))
    levels = np.asarray(picture, np.float32)
    return float(levels.min()), float(levels.max())


def _on_dark(
    picture: Picture,
    image_size: tuple[int, int],
    style: str,
    background: str,
    steps: list[str],
) -> NDArray[np.uint8]:
    """Find what a grey picture shows, and return it light on black: (H, W)."""
    height, width = image_size
    working = picture.copy()
    if max(picture.size) > _WORKING_SIZE:
        working.thumbnail(
            (_WORKING_SIZE, _WORKING_SIZE), pillow("Image", _USER).Resampling.BICUBIC
        )
    low, high = _levels_between(working)
    if high - low < _LEAST_CONTRAST:
        raise ValueError(
            f"must show a {style} on a plain background, got one shade of grey "
            f"({low:.0f} to {high:.0f}); use a picture with more contrast"
        )
    levels = np.asarray(working, np.float32)
    ring = _ring(levels)
    light = background == "light" or (
        background == "auto" and float(np.median(ring)) > (low + high) / 2
    )
    if light:
        steps.append("inverted (it is dark on light)")
        levels = 255 - levels
    if working.size == (width, height) and _fits(levels, style):
        steps.append("otherwise left as it is: it is like those of training")
        return levels.astype(np.uint8)
    levels = _without_ground(levels, high - low, steps)
    if not levels.any():
        raise ValueError(
            f"shows no {style} on a {'light' if light else 'dark'} background; "
            "let the background be found, or name the other one"
        )
    levels, found = _cut_out(levels, style, picture.width / working.width, steps)
    if style == "digit":
        steps += _doubts(found)
        levels = _thickened(levels, found, steps)
    return _placed(levels, image_size, style, steps)


def _without_ground(levels: Gray, contrast: float, steps: list[str]) -> Gray:
    """Return light strokes without what they lie on, be that evenly lit or not."""
    ring = _ring(levels)
    uneven = np.ptp(np.percentile(ring, [5, 95])) > 0.15 * contrast
    if min(levels.shape) > 64 and uneven:
        steps.append("uneven light taken away")
        levels = levels - _illumination(levels)
    else:
        levels = levels - np.median(ring)
    return levels.clip(0)


def _cut_out(
    levels: Gray, style: str, enlarged: float, steps: list[str]
) -> tuple[Gray, Mask]:
    """Return the box of levels around what is shown, and where in it that is."""
    threshold = _otsu(levels)
    found = _main_parts(levels > threshold)
    if style == "digit":
        levels = _strokes(levels, found, threshold)
    box = _bounds(found)
    levels, found = levels[box], found[box]
    height, width = (round(n * enlarged) for n in found.shape)
    steps.append(f"cut out {width}×{height}")
    return levels, found


def _doubts(found: Mask) -> list[str]:
    """Return what speaks against one digit, in the box in which it was found."""
    doubts = []
    if min(found.shape) > 0.5 * max(found.shape) and found.mean() > _SOLID:
        doubts.append("solid as a sheet of paper: show a digit alone")
    inked = found.any(axis=0)
    for gap in np.flatnonzero(~inked):
        sides = found[:, :gap], found[:, gap:]
        if all(
            np.ptp(np.flatnonzero(side.any(axis=1))) > 0.6 * len(found)
            for side in sides
        ):
            doubts.append("like two digits side by side: show one at a time")
            break
    return doubts


def _placed(
    levels: Gray, image_size: tuple[int, int], style: str, steps: list[str]
) -> NDArray[np.uint8]:
    """Return what was cut out, scaled into the middle of a field (H, W)."""
    height, width = image_size
    share = _DIGIT_BOX if style == "digit" else 1.0
    side = max(1, round(share * min(height, width)))
    scale = side / max(levels.shape)
    inner = tuple(max(1, round(scale * n)) for n in levels.shape)
    scaled = _resized(levels, (inner[0], inner[1]))
    scaled *= 255 / max(float(scaled.max()), 1.0)
    steps.append(f"scaled into {side}×{side}")
    field = np.zeros(image_size, np.float32)
    if style == "digit":
        top, left = _by_mass(scaled, image_size)
        where = "its centre of mass"
    else:
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        where = "the box"
    field[top : top + inner[0], left : left + inner[1]] = scaled
    steps.append(f"{where} in the middle of {width}×{height}")
    return field.round().astype(np.uint8)


def _ring(levels: Gray) -> Gray:
    """Return the pixels of the border, a twenty-fifth of the shorter side wide."""
    width = max(1, min(levels.shape) // 25)
    inside = np.ones(levels.shape, bool)
    inside[width:-width, width:-width] = False
    ring: Gray = levels[inside]
    return ring


def _fits(levels: Gray, style: str) -> bool:
    """Tell whether a picture of the right size already is as those of training."""
    if style == "object":
        return True
    height, width = levels.shape
    if float(np.median(_ring(levels))) > 16:
        return False
    box = _bounds(levels > 0)
    extent = max(s.stop - s.start for s in box)
    centred = [
        # A box that its mass would push out of the field stops at the edge.
        abs(centre - n / 2) <= 1.5 or 0 in (s.start, n - s.stop)
        for centre, n, s in zip(_mass_centre(levels), (height, width), box, strict=True)
    ]
    return abs(extent - _DIGIT_BOX * min(height, width)) <= 1 and all(centred)


def _illumination(levels: Gray) -> Gray:
    """Return the background of light strokes: what an opening by a wide square leaves.

    The square is wider than any stroke, so no stroke survives its minimum; the maximum
    after it brings the background back to where it was.
    """
    image, filters = pillow("Image", _USER), pillow("ImageFilter", _USER)
    height, width = levels.shape
    scale = 48 / max(height, width)
    small = image.fromarray(levels.round().astype(np.uint8)).resize(
        (max(1, round(scale * width)), max(1, round(scale * height))),
        image.Resampling.BOX,
    )
    opened = small.filter(filters.MinFilter(15)).filter(filters.MaxFilter(15))
    smooth = opened.filter(filters.GaussianBlur(3))
    return np.asarray(
        smooth.resize((width, height), image.Resampling.BICUBIC), np.float32
    )


def _otsu(levels: Gray) -> float:
    """Return the level that parts background and ink with the most variance between.

    References
    ----------
    Otsu 1979, "A Threshold Selection Method from Gray-Level Histograms".
    """
    counts, edges = np.histogram(levels, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = levels.size - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums / below - (sums[-1] - sums) / above
    between = np.where((below > 0) & (above > 0), below * above * apart**2, 0.0)
    # Between two clear groups all levels are equally good: their middle is.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def _main_parts(mask: Mask) -> Mask:
    """Leave out specks, and what touches the border where something else does not."""
    parts = list(_components(mask))
    inner = [part for part in parts if not _touches(part, mask.shape)]
    largest = max(len(part) for part in parts)
    if inner and max(len(part) for part in inner) >= largest / 10:
        parts = inner
        largest = max(len(part) for part in parts)
    kept = np.zeros_like(mask)
    for part in parts:
        if len(part) >= 0.03 * largest:
            rows, columns = zip(*part, strict=True)
            kept[rows, columns] = True
    return kept


def _components(mask: Mask) -> Iterator[list[tuple[int, int]]]:
    """Yield the pixels of each connected part, corners connecting too."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        part = [left.pop()]
        for y, x in part:
            for neighbour in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    part.append(neighbour)
        yield part


def _touches(part: list[tuple[int, int]], shape: tuple[int, ...]) -> bool:
    height, width = shape
    return any(y in (0, height - 1) or x in (0, width - 1) for y, x in part)


def _strokes(levels: Gray, found: Mask, threshold: float) -> Gray:
    """Return strokes alone, their ink at 255 and the paper at 0."""
    reach = 2 * max(1, max(levels.shape) // 100) + 1
    near = _widest(found.astype(np.float32), reach) > 0
    floor = threshold / 4
    ink = max(float(np.median(levels[found])), floor + 1)
    spread = (levels - floor) * (255 / (ink - floor))
    strokes: Gray = np.where(near, spread.clip(0, 255), 0).astype(np.float32)
    return strokes


def _thickened(levels: Gray, found: Mask, steps: list[str]) -> Gray:
    """Make strokes wider that would vanish at the size of the network."""
    box = max(found.shape)
    width = _stroke_width(found)
    if width >= _THIN * box:
        return levels
    reach = round((_USUAL * box - width) / 2)
    if reach < 1:
        return levels
    steps.append(
        f"strokes made thicker, from {width / box:.0%} to "
        f"{(width + 2 * reach) / box:.0%} of its size"
    )
    return _widest(np.pad(levels, reach), 2 * reach + 1)


def _stroke_width(mask: Mask) -> float:
    """Return twice the area over the border: for a long band, its width in pixels."""
    padded = np.pad(mask, 1)
    inside = (
        padded[1:-1, 1:-1]
        & padded[:-2, 1:-1]
        & padded[2:, 1:-1]
        & padded[1:-1, :-2]
        & padded[1:-1, 2:]
    )
    return float(2 * mask.sum() / max(int(mask.sum() - inside.sum()), 1))


def _widest(levels: Gray, side: int) -> Gray:
    """Return the largest level within a square of odd side around each pixel."""
    reach = side // 2
    out = levels
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (reach, reach)
        padded = np.pad(out, padding)
        windows = np.lib.stride_tricks.sliding_window_view(padded, side, axis=axis)
        out = windows.max(axis=-1)
    return out


def _bounds(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns between which a mask is set."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _resized(levels: Gray, shape: tuple[int, int]) -> Gray:
    image = pillow("Image", _USER)
    scaled = image.fromarray(levels.astype(np.float32)).resize(
        (shape[1], shape[0]), image.Resampling.BICUBIC
    )
    return np.asarray(scaled, np.float32).clip(0, None)


def _mass_centre(levels: Gray) -> tuple[float, float]:
    """Return row and column of the centre of mass."""
    total = float(levels.sum(dtype=np.float64))
    rows, columns = (np.arange(n, dtype=np.float64) for n in levels.shape)
    return (
        float(rows @ levels.sum(axis=1) / total),
        float(columns @ levels.sum(axis=0) / total),
    )


def _by_mass(scaled: Gray, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return where to put the box, so that its mass is in the middle of the field."""
    places = []
    for centre, inner, outer in zip(
        _mass_centre(scaled), scaled.shape, image_size, strict=True
    ):
        # MNIST's own centres of mass average 14.0, counted from 0.
        place = round(outer / 2 - centre)
        places.append(min(max(place, 0), outer - inner))
    return places[0], places[1]
