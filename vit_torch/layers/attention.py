"""Multi-head self-attention."""

from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int, check_rate
from vit_torch.layers.dropout import Dropout, MaskSource
from vit_torch.layers.identity import Identity
from vit_torch.layers.layer_norm import LayerNorm
from vit_torch.layers.linear import Linear
from vit_torch.masks import name_dropouts


class Attention(nn.Module):
    """Let every token gather from all others, with weights that it chooses.

    The twin of `vit_numpy.layers.attention`, which derives the gradients.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    num_heads : int
        Heads h, of width Dh = D / h each; must divide D.
    qkv_bias : bool, default True
        Whether the projection to q, k, v has a bias.
    qk_norm : bool, default False
        Normalise each head's queries and keys.
    attn_drop, proj_drop : float in [0, 1), default 0
        Dropout on the attention weights, and after the output projection.
    norm_eps : float, default 1e-6
        For the norms of `qk_norm`.

    Attributes
    ----------
    qkv : Linear
        D to 3D: the queries of all heads, then the keys, then the values.
    q_norm, k_norm : LayerNorm over Dh, or Identity
    attn_drop, proj_drop : Dropout
    proj : Linear
        D to D, on the heads side by side.

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, `num_heads` does not divide `dim`, or a rate is
        not in [0, 1).

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", equation 1 and section 3.2.2;
    for `qk_norm` Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion
    Parameters", section 2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        check_int("dim", dim, 1)
        check_int("num_heads", num_heads, 1)
        if dim % num_heads:
            raise ValueError(
                "dim must be divisible by num_heads, "
                f"got dim={dim}, num_heads={num_heads}"
            )
        check_rate("attn_drop", attn_drop)
        check_rate("proj_drop", proj_drop)
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (
            LayerNorm(dim // num_heads, norm_eps) if qk_norm else Identity()
            for _ in range(2)
        )
        self.attn_drop = Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)
        name_dropouts(self)

    def forward(self, x: Tensor, masks: MaskSource | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(x)
        q, k, v = self._heads(qkv)
        q = self.q_norm(q)
        k = self.k_norm(k)
        if masks is None:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            # The fused product draws its own masks, so given ones need the plain way.
            weights = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)
            y = self.attn_drop(weights, masks) @ v
        h = y.transpose(1, 2).reshape(x.shape)
        h = self.proj(h)
        h = self.proj_drop(h, masks)
        return h

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, h, T, T); row i holds what token i takes from each."""
        q, k, _ = self._heads(self.qkv(x))
        q = self.q_norm(q)
        k = self.k_norm(k)
        return (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        """View (B, T, n·D) as n times (B, h, T, Dh): nothing is copied."""
        batch, tokens, _ = x.shape
        head_dim = self.proj.weight.shape[0] // self.num_heads
        x = x.reshape(batch, tokens, -1, self.num_heads, head_dim)
        return x.permute(2, 0, 3, 1, 4)
