"""Files of the two formats: round trips, an independent reading, and bad files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from parity.data import read_cifar10, read_idx, write_cifar10, write_idx

IDX_DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", IDX_DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 28, 28), ()])
def test_idx_round_trip(tmp_path, dtype, shape, suffix):
    array = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    path = tmp_path / f"file{suffix}"
    write_idx(path, array)
    back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_idx_bytes_are_those_of_the_specification(tmp_path):
    path = tmp_path / "file"
    array = np.array([[1, -2], [3, 256]], np.int32)
    write_idx(path, array)
    expected = struct.pack(">BBBBII4i", 0, 0, 0x0C, 2, 2, 2, 1, -2, 3, 256)
    assert path.read_bytes() == expected


def test_idx_gzip_is_told_by_content_and_is_deterministic(tmp_path):
    array = np.arange(7, dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    write_idx(tmp_path / "b.gz", array)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    (tmp_path / "a.gz").rename(tmp_path / "plain-name")
    np.testing.assert_array_equal(read_idx(tmp_path / "plain-name"), array)


def test_idx_writer_refuses_a_type_that_the_format_lacks(tmp_path):
    with pytest.raises(TypeError, match=r"IDX types uint8, .* got int64; cast"):
        write_idx(tmp_path / "file", np.zeros(3, np.int64))


GOOD = struct.pack(">BBBBI", 0, 0, 8, 1, 4) + bytes([1, 2, 3, 4])
# Without the time of day, so that every worker collects the same tests.
GZIPPED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must start with an IDX magic number .* got an empty file"),
        (GOOD[:3], "must start with an IDX magic number .* got 00 00 08;"),
        (b"\x89PNG\r\n\x1a\n", "magic number .* got 89 50 4e 47;"),
        (b"\0\0\x0a\x01" + GOOD[4:], "magic number .* got 00 00 0a 01;"),
        (GOOD[:6], "header of 8 bytes, got 6; the file is truncated"),
        (GOOD[:-1], r"hold 4 bytes of data .* \(4,\), got 3 bytes; .* truncated"),
        (GOOD + b"\0", "hold 4 bytes of data .* got more; .* extra bytes"),
        (b"\0\0\x08\xff" + b"\xff" * 1020, "of data for its shape .* got 0 bytes"),
        (GZIPPED[:-9], "must be a whole gzip file, got a damaged one"),
        (GZIPPED[:12], "must be a whole gzip file, got a damaged one"),
        (b"\x1f\x8b" + b"x" * 30, "must be a whole gzip file, got a damaged one"),
        (GZIPPED[:-8] + b"\0" * 8, "gzip file, got a damaged one .*CRC"),
        (gzip.compress(GOOD[:-1], mtime=0), "got 3 bytes; the file is truncated"),
    ],
)
def test_bad_idx_file(tmp_path, content, message):
    path = tmp_path / "the-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text


def test_idx_of_another_kind_than_wanted(tmp_path):
    path = tmp_path / "labels"
    write_idx(path, np.zeros(3, np.int16))
    with pytest.raises(ValueError, match=r"type uint8, got .*int16 \(type code 0b\)"):
        read_idx(path, dtype=np.uint8)
    with pytest.raises(ValueError, match="must have 3 dimensions, got 1; are the"):
        read_idx(path, dtype=np.int16, ndim=3)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read_idx(tmp_path / "nothing-here")


def make_cifar(count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return images, np.arange(count) % 10


def test_cifar_round_trip_and_layout(tmp_path):
    images, labels = make_cifar()
    path = tmp_path / "batch.bin"
    write_cifar10(path, images, labels)
    data = path.read_bytes()
    assert len(data) == 4 * 3073
    # A record is its label, then the red plane row by row, then green, then blue.
    record = data[3073 : 2 * 3073]
    assert record[0] == 1
    assert record[1 + 1024 + 2 * 32 + 5] == images[1, 1, 2, 5]
    back_images, back_labels = read_cifar10(path)
    assert back_labels.dtype == np.int64
    np.testing.assert_array_equal(back_images, images)
    np.testing.assert_array_equal(back_labels, labels)
    (tmp_path / "batch.bin.gz").write_bytes(gzip.compress(data))
    np.testing.assert_array_equal(read_cifar10(tmp_path / "batch.bin.gz")[0], images)


def bad_cifar(kind: str, path: Path) -> None:
    write_cifar10(path, *make_cifar())
    data = bytearray(path.read_bytes())
    if kind == "label":
        data[3 * 3073] = 10
    elif kind == "truncated":
        del data[-1:]
    elif kind == "extra":
        data += b"\0"
    elif kind == "empty":
        data.clear()
    elif kind == "gzip":
        data = bytearray(gzip.compress(bytes(data))[:-20])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("label", "labels of 0 to 9, got 10 in record 3;"),
        ("truncated", r"whole records of 3073 bytes, got 12291 bytes \(3072 over\)"),
        ("extra", r"whole records of 3073 bytes, got 12293 bytes \(1 over\)"),
        ("empty", "whole records of 3073 bytes, got 0 bytes"),
        ("gzip", "must be a whole gzip file"),
    ],
)
def test_bad_cifar_file(tmp_path, kind, message):
    path = tmp_path / "data_batch_1.bin"
    bad_cifar(kind, path)
    with pytest.raises(ValueError, match=message) as caught:
        read_cifar10(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_cifar_writer_refuses_what_does_not_fit(tmp_path):
    images, labels = make_cifar()
    with pytest.raises(ValueError, match="images must be uint8 of shape"):
        write_cifar10(tmp_path / "x", images.astype(np.float32), labels)
    with pytest.raises(ValueError, match="images must be uint8 of shape"):
        write_cifar10(tmp_path / "x", images[:, :1], labels)
    with pytest.raises(ValueError, match="labels must be 4 whole numbers of 0 to 9"):
        write_cifar10(tmp_path / "x", images, labels + 7)
    assert not (tmp_path / "x").exists()
