"""The mathematics that layers share, each forward beside its backward.

Sums along an axis are written as products with a vector: BLAS streams through memory
several times faster than a reduction does, and accumulates as many terms at once.
"""

import numpy as np

from vit_numpy.module import Array


def row_mean(x: Array) -> Array:
    """Mean over the last axis, which is kept: (..., D) -> (..., 1)."""
    dim = x.shape[-1]
    return (x @ np.full(dim, 1 / dim, x.dtype))[..., None]


def column_sum(x: Array) -> Array:
    """Sum over all axes but the last: (..., D) -> (D,)."""
    rows = x.reshape(-1, x.shape[-1])
    return np.ones(len(rows), x.dtype) @ rows
