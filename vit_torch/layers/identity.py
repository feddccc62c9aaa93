"""The identity, which stands where an optional layer is left out."""

from torch import Tensor, nn


class Identity(nn.Module):
    """Return the input itself.

    The twin of `vit_numpy.layers.identity`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return x
