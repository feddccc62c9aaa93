"""Data sets: the embedded digits, arrays, splits, statistics, and how they are made."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.data import (
    NAMES,
    DataNotFoundError,
    cache_folder,
    from_arrays,
    load,
    read_idx,
    write_idx,
)
from parity.data import subset as subset_module
from parity.data.registry import SUBSET_FILE, read_idx_pair
from parity.names import unknown_name


@pytest.fixture(scope="module")
def digits():
    return load("mnist-subset")


def test_embedded_digits(digits):
    assert digits.name == "mnist-subset"
    assert digits.train_images.shape == (10000, 1, 28, 28)
    assert digits.test_images.shape == (2000, 1, 28, 28)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(digits.train_labels), [1000] * 10)
    np.testing.assert_array_equal(np.bincount(digits.test_labels), [200] * 10)
    assert digits.class_names == tuple("0123456789")
    assert digits.num_classes == 10


def test_embedded_digits_are_pinned(digits):
    """Results that others compare with are of exactly these images, in this order."""
    arrays = (
        digits.train_images,
        digits.train_labels.astype(np.uint8),
        digits.test_images,
        digits.test_labels.astype(np.uint8),
    )
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
    assert digest.hexdigest() == (
        "24d57ae787204e06bae5ad6b9cc0992f1317ae131da1fe28ac6899cd5c8eaf02"
    )


def test_embedded_digits_are_mixed_and_distinct(digits):
    # Sorted by class, an unshuffled batch would hold one digit only.
    assert all(len(set(part)) > 5 for part in digits.train_labels.reshape(100, 100))
    both = np.concatenate([digits.train_images, digits.test_images]).reshape(12000, -1)
    assert len(np.unique(both, axis=0)) == 12000


def test_embedded_digits_look_like_their_labels(digits):
    """The class means of the training part recognise the test part."""
    train = digits.train_images.reshape(10000, -1) / 255.0
    test = digits.test_images.reshape(2000, -1) / 255.0
    means = np.stack([train[digits.train_labels == k].mean(0) for k in range(10)])
    distance = ((test[:, None] - means) ** 2).sum(-1)
    assert (distance.argmin(1) == digits.test_labels).mean() > 0.75


def test_embedded_file_is_small():
    path = Path(subset_module.__file__).with_name(SUBSET_FILE)
    assert path.stat().st_size < 2_000_000


def test_embedded_file_is_what_the_command_makes(digits, tmp_path, capsys):
    folder = cache_folder() / "mnist"
    try:
        full = load("mnist")
    except DataNotFoundError as error:
        pytest.skip(str(error))
    arrays = subset_module.make_subset(folder)
    for part in ("train", "test"):
        images = getattr(digits, f"{part}_images")
        np.testing.assert_array_equal(arrays[f"{part}_images"], images[:, 0])
        rows = subset_module.balanced_rows(
            getattr(full, f"{part}_labels"), 1000 if part == "train" else 200
        )
        np.testing.assert_array_equal(getattr(full, f"{part}_images")[rows], images)
    made = tmp_path / "made.npz"
    assert subset_module.main([str(made)]) == 0
    assert "10000 + 2000 images" in capsys.readouterr().out
    with np.load(made, allow_pickle=False) as opened:
        assert sorted(opened.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened[name], array)


def test_subset_command_without_mnist(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIT_PARITY_CACHE", str(tmp_path))
    assert subset_module.main([str(tmp_path / "out.npz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the data set mnist must be fetched first")
    assert error.count("\n") == 1


def test_balanced_rows_are_evenly_spaced():
    labels = np.tile([0, 1, 1], 10)
    rows = subset_module.balanced_rows(labels, 5)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [5, 5])
    np.testing.assert_array_equal(rows[labels[rows] == 0], [0, 6, 12, 18, 24])
    with pytest.raises(ValueError, match="at least 11 images, got 10 of class 0"):
        subset_module.balanced_rows(labels, 11)


def test_npz_opens_in_plain_numpy_and_is_deterministic(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    subset_module.write_npz(tmp_path / "x.npz", arrays)
    subset_module.write_npz(tmp_path / "y.npz", arrays)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as opened:
        assert opened.files == ["x"]
        np.testing.assert_array_equal(opened["x"], arrays["x"])


def test_what_abbreviates_a_name_is_nearest():
    known = ["flatten", "attention", "attention_pool"]
    assert "did you mean 'attention'" in str(unknown_name("layer", "attn", known))
    assert "did you mean 'flatten'" in str(unknown_name("layer", "flaten", known))
    assert "did you mean 'mnist'" in str(unknown_name("data", "mnits", NAMES))
    assert "choose one of them" in str(unknown_name("layer", "", known))


def test_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'mnist-subset'") as caught:
        load("mnist_subset")
    assert "mnist, fashion-mnist, cifar10, folder:PATH" in str(caught.value)
    with pytest.raises(ValueError, match="choose one of them"):
        load("zzzz")
    with pytest.raises(ValueError, match=r"mnist-subset has images of 28×28, got"):
        load("mnist-subset", image_size=32)
    assert load("mnist-subset", image_size=(28, 28)).num_classes == 10


def random_images(count, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, channels, 6, 5), np.uint8)


def test_from_arrays():
    images = random_images(8)
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    dataset = from_arrays(images, labels, images[:2], np.array([3, 0], np.int16))
    assert dataset.train_images is images
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.class_names == ("0", "1", "2", "3")
    assert len(dataset.train) == 8
    assert len(dataset.test) == 2
    grey = from_arrays(images[:, 0], labels, class_names="abcd")
    assert grey.train_images.shape == (8, 1, 6, 5)
    assert grey.test_images.shape == (0, 1, 6, 5)
    assert grey.class_names == ("a", "b", "c", "d")


IMAGES = random_images(4)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "uint8 .* got float64; convert", (IMAGES / 255, LABELS)),
        (TypeError, "uint8 .* got list; convert", ([[1]], LABELS)),
        (
            TypeError,
            "got int64; convert values of 0 to 255",
            (IMAGES.astype(np.int64), LABELS),
        ),
        (
            ValueError,
            r"\(N, C, H, W\) or \(N, H, W\), got \(6, 5\)",
            (IMAGES[0, 0], LABELS),
        ),
        (
            ValueError,
            r"looks like \(N, H, W, C\); use .transpose",
            (IMAGES.transpose(0, 2, 3, 1), LABELS),
        ),
        (ValueError, "at least one image, got none", (IMAGES[:0], LABELS[:0])),
        (
            ValueError,
            r"shape \(4,\), one label an image, got \(3,",
            (IMAGES, [0, 1, 0]),
        ),
        (TypeError, "train_labels must be whole numbers, got fl", (IMAGES, LABELS / 2)),
        (
            ValueError,
            "train_labels must count the classes from 0, got 3000000000 at 1",
            (IMAGES, [0, 3 * 10**9, 0, 1]),
        ),
        (ValueError, "train_labels must hold .* got -1 at 2", (IMAGES, [0, 1, -1, 1])),
        (
            ValueError,
            "test_labels must hold labels of 0 to 1, got 2 at 3",
            (IMAGES, LABELS, IMAGES, [0, 1, 0, 2]),
        ),
        (ValueError, "given together, got no test_labels", (IMAGES, LABELS, IMAGES)),
        (
            ValueError,
            r"image shape of train_images \(3, 6, 5\), got \(1, 6, 5\)",
            (IMAGES, LABELS, IMAGES[:, :1], LABELS),
        ),
    ],
)
def test_from_arrays_refuses(error, message, arguments):
    with pytest.raises(error, match=message) as caught:
        from_arrays(*arguments)
    assert "\n" not in str(caught.value)


def test_statistics_are_exact():
    images = random_images(1000, seed=3)
    images[:, 2] = images[:, 2] // 64 + 100  # a narrow channel: cancellation shows
    dataset = from_arrays(images, np.arange(1000) % 7)
    pixels = images.astype(np.longdouble) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-15)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-14)
    shuffled = from_arrays(images[::-1], np.arange(1000) % 7)
    np.testing.assert_array_equal(shuffled.mean, dataset.mean)
    np.testing.assert_array_equal(shuffled.std, dataset.std)
    constant = from_arrays(np.full((3, 1, 4, 4), 255, np.uint8), [0, 1, 2])
    assert constant.mean.tolist() == [1.0]
    assert constant.std.tolist() == [0.0]


def test_split_is_stratified_keyed_and_complete(digits):
    train, validation = digits.split(0.1, seed=5)
    np.testing.assert_array_equal(np.bincount(train.labels), [900] * 10)
    np.testing.assert_array_equal(np.bincount(validation.labels), [100] * 10)
    together = np.concatenate([train.images, validation.images]).reshape(10000, -1)
    original = digits.train_images.reshape(10000, -1)
    np.testing.assert_array_equal(
        np.unique(together, axis=0), np.unique(original, axis=0)
    )
    again = digits.split(0.1, seed=5)[1]
    np.testing.assert_array_equal(again.images, validation.images)
    other = digits.split(0.1, seed=6)[1]
    assert (other.images != validation.images).any()
    # What is held out must not reach the normalisation.
    expected = from_arrays(train.images, train.labels)
    np.testing.assert_array_equal(validation.mean, expected.mean)
    np.testing.assert_array_equal(train.std, expected.std)
    np.testing.assert_array_equal(digits.test.mean, digits.mean)


def test_split_keeps_every_class_on_both_sides():
    dataset = from_arrays(random_images(12), [0] * 10 + [1] * 2)
    for fraction in (0.01, 0.99):
        train, validation = dataset.split(fraction)
        assert set(train.labels) == set(validation.labels) == {0, 1}


def test_split_refuses():
    dataset = from_arrays(IMAGES, [0, 0, 0, 1], class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"fraction must be above 0 .* got 1\.5"):
        dataset.split(1.5)
    with pytest.raises(ValueError, match=r"at least 2 images .* got 1 of class 'dog'"):
        dataset.split(0.5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        dataset.split(0.5, seed=-1)


def write_pair(folder, images, labels):
    write_idx(folder / "train-images-idx3-ubyte", images)
    write_idx(folder / "train-labels-idx1-ubyte", labels)


def test_idx_pair(tmp_path):
    images = random_images(4)[:, 0]
    write_pair(tmp_path, images, LABELS.astype(np.uint8))
    back, labels = read_idx_pair(tmp_path, "train")
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(labels, LABELS)
    write_pair(tmp_path, images, np.array([0, 1, 10, 1], np.uint8))
    with pytest.raises(ValueError, match=r"idx1-ubyte must hold .* got 10 at 2"):
        read_idx_pair(tmp_path, "train")
    write_pair(tmp_path, images, np.zeros(3, np.uint8))
    with pytest.raises(
        ValueError, match=r"one label for each of the 4 images .* got 3"
    ):
        read_idx_pair(tmp_path, "train")
    write_pair(tmp_path, np.zeros(4, np.uint8), images)
    with pytest.raises(ValueError, match="must have 3 dimensions, got 1; are the"):
        read_idx_pair(tmp_path, "train")
    assert read_idx(tmp_path / "train-images-idx3-ubyte").shape == (4,)


def test_works_without_the_extras():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'tqdm', 'PIL', 'threadpoolctl'):\n"
        "    sys.modules[name] = None\n"
        "from parity.data import BatchStream, load\n"
        "dataset = load('mnist-subset')\n"
        "batch = next(BatchStream(dataset.train, 10, 0).epoch(0))\n"
        "print(batch.images.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(10, 1, 28, 28)\n"
