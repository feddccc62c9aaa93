"""Layer normalisation: each row to mean 0 and variance 1, then scaled and shifted."""

from typing import NamedTuple

import numpy as np

from vit_numpy.config import check_int, check_positive
from vit_numpy.functional import column_sum, row_dot, row_mean
from vit_numpy.module import Array, Grads, Module, saved


class LayerNormCache(NamedTuple):
    """What `LayerNorm.backward` needs: normalised rows, and 1 / standard deviation."""

    x_hat: Array
    rstd: Array


class LayerNorm(Module):
    """Normalise the last axis, then scale and shift each feature.

    Parameters
    ----------
    dim : int
        Length D of the last axis.
    eps : float, default 1e-6
        Added to the variance (`torch.nn.LayerNorm` has 1e-5).

    Attributes
    ----------
    weight, bias : ndarray of shape (D,)
        Scale γ, initially 1, and shift β, initially 0.

    Raises
    ------
    TypeError, ValueError
        If `dim` is no int or below 1, or `eps` is not above 0.

    Notes
    -----
    With means over the last axis, and the variance divided by D, not D - 1::

        μ = mean(x)    σ² = mean((x - μ)²)    rstd = 1 / √(σ² + eps)
        x̂ = (x - μ) rstd
        y = γ x̂ + β

        dx̂ = γ dy
        dx = rstd (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂))
        dγ = Σ_rows dy x̂
        dβ = Σ_rows dy

    The first mean in dx is there because moving every x alike moves only μ, the second
    because scaling the row alike moves only σ: neither can change y, so the part of
    dx̂ along either direction is taken out.

    References
    ----------
    Ba, Kiros, Hinton 2016, "Layer Normalization", equation 4.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        check_int("dim", dim, 1)
        check_positive("eps", eps)
        self.weight: Array = np.ones(dim, np.float32)
        self.bias: Array = np.zeros(dim, np.float32)
        self.eps = eps

    def forward(self, x: Array) -> tuple[Array, LayerNormCache | None]:
        """(..., D) -> (..., D)."""
        x_hat = x - row_mean(x)
        variance = row_dot(x_hat, x_hat) / x.dtype.type(x.shape[-1])
        rstd = 1 / np.sqrt(variance + x.dtype.type(self.eps))
        x_hat *= rstd
        y = x_hat * self.weight
        y += self.bias
        return y, saved(LayerNormCache(x_hat, rstd))

    def backward(self, dy: Array, cache: LayerNormCache) -> tuple[Array, Grads]:
        """(..., D) -> (..., D), and dγ (D,), dβ (D,)."""
        x_hat, rstd = cache
        dy_x_hat = dy * x_hat
        grads: Grads = {"weight": column_sum(dy_x_hat), "bias": column_sum(dy)}
        # The means of dx̂ and dx̂ x̂, which are products with γ, need no arrays of them.
        mean_weight = self.weight / x_hat.dtype.type(x_hat.shape[-1])
        dx = dy * self.weight
        dx -= (dy @ mean_weight)[..., None]
        dx -= np.multiply(x_hat, (dy_x_hat @ mean_weight)[..., None], out=dy_x_hat)
        dx *= rstd
        return dx, grads
