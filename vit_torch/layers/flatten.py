"""Flatten: all axes but the first become one."""

from torch import Tensor, nn


class Flatten(nn.Module):
    """Join all axes but the first, in row-major order.

    The twin of `vit_numpy.layers.flatten`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, F)."""
        return x.flatten(1)
