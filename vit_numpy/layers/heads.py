"""From tokens to one vector an image: poolings, and the tanh layer before the head."""

from typing import Any, NamedTuple

import numpy as np

from vit_numpy.config import check_int
from vit_numpy.functional import LOG2_E, exp_scores
from vit_numpy.layers.layer_norm import LayerNorm
from vit_numpy.layers.linear import Linear, LinearCache
from vit_numpy.layers.mlp import MLP
from vit_numpy.module import Array, Grads, Module, saved, scoped


class TokensCache(NamedTuple):
    """What the backward of `TokenPool` and `MeanPool` needs: the input's shape."""

    shape: tuple[int, ...]


class TokenPool(Module):
    """Take the class token of each image.

    Parameters
    ----------
    distilled : bool, default False
        Whether to take the distillation token, which stands next to it, too.

    Notes
    -----
    ::

        y = x[:, 0], or x[:, :2]
        dx = 0 but for the tokens taken, which get dy

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equation 4; for two tokens
    Touvron et al. 2021, "Training data-efficient image transformers", section 4.
    """

    def __init__(self, distilled: bool = False) -> None:
        self.taken = slice(2) if distilled else 0

    def forward(self, x: Array) -> tuple[Array, TokensCache | None]:
        """(B, T, D) -> (B, D), or (B, 2, D) if distilled."""
        return x[:, self.taken], saved(TokensCache(x.shape))

    def backward(self, dy: Array, cache: TokensCache) -> tuple[Array, Grads]:
        """(B, D) or (B, 2, D) -> (B, T, D), and no parameters."""
        dx = np.zeros(cache.shape, dy.dtype)
        dx[:, self.taken] = dy
        return dx, {}


class MeanPool(Module):
    """Average the patch tokens of each image.

    Parameters
    ----------
    num_prefix_tokens : int, default 0
        Tokens at the start that are left out: class, distillation and register tokens.

    Raises
    ------
    TypeError, ValueError
        If `num_prefix_tokens` is no int or below 0.

    Notes
    -----
    ::

        y = mean(x[:, prefix:])
        dx[:, prefix:] = dy / N       every patch has the same share; the prefix has 0
    """

    def __init__(self, num_prefix_tokens: int = 0) -> None:
        check_int("num_prefix_tokens", num_prefix_tokens, 0)
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Array) -> tuple[Array, TokensCache | None]:
        """(B, T, D) -> (B, D)."""
        y = x[:, self.num_prefix_tokens :].mean(axis=1)
        return y, saved(TokensCache(x.shape))

    def backward(self, dy: Array, cache: TokensCache) -> tuple[Array, Grads]:
        """(B, D) -> (B, T, D), and no parameters."""
        dx = np.zeros(cache.shape, dy.dtype)
        num_patches = cache.shape[1] - self.num_prefix_tokens
        dx[:, self.num_prefix_tokens :] = dy[:, None] / num_patches
        return dx, {}


class AttentionPoolCache(NamedTuple):
    """What `AttentionPool.backward` needs; arrays of heads are (B, h, ·, ·)."""

    shape: tuple[int, ...]
    c_q: Any
    c_kv: Any
    q: Array
    k: Array
    v: Array
    e: Array
    total: Array
    c_proj: Any
    c_norm: Any
    c_mlp: Any


class AttentionPool(Module):
    """Let one learned query gather from the patch tokens: the MAP head.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    num_heads : int
        Heads h; must divide D.
    mlp_dim : int
        Hidden width M of the MLP after the attention.
    act : {'gelu', 'gelu_tanh', 'relu'}, default 'gelu'
    norm_eps : float, default 1e-6
    num_prefix_tokens : int, default 0
        Tokens at the start that are left out: class, distillation and register tokens.

    Attributes
    ----------
    latent : ndarray of shape (1, 1, D)
        What the query is made from; zero until initialised.
    q, kv, proj : Linear
        D to D; D to 2D, the keys of all heads, then the values; D to D.
    norm : LayerNorm
    mlp : MLP

    Raises
    ------
    TypeError, ValueError
        If a size is no int or too small, or `num_heads` does not divide `dim`.

    Notes
    -----
    With the attention of `Attention`, but a single row of queries::

        h = proj(attend(q(latent), kv(x)))
        y = h + mlp(norm(h))

    All images share the latent, so its gradient is summed over the batch.

    References
    ----------
    Zhai et al. 2022, "Scaling Vision Transformers", section 3.2; Lee et al. 2019, "Set
    Transformer", section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        num_prefix_tokens: int = 0,
    ) -> None:
        check_int("dim", dim, 1)
        check_int("num_heads", num_heads, 1)
        if dim % num_heads:
            raise ValueError(
                "dim must be divisible by num_heads, "
                f"got dim={dim}, num_heads={num_heads}"
            )
        check_int("num_prefix_tokens", num_prefix_tokens, 0)
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.latent: Array = np.zeros((1, 1, dim), np.float32)
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm = LayerNorm(dim, norm_eps)
        self.mlp = MLP(dim, mlp_dim, act)

    def forward(self, x: Array) -> tuple[Array, AttentionPoolCache | None]:
        """(B, T, D) -> (B, D)."""
        shape = x.shape
        q, c_q = self.q.forward(np.repeat(self.latent, len(x), axis=0))
        kv, c_kv = self.kv.forward(x[:, self.num_prefix_tokens :])
        (q,) = self._heads(q)
        k, v = self._heads(kv)
        # exp_scores takes powers of two, which cost less than powers of e.
        q = q * (self.scale * LOG2_E)
        e, total = exp_scores(q, k)
        h = np.empty((len(x), 1, x.shape[-1]), x.dtype)
        (y,) = self._heads(h)
        np.matmul(e, v, out=y)
        y /= total
        x, c_proj = self.proj.forward(h)
        h, c_norm = self.norm.forward(x)
        h, c_mlp = self.mlp.forward(h)
        x = x + h
        return x[:, 0], saved(
            AttentionPoolCache(
                shape, c_q, c_kv, q, k, v, e, total, c_proj, c_norm, c_mlp
            )
        )

    def backward(self, dy: Array, cache: AttentionPoolCache) -> tuple[Array, Grads]:
        """(B, D) -> (B, T, D), dlatent (1, 1, D), and the layers' gradients."""
        shape, _, _, q, k, v, e, total, _, _, _ = cache
        dy = dy[:, None]
        dh, g_mlp = self.mlp.backward(dy, cache.c_mlp)
        dh, g_norm = self.norm.backward(dh, cache.c_norm)
        dh, g_proj = self.proj.backward(dy + dh, cache.c_proj)
        (dy_heads,) = self._heads(dh)
        dy_heads = dy_heads / total
        batch, tokens, dim = shape
        dq_rows = np.empty((batch, 1, dim), dy.dtype)
        dkv = np.empty((batch, tokens - self.num_prefix_tokens, 2 * dim), dy.dtype)
        (dq,) = self._heads(dq_rows)
        dk, dv = self._heads(dkv)
        np.matmul(e.swapaxes(-1, -2), dy_heads, out=dv)
        dlogits = dy_heads @ v.swapaxes(-1, -2)
        dlogits -= np.vecdot(e, dlogits)[..., None] / total
        dlogits *= e
        np.matmul(dlogits, k, out=dq)
        np.matmul(dlogits.swapaxes(-1, -2), q, out=dk)
        dq *= self.scale
        dk *= 1 / LOG2_E  # q carries the scale and log2(e)
        dx = np.zeros(shape, dy.dtype)
        dx[:, self.num_prefix_tokens :], g_kv = self.kv.backward(dkv, cache.c_kv)
        dlatent, g_q = self.q.backward(dq_rows, cache.c_q)
        return dx, (
            {"latent": dlatent.sum(axis=0, keepdims=True)}
            | scoped("q", g_q)
            | scoped("kv", g_kv)
            | scoped("proj", g_proj)
            | scoped("norm", g_norm)
            | scoped("mlp", g_mlp)
        )

    def _heads(self, x: Array) -> Array:
        """View (B, T, n·D) as n times (B, h, T, Dh): nothing is copied."""
        batch, tokens, _ = x.shape
        head_dim = self.latent.shape[-1] // self.num_heads
        x = x.reshape(batch, tokens, -1, self.num_heads, head_dim)
        return x.transpose(2, 0, 3, 1, 4)


class PreLogitsCache(NamedTuple):
    """What `PreLogits.backward` needs: the linear layer's cache, and the output."""

    c_linear: LinearCache | None
    y: Array


class PreLogits(Linear):
    """A linear layer with tanh, between pooling and head.

    Parameters, attributes and errors are those of `Linear`.

    Notes
    -----
    ::

        y  = tanh(x Wᵀ + b)
        dz = dy (1 - y²)          z is what tanh is taken of; then as in `Linear`

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1: the head with
    "one hidden layer at pre-training time".
    """

    def forward(self, x: Array) -> tuple[Array, Any]:
        """(..., I) -> (..., O)."""
        y, c_linear = super().forward(x)
        np.tanh(y, out=y)
        return y, saved(PreLogitsCache(c_linear, y))

    def backward(self, dy: Array, cache: Any) -> tuple[Array, Grads]:
        """(..., O) -> (..., I), and dW (O, I), db (O,)."""
        return super().backward(dy * (1 - cache.y * cache.y), cache.c_linear)
