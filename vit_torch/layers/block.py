"""The pre-norm transformer block."""

from torch import Tensor, nn

from vit_torch.config import check_rate
from vit_torch.layers.attention import Attention
from vit_torch.layers.drop_path import DropPath
from vit_torch.layers.dropout import MaskSource
from vit_torch.layers.identity import Identity
from vit_torch.layers.layer_norm import LayerNorm
from vit_torch.layers.layer_scale import LayerScale
from vit_torch.layers.mlp import MLP
from vit_torch.masks import name_dropouts


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and added to what came in.

    The twin of `vit_numpy.layers.block`, which derives the gradients.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    num_heads : int
        Heads h of the attention; must divide D.
    mlp_dim : int
        Hidden width M of the MLP.
    qkv_bias, qk_norm : bool, default True, False
        See `Attention`.
    act : {'gelu', 'gelu_tanh', 'relu'}, default 'gelu'
    norm_eps : float, default 1e-6
        Added to the variance in every LayerNorm.
    layer_scale : float, optional
        Initial value of a LayerScale on both branches; None builds none.
    attn_drop, proj_drop, act_drop, mlp_drop : float in [0, 1), default 0
        Dropout on the attention weights, after the attention's projection, after the
        MLP's activation, and after the MLP's second layer.
    drop_path : float in [0, 1), default 0
        Probability that a branch is left out, drawn for each image.

    Attributes
    ----------
    norm1, norm2 : LayerNorm
    attn : Attention
    mlp : MLP
    ls1, ls2 : LayerScale, or Identity
    drop_path1, drop_path2 : DropPath

    Raises
    ------
    TypeError, ValueError
        If a value breaks a rule of the layer that it is for.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 2 and 3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        act_drop: float = 0.0,
        mlp_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        check_rate("mlp_drop", mlp_drop)
        check_rate("drop_path", drop_path)
        super().__init__()
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = Attention(
            dim, num_heads, qkv_bias, qk_norm, attn_drop, proj_drop, norm_eps
        )
        self.ls1 = Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = MLP(dim, mlp_dim, act, act_drop, mlp_drop)
        self.ls2 = Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path)
        name_dropouts(self)

    def forward(
        self,
        x: Tensor,
        masks: MaskSource | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); `record` gets the outputs of 'attn' and 'mlp'."""
        h = self.norm1(x)
        h = self.attn(h, masks)
        if record is not None:
            record["attn"] = h
        h = self.ls1(h)
        h = self.drop_path1(h, masks)
        x = x + h
        h = self.norm2(x)
        h = self.mlp(h, masks)
        if record is not None:
            record["mlp"] = h
        h = self.ls2(h)
        h = self.drop_path2(h, masks)
        x = x + h
        return x
