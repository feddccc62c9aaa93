"""Sheets of pictures with captions, to look at what a data set or a recipe feeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from parity.data.augment import AnyTransform, Augmentation
from parity.data.draws import permutation
from parity.data.registry import Part
from vit_numpy.config import check_int

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_GAP = 10
_FONT_SIZE = 13
_LINE = 17
_INK = (28, 30, 34)
_FAINT = (110, 114, 122)
_PAPER = (255, 255, 255)
_CELL = 96


def contact_sheet(
    images: npt.NDArray[np.uint8],
    captions: Sequence[str] = (),
    *,
    columns: int = 8,
    headings: Sequence[str] = (),
    title: str = "",
) -> "Picture":
    """Return pictures in rows, each with its caption below.

    Parameters
    ----------
    images : ndarray of shape (B, C, H, W), uint8
        Grey (C = 1) or RGB (C = 3). Small ones are enlarged by a whole number, so that
        a pixel stays a square; large ones are reduced.
    captions : sequence of str, optional
        One an image, of up to two lines; a line that is too long is cut.
    columns : int, default 8
        Pictures in a row.
    headings : sequence of str, optional
        What stands above each column.
    title : str, optional
        What stands above all.

    Raises
    ------
    ModuleNotFoundError
        If Pillow is not installed.
    ValueError
        If there is no image, its shape is another, or the captions are not as many.
    """
    check_int("columns", columns, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            "images must have shape (B, 1 or 3, H, W) and hold at least one, "
            f"got {images.shape}"
        )
    if captions and len(captions) != len(images):
        raise ValueError(
            f"captions must be as many as images, got {len(captions)} captions, "
            f"{len(images)} images"
        )
    if len(headings) > columns:
        raise ValueError(
            f"headings must be at most one a column, got {len(headings)} headings, "
            f"{columns} columns"
        )
    image_module, draw_module, font_module = _pillow()
    font = font_module.load_default(_FONT_SIZE)
    columns = min(columns, max(len(images), len(headings)))
    width, height, resample = _cell(images.shape[2], images.shape[3], image_module)
    caption_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    row_height = height + caption_lines * _LINE + _GAP
    top = _GAP + (_LINE + 6 if title else 0) + (_LINE if headings else 0)
    rows = -(-len(images) // columns)
    column_width = max(width, _CELL) + _GAP
    size = (columns * column_width + _GAP, top + rows * row_height)
    sheet: Picture = image_module.new("RGB", size, _PAPER)
    pen = draw_module.Draw(sheet)
    if title:
        pen.text((_GAP, _GAP), _fit(title, size[0] - 2 * _GAP, font), _INK, font)
    for column, heading in enumerate(headings):
        place = (_GAP + column * column_width, top - _LINE)
        pen.text(place, _fit(heading, column_width - 4, font), _FAINT, font)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, upper = _GAP + column * column_width, top + row * row_height
        rgb = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        picture = image_module.fromarray(np.ascontiguousarray(rgb))
        sheet.paste(picture.resize((width, height), resample), (left, upper))
        lines = captions[i].split("\n") if captions else []
        for number, line in enumerate(lines):
            place = (left, upper + height + 1 + number * _LINE)
            pen.text(place, _fit(line, column_width - 4, font), _INK, font)
    return sheet


def augmentation_sheet(
    part: Part,
    augment: Sequence[AnyTransform],
    *,
    count: int = 8,
    epochs: int = 8,
    seed: int = 0,
    title: str = "",
) -> "Picture":
    """Return a row an image: as it is stored, then as each epoch of a run sees it.

    Parameters
    ----------
    part : Part
        What the images are taken from, by `seed`.
    augment : sequence of transforms
        As `BatchStream` takes them. Where images are mixed, the partner is the image of
        the row above, and the caption gives the shares.
    count : int, default 8
        Images, and so rows.
    epochs : int, default 8
        Epochs from the first on, and so columns beside that of the stored images.
    seed : int, default 0
        The seed of the run.
    title : str, optional

    Raises
    ------
    ModuleNotFoundError
        If Pillow is not installed.
    TypeError, ValueError
        If a number is no int or below 1.
    """
    check_int("count", count, 1)
    check_int("epochs", epochs, 1)
    rows = permutation(seed, 0, len(part))[:count]
    indices, labels = rows.tolist(), part.labels[rows]
    names = part.class_names
    augmentation = Augmentation(augment, len(names), seed)
    stored = part.images[rows]
    looks = [stored]
    captions = [[names[label] for label in labels]]
    for epoch in range(epochs):
        images = augmentation.change(stored, epoch, indices)
        shares = np.eye(len(names), dtype=np.float32)[labels]
        if augmentation.mixes:
            numbers = images.astype(np.float32)
            numbers, shares = augmentation.mix(numbers, labels, epoch, indices)
            images = np.rint(numbers).astype(np.uint8)
        looks.append(images)
        captions.append(
            [_shares(row, names) if augmentation.mixes else "" for row in shares]
        )
    return contact_sheet(
        np.stack(looks, axis=1).reshape(-1, *stored.shape[1:]),
        [text for row in zip(*captions, strict=True) for text in row],
        columns=epochs + 1,
        headings=["stored", *(f"epoch {epoch + 1}" for epoch in range(epochs))],
        title=title,
    )


def _shares(targets: npt.NDArray[np.float32], names: Sequence[str]) -> str:
    """Say which classes a soft target is made of, the largest share first."""
    order = np.argsort(-targets, kind="stable")[:2]
    # What would be called 0 % is left out.
    known = [(targets[k], names[int(k)]) for k in order if targets[k] >= 0.005]
    if len(known) == 1:
        return known[0][1]
    return "\n".join(f"{share:.0%} {name}" for share, name in known)


def _cell(height: int, width: int, image_module: Any) -> tuple[int, int, Any]:
    """Return width and height of a picture on the sheet, and how it gets that size."""
    longer = max(height, width)
    if longer <= _CELL:
        times = -(-_CELL // longer)
        return width * times, height * times, image_module.Resampling.NEAREST
    scale = 1.5 * _CELL / longer
    resample = image_module.Resampling.LANCZOS
    return max(round(width * scale), 1), max(round(height * scale), 1), resample


def _fit(text: str, width: int, font: Any) -> str:
    """Return `text`, cut so that it is no wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a sheet of pictures needs Pillow, which is not installed; "
            "pip install 'vit-parity[train]'",
            name="PIL",
        ) from error
    return Image, ImageDraw, ImageFont
