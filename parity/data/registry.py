"""Data sets by name, and the one form that they all take.

Nothing here needs torch; Pillow only for folders of pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parity.data.draws import check_seed, permutation
from parity.data.fetching import require
from parity.data.folder import FolderImages, list_classes
from parity.data.formats import CIFAR10_CLASSES, read_cifar10, read_idx
from parity.names import unknown_name
from parity.progress import progress_bar

Images: TypeAlias = npt.NDArray[np.uint8] | FolderImages

NAMES = ("mnist-subset", "mnist", "fashion-mnist", "cifar10", "folder:PATH")
SUBSET_FILE = "digits.npz"

# Data sets of more are not known; a label beyond is no number of a class.
_MOST_CLASSES = 1_000_000

_DIGITS = tuple("0123456789")
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Mean and standard deviation of every pixel of a channel, of values in [0, 1].

    Both come from exact integer sums, so they do not depend on the order of the images.
    They are computed when first asked for: for a folder that decodes each picture once.

    Parameters
    ----------
    images : ndarray or FolderImages of shape (N, C, H, W), uint8

    Attributes
    ----------
    mean, std : ndarray of shape (C,), float64
        ``std`` divides by the number of pixels, not by one less.
    """

    images: Images = field(repr=False)

    @cached_property
    def _moments(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        count, channels, height, width = self.images.shape
        total = np.zeros(channels, np.uint64)
        squares = np.zeros(channels, np.uint64)
        # Pieces bound the memory: of pictures decoded, and of the squares.
        piece = max(1, 2**22 // (channels * height * width))
        shown = None if isinstance(self.images, FolderImages) else False
        with progress_bar("mean and std", count, "image", shown=shown) as advance:
            for start in range(0, count, piece):
                pixels = self.images[start : start + piece]
                total += pixels.sum(axis=(0, 2, 3), dtype=np.uint64)
                # 255² is below 2¹⁶.
                square = np.square(pixels, dtype=np.uint16)
                squares += square.sum(axis=(0, 2, 3), dtype=np.uint64)
                advance(len(pixels))
        number = count * height * width
        mean = np.array([int(t) / (255 * number) for t in total])
        # Python's whole numbers: the difference is exact however close the two are.
        std = np.array(
            [
                (number * int(s) - int(t) ** 2) ** 0.5 / (255 * number)
                for t, s in zip(total, squares, strict=True)
            ]
        )
        return mean, std

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of each channel."""
        return self._moments[0]

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of each channel."""
        return self._moments[1]


@dataclass(frozen=True, eq=False)
class Part:
    """Images with labels: what a stream of batches is made of.

    Parameters
    ----------
    images : ndarray or FolderImages of shape (N, C, H, W), uint8
    labels : ndarray of shape (N,), int64
        0 to K - 1.
    class_names : tuple of str
        K names.
    statistics : ChannelStatistics
        Of the *training* images, whichever part this is.
    """

    images: Images = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    statistics: ChannelStatistics = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of each channel of the training images, of values in [0, 1]."""
        return self.statistics.mean

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of each channel of the training images."""
        return self.statistics.std

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "Part":
        """Return the part that holds only these rows, with the same statistics."""
        images = self.images
        if isinstance(images, FolderImages):
            images = images.take(rows)
        else:
            images = images[rows]
        return replace(self, images=images, labels=self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with their labels.

    Parameters
    ----------
    name : str
    train_images, test_images : ndarray or FolderImages of shape (N, C, H, W), uint8
    train_labels, test_labels : ndarray of shape (N,), int64
        0 to K - 1.
    class_names : tuple of str
        K names.

    Attributes
    ----------
    mean, std : ndarray of shape (C,), float64
        Of the training images, of pixel values in [0, 1].
    train, test : Part
        The two halves as parts for a ``BatchStream``.
    """

    name: str
    train_images: Images = field(repr=False)
    train_labels: npt.NDArray[np.int64] = field(repr=False)
    test_images: Images = field(repr=False)
    test_labels: npt.NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]

    @cached_property
    def _statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self.train_images)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of each channel of the training images, of values in [0, 1]."""
        return self._statistics.mean

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of each channel of the training images."""
        return self._statistics.std

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def train(self) -> Part:
        """The training images."""
        return Part(
            self.train_images, self.train_labels, self.class_names, self._statistics
        )

    @property
    def test(self) -> Part:
        """The test images; its mean and std are those of the training images."""
        return Part(
            self.test_images, self.test_labels, self.class_names, self._statistics
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[Part, Part]:
        """Split the training images into a part to train on and one to validate with.

        Parameters
        ----------
        fraction : float
            The share of each class to validate with, above 0 and below 1; rounded, but
            at least one image of each class stays on either side.
        seed : int
            Which images: the same seed gives the same split everywhere.

        Returns
        -------
        train, validation : Part
            Mean and std of both are those of the images left to train on.

        Raises
        ------
        ValueError
            If the fraction is out of range or a class has a single image.
        """
        if (fraction, seed) not in self._splits:
            kept, held_out = stratified_split(
                self.train_labels, fraction, seed, self.class_names
            )
            train, validation = self.train.take(kept), self.train.take(held_out)
            statistics = ChannelStatistics(train.images)
            self._splits[fraction, seed] = (
                replace(train, statistics=statistics),
                replace(validation, statistics=statistics),
            )
        return self._splits[fraction, seed]

    @cached_property
    def _splits(self) -> dict[tuple[float, int], tuple[Part, Part]]:
        # Kept, as their mean and std may take a pass over thousands of pictures.
        return {}


def stratified_split(
    labels: npt.NDArray[np.int64],
    fraction: float,
    seed: int,
    class_names: Sequence[str],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the sorted rows kept and those held out, `fraction` of each class."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    order = permutation(check_seed(seed), 0, len(labels), "split")
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        if len(rows) < 2:
            raise ValueError(
                "every class must have at least 2 images to be split, got 1 of class "
                f"{class_names[label]!r}; add images or remove the class"
            )
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[rows[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Open a data set by name.

    Parameters
    ----------
    name : str
        ``'mnist-subset'`` (embedded: 10,000 and 2,000 digits), ``'mnist'``,
        ``'fashion-mnist'``, ``'cifar10'`` (these three from the user's cache folder),
        or ``'folder:PATH'``: a folder with a sub-folder of pictures a class, or one
        with such folders named ``train`` and ``test`` (or ``val``, ``valid``,
        ``validation``).
    image_size : int or tuple of int, optional
        Side, or height and width, to which the pictures of a folder are brought (224
        by default).  For the other data sets only their own size is accepted.
    channels : {3, 1}
        For a folder: colour or grey.
    test_fraction : float
        For a folder without a test folder: the share of each class to test with.
    seed : int
        For a folder without a test folder: which pictures those are.

    Returns
    -------
    Dataset

    Raises
    ------
    DataNotFoundError
        If the data set must be fetched first; the message has the command.
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the name is unknown, or a file or folder is not as it must be.
    """
    if name.startswith("folder:"):
        path = name.removeprefix("folder:")
        if not path:
            raise ValueError(
                "folder: must be followed by the path of a folder, got nothing; "
                "write folder:PATH"
            )
        size = 224 if image_size is None else image_size
        if isinstance(size, int):
            size = (size, size)
        return _load_folder(
            Path(path).expanduser(), size, channels, test_fraction, seed
        )
    loaders = {
        "mnist-subset": _load_subset,
        "mnist": _load_mnist,
        "fashion-mnist": _load_fashion_mnist,
        "cifar10": _load_cifar10,
    }
    if name not in loaders:
        raise unknown_name("data set", name, NAMES)
    dataset = loaders[name]()
    own = dataset.train_images.shape[2:]
    if image_size is not None and image_size not in (own, own[0]):
        raise ValueError(
            f"{name} has images of {own[0]}×{own[1]}, got image_size={image_size}; "
            "choose other data, as only the pictures of folder:PATH are resized"
        )
    return dataset


def from_arrays(
    train_images: npt.NDArray[np.uint8],
    train_labels: npt.ArrayLike,
    test_images: npt.NDArray[np.uint8] | None = None,
    test_labels: npt.ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a data set of arrays.

    Parameters
    ----------
    train_images, test_images : ndarray of shape (N, C, H, W) or (N, H, W), uint8
        Pixel values of 0 to 255; not copied.  Without a test part its arrays are empty.
    train_labels, test_labels : array_like of shape (N,), of whole numbers
        0 to K - 1.
    class_names : sequence of str, optional
        K names; by default the numbers up to the largest training label.
    name : str

    Returns
    -------
    Dataset

    Raises
    ------
    TypeError
        If images are not uint8 arrays or labels not whole numbers.
    ValueError
        If shapes or labels do not fit.
    """
    train_images = _checked_images("train_images", train_images)
    labels = _checked_labels("train_labels", train_labels, len(train_images))
    if not len(train_images):
        raise ValueError("train_images must hold at least one image, got none")
    if class_names is None:
        row = int(labels.argmax())
        if labels[row] >= _MOST_CLASSES:
            raise ValueError(
                f"train_labels must count the classes from 0, got {labels[row]} at "
                f"{row}; numpy.unique(labels, return_inverse=True)[1] numbers them"
            )
        class_names = [str(label) for label in range(int(labels.max()) + 1)]
    if (test_images is None) != (test_labels is None):
        missing = "test_images" if test_images is None else "test_labels"
        raise ValueError(
            f"test_images and test_labels must be given together, got no {missing}"
        )
    if test_images is None or test_labels is None:
        test_images, test_labels = train_images[:0], labels[:0]
    test_images = _checked_images("test_images", test_images)
    if test_images.shape[1:] != train_images.shape[1:]:
        raise ValueError(
            f"test_images must have the image shape of train_images "
            f"{train_images.shape[1:]}, got {test_images.shape[1:]}"
        )
    test_labels = _checked_labels("test_labels", test_labels, len(test_images))
    for argument, values in (("train_labels", labels), ("test_labels", test_labels)):
        _check_label_range(argument, values, len(class_names))
    return Dataset(
        name, train_images, labels, test_images, test_labels, tuple(class_names)
    )


def _checked_images(argument: str, images: Any) -> npt.NDArray[np.uint8]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        how = "values in [0, 1] with (255 * x).round().astype(numpy.uint8)"
        if isinstance(images, np.ndarray) and images.dtype.kind in "iu":
            how = "values of 0 to 255 with .astype(numpy.uint8)"
        raise TypeError(
            f"{argument} must be a NumPy array of uint8 (0 to 255), got {got}; "
            f"convert {how}"
        )
    pixels: npt.NDArray[np.uint8] = images[:, None] if images.ndim == 3 else images
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise ValueError(
            f"{argument} must have the shape (N, C, H, W) or (N, H, W), "
            f"got {images.shape}"
        )
    if pixels.shape[3] in (1, 3) and pixels.shape[1] > 4:
        raise ValueError(
            f"{argument} must have the shape (N, C, H, W), got {images.shape}, which "
            "looks like (N, H, W, C); use .transpose(0, 3, 1, 2)"
        )
    return pixels


def _checked_labels(
    argument: str, labels: npt.ArrayLike, count: int
) -> npt.NDArray[np.int64]:
    array = np.asarray(labels)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{argument} must be whole numbers, got {array.dtype}; cast them with "
            ".astype(numpy.int64)"
        )
    if array.shape != (count,):
        raise ValueError(
            f"{argument} must have the shape ({count},), one label an image, "
            f"got {array.shape}"
        )
    return array.astype(np.int64, copy=False)


def _check_label_range(
    where: object, labels: npt.NDArray[np.integer[Any]], num_classes: int
) -> None:
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"{where} must hold labels of 0 to {num_classes - 1}, got {labels[row]} "
            f"at {row}"
        )


def _load_subset() -> Dataset:
    file = resources.files("parity.data") / SUBSET_FILE
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        images = {part: arrays[f"{part}_images"] for part in ("train", "test")}
        labels = {part: arrays[f"{part}_labels"] for part in ("train", "test")}
    return from_arrays(
        images["train"],
        labels["train"],
        images["test"],
        labels["test"],
        class_names=_DIGITS,
        name="mnist-subset",
    )


def read_idx_pair(
    folder: Path, prefix: str, num_classes: int = 10
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read ``PREFIX-images-idx3-ubyte`` and ``PREFIX-labels-idx1-ubyte``.

    Returns
    -------
    images : ndarray of shape (N, H, W), uint8
    labels : ndarray of shape (N,), uint8

    Raises
    ------
    ValueError
        If a file is malformed, they differ in number, or a label is out of range.
    """
    image_file = folder / f"{prefix}-images-idx3-ubyte"
    label_file = folder / f"{prefix}-labels-idx1-ubyte"
    images = read_idx(image_file, dtype=np.uint8, ndim=3)
    labels = read_idx(label_file, dtype=np.uint8, ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{label_file} must hold one label for each of the {len(images)} images of "
            f"{image_file.name}, got {len(labels)}; are they of the same part?"
        )
    _check_label_range(label_file, labels, num_classes)
    return images, labels


def _load_idx(name: str, class_names: tuple[str, ...]) -> Dataset:
    folder = require(name)
    train = read_idx_pair(folder, "train")
    test = read_idx_pair(folder, "t10k")
    return from_arrays(*train, *test, class_names=class_names, name=name)


def _load_mnist() -> Dataset:
    return _load_idx("mnist", _DIGITS)


def _load_fashion_mnist() -> Dataset:
    return _load_idx("fashion-mnist", _FASHION_CLASSES)


def _load_cifar10() -> Dataset:
    folder = require("cifar10")
    batches = [read_cifar10(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    test_images, test_labels = read_cifar10(folder / "test_batch.bin")
    return from_arrays(
        images,
        labels,
        test_images,
        test_labels,
        class_names=CIFAR10_CLASSES,
        name="cifar10",
    )


def _load_folder(
    folder: Path,
    image_size: tuple[int, int],
    channels: int,
    test_fraction: float,
    seed: int,
) -> Dataset:
    test_folder = next(
        (folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None
    )
    separate = test_folder is not None and (folder / "train").is_dir()
    classes = list_classes(folder / "train" if separate else folder)
    names = tuple(classes)
    images, labels = _listed(classes, names, image_size, channels)
    if separate and test_folder is not None:
        test_classes = list_classes(test_folder)
        if extra := [name for name in test_classes if name not in classes]:
            raise ValueError(
                f"{test_folder} must hold only classes that {folder / 'train'} holds, "
                f"got {extra[0]!r}; add its pictures there or remove it"
            )
        test_images, test_labels = _listed(test_classes, names, image_size, channels)
    else:
        kept, held_out = stratified_split(labels, test_fraction, seed, names)
        test_images, test_labels = images.take(held_out), labels[held_out]
        images, labels = images.take(kept), labels[kept]
    return Dataset(f"folder:{folder}", images, labels, test_images, test_labels, names)


def _listed(
    classes: dict[str, list[Path]],
    names: tuple[str, ...],
    image_size: tuple[int, int],
    channels: int,
) -> tuple[FolderImages, npt.NDArray[np.int64]]:
    paths = [path for files in classes.values() for path in files]
    numbers = [names.index(name) for name in classes]
    labels = np.repeat(numbers, [len(files) for files in classes.values()])
    return FolderImages(paths, image_size, channels), labels.astype(np.int64)
