"""The linear layer: y = x Wᵀ + b."""

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int


class Linear(nn.Linear):
    """Map the last axis of the input by a matrix and an offset.

    The twin of `vit_numpy.layers.linear`, which derives the gradients.

    Parameters
    ----------
    in_features, out_features : int
        Length I of the last axis of the input, and O of the output's.
    bias : bool, default True
        Whether to add an offset.

    Attributes
    ----------
    weight : Parameter of shape (O, I)
    bias : Parameter of shape (O,), or None

    Raises
    ------
    TypeError, ValueError
        If a size is no int, or is below 1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        check_int("in_features", in_features, 1)
        check_int("out_features", out_features, 1)
        super().__init__(in_features, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x, self.weight, self.bias)
