"""Layer normalisation: each row to mean 0 and variance 1, then scaled and shifted."""

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int, check_positive


class LayerNorm(nn.LayerNorm):
    """Normalise the last axis, then scale and shift each feature.

    The twin of `vit_numpy.layers.layer_norm`, which derives the gradients.

    Parameters
    ----------
    dim : int
        Length D of the last axis.
    eps : float, default 1e-6
        Added to the variance (`torch.nn.LayerNorm` has 1e-5).

    Attributes
    ----------
    weight, bias : Parameter of shape (D,)
        Scale γ, initially 1, and shift β, initially 0.

    Raises
    ------
    TypeError, ValueError
        If `dim` is no int or below 1, or `eps` is not above 0.

    References
    ----------
    Ba, Kiros, Hinton 2016, "Layer Normalization", equation 4.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        check_int("dim", dim, 1)
        check_positive("eps", eps)
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
