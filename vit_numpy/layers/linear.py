"""The linear layer: y = x Wᵀ + b."""

from typing import NamedTuple

import numpy as np

from vit_numpy.config import check_int
from vit_numpy.functional import column_sum
from vit_numpy.module import Array, Grads, Module, saved


class LinearCache(NamedTuple):
    """What `Linear.backward` needs: the input."""

    x: Array


class Linear(Module):
    """Map the last axis of the input by a matrix and an offset.

    Parameters
    ----------
    in_features, out_features : int
        Length I of the last axis of the input, and O of the output's.
    bias : bool, default True
        Whether to add an offset.

    Attributes
    ----------
    weight : ndarray of shape (O, I)
    bias : ndarray of shape (O,), or None
        Both are zero until `vit_numpy.init_weights` or `load_state_dict` fills them.

    Raises
    ------
    TypeError, ValueError
        If a size is no int, or is below 1.

    Notes
    -----
    With x̄ and ȳ the input and output flattened to rows, (R, I) and (R, O)::

        y  = x Wᵀ + b
        dx = dy W            each input reaches every output through its column of W
        dW = dȳᵀ x̄           a weight is used by every row, so the rows are summed
        db = Σ_rows dȳ       and so is the offset
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        check_int("in_features", in_features, 1)
        check_int("out_features", out_features, 1)
        self.weight: Array = np.zeros((out_features, in_features), np.float32)
        self.bias: Array | None = np.zeros(out_features, np.float32) if bias else None

    def forward(self, x: Array) -> tuple[Array, LinearCache | None]:
        """(..., I) -> (..., O)."""
        # One product for all rows: a batch of small ones would be several times slower.
        y: Array = x.reshape(-1, x.shape[-1]) @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], -1), saved(LinearCache(x))

    def backward(self, dy: Array, cache: LinearCache) -> tuple[Array, Grads]:
        """(..., O) -> (..., I), and dW (O, I), db (O,)."""
        (x,) = cache
        dy_rows = dy.reshape(-1, dy.shape[-1])
        dx = (dy_rows @ self.weight).reshape(x.shape)
        grads: Grads = {"weight": dy_rows.T @ x.reshape(-1, x.shape[-1])}
        if self.bias is not None:
            grads["bias"] = column_sum(dy)
        return dx, grads
