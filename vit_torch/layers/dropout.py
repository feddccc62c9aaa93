"""Dropout: zero random elements, and scale up the rest to keep the mean."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_rate


class MaskSource(Protocol):
    """Where `Dropout` and `DropPath` get their masks, such as a `KeyedMasks`."""

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the mask of the layer `name`: False with probability `p`."""
        ...


class Dropout(nn.Module):
    """Zero each element with probability `p`, and scale the rest by 1 / (1 - p).

    The twin of `vit_numpy.layers.dropout`, which derives the gradients.

    Parameters
    ----------
    p : float in [0, 1), default 0
        Probability of being dropped (`torch.nn.Dropout` has 0.5, and allows 1).

    Attributes
    ----------
    name : str
        The name under which masks are asked for: the dotted path of this layer in the
        model, once `vit_torch.masks.name_dropouts` has set it.

    Raises
    ------
    TypeError, ValueError
        If `p` is no number, or not in [0, 1).

    Notes
    -----
    Elements are dropped in training mode only: as a mask source says where one is
    given, else as torch's own generator does.

    References
    ----------
    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", section 4; the scale in training rather than in evaluation is the
    "inverted dropout" of its section 10.
    """

    name = "dropout"

    def __init__(self, p: float = 0.0) -> None:
        check_rate("p", p)
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, masks: MaskSource | None = None) -> Tensor:
        """(...) -> (...); x itself where nothing is dropped."""
        if not self.training or self.p == 0:
            return x
        shape = self.mask_shape(tuple(x.shape))
        if masks is None:
            # A mask of the input's own shape needs no array of ones to be drawn on.
            if shape == tuple(x.shape):
                return F.dropout(x, self.p)
            return x * F.dropout(x.new_ones(shape), self.p)
        keep = masks.keep(self.name, shape, self.p).to(x.device)
        return x * keep / (1 - self.p)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the mask for an input of this shape: the same."""
        return shape
