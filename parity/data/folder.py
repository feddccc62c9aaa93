"""Pictures in a folder, decoded when a batch asks for them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from parity.data.pillow import pillow
from parity.names import is_utf8

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_USER = "folders of pictures"


class FolderImages:
    """Picture files that look like a uint8 array of shape (N, C, H, W).

    ``images[rows]`` decodes just those pictures, on a few threads (Pillow decodes
    outside the interpreter's lock), so the whole need not fit in memory.  A picture is
    turned as its EXIF entry says, scaled to cover H×W (bicubic, antialiased) and cut to
    it around its centre.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    image_size : tuple of int
        Height and width in pixels.
    channels : {3, 1}
        RGB or grey.
    workers : int, optional
        Threads that decode (by default the number of CPUs, at most 4).

    Attributes
    ----------
    paths : tuple of Path
    shape : tuple of int
        (N, C, H, W).
    dtype : dtype
        uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        paths: Sequence[Path],
        image_size: tuple[int, int],
        channels: int = 3,
        workers: int | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if len(image_size) != 2 or min(image_size) < 1:
            raise ValueError(
                "image_size must be a height and a width of at least 1 pixel, "
                f"got {image_size}"
            )
        self.paths = tuple(paths)
        self.shape = (len(self.paths), channels, *image_size)
        self.workers = min(4, os.cpu_count() or 1) if workers is None else workers

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(
        self, rows: slice | npt.NDArray[np.integer[Any]]
    ) -> npt.NDArray[np.uint8]:
        chosen = np.arange(len(self))[rows]
        out = np.empty((len(chosen), *self.shape[1:]), np.uint8)

        def decode(position: int) -> None:
            out[position] = self.read(self.paths[chosen[position]])

        if self.workers > 1 and len(chosen) > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                # Consuming the results raises what a worker raised.
                list(pool.map(decode, range(len(chosen))))
        else:
            for position in range(len(chosen)):
                decode(position)
        return out

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "FolderImages":
        """Return the same kind of object over some of the files, decoding nothing."""
        paths = [self.paths[row] for row in rows]
        _, channels, height, width = self.shape
        return FolderImages(paths, (height, width), channels, self.workers)

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """Decode one picture to shape (C, H, W).

        Raises
        ------
        ModuleNotFoundError
            If Pillow is not installed.
        ValueError
            If it cannot be decoded.
        """
        _, channels, height, width = self.shape
        image_module = pillow("Image", _USER)
        ops = pillow("ImageOps", _USER)
        try:
            with image_module.open(path) as file:
                picture = eight_bit(ops.exif_transpose(file), image_module)
                if picture.has_transparency_data:
                    picture = on_ground(picture, "white", image_module)
                picture = picture.convert("RGB" if channels == 3 else "L")
                bicubic = image_module.Resampling.BICUBIC
                picture = ops.fit(picture, (width, height), method=bicubic)
        except (
            OSError,
            ValueError,
            SyntaxError,  # what Pillow raises for some damaged PNG files
            image_module.DecompressionBombError,
        ) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} must be a picture that Pillow decodes, got an error "
                f"({reason}); replace it or remove it"
            ) from error
        pixels = np.asarray(picture).reshape(height, width, channels)
        return pixels.transpose(2, 0, 1)


def eight_bit(picture: "Picture", image_module: Any) -> "Picture":
    """Bring modes that ``convert`` clips or warns about to ones it converts well."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its values are not of 16 bits; save it with 8 bits")
        grey: Picture = image_module.fromarray((values >> 8).astype(np.uint8))
        return grey
    if picture.mode == "F":
        raise ValueError("its values are floating-point; save it with 8 bits")
    if "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture


def on_ground(picture: "Picture", colour: str, image_module: Any) -> "Picture":
    """Put a picture with transparent parts on a ground of one colour."""
    picture = picture.convert("RGBA")
    ground = image_module.new("RGBA", picture.size, colour)
    opaque: Picture = image_module.alpha_composite(ground, picture)
    return opaque.convert("RGB")


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and those below it, sorted.

    What is hidden is left out: programs keep copies and thumbnails there.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures under each sub-folder of `folder`, both in sorted order.

    Raises
    ------
    ValueError
        If there are fewer than two sub-folders, or one has no picture, or a name that
        is not UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the data folder {folder} does not exist or is not a folder; "
            "give folder:PATH with a folder that holds one sub-folder a class"
        )
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ValueError(
            f"{folder} must hold at least two sub-folders, one a class, got {found}; "
            "move the pictures of each class into a sub-folder with its name"
        )
    classes = {}
    for name in names:
        if not is_utf8(name):
            raise ValueError(
                f"the class folder {name!a} in {folder} must have a name in UTF-8, "
                "which results are written in; rename it"
            )
        classes[name] = list_pictures(folder / name)
        if not classes[name]:
            raise ValueError(
                f"{folder / name} must hold at least one picture "
                f"({', '.join(SUFFIXES)}), got none; add some or remove it"
            )
    return classes
