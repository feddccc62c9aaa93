"""Initial values of a model's parameters."""

import math
from hashlib import blake2b

import torch
from torch import Tensor, nn

from vit_torch.config import check_choice, check_int, check_positive
from vit_torch.layers.attention import Attention
from vit_torch.layers.position import sincos_2d
from vit_torch.model import VisionTransformer

METHODS = ("trunc_normal", "xavier", "mimetic")

# Matrices that hold several side by side, each of which is initialised as its own.
_STACKED = {"qkv": 3, "kv": 2}


@torch.no_grad()
def init_weights(
    model: nn.Module,
    seed: int,
    method: str = "trunc_normal",
    std: float = 0.02,
    zero_head: bool = True,
) -> None:
    """Fill every parameter of the model, in place.

    Parameters
    ----------
    model : nn.Module
    seed : int, at least 0
    method : {'trunc_normal', 'xavier', 'mimetic'}, default 'trunc_normal'
        How matrices and patch kernels are drawn: from a normal distribution truncated
        at two standard deviations; uniformly in ±√(6 / (fan in + fan out)); or, in
        `Attention`, so that tokens attend to those like them, and the rest by 'xavier'.
    std : float, default 0.02
        Standard deviation of the normal before it is truncated, which leaves 0.88 of
        it. The distillation token is drawn so for any method, and so are positions
        but where 'mimetic' has a start for them.
    zero_head : bool, default True
        Start `head` and `head_dist` from zero: every class is equally likely at first.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above.

    Notes
    -----
    Biases start at 0, scales of norms at 1; class and register tokens nearly at 0, from
    a normal of 1e-6, and the latent of attention pooling from a truncated normal of
    D^-½. LayerScale keeps the value that it was built with. The q, k and v of one
    `qkv.weight` each count as a matrix of their own.

    'mimetic' draws what trained networks were found to have, Z being standard normal::

        Wqᵀ Wk   ≈  0.7 (Z / √D + I)     for each head
        Wproj Wv ≈  0.4 (Z / √D - I)     for all heads together

    Singular values cut each into two factors of equal size, of which a head's have the
    Dh largest. Learned positions of patches start from `sincos_2d`, with which
    attention is local from the start; a D below 8 or no multiple of 4 keeps those that
    are drawn. The matrices take a decomposition of D × D a head: this is meant for
    small networks.

    The values depend on the seed and the parameter's name alone (where singular values
    are taken, on the number of threads too), so that a layer more or less changes no
    other's. `vit_numpy` draws from the same distributions, by its
    own generator: equal models start from one `state_dict`.

    References
    ----------
    Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", equation 16. Trockman, Kolter 2023, "Mimetic Initialization of
    Self-Attention Layers". Truncation really at 2 std differs from timm, whose
    `trunc_normal_` cuts at ±2 whatever the std.
    """
    check_int("seed", seed, 0)
    check_choice("method", method, METHODS)
    check_positive("std", std)
    for name, param in model.named_parameters():
        rng = torch.Generator().manual_seed(_key(seed, name))
        owner, _, kind = name.rpartition(".")
        layer = owner.rpartition(".")[2]
        if kind == "gamma":
            continue
        if kind == "bias":
            param.zero_()
        elif kind in ("cls_token", "reg_token"):
            param.copy_(1e-6 * torch.randn(param.shape, generator=rng))
        elif kind == "latent":
            _trunc_normal(param, param.shape[-1] ** -0.5, rng)
        elif kind != "weight":
            _trunc_normal(param, std, rng)
        elif param.ndim == 1:
            param.fill_(1)
        elif zero_head and layer in ("head", "head_dist"):
            param.zero_()
        elif method == "trunc_normal":
            _trunc_normal(param, std, rng)
        else:
            fan_out = len(param) // _STACKED.get(layer, 1)
            fan_in = math.prod(param.shape[1:])
            limit = math.sqrt(6 / (fan_in + fan_out))
            values = torch.empty(param.shape)
            param.copy_(values.uniform_(-limit, limit, generator=rng))
    if method == "mimetic":
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                rng = torch.Generator().manual_seed(_key(seed, name))
                _mimetic_attention(module, rng)
            elif isinstance(module, VisionTransformer):
                _mimetic_positions(module)


def _mimetic_attention(layer: Attention, rng: torch.Generator) -> None:
    """Draw the q, k, v and proj of one layer as `init_weights` says."""
    dim = len(layer.proj.weight)
    head_dim = dim // layer.num_heads
    q, k, v = layer.qkv.weight.chunk(3)
    for start in range(0, dim, head_dim):
        rows = slice(start, start + head_dim)
        left, right = _factors(0.7, 1.0, dim, head_dim, rng)
        q[rows], k[rows] = left.T, right
    left, right = _factors(0.4, -1.0, dim, dim, rng)
    layer.proj.weight[...], v[...] = left, right


def _mimetic_positions(model: VisionTransformer) -> None:
    """Start the learned positions of patches from sines and cosines."""
    config = model.config
    positions = model.pos_embed
    if positions is None or config.pos_embed != "learned":
        return
    if config.dim >= 8 and config.dim % 4 == 0:
        table = sincos_2d(*config.grid, config.dim)
        positions[:, -len(table) :] = table


def _factors(
    scale: float, sign: float, dim: int, rank: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return (D, r) and (r, D), whose product is nearest to scale (Z / √D + sign I)."""
    product = scale * (
        torch.randn(dim, dim, generator=rng) / math.sqrt(dim) + sign * torch.eye(dim)
    )
    left, sizes, right = torch.linalg.svd(product)
    roots = torch.sqrt(sizes[:rank])
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _trunc_normal(param: Tensor, std: float, rng: torch.Generator) -> None:
    """Fill from a normal truncated at ±2 std."""
    values = torch.empty(param.shape)
    nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=rng)
    param.copy_(values)


def _key(seed: int, name: str) -> int:
    """Return a key for the generator of one parameter."""
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
