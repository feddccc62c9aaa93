"""Make the embedded digits from the full MNIST.

``python -m parity.data.subset [FILE]`` takes 1,000 training and 200 test images of each
class, evenly spaced through the files (so that all writers are represented) and left in
their order, and writes them as one npz file.  The source is verified by SHA-256.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.data.fetching import require
from parity.data.registry import SUBSET_FILE, read_idx_pair

TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 200


def balanced_rows(labels: npt.NDArray[Any], per_class: int) -> npt.NDArray[np.int64]:
    """Return sorted rows, `per_class` of each label, evenly spaced through its rows."""
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < per_class:
            raise ValueError(
                f"every class must have at least {per_class} images, got {len(rows)} "
                f"of class {label}"
            )
        chosen.append(rows[np.arange(per_class) * len(rows) // per_class])
    return np.sort(np.concatenate(chosen))


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what ``numpy.load`` opens, the same bytes for the same arrays and zlib.

    ``numpy.savez_compressed`` has no setting for the strongest compression.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # A fixed date: that of the file's making would change its bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, on every system
            archive.writestr(entry, member.getvalue(), compresslevel=9)


def make_subset(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the arrays of the subset, from the IDX files in `folder`."""
    arrays = {}
    for part, prefix, count in (
        ("train", "train", TRAIN_PER_CLASS),
        ("test", "t10k", TEST_PER_CLASS),
    ):
        images, labels = read_idx_pair(folder, prefix)
        rows = balanced_rows(labels, count)
        arrays[f"{part}_images"] = images[rows]
        arrays[f"{part}_labels"] = labels[rows]
    return arrays


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m parity.data.subset",
        description="Make the embedded digits from the full MNIST.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=Path(__file__).with_name(SUBSET_FILE),
        help="the file to write (default: the one in the package)",
    )
    file = parser.parse_args(arguments).file
    try:
        arrays = make_subset(require("mnist"))
        write_npz(file, arrays)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = " + ".join(
        str(len(arrays[f"{part}_labels"])) for part in ("train", "test")
    )
    print(f"{file}: {counts} images, {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
