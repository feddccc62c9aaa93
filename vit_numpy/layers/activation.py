"""Activations of the MLP: ReLU, and GELU in both its forms."""

from typing import NamedTuple

from vit_numpy.config import ACTIVATIONS, check_choice
from vit_numpy.functional import gelu, gelu_tanh, relu
from vit_numpy.module import Array, Grads, Module, saved, saving


class ReLUCache(NamedTuple):
    """What `ReLU.backward` needs: the output, which the next layer keeps anyway."""

    y: Array


class ReLU(Module):
    """Set what is negative to zero.

    Notes
    -----
    ::

        y  = max(x, 0)
        dx = dy where y > 0, else 0       at the kink, x = 0, it is taken as 0
    """

    def forward(self, x: Array) -> tuple[Array, ReLUCache | None]:
        """(...) -> (...)."""
        y = relu(x)
        return y, saved(ReLUCache(y))

    def backward(self, dy: Array, cache: ReLUCache) -> tuple[Array, Grads]:
        """(...) -> (...), and no parameters."""
        (y,) = cache
        return dy * (y > 0), {}


class GELUCache(NamedTuple):
    """What `GELU.backward` needs: dy/dx, made in forward from what it had at hand."""

    derivative: Array


class GELU(Module):
    """Weight each element by the share of a standard normal that lies below it.

    Parameters
    ----------
    approximate : {'none', 'tanh'}, default 'none'
        The exact form with erf, or the approximation by tanh.

    Raises
    ------
    TypeError, ValueError
        If `approximate` is no string, or neither of the two.

    Notes
    -----
    With Φ and φ the cumulative distribution and the density of the standard normal::

        y  = x Φ(x)       Φ(x) = (1 + erf(x / √2)) / 2
        dx = dy (Φ(x) + x φ(x))       φ(x) = exp(-x² / 2) / √(2π)

    Φ(x) is there because x scales the output, x φ(x) because x also sets the weight.
    For 'tanh', Φ is replaced by Φ̃, and φ by the derivative of Φ̃::

        Φ̃(x) = (1 + tanh(u)) / 2       u = √(2/π) (x + 0.044715 x³)
        φ̃(x) = (1 - tanh²(u)) / 2 · √(2/π) (1 + 3 · 0.044715 x²)

    References
    ----------
    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)", section 2.
    """

    def __init__(self, approximate: str = "none") -> None:
        check_choice("approximate", approximate, ("none", "tanh"))
        self.approximate = approximate

    def forward(self, x: Array) -> tuple[Array, GELUCache | None]:
        """(...) -> (...)."""
        function = gelu if self.approximate == "none" else gelu_tanh
        y, derivative = function(x, derivative=saving())
        return y, None if derivative is None else GELUCache(derivative)

    def backward(self, dy: Array, cache: GELUCache) -> tuple[Array, Grads]:
        """(...) -> (...), and no parameters."""
        (derivative,) = cache
        return dy * derivative, {}


def activation(name: str) -> ReLU | GELU:
    """Return the activation that a configuration names: 'gelu', 'gelu_tanh' or 'relu'.

    Raises
    ------
    TypeError, ValueError
        If `name` is no string, or unknown.
    """
    check_choice("act", name, ACTIVATIONS)
    if name == "relu":
        return ReLU()
    return GELU("tanh" if name == "gelu_tanh" else "none")
