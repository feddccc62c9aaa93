"""The table of changes: every known way in which a port may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parity.doctor.data import outputs, preprocessings
from parity.doctor.layouts import matrices, patches, qkv
from parity.doctor.numerics import numerics, scales
from parity.doctor.positions import positions, resizes
from parity.doctor.setup import Change, Setup
from parity.doctor.structure import structure


def all_changes(
    base: Setup, preprocessing: dict[str, Any] | None, integers: bool
) -> Iterator[Change]:
    """Yield every known way in which a port like this one may be wrong."""
    yield from resizes(base)
    yield from preprocessings(base, preprocessing, integers)
    yield from numerics(base.config)
    yield from qkv(base.config)
    yield from matrices(base)
    # Only now are the rows of q the first third.
    yield from scales(base.config)
    yield from patches(base.config)
    yield from positions(base)
    yield from structure(base)
    yield from outputs()
