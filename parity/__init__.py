"""Proves that the two Vision Transformers are the same, and compares how they train.

>>> from parity import assert_parity
>>> assert_parity(my_layer, torch_layer, {"x": (2, 5, 8)})   # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.api import Agreement, assert_parity, make_pair
    from parity.errors import ParityError
    from parity.pair import Pair, Problem

# Imported when asked for: they need torch, which most of this package does not.
_HOMES = {
    "Agreement": "parity.api",
    "Pair": "parity.pair",
    "ParityError": "parity.errors",
    "Problem": "parity.pair",
    "assert_parity": "parity.api",
    "make_pair": "parity.api",
}

__all__ = [
    "Agreement",
    "Pair",
    "ParityError",
    "Problem",
    "assert_parity",
    "make_pair",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
