"""The Vision Transformer."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_torch.config import ViTConfig
from vit_torch.layers.block import Block
from vit_torch.layers.dropout import Dropout, MaskSource
from vit_torch.layers.flatten import Flatten
from vit_torch.layers.heads import AttentionPool, MeanPool, PreLogits, TokenPool
from vit_torch.layers.identity import Identity
from vit_torch.layers.layer_norm import LayerNorm
from vit_torch.layers.linear import Linear
from vit_torch.layers.patch_embed import PatchEmbed
from vit_torch.layers.position import sincos_1d, sincos_2d
from vit_torch.masks import name_dropouts


class VisionTransformer(nn.Module):
    """Classify images by a transformer over their patches.

    The twin of `vit_numpy.model`, which derives the gradients.

    Parameters
    ----------
    config : ViTConfig
        What the model is made of.

    Attributes
    ----------
    config : ViTConfig
    patch_embed : PatchEmbed
    cls_token, dist_token : Parameter of shape (1, 1, D), or None
    reg_token : Parameter of shape (1, R, D), or None
    pos_embed : Parameter of shape (1, T, D), or None
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
        Whether a training keeps only what enters each block, and computes the rest
        again in backward (gradient checkpointing): less memory for more time. False
        when the model is built; no parameter, as results are the same.

    Raises
    ------
    TypeError
        If `config` is no ViTConfig.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 1 to 4; for the
    distillation token Touvron et al. 2021, "Training data-efficient image
    transformers"; for registers Darcet et al. 2023, "Vision Transformers Need
    Registers".
    """

    def __init__(self, config: ViTConfig) -> None:
        check_config(config)
        super().__init__()
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
            self.pos_embed: Tensor | None = _tokens(length, dim)
        elif config.pos_embed == "none":
            self.pos_embed = None
        else:
            self.register_buffer("pos_embed", _position_table(config), persistent=False)
        self.pos_drop = Dropout(config.pos_drop)
        self.blocks = nn.ModuleList(
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
        )
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
        images: Tensor,
        masks: MaskSource | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> logits (B, K); `record` gets what `intermediates` returns.

        Raises
        ------
        TypeError
            If the images are no tensor, or not of the parameters' dtype.
        ValueError
            If they do not have the shape that the configuration names, or are none.
        """
        self._check_images(images)
        x = self.patch_embed(images)
        x = self._add_tokens(x)
        x = self.pos_drop(x, masks)
        if record is not None:
            record["embedding"] = x
        for i, block in enumerate(self.blocks):
            branches: dict[str, Tensor] = {}
            shown = None if record is None else branches
            if self.recompute and self.training and record is None:
                x = checkpoint(block, x, masks, use_reentrant=False)
            else:
                x = block(x, masks, shown)
            if record is not None:
                for name, branch in branches.items():
                    record[f"blocks.{i}.{name}"] = branch
                record[f"blocks.{i}"] = x
        x = self.norm(x)
        x = self.attn_pool(x)
        x = self.pool(x)
        x = self.fc_norm(x)
        x = self.pre_logits(x)
        if record is not None:
            record["pre_logits"] = x
        if self.head_dist is None:
            y = self.head(x)
        else:
            y = self.head(x[:, 0])
            y_dist = self.head_dist(x[:, 1])
            y = (y + y_dist) / 2
        if record is not None:
            record["logits"] = y
        return y

    def intermediates(
        self, images: Tensor, masks: MaskSource | None = None
    ) -> dict[str, Tensor]:
        """Return what flows through the model, by name, in the order of its making.

        'embedding' (B, T, D) enters the first block; 'blocks.0.attn' and 'blocks.0.mlp'
        are what these two layers return, before LayerScale and the sum; 'blocks.0' is
        what the block returns; 'pre_logits' (B, features) enters the head, or
        (B, 2, D) the two heads of a distilled model; 'logits' (B, K) leaves it.

        Each is part of the graph: after `retain_grad` on it, a backward from 'logits'
        leaves its gradient in `grad`.
        """
        record: dict[str, Tensor] = {}
        self.forward(images, masks, record)
        return record

    def attention_weights(self, images: Tensor) -> list[Tensor]:
        """Return the attention weights of each block: (B, h, T, T), rows sum to 1.

        In training mode the blocks drop out; `eval` first for those of the whole model.
        """
        self._check_images(images)
        x = self._add_tokens(self.patch_embed(images))
        weights = []
        for block in self.blocks:
            weights.append(block.attn.attention_weights(block.norm1(x)))
            x = block(x)
        return weights

    def _add_tokens(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D): put the prefix in front, and add the positions."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [token.expand(len(x), -1, -1) for token in tokens if token is not None]
        if self.pos_embed is not None and not self.config.pos_prefix:
            x = x + self.pos_embed
        x = torch.cat([*prefix, x], dim=1)
        if self.pos_embed is not None and self.config.pos_prefix:
            x = x + self.pos_embed
        return x

    def _check_images(self, images: Tensor) -> None:
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
        dtype = str(self.patch_embed.proj.weight.dtype).removeprefix("torch.")
        got_dtype = str(images.dtype).removeprefix("torch.")
        if got_dtype != dtype:
            raise TypeError(
                f"images must be {dtype}, as the parameters are, "
                f"got {got_dtype}; cast one of the two"
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
    if not isinstance(images, Tensor):
        raise TypeError(
            "images must be an array for vit_numpy and a tensor for vit_torch, "
            f"got {type(images).__name__}"
        )


def _tokens(length: int, dim: int) -> nn.Parameter | None:
    """Return parameters for `length` tokens, or None for none."""
    return nn.Parameter(torch.zeros(1, length, dim)) if length else None


def _position_table(config: ViTConfig) -> Tensor:
    """Return the fixed positions of the tokens that have one, (1, T or N, D)."""
    prefix = config.num_prefix_tokens if config.pos_prefix else 0
    if config.pos_embed == "sincos1d":
        table = sincos_1d(prefix + config.num_patches, config.dim)
    else:
        table = sincos_2d(*config.grid, config.dim)
        table = torch.cat([table.new_zeros(prefix, config.dim), table])
    return table.float()[None]


def _norm(config: ViTConfig, place: str) -> LayerNorm | Identity:
    """Return the last norm if `place` is where it stands."""
    if config.final_norm == place:
        return LayerNorm(config.dim, config.norm_eps)
    return Identity()


def _head(features: int, num_classes: int) -> Linear | Identity:
    """Return a classifier; without classes, what returns the features."""
    return Linear(features, num_classes) if num_classes else Identity()
