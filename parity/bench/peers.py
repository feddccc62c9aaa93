"""The same network from other libraries, in torch."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from parity.bench.subjects import NotTheSameError
from vit_numpy.config import ViTConfig


def build_peer(library: str, config: ViTConfig) -> nn.Module:
    """Return the model of timm, torchvision or Hugging Face's transformers.

    Raises
    ------
    NotTheSameError
        If the library has no such network.
    """
    _check(config)
    model: nn.Module = {
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": _transformers,
    }[library](config)
    return model


def _check(config: ViTConfig) -> None:
    """Raise for what at least one of the libraries cannot say."""
    plain = ViTConfig(
        image_size=config.image_hw,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_dim=config.mlp_dim,
        act=config.act,
        norm_eps=config.norm_eps,
        patch_embed=config.patch_embed,
        patch_bias=config.patch_bias,
        final_norm=config.final_norm,
        act_drop=config.act_drop,
    )
    if config != plain or config.final_norm == "after":
        raise NotTheSameError("only plain Vision Transformers are compared with it")
    rows, columns = config.grid
    if rows != columns:
        raise NotTheSameError("only square images are compared with it")


def _activation(config: ViTConfig) -> nn.Module:
    if config.act == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if config.act == "gelu_tanh" else "none")


def _timm(config: ViTConfig) -> nn.Module:
    from vit_torch._torchvision import import_torchvision

    import_torchvision()  # timm imports it, and would meet its mismatches
    timm = import_module("timm.models.vision_transformer")
    model: Any = timm.VisionTransformer(
        img_size=config.image_hw,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.dim,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
        act_layer=partial(_activation, config),
        final_norm=config.final_norm == "before",
    )
    for block in model.blocks:
        block.mlp.drop1 = nn.Dropout(config.act_drop)
    if not config.patch_bias:
        model.patch_embed.proj.bias = None
    return _whole(model)


def _torchvision(config: ViTConfig) -> nn.Module:
    from vit_torch._torchvision import import_torchvision

    _check_no_dropout(config)
    import_torchvision()
    from torchvision.models import VisionTransformer

    model: Any = VisionTransformer(
        image_size=config.image_hw[0],
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.dim,
        mlp_dim=config.mlp_dim,
        num_classes=config.num_classes,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
    )
    side = config.patch_size
    model.conv_proj = nn.Conv2d(
        config.in_chans, config.dim, side, side, bias=config.patch_bias
    )
    for layer in model.encoder.layers:
        layer.mlp[1] = _activation(config)
    if config.final_norm == "none":
        model.encoder.ln = nn.Identity()
    return _whole(model)


def _transformers(config: ViTConfig) -> nn.Module:
    from vit_torch._torchvision import import_torchvision

    _check_no_dropout(config)
    import_torchvision()  # transformers imports it too
    transformers: Any = import_module("transformers")
    names = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_hw[0],
            patch_size=config.patch_size,
            num_channels=config.in_chans,
            num_labels=config.num_classes,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            hidden_act=names[config.act],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=config.norm_eps,
            attn_implementation="sdpa",
        )
    )
    if not config.patch_bias:
        model.vit.embeddings.patch_embeddings.projection.bias = None
    if config.final_norm == "none":
        model.vit.layernorm = nn.Identity()
    return _whole(model)


def _check_no_dropout(config: ViTConfig) -> None:
    if config.act_drop:
        raise NotTheSameError("it drops in other places")


def _whole(model: nn.Module) -> nn.Module:
    """Return the model in float32, with parameters that are no constants."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.trunc_normal_(parameter, std=0.02)
    return model.float()
