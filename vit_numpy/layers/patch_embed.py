"""Patch embedding: the image cut into squares, each mapped to a token."""

from typing import Any, NamedTuple

from vit_numpy.config import PATCH_EMBEDDINGS, check_choice, check_int
from vit_numpy.functional import column_sum
from vit_numpy.layers.conv import Conv2d
from vit_numpy.module import Array, Grads, Module, saved, scoped


class PatchEmbedCache(NamedTuple):
    """What `PatchEmbed.backward` needs: the convolution's cache or the patches."""

    c_proj: Any
    patches: Array | None
    shape: tuple[int, ...]


class PatchEmbed(Module):
    """Map every patch of the image to a token, row after row of the grid.

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
        Holds ``weight``, ndarray of shape (D, C, P, P), and ``bias``, (D,) or None.

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, or `method` is unknown; in `forward`, if P does
        not divide height and width.

    Notes
    -----
    With x̄ the patches flattened to rows in the order (C, P, P), and W̄ the weight
    flattened alike to (D, C·P·P)::

        y  = x̄ W̄ᵀ + b
        dx̄ = dy W̄            then every patch goes back to its place in the image
        dW̄ = dyᵀ x̄
        db = Σ_rows dy

    A convolution whose stride is its kernel's side sees each pixel once, so the two
    methods are the same sum.

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
        self.patch_size = patch_size
        self.method = method
        self.proj = Conv2d(in_chans, dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Array) -> tuple[Array, PatchEmbedCache | None]:
        """(B, C, H, W) -> (B, N, D)."""
        batch, chans, height, width = images.shape
        side = self.patch_size
        if height % side or width % side:
            raise ValueError(
                "height and width of the images must be divisible by patch_size, "
                f"got {height}×{width}, patch_size={side}"
            )
        if self.method == "conv":
            y, c_proj = self.proj.forward(images)
            y = y.reshape(batch, y.shape[1], -1).swapaxes(1, 2)
            return y, saved(PatchEmbedCache(c_proj, None, images.shape))
        x = images.reshape(batch, chans, height // side, side, width // side, side)
        x = x.transpose(0, 2, 4, 1, 3, 5)  # (B, H/P, W/P, C, P, P)
        x = x.reshape(-1, chans * side * side)
        weight = self.proj.weight
        y = x @ weight.reshape(len(weight), -1).T
        if self.proj.bias is not None:
            y += self.proj.bias
        y = y.reshape(batch, -1, len(weight))
        return y, saved(PatchEmbedCache(None, x, images.shape))

    def backward(
        self, dy: Array, cache: PatchEmbedCache, input_grad: bool = True
    ) -> tuple[Array | None, Grads]:
        """(B, N, D) -> (B, C, H, W), and dW (D, C, P, P), db (D,).

        Without `input_grad`, None stands in the place of the first.
        """
        c_proj, patches, shape = cache
        batch, chans, height, width = shape
        side = self.patch_size
        if patches is None:
            dy = dy.swapaxes(1, 2)
            dy = dy.reshape(batch, -1, height // side, width // side)
            dx, grads = self.proj.backward(dy, c_proj, input_grad)
            return dx, scoped("proj", grads)
        weight = self.proj.weight
        rows = dy.reshape(-1, dy.shape[-1])
        dx = None
        if input_grad:
            dx = rows @ weight.reshape(len(weight), -1)
            dx = dx.reshape(batch, height // side, width // side, chans, side, side)
            dx = dx.transpose(0, 3, 1, 4, 2, 5)  # (B, C, H/P, P, W/P, P)
            dx = dx.reshape(shape)
        grads = {"proj.weight": (rows.T @ patches).reshape(weight.shape)}
        if self.proj.bias is not None:
            grads["proj.bias"] = column_sum(rows)
        return dx, grads
