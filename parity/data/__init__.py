"""Data sets by name, their files, and one stream of batches for both backends.

``load`` opens a data set, ``from_arrays`` makes one, ``fetch`` brings the large ones
into the user's cache folder, and ``BatchStream`` deals batches.  Images are uint8 of
shape (N, C, H, W), labels int64 of shape (N,).
"""

from parity.data.augment import AUGMENTATIONS, Augmentation
from parity.data.cache import cache_folder
from parity.data.fetching import SOURCES, DataNotFoundError, Fetched, FetchError, fetch
from parity.data.folder import FolderImages
from parity.data.formats import read_cifar10, read_idx, write_cifar10, write_idx
from parity.data.registry import (
    NAMES,
    ChannelStatistics,
    Dataset,
    Part,
    from_arrays,
    load,
)
from parity.data.stream import Batch, BatchStream, normalise

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "SOURCES",
    "Augmentation",
    "Batch",
    "BatchStream",
    "ChannelStatistics",
    "DataNotFoundError",
    "Dataset",
    "FetchError",
    "Fetched",
    "FolderImages",
    "Part",
    "cache_folder",
    "fetch",
    "from_arrays",
    "load",
    "normalise",
    "read_cifar10",
    "read_idx",
    "write_cifar10",
    "write_idx",
]
