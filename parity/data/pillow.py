"""Pillow, without which all but pictures and a few augmentations works."""

from importlib import import_module
from typing import Any


def pillow(module: str, user: str) -> Any:
    """Return a module of Pillow: ``'Image'`` is `PIL.Image`.

    Parameters
    ----------
    module : str
    user : str
        What needs it, for the error, in the plural.

    Raises
    ------
    ModuleNotFoundError
        If Pillow is not installed.
    """
    try:
        return import_module(f"PIL.{module}")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{user} need Pillow, which is not installed; "
            "pip install 'vit-parity[train]'",
            name="PIL",
        ) from None
