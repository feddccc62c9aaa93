"""Writing the files that commands and programs leave, each whole or not at all."""

from __future__ import annotations

import json
import shutil
from glob import escape
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    """
    # Here, as processes that judge mutants must not hold on to the package as it is.
    from vit_numpy.checkpoint import write_atomically

    write_atomically(path, lambda part: _write(part, text))


def write_json(path: Path, value: Any) -> None:
    """Write what JSON can hold, an entry a line.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    TypeError, ValueError
        If JSON cannot hold the value; infinity and what is no number it cannot.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def clear_leftovers(path: Path) -> None:
    """Delete what a process left beside a file when it was killed while writing it.

    No other process may be writing the file.
    """
    # `write_atomically` writes into a folder of this name, of `tempfile`'s making.
    for folder in path.parent.glob(f".{escape(path.name)}.????????"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _write(path: str, text: str) -> None:
    # The same line ends on every system, so that files can be compared.
    Path(path).write_text(text, encoding="utf-8", newline="\n")
