"""Folders of pictures: decoded only when asked for, and clear when they are wrong."""

import os
import sys

import numpy as np
import pytest

from parity.data import BatchStream, FolderImages, load

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: the extra `train`")


def save(path, height=20, width=30, mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4}.get(mode)
    shape = (height, width, channels) if channels else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(["bee", "ant", "cat"]):
        for i in range(5):
            save(tmp_path / name / f"{i}.png", 20 + i, 30 - i, seed=10 * label + i)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / "bee" / "notes.txt").write_text("not a picture")
    save(tmp_path / "bee" / ".thumbnails" / "0.png")
    save(tmp_path / "bee" / "._0.png")
    return tmp_path


def test_classes_are_sorted_and_split(folder):
    dataset = load(f"folder:{folder}", image_size=16)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.train_images.shape == (12, 3, 16, 16)
    assert dataset.test_images.shape == (3, 3, 16, 16)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [4, 4, 4])
    np.testing.assert_array_equal(dataset.test_labels, [0, 1, 2])
    for path, label in zip(
        dataset.train_images.paths, dataset.train_labels, strict=True
    ):
        assert path.parent.name == dataset.class_names[label]
    used = set(dataset.train_images.paths) | set(dataset.test_images.paths)
    assert len(used) == 15
    again = load(f"folder:{folder}", image_size=16)
    assert again.test_images.paths == dataset.test_images.paths
    seeds = [load(f"folder:{folder}", seed=s).test_images.paths for s in range(5)]
    assert len(set(seeds)) > 1


def test_train_and_test_folders(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("x", "y"):
            for i in range(count):
                save(tmp_path / part / name / "deeper" / f"{i}.JPG", seed=i)
    dataset = load(f"folder:{tmp_path}", image_size=(8, 12), channels=1)
    assert dataset.train_images.shape == (6, 1, 8, 12)
    assert dataset.test_images.shape == (4, 1, 8, 12)
    save(tmp_path / "val" / "z" / "0.png")
    with pytest.raises(ValueError, match=r"only classes that .* holds, got 'z'"):
        load(f"folder:{tmp_path}")


def test_pictures_are_decoded_only_when_asked_for(folder, monkeypatch):
    decoded = []
    original = FolderImages.read

    def counting(self, path):
        decoded.append(path)
        return original(self, path)

    monkeypatch.setattr(FolderImages, "read", counting)
    dataset = load(f"folder:{folder}", image_size=16)
    part, _ = dataset.split(0.25)
    stream = BatchStream(part, 4, seed=0, normalise=False)
    assert not decoded
    batch = next(stream.epoch(0))
    assert batch.images.shape == (4, 3, 16, 16)
    assert sorted(decoded) == sorted(part.images.paths[i] for i in batch.indices)


def test_rows_match_their_files_with_and_without_threads(folder):
    images = load(f"folder:{folder}", image_size=16).train_images
    alone = FolderImages(images.paths, (16, 16), workers=1)
    threaded = FolderImages(images.paths, (16, 16), workers=4)
    rows = np.array([7, 0, 11, 3, 3])
    np.testing.assert_array_equal(alone[rows], threaded[rows])
    for row, image in zip(rows, alone[rows], strict=True):
        np.testing.assert_array_equal(image, alone.read(images.paths[row]))
    np.testing.assert_array_equal(alone[2:5], threaded[np.array([2, 3, 4])])
    np.testing.assert_array_equal(alone.take(rows)[:], alone[rows])


def test_statistics_equal_those_of_the_decoded_array(folder):
    dataset = load(f"folder:{folder}", image_size=16)
    pixels = dataset.train_images[:] / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-13)


def test_a_picture_of_the_right_size_is_unchanged(tmp_path):
    pixels = save(tmp_path / "p.png", 16, 12)
    read = FolderImages([tmp_path / "p.png"], (16, 12))[:]
    np.testing.assert_array_equal(read[0], pixels.transpose(2, 0, 1))


def test_pictures_are_cut_at_the_centre_not_squeezed(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert (FolderImages([tmp_path / "p.png"], (10, 10))[:] == 200).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    pixels = save(tmp_path / "p.png", 16, 12, exif=exif)
    read = FolderImages([tmp_path / "p.png"], (12, 16))[:]
    expected = np.rot90(pixels, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(read[0], expected)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = (np.arange(64, dtype=np.uint16) * 1023).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "p.png")
    read = FolderImages([tmp_path / "p.png"], (8, 8), channels=1)[:]
    np.testing.assert_array_equal(read[0, 0], values >> 8)


def test_other_modes(tmp_path):
    save(tmp_path / "alpha.png", mode="RGBA")
    save(tmp_path / "grey.png", mode="L")
    with Image.open(tmp_path / "grey.png") as grey:
        palette = grey.convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    Image.new("1", (9, 9)).save(tmp_path / "bits.png")
    names = ["alpha", "grey", "palette", "bits"]
    images = FolderImages([tmp_path / f"{n}.png" for n in names], (8, 8))[:]
    assert images.shape == (4, 3, 8, 8)
    assert (images[1, 0] == images[1, 2]).all()


def test_unreadable_pictures_are_named(tmp_path):
    save(tmp_path / "good.png", 64, 64)
    whole = (tmp_path / "good.png").read_bytes()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    damaged = {
        "text.png": b"not a picture",
        "empty.jpg": b"",
        "cut.png": whole[: len(whole) // 2],
        "float.tiff": (tmp_path / "float.tiff").read_bytes(),
    }
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        images = FolderImages([tmp_path / "good.png", path], (8, 8))
        with pytest.raises(ValueError, match="must be a picture that Pillow") as caught:
            images[:]
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="followed by the path of a folder"):
        load("folder:")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"at least two sub-folders, .* got none"):
        load(f"folder:{tmp_path}")
    save(tmp_path / "one" / "0.png")
    with pytest.raises(ValueError, match="one a class, got only 'one'"):
        load(f"folder:{tmp_path}")
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match="two must hold at least one picture"):
        load(f"folder:{tmp_path}")
    save(tmp_path / "two" / "0.png")
    with pytest.raises(ValueError, match=r"at least 2 images .* got 1 of class 'one'"):
        load(f"folder:{tmp_path}")
    for name in ("one", "two"):
        save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=r"image_size must be .* at least 1 pixel"):
        load(f"folder:{tmp_path}", image_size=0)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        load(f"folder:{tmp_path}", channels=4)


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    images = load(f"folder:{folder}").train_images
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vit-parity\[train\]'"):
        images[:1]


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="UTF-8 names")
def test_a_class_whose_name_no_file_can_hold_is_refused(folder):
    os.rename(folder / "cat", os.fsencode(folder) + b"/c\xfft")
    with pytest.raises(ValueError, match="must have a name in UTF-8"):
        load(f"folder:{folder}")
