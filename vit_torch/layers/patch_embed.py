"""Patch embedding: the image cut into squares, each mapped to a token."""

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import PATCH_EMBEDDINGS, check_choice, check_int
from vit_torch.layers.conv import Conv2d


class PatchEmbed(nn.Module):
    """Map every patch of the image to a token, row after row of the grid.

    The twin of `vit_numpy.layers.patch_embed`, which derives the gradients.

    Parameters
    ----------
    patch_size : int
        Side P of the patches; must divide height and width of the images.
    in_chans : int
        Channels C of the images.
    dim : int
        Width D of the tokens.
    bias : bool, default True
        Whether to add an offset.
    method : {'conv', 'linear'}, default 'conv'
        Embed by a convolution with stride P, or by one product with the flattened
        patches. Parameters and result are the same.

    Attributes
    ----------
    proj : Conv2d
        Holds ``weight``, Parameter of shape (D, C, P, P), and ``bias``, (D,) or None.

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, or `method` is unknown; in `forward`, if P does
        not divide height and width.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equation 1.
    """

    def __init__(
        self,
        patch_size: int,
        in_chans: int,
        dim: int,
        bias: bool = True,
        method: str = "conv",
    ) -> None:
        check_int("patch_size", patch_size, 1)
        check_int("in_chans", in_chans, 1)
        check_int("dim", dim, 1)
        check_choice("method", method, PATCH_EMBEDDINGS)
        super().__init__()
        self.patch_size = patch_size
        self.method = method
        self.proj = Conv2d(in_chans, dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D)."""
        batch, chans, height, width = images.shape
        side = self.patch_size
        if height % side or width % side:
            raise ValueError(
                "height and width of the images must be divisible by patch_size, "
                f"got {height}×{width}, patch_size={side}"
            )
        if self.method == "conv":
            y = self.proj(images)
            return y.flatten(2).transpose(1, 2)
        x = images.reshape(batch, chans, height // side, side, width // side, side)
        x = x.permute(0, 2, 4, 1, 3, 5)  # (B, H/P, W/P, C, P, P)
        x = x.reshape(batch, -1, chans * side * side)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)
