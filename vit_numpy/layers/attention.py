"""Multi-head self-attention."""

from typing import Any, NamedTuple

import numpy as np

from vit_numpy.config import check_int, check_rate
from vit_numpy.functional import LOG2_E, exp_scores, over_features, row_dot
from vit_numpy.layers.dropout import Dropout, MaskSource
from vit_numpy.layers.identity import Identity
from vit_numpy.layers.layer_norm import LayerNorm
from vit_numpy.layers.linear import Linear
from vit_numpy.masks import name_dropouts
from vit_numpy.module import Array, Grads, Module, saved, scoped


class AttentionCache(NamedTuple):
    """What `Attention.backward` needs; arrays of heads are (B, h, T, ·)."""

    c_qkv: Any
    c_q_norm: Any
    c_k_norm: Any
    q: Array
    k: Array
    v: Array
    e: Array
    total: Array
    c_attn_drop: Any
    e_kept: Array
    c_proj: Any
    c_proj_drop: Any


class Attention(Module):
    """Let every token gather from all others, with weights that it chooses.

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

    Notes
    -----
    For each head, with s the scale 1 / √Dh::

        e = exp(s q kᵀ)   total = Σ_columns e   a = e / total      rows of a sum to 1
        y = a v = (e v) / total       dividing T·Dh results is less work than T·T

        ȳ  = dy / total
        dv = eᵀ ȳ
        dā = ȳ vᵀ                     the gradient of a, divided by the total
        dl = e (dā - Σ_columns e dā / total)      l = s q kᵀ, the logits
        dq = s dl k
        dk = s dlᵀ q

    Softmax alone has dl = a (da - Σ_columns a da): a weight that rises takes from all
    others in its row, in proportion to what they have. The sum equals Σ_features dy y,
    but where one weight is all but 1 the difference must vanish, and does so exactly
    only if both terms come from the same rounded numbers.

    Dropout of the weights multiplies e by keep / (1 - p) in the products with v, not in
    the total, so it is undone in backward on dā alone.

    The true gradient of the key's bias is 0: it adds the same to all logits of a row.

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

    def forward(
        self, x: Array, masks: MaskSource | None = None
    ) -> tuple[Array, AttentionCache | None]:
        """(B, T, D) -> (B, T, D)."""
        qkv, c_qkv = self.qkv.forward(x)
        q, k, v = self._heads(qkv)
        q, c_q_norm = self.q_norm.forward(q)
        k, c_k_norm = self.k_norm.forward(k)
        # exp_scores takes powers of two, which cost less than powers of e.
        q *= self.scale * LOG2_E
        e, total = exp_scores(q, k)
        e_kept, c_attn_drop = self.attn_drop.forward(e, masks)
        h = np.empty(x.shape, x.dtype)
        (y,) = self._heads(h)
        np.matmul(e_kept, v, out=y)
        h /= over_features(total, v.shape[-1])
        h, c_proj = self.proj.forward(h)
        h, c_proj_drop = self.proj_drop.forward(h, masks)
        return h, saved(
            AttentionCache(
                c_qkv,
                c_q_norm,
                c_k_norm,
                q,
                k,
                v,
                e,
                total,
                c_attn_drop,
                e_kept,
                c_proj,
                c_proj_drop,
            )
        )

    def backward(self, dy: Array, cache: AttentionCache) -> tuple[Array, Grads]:
        """(B, T, D) -> (B, T, D), and the gradients of qkv, q_norm, k_norm and proj."""
        _, _, _, q, k, v, e, total, _, e_kept, _, _ = cache
        dh, _ = self.proj_drop.backward(dy, cache.c_proj_drop)
        dh, g_proj = self.proj.backward(dh, cache.c_proj)
        (dy_heads,) = self._heads(dh / over_features(total, v.shape[-1]))
        dqkv = np.empty((*dh.shape[:-1], 3 * dh.shape[-1]), dh.dtype)
        dq, dk, dv = self._heads(dqkv)
        np.matmul(e_kept.swapaxes(-1, -2), dy_heads, out=dv)
        dlogits, _ = self.attn_drop.backward(
            dy_heads @ v.swapaxes(-1, -2), cache.c_attn_drop
        )
        dlogits -= row_dot(e, dlogits) / total
        dlogits *= e
        np.matmul(dlogits, k, out=dq)
        np.matmul(dlogits.swapaxes(-1, -2), q, out=dk)
        dq *= self.scale
        dk *= 1 / LOG2_E  # q carries the scale and log2(e)
        g_q_norm: Grads = {}
        g_k_norm: Grads = {}
        if isinstance(self.q_norm, LayerNorm):
            dq[...], g_q_norm = self.q_norm.backward(dq, cache.c_q_norm)
            dk[...], g_k_norm = self.k_norm.backward(dk, cache.c_k_norm)
        dx, g_qkv = self.qkv.backward(dqkv, cache.c_qkv)
        return dx, (
            scoped("qkv", g_qkv)
            | scoped("q_norm", g_q_norm)
            | scoped("k_norm", g_k_norm)
            | scoped("proj", g_proj)
        )

    def attention_weights(self, x: Array) -> Array:
        """(B, T, D) -> (B, h, T, T); row i holds what token i takes from each."""
        q, k, _ = self._heads(self.qkv(x))
        q = self.q_norm(q)
        k = self.k_norm(k)
        e, total = exp_scores(q * (self.scale * LOG2_E), k)
        e /= total
        return e

    def _heads(self, x: Array) -> Array:
        """View (B, T, n·D) as n times (B, h, T, Dh): nothing is copied."""
        batch, tokens, _ = x.shape
        head_dim = self.proj.weight.shape[0] // self.num_heads
        x = x.reshape(batch, tokens, -1, self.num_heads, head_dim)
        return x.transpose(2, 0, 3, 1, 4)
