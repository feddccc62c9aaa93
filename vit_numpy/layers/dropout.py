"""Dropout: zero random elements, and scale up the rest to keep the mean."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import check_rate
from vit_numpy.module import Array, Grads, Module, saved


class MaskSource(Protocol):
    """Where `Dropout` and `DropPath` get their masks, such as a `KeyedMasks`."""

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> NDArray[np.bool_]:
        """Return the mask of the layer `name`: False with probability `p`."""
        ...


class DropoutCache(NamedTuple):
    """What `Dropout.backward` needs: the mask, or None where nothing was dropped."""

    keep: NDArray[Any] | None


class Dropout(Module):
    """Zero each element with probability `p`, and scale the rest by 1 / (1 - p).

    Parameters
    ----------
    p : float in [0, 1), default 0
        Probability of being dropped (`torch.nn.Dropout` has 0.5, and allows 1).

    Attributes
    ----------
    name : str
        The name under which masks are asked for: the dotted path of this layer in the
        model, once `vit_numpy.masks.name_dropouts` has set it.

    Raises
    ------
    TypeError, ValueError
        If `p` is no number, or not in [0, 1).

    Notes
    -----
    With keep in {0, 1}, and E[keep] = 1 - p::

        y  = x keep / (1 - p)       so that E[y] = x, and evaluation needs no scale
        dx = dy keep / (1 - p)      a dropped element reaches nothing

    There is no training mode: elements are dropped iff a mask source is given.

    References
    ----------
    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", section 4; the scale in training rather than in evaluation is the
    "inverted dropout" of its section 10.
    """

    name = "dropout"

    def __init__(self, p: float = 0.0) -> None:
        check_rate("p", p)
        self.p = p

    def forward(
        self, x: Array, masks: MaskSource | None = None
    ) -> tuple[Array, DropoutCache | None]:
        """(...) -> (...); x itself where nothing is dropped."""
        if masks is None or self.p == 0:
            return x, saved(DropoutCache(None))
        keep = masks.keep(self.name, self.mask_shape(x.shape), self.p)
        return self._scaled(x, keep), saved(DropoutCache(keep))

    def backward(self, dy: Array, cache: DropoutCache) -> tuple[Array, Grads]:
        """(...) -> (...), and no parameters."""
        (keep,) = cache
        return dy if keep is None else self._scaled(dy, keep), {}

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the mask for an input of this shape: the same."""
        return shape

    def _scaled(self, x: Array, keep: NDArray[Any]) -> Array:
        y: Array = x * keep
        y *= 1 / (1 - self.p)
        return y
