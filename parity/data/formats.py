"""Readers and writers of the IDX and CIFAR-10 binary formats.

A file is read whole or refused: every malformed one is a ``ValueError`` of one line
that names the file, the rule, what was found and the likely fix.  Files compressed with
gzip are recognised by their content, whatever their name.

References
----------
LeCun, Cortes and Burges, "The MNIST database of handwritten digits": the IDX format.
Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009): the CIFAR-10
binary version, records of one label byte and 3072 bytes of red, green and blue planes.
"""

import gzip
import io
import math
import os
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

StrPath: TypeAlias = str | os.PathLike[str]

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 22

_IDX_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_IDX_CODES = {dtype.newbyteorder("="): code for code, dtype in _IDX_TYPES.items()}

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR10_SHAPE = (3, 32, 32)
_CIFAR10_RECORD = 1 + math.prod(_CIFAR10_SHAPE)


def open_maybe_gzip(path: StrPath) -> io.BufferedIOBase:
    """Open `path` for reading, through gzip if its first two bytes say so."""
    with open(path, "rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else open(path, "rb")


def _read_up_to(file: io.BufferedIOBase, size: int | None, path: StrPath) -> bytearray:
    """Read `size` bytes (all when None), or fewer at the end of the file.

    In pieces: a size that a damaged header made huge must not be allocated at once.
    """
    data = bytearray()
    try:
        while size is None or len(data) < size:
            wanted = _PIECE if size is None else min(_PIECE, size - len(data))
            piece = file.read(wanted)
            if not piece:
                break
            data += piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} must be a whole gzip file, got a damaged one ({reason}); "
            "download it again"
        ) from error
    return data


def read_idx(
    path: StrPath, *, dtype: npt.DTypeLike | None = None, ndim: int | None = None
) -> npt.NDArray[Any]:
    """Read an IDX file, plain or compressed with gzip.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    dtype : dtype, optional
        The element type that the file must hold (any of the six of the format if None).
    ndim : int, optional
        The number of dimensions that the file must have (any if None).

    Returns
    -------
    ndarray
        A writable array in the machine's byte order.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is malformed, or holds another type or rank than asked for.
    """
    with open_maybe_gzip(path) as file:
        magic = _read_up_to(file, 4, path)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
            raise ValueError(
                f"{path} must start with an IDX magic number (00 00, a type code of 08 "
                f"to 0e, a rank), got {magic.hex(' ') or 'an empty file'}; "
                "is it an IDX file?"
            )
        stored = _IDX_TYPES[magic[2]]
        rank = magic[3]
        if dtype is not None and stored.newbyteorder("=") != np.dtype(dtype):
            raise ValueError(
                f"{path} must hold elements of type {np.dtype(dtype).name}, "
                f"got {stored.name} (type code {magic[2]:02x}); is it the right file?"
            )
        if ndim is not None and rank != ndim:
            raise ValueError(
                f"{path} must have {ndim} dimension{'s' * (ndim != 1)}, got {rank}; "
                "are the files of images and labels swapped?"
            )
        header = _read_up_to(file, 4 * rank, path)
        if len(header) < 4 * rank:
            raise ValueError(
                f"{path} must have a header of {4 + 4 * rank} bytes, "
                f"got {4 + len(header)}; the file is truncated, download it again"
            )
        shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
        size = math.prod(shape) * stored.itemsize
        data = _read_up_to(file, size + 1, path)
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more"
        cause = "truncated" if len(data) < size else "followed by extra bytes"
        raise ValueError(
            f"{path} must hold {size} bytes of data for its shape {shape}, got "
            f"{found}; the file is {cause}, download it again"
        )
    array = np.frombuffer(data, stored).reshape(shape)
    return array.astype(stored.newbyteorder("="), copy=False)


def write_idx(path: StrPath, array: npt.NDArray[Any]) -> None:
    """Write `array` as an IDX file; compressed if the name of `path` ends in ``.gz``.

    Raises
    ------
    TypeError
        If the format has no code for the array's dtype.
    """
    code = _IDX_CODES.get(array.dtype.newbyteorder("="))
    if code is None:
        known = ", ".join(dtype.name for dtype in _IDX_CODES)
        raise TypeError(
            f"array must have one of the IDX types {known}, got {array.dtype}; "
            "cast it with .astype"
        )
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + np.asarray(array, _IDX_TYPES[code]).tobytes()
    path = Path(path)
    # mtime 0: the same array gives the same bytes.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_cifar10(
    path: StrPath,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read a batch file of the CIFAR-10 binary version, plain or compressed with gzip.

    Returns
    -------
    images : ndarray of shape (N, 3, 32, 32), uint8
    labels : ndarray of shape (N,), int64

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is empty, is not whole records, or holds a label above 9.
    """
    with open_maybe_gzip(path) as file:
        data = _read_up_to(file, None, path)
    if not data or len(data) % _CIFAR10_RECORD:
        raise ValueError(
            f"{path} must hold whole records of {_CIFAR10_RECORD} bytes, got "
            f"{len(data)} bytes ({len(data) % _CIFAR10_RECORD} over); the file is "
            "truncated or is not the binary version of CIFAR-10, download it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR10_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise ValueError(
            f"{path} must hold labels of 0 to 9, got {labels[first]} in record "
            f"{first}; is it the binary version of CIFAR-10 (not CIFAR-100)?"
        )
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_CIFAR10_SHAPE)
    return images, labels


def write_cifar10(
    path: StrPath, images: npt.NDArray[np.uint8], labels: npt.NDArray[Any]
) -> None:
    """Write images of shape (N, 3, 32, 32) and labels of shape (N,) as one batch file.

    Raises
    ------
    ValueError
        If shapes, dtype or labels do not fit the format.
    """
    count = len(images)
    if images.shape != (count, *_CIFAR10_SHAPE) or images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 of shape (N, 3, 32, 32), got {images.dtype} of "
            f"shape {images.shape}"
        )
    if labels.shape != (count,) or not np.isin(labels, range(10)).all():
        raise ValueError(
            f"labels must be {count} whole numbers of 0 to 9, got shape {labels.shape}"
        )
    records = np.empty((count, _CIFAR10_RECORD), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = images.reshape(count, -1)
    Path(path).write_bytes(records.tobytes())
