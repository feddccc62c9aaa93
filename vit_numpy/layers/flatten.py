"""Flatten: all axes but the first become one."""

import math
from typing import NamedTuple

from vit_numpy.module import Array, Grads, Module, saved


class FlattenCache(NamedTuple):
    """What `Flatten.backward` needs: the shape of the input."""

    shape: tuple[int, ...]


class Flatten(Module):
    """Join all axes but the first, in row-major order.

    Notes
    -----
    The backward gives each element its old place: there is nothing else to do, since
    none is changed.
    """

    def forward(self, x: Array) -> tuple[Array, FlattenCache | None]:
        """(B, ...) -> (B, F)."""
        y = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return y, saved(FlattenCache(x.shape))

    def backward(self, dy: Array, cache: FlattenCache) -> tuple[Array, Grads]:
        """(B, F) -> (B, ...), and no parameters."""
        (shape,) = cache
        return dy.reshape(shape), {}
