"""LayerScale: one learned factor for each feature."""

import torch
from torch import Tensor, nn

from vit_torch.config import check_float32, check_int


class LayerScale(nn.Module):
    """Scale each feature of a residual branch.

    The twin of `vit_numpy.layers.layer_scale`, which derives the gradients.

    Parameters
    ----------
    dim : int
        Length D of the last axis.
    init : float, default 1e-5
        Initial value of every factor: small, so that each block starts near the
        identity.

    Attributes
    ----------
    gamma : Parameter of shape (D,)
        The factors γ.

    Raises
    ------
    TypeError, ValueError
        If `dim` is no int or below 1, or `init` is no number that float32 holds.

    References
    ----------
    Touvron et al. 2021, "Going deeper with Image Transformers", equation 4.
    """

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        check_int("dim", dim, 1)
        check_float32("init", init)
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma
