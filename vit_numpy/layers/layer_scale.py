"""LayerScale: one learned factor for each feature."""

from typing import NamedTuple

import numpy as np

from vit_numpy.config import check_float32, check_int
from vit_numpy.functional import column_sum
from vit_numpy.module import Array, Grads, Module, saved


class LayerScaleCache(NamedTuple):
    """What `LayerScale.backward` needs: the input."""

    x: Array


class LayerScale(Module):
    """Scale each feature of a residual branch.

    Parameters
    ----------
    dim : int
        Length D of the last axis.
    init : float, default 1e-5
        Initial value of every factor: small, so that each block starts near the
        identity.

    Attributes
    ----------
    gamma : ndarray of shape (D,)
        The factors γ.

    Raises
    ------
    TypeError, ValueError
        If `dim` is no int or below 1, or `init` is no number that float32 holds.

    Notes
    -----
    ::

        y  = γ x
        dx = γ dy
        dγ = Σ_rows dy x       a factor is used by every row, so the rows are summed

    References
    ----------
    Touvron et al. 2021, "Going deeper with Image Transformers", equation 4.
    """

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        check_int("dim", dim, 1)
        check_float32("init", init)
        self.gamma: Array = np.full(dim, init, np.float32)

    def forward(self, x: Array) -> tuple[Array, LayerScaleCache | None]:
        """(..., D) -> (..., D)."""
        return x * self.gamma, saved(LayerScaleCache(x))

    def backward(self, dy: Array, cache: LayerScaleCache) -> tuple[Array, Grads]:
        """(..., D) -> (..., D), and dγ (D,)."""
        (x,) = cache
        return dy * self.gamma, {"gamma": column_sum(dy * x)}
