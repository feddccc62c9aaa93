"""Where downloaded data sets are kept."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "VIT_PARITY_CACHE"


def cache_folder() -> Path:
    """Return the folder under which data sets are cached (it may not exist yet).

    It is ``$VIT_PARITY_CACHE`` where that is set, and otherwise ``vit-parity`` in the
    user's cache folder: ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux,
    ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows.
    """
    if override := os.environ.get(CACHE_VARIABLE):
        return Path(override).expanduser().absolute()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG base directory specification: relative paths are to be ignored.
        if not base.is_absolute():
            base = home / ".cache"
    return base / "vit-parity"
