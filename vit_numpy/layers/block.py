"""The pre-norm transformer block."""

from typing import Any, NamedTuple

from vit_numpy.config import check_rate
from vit_numpy.layers.attention import Attention
from vit_numpy.layers.drop_path import DropPath
from vit_numpy.layers.dropout import MaskSource
from vit_numpy.layers.identity import Identity
from vit_numpy.layers.layer_norm import LayerNorm
from vit_numpy.layers.layer_scale import LayerScale
from vit_numpy.layers.mlp import MLP
from vit_numpy.masks import name_dropouts
from vit_numpy.module import Array, Grads, Module, saved, scoped


class BlockCache(NamedTuple):
    """What `Block.backward` needs: the caches of its layers."""

    c_norm1: Any
    c_attn: Any
    c_ls1: Any
    c_drop_path1: Any
    c_norm2: Any
    c_mlp: Any
    c_ls2: Any
    c_drop_path2: Any


class Block(Module):
    """Attention, then an MLP, each on normalised tokens and added to what came in.

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

    Notes
    -----
    ::

        x = x + drop_path1(ls1(attn(norm1(x))))
        x = x + drop_path2(ls2(mlp(norm2(x))))

    At each sum the gradient goes both ways: unchanged past the branch, and through it;
    the two meet again, and add up, where the branch began.

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
        x: Array,
        masks: MaskSource | None = None,
        record: dict[str, Array] | None = None,
    ) -> tuple[Array, BlockCache | None]:
        """(B, T, D) -> (B, T, D); `record` gets the outputs of 'attn' and 'mlp'."""
        h, c_norm1 = self.norm1.forward(x)
        h, c_attn = self.attn.forward(h, masks)
        if record is not None:
            record["attn"] = h
        h, c_ls1 = self.ls1.forward(h)
        h, c_drop_path1 = self.drop_path1.forward(h, masks)
        x = x + h
        h, c_norm2 = self.norm2.forward(x)
        h, c_mlp = self.mlp.forward(h, masks)
        if record is not None:
            record["mlp"] = h
        h, c_ls2 = self.ls2.forward(h)
        h, c_drop_path2 = self.drop_path2.forward(h, masks)
        x = x + h
        return x, saved(
            BlockCache(
                c_norm1,
                c_attn,
                c_ls1,
                c_drop_path1,
                c_norm2,
                c_mlp,
                c_ls2,
                c_drop_path2,
            )
        )

    def backward(
        self,
        dy: Array,
        cache: BlockCache,
        record: dict[str, Array] | None = None,
    ) -> tuple[Array, Grads]:
        """(B, T, D) -> (B, T, D), and gradients; `record` as in `forward`."""
        dh, _ = self.drop_path2.backward(dy, cache.c_drop_path2)
        dh, g_ls2 = self.ls2.backward(dh, cache.c_ls2)
        if record is not None:
            record["mlp"] = dh
        dh, g_mlp = self.mlp.backward(dh, cache.c_mlp)
        dh, g_norm2 = self.norm2.backward(dh, cache.c_norm2)
        dx = dy + dh
        dh, _ = self.drop_path1.backward(dx, cache.c_drop_path1)
        dh, g_ls1 = self.ls1.backward(dh, cache.c_ls1)
        if record is not None:
            record["attn"] = dh
        dh, g_attn = self.attn.backward(dh, cache.c_attn)
        dh, g_norm1 = self.norm1.backward(dh, cache.c_norm1)
        dx = dx + dh
        return dx, (
            scoped("norm1", g_norm1)
            | scoped("attn", g_attn)
            | scoped("ls1", g_ls1)
            | scoped("norm2", g_norm2)
            | scoped("mlp", g_mlp)
            | scoped("ls2", g_ls2)
        )
