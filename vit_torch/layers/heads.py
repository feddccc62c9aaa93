"""From tokens to one vector an image: poolings, and the tanh layer before the head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int
from vit_torch.layers.layer_norm import LayerNorm
from vit_torch.layers.linear import Linear
from vit_torch.layers.mlp import MLP


class TokenPool(nn.Module):
    """Take the class token of each image.

    The twin of `vit_numpy.layers.heads`, which derives the gradients.

    Parameters
    ----------
    distilled : bool, default False
        Whether to take the distillation token, which stands next to it, too.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equation 4; for two tokens
    Touvron et al. 2021, "Training data-efficient image transformers", section 4.
    """

    def __init__(self, distilled: bool = False) -> None:
        super().__init__()
        self.taken = slice(2) if distilled else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D), or (B, 2, D) if distilled."""
        return x[:, self.taken]


class MeanPool(nn.Module):
    """Average the patch tokens of each image.

    The twin of `vit_numpy.layers.heads`, which derives the gradients.

    Parameters
    ----------
    num_prefix_tokens : int, default 0
        Tokens at the start that are left out: class, distillation and register tokens.

    Raises
    ------
    TypeError, ValueError
        If `num_prefix_tokens` is no int or below 0.
    """

    def __init__(self, num_prefix_tokens: int = 0) -> None:
        check_int("num_prefix_tokens", num_prefix_tokens, 0)
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return x[:, self.num_prefix_tokens :].mean(dim=1)


class AttentionPool(nn.Module):
    """Let one learned query gather from the patch tokens: the MAP head.

    The twin of `vit_numpy.layers.heads`, which derives the gradients.

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
    latent : Parameter of shape (1, 1, D)
        What the query is made from; zero until initialised.
    q, kv, proj : Linear
        D to D; D to 2D, the keys of all heads, then the values; D to D.
    norm : LayerNorm
    mlp : MLP

    Raises
    ------
    TypeError, ValueError
        If a size is no int or too small, or `num_heads` does not divide `dim`.

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
        super().__init__()
        self.num_heads = num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm = LayerNorm(dim, norm_eps)
        self.mlp = MLP(dim, mlp_dim, act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        q = self.q(self.latent.expand(len(x), -1, -1))
        kv = self.kv(x[:, self.num_prefix_tokens :])
        (q,) = self._heads(q)
        k, v = self._heads(kv)
        y = F.scaled_dot_product_attention(q, k, v)
        h = y.transpose(1, 2).reshape(len(x), 1, -1)
        x = self.proj(h)
        h = self.norm(x)
        h = self.mlp(h)
        x = x + h
        return x[:, 0]

    def _heads(self, x: Tensor) -> Tensor:
        """View (B, T, n·D) as n times (B, h, T, Dh): nothing is copied."""
        batch, tokens, _ = x.shape
        head_dim = self.latent.shape[-1] // self.num_heads
        x = x.reshape(batch, tokens, -1, self.num_heads, head_dim)
        return x.permute(2, 0, 3, 1, 4)


class PreLogits(Linear):
    """A linear layer with tanh, between pooling and head.

    Parameters, attributes and errors are those of `Linear`.

    The twin of `vit_numpy.layers.heads`, which derives the gradients.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1: the head with
    "one hidden layer at pre-training time".
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return super().forward(x).tanh()
