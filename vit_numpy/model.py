"""The Vision Transformer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vit_numpy.config import ViTConfig
from vit_numpy.functional import column_sum
from vit_numpy.layers.block import Block
from vit_numpy.layers.dropout import Dropout, MaskSource
from vit_numpy.layers.flatten import Flatten
from vit_numpy.layers.heads import AttentionPool, MeanPool, PreLogits, TokenPool
from vit_numpy.layers.identity import Identity
from vit_numpy.layers.layer_norm import LayerNorm
from vit_numpy.layers.linear import Linear
from vit_numpy.layers.patch_embed import PatchEmbed
from vit_numpy.layers.position import sincos_1d, sincos_2d
from vit_numpy.masks import name_dropouts
from vit_numpy.module import Array, Grads, Module, no_grad, saved, saving, scoped


class RecomputedCache(NamedTuple):
    """What a block is run again from, in the place of its own cache."""

    x: Array
    masks: MaskSource | None


class VisionTransformerCache(NamedTuple):
    """What `VisionTransformer.backward` needs: the caches of its layers."""

    c_patch_embed: Any
    c_pos_drop: Any
    c_blocks: list[Any]
    c_norm: Any
    c_attn_pool: Any
    c_pool: Any
    c_fc_norm: Any
    c_pre_logits: Any
    c_head: Any
    c_head_dist: Any


class VisionTransformer(Module):
    """Classify images by a transformer over their patches.

    Parameters
    ----------
    config : ViTConfig
        What the model is made of.

    Attributes
    ----------
    config : ViTConfig
    patch_embed : PatchEmbed
    cls_token, dist_token : ndarray of shape (1, 1, D), or None
    reg_token : ndarray of shape (1, R, D), or None
    pos_embed : ndarray of shape (1, T, D), or None
        (1, N, D) if ``config.pos_prefix`` is False. A fixed table is no parameter.
    pos_drop : Dropout
    blocks : list of Block
    norm : LayerNorm, or Identity
        The last norm if it stands before pooling.
    attn_pool : AttentionPool, or Identity
    pool : TokenPool, MeanPool or Flatten, or Identity
        One of the two pools; the other is the Identity.
    fc_norm : LayerNorm, or Identity
        The last norm if it stands after pooling.
    pre_logits : PreLogits, or Identity
    head : Linear, or Identity
    head_dist : Linear, Identity, or None
        The head of the distillation token.
    recompute : bool
        Whether training keeps only the input of each block, and runs the block again in
        backward: less memory, for about a third more time, and the same bits. False
        unless set.

    Raises
    ------
    TypeError
        If `config` is no ViTConfig.

    Notes
    -----
    Tokens stand in the order class, distillation, registers, patches. With the last
    norm before or after pooling::

        x = pos_drop([cls, dist, reg, patch_embed(images)] + pos_embed)
        x = block(x)  for each block
        y = head(pre_logits(fc_norm(pool(attn_pool(norm(x))))))

    The result of a distilled model is the mean of its two heads' logits.

    Tokens and positions are shared by all images, so their gradients are sums over the
    batch.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 1 to 4; for the
    distillation token Touvron et al. 2021, "Training data-efficient image
    transformers"; for registers Darcet et al. 2023, "Vision Transformers Need
    Registers".
    """

    def __init__(self, config: ViTConfig) -> None:
        check_config(config)
        dim = config.dim
        self.config = config
        self.patch_embed = PatchEmbed(
            config.patch_size,
            config.in_chans,
            dim,
            config.patch_bias,
            config.patch_embed,
        )
        self.cls_token = _tokens(int(config.class_token), dim)
        self.dist_token = _tokens(int(config.distillation_token), dim)
        self.reg_token = _tokens(config.num_registers, dim)
        if config.pos_embed == "learned":
            length = config.num_tokens if config.pos_prefix else config.num_patches
            self.pos_embed: Array | None = _tokens(length, dim)
        elif config.pos_embed == "none":
            self.pos_embed = None
        else:
            self.register_buffer("pos_embed", _position_table(config))
        self.pos_drop = Dropout(config.pos_drop)
        self.blocks = [
            Block(
                dim,
                config.num_heads,
                config.mlp_dim,
                qkv_bias=config.qkv_bias,
                qk_norm=config.qk_norm,
                act=config.act,
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
                attn_drop=config.attn_drop,
                proj_drop=config.proj_drop,
                act_drop=config.act_drop,
                mlp_drop=config.mlp_drop,
                drop_path=drop_path,
            )
            for drop_path in config.drop_path_rates
        ]
        self.norm = _norm(config, "before")
        self.attn_pool: AttentionPool | Identity = Identity()
        self.pool: TokenPool | MeanPool | Flatten | Identity = Identity()
        prefix = config.num_prefix_tokens
        features = dim
        if config.pool == "token":
            self.pool = TokenPool(config.distillation_token)
        elif config.pool == "mean":
            self.pool = MeanPool(prefix)
        elif config.pool == "flatten":
            self.pool = Flatten()
            features = config.num_tokens * dim
        else:
            self.attn_pool = AttentionPool(
                dim,
                config.num_heads,
                config.mlp_dim,
                config.act,
                config.norm_eps,
                prefix,
            )
        self.fc_norm = _norm(config, "after")
        self.pre_logits: PreLogits | Identity = Identity()
        if config.pre_logits is not None:
            self.pre_logits = PreLogits(features, config.pre_logits)
            features = config.pre_logits
        self.head = _head(features, config.num_classes)
        self.head_dist: Linear | Identity | None = None
        if config.distillation_token:
            self.head_dist = _head(features, config.num_classes)
        self.recompute = False
        name_dropouts(self)

    def forward(
        self,
        images: Array,
        masks: MaskSource | None = None,
        record: dict[str, Array] | None = None,
    ) -> tuple[Array, VisionTransformerCache | None]:
        """(B, C, H, W) -> logits (B, K); `record` gets what `intermediates` returns.

        Raises
        ------
        TypeError
            If the images are no array, or not of the parameters' dtype.
        ValueError
            If they do not have the shape that the configuration names, or are none.
        """
        self._check_images(images)
        x, c_patch_embed = self.patch_embed.forward(images)
        x = self._add_tokens(x)
        x, c_pos_drop = self.pos_drop.forward(x, masks)
        if record is not None:
            record["embedding"] = x
        c_blocks = []
        for i, block in enumerate(self.blocks):
            branches: dict[str, Array] = {}
            shown = None if record is None else branches
            if self.recompute and saving():
                c_block: Any = RecomputedCache(x, masks)
                with no_grad():
                    x, _ = block.forward(x, masks, shown)
            else:
                x, c_block = block.forward(x, masks, shown)
            c_blocks.append(c_block)
            if record is not None:
                record |= scoped(f"blocks.{i}", branches) | {f"blocks.{i}": x}
        x, c_norm = self.norm.forward(x)
        x, c_attn_pool = self.attn_pool.forward(x)
        x, c_pool = self.pool.forward(x)
        x, c_fc_norm = self.fc_norm.forward(x)
        x, c_pre_logits = self.pre_logits.forward(x)
        if record is not None:
            record["pre_logits"] = x
        c_head_dist = None
        if self.head_dist is None:
            y, c_head = self.head.forward(x)
        else:
            y, c_head = self.head.forward(x[:, 0])
            y_dist, c_head_dist = self.head_dist.forward(x[:, 1])
            y = (y + y_dist) / 2
        if record is not None:
            record["logits"] = y
        return y, saved(
            VisionTransformerCache(
                c_patch_embed,
                c_pos_drop,
                c_blocks,
                c_norm,
                c_attn_pool,
                c_pool,
                c_fc_norm,
                c_pre_logits,
                c_head,
                c_head_dist,
            )
        )

    def backward(
        self,
        dlogits: Array,
        cache: VisionTransformerCache,
        consume: bool = False,
        record: dict[str, Array] | None = None,
        input_grad: bool = True,
        first_layer: int = 0,
        sink: Callable[[Grads], object] | None = None,
    ) -> tuple[Array | None, Grads]:
        """(B, K) -> (B, C, H, W), and the gradients of all parameters.

        Parameters
        ----------
        dlogits : ndarray of shape (B, K)
        cache : VisionTransformerCache
            What `forward` returned.
        consume : bool, default False
            Free the cache of each block when it has been used; the cache serves no
            second backward then.
        record : dict, optional
            Gets the gradients of what `intermediates` returns, under the same names.
        input_grad : bool, default True
            Whether the gradient of the images is wanted; None is returned else.
        first_layer : int, default 0
            The first layer that is trained, as `optim.layer_of` counts them: backward
            stops there, and returns None for the images if that is above 0.
        sink : callable, optional
            Takes over the parameters' gradients, some at a time, as they are made; what
            is returned is empty then.

        Raises
        ------
        ValueError
            If the cache was consumed by an earlier backward.
        """
        if len(cache.c_blocks) != len(self.blocks):
            raise ValueError(
                f"cache must hold {len(self.blocks)} blocks, "
                f"got {len(cache.c_blocks)}; a backward with consume=True leaves none, "
                "so run forward again"
            )
        grads: Grads = {}
        hand_over = sink or grads.update
        if record is not None:
            record["logits"] = dlogits
        if self.head_dist is None:
            dx, g_head = self.head.backward(dlogits, cache.c_head)
        else:
            dx_cls, g_head = self.head.backward(dlogits / 2, cache.c_head)
            dx_dist, g_head_dist = self.head_dist.backward(
                dlogits / 2, cache.c_head_dist
            )
            dx = np.stack([dx_cls, dx_dist], axis=1)
            hand_over(scoped("head_dist", g_head_dist))
        hand_over(scoped("head", g_head))
        if record is not None:
            record["pre_logits"] = dx
        dx, g_pre_logits = self.pre_logits.backward(dx, cache.c_pre_logits)
        dx, g_fc_norm = self.fc_norm.backward(dx, cache.c_fc_norm)
        dx, _ = self.pool.backward(dx, cache.c_pool)
        dx, g_attn_pool = self.attn_pool.backward(dx, cache.c_attn_pool)
        dx, g_norm = self.norm.backward(dx, cache.c_norm)
        hand_over(scoped("pre_logits", g_pre_logits) | scoped("fc_norm", g_fc_norm))
        hand_over(scoped("attn_pool", g_attn_pool) | scoped("norm", g_norm))
        for i in reversed(range(max(first_layer - 1, 0), len(self.blocks))):
            c_block = cache.c_blocks.pop() if consume else cache.c_blocks[i]
            if isinstance(c_block, RecomputedCache):
                _, c_block = self.blocks[i].forward(*c_block)
            branches: dict[str, Array] = {}
            shown = None if record is None else branches
            if record is not None:
                record[f"blocks.{i}"] = dx
            dx, g_block = self.blocks[i].backward(dx, c_block, shown)
            if record is not None:
                record |= scoped(f"blocks.{i}", branches)
            hand_over(scoped(f"blocks.{i}", g_block))
        if first_layer:
            return None, grads
        if record is not None:
            record["embedding"] = dx
        dx, _ = self.pos_drop.backward(dx, cache.c_pos_drop)
        dx, g_tokens = self._add_tokens_backward(dx)
        dimages, g_patch_embed = self.patch_embed.backward(
            dx, cache.c_patch_embed, input_grad
        )
        hand_over(g_tokens | scoped("patch_embed", g_patch_embed))
        return dimages, grads

    def intermediates(
        self, images: Array, masks: MaskSource | None = None
    ) -> dict[str, Array]:
        """Return what flows through the model, by name, in the order of its making.

        'embedding' (B, T, D) enters the first block; 'blocks.0.attn' and 'blocks.0.mlp'
        are what these two layers return, before LayerScale and the sum; 'blocks.0' is
        what the block returns; 'pre_logits' (B, features) enters the head, or
        (B, 2, D) the two heads of a distilled model; 'logits' (B, K) leaves it.
        """
        record: dict[str, Array] = {}
        self.forward(images, masks, record)
        return record

    def attention_weights(self, images: Array) -> list[Array]:
        """Return the attention weights of each block: (B, h, T, T), rows sum to 1."""
        self._check_images(images)
        x = self._add_tokens(self.patch_embed(images))
        weights = []
        for block in self.blocks:
            weights.append(block.attn.attention_weights(block.norm1(x)))
            x = block(x)
        return weights

    def _add_tokens(self, x: Array) -> Array:
        """(B, N, D) -> (B, T, D): put the prefix in front, and add the positions."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [
            np.broadcast_to(token, (len(x), *token.shape[1:]))
            for token in tokens
            if token is not None
        ]
        if self.pos_embed is not None and not self.config.pos_prefix:
            x = x + self.pos_embed
        x = np.concatenate([*prefix, x], axis=1)
        if self.pos_embed is not None and self.config.pos_prefix:
            x += self.pos_embed
        return x

    def _add_tokens_backward(self, dx: Array) -> tuple[Array, Grads]:
        """(B, T, D) -> (B, N, D), and the gradients of tokens and positions."""
        config = self.config
        first_patch = config.num_prefix_tokens
        total = column_sum(dx.reshape(len(dx), -1)).reshape(1, *dx.shape[1:])
        grads: Grads = {}
        if config.pos_embed == "learned":
            grads["pos_embed"] = total if config.pos_prefix else total[:, first_patch:]
        start = 0
        for name in ("cls_token", "dist_token", "reg_token"):
            token = getattr(self, name)
            if token is not None:
                # A copy, so that no two gradients share memory.
                grads[name] = total[:, start : start + token.shape[1]].copy()
                start += token.shape[1]
        return dx[:, first_patch:], grads

    def _check_images(self, images: Array) -> None:
        """Raise unless the images are what the configuration and parameters ask for."""
        check_kind(images)
        config = self.config
        got = tuple(images.shape)
        shape = (config.in_chans, *config.image_hw)
        if len(got) != 4 or got[1:] != shape:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, shape))}), "
                f"got shape {got}"
            )
        if not got[0]:
            raise ValueError("images must hold at least one image, got an empty batch")
        dtype = self.patch_embed.proj.weight.dtype.name
        if images.dtype.name != dtype:
            raise TypeError(
                f"images must be {dtype}, as the parameters are, "
                f"got {images.dtype.name}; cast one of the two"
            )


def check_config(config: object) -> None:
    """Raise unless `config` is this package's own; the twin's has the same name."""
    if not isinstance(config, ViTConfig):
        raise TypeError(
            "config must be this package's ViTConfig, "
            f"got {type(config).__module__}.{type(config).__qualname__}; "
            "make one with preset, or ViTConfig.from_dict(config.to_dict())"
        )


def check_kind(images: object) -> None:
    """Raise unless `images` are of this backend's kind."""
    if not isinstance(images, np.ndarray):
        raise TypeError(
            "images must be an array for vit_numpy and a tensor for vit_torch, "
            f"got {type(images).__name__}"
        )


def _tokens(length: int, dim: int) -> Array | None:
    """Return parameters for `length` tokens, or None for none."""
    return np.zeros((1, length, dim), np.float32) if length else None


def _position_table(config: ViTConfig) -> Array:
    """Return the fixed positions of the tokens that have one, (1, T or N, D)."""
    prefix = config.num_prefix_tokens if config.pos_prefix else 0
    if config.pos_embed == "sincos1d":
        table = sincos_1d(prefix + config.num_patches, config.dim)
    else:
        table = sincos_2d(*config.grid, config.dim)
        table = np.concatenate([np.zeros((prefix, config.dim)), table])
    return table.astype(np.float32)[None]


def _norm(config: ViTConfig, place: str) -> LayerNorm | Identity:
    """Return the last norm if `place` is where it stands."""
    if config.final_norm == place:
        return LayerNorm(config.dim, config.norm_eps)
    return Identity()


def _head(features: int, num_classes: int) -> Linear | Identity:
    """Return a classifier; without classes, what returns the features."""
    return Linear(features, num_classes) if num_classes else Identity()
