"""Activations of the MLP: ReLU, and GELU in both its forms."""

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import ACTIVATIONS, check_choice


class ReLU(nn.Module):
    """Set what is negative to zero.

    The twin of `vit_numpy.layers.activation`, which derives the gradients.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return F.relu(x)


class GELU(nn.Module):
    """Weight each element by the share of a standard normal that lies below it.

    The twin of `vit_numpy.layers.activation`, which derives the gradients.

    Parameters
    ----------
    approximate : {'none', 'tanh'}, default 'none'
        The exact form with erf, or the approximation by tanh.

    Raises
    ------
    TypeError, ValueError
        If `approximate` is no string, or neither of the two.

    References
    ----------
    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)", section 2.
    """

    def __init__(self, approximate: str = "none") -> None:
        check_choice("approximate", approximate, ("none", "tanh"))
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return F.gelu(x, approximate=self.approximate)


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
