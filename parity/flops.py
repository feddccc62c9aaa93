"""Floating-point operations of a Vision Transformer, counted from its configuration.

Counted is what matrix products cost, a multiplication and an addition for each term, as
is usual: all else in a network grows with the tokens times the width, and not with
products of such numbers.
"""

from __future__ import annotations

from vit_numpy.config import ViTConfig


def forward_flops(config: ViTConfig, batch_size: int = 1) -> int:
    """Return the operations of one forward pass.

    Parameters
    ----------
    config : ViTConfig
    batch_size : int, default 1
        Images B.

    Notes
    -----
    With the letters of `vit_numpy`, each block takes 2BT(4D² + 2DM + 2TD): q, k, v and
    the output projection, the MLP, and two products of each token with all others.
    """
    return batch_size * (_embedding(config) + _body(config))


def training_flops(config: ViTConfig, batch_size: int = 1) -> int:
    """Return the operations of a forward and a backward pass.

    For each product y = x w of the forward pass, the backward has two of the same size,
    dx = dy wᵀ and dw = xᵀ dy. Only the patch embedding has one: the gradient of the
    images is not asked for.
    """
    return batch_size * (2 * _embedding(config) + 3 * _body(config))


def _embedding(config: ViTConfig) -> int:
    pixels = config.in_chans * config.patch_size**2
    return 2 * config.num_patches * pixels * config.dim


def _body(config: ViTConfig) -> int:
    tokens, dim, hidden = config.num_tokens, config.dim, config.mlp_dim
    block = tokens * (4 * dim * dim + 2 * dim * hidden + 2 * tokens * dim)
    terms = config.depth * block
    features = tokens * dim if config.pool == "flatten" else dim
    if config.pool == "map":
        # One query: projected, against the keys, over the values, projected, and MLP.
        terms += dim * dim + 2 * config.num_patches * (dim * dim + dim)
        terms += dim * dim + 2 * dim * hidden
    heads = 2 if config.distillation_token else 1
    if config.pre_logits is not None:
        terms += heads * features * config.pre_logits
        features = config.pre_logits
    return 2 * (terms + heads * features * config.num_classes)
