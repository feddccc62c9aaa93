"""The Vision Transformer's layers, one file each."""

from vit_torch.layers.activation import GELU, ReLU, activation
from vit_torch.layers.attention import Attention
from vit_torch.layers.block import Block
from vit_torch.layers.conv import Conv2d
from vit_torch.layers.drop_path import DropPath
from vit_torch.layers.dropout import Dropout
from vit_torch.layers.flatten import Flatten
from vit_torch.layers.heads import AttentionPool, MeanPool, PreLogits, TokenPool
from vit_torch.layers.identity import Identity
from vit_torch.layers.layer_norm import LayerNorm
from vit_torch.layers.layer_scale import LayerScale
from vit_torch.layers.linear import Linear
from vit_torch.layers.mlp import MLP
from vit_torch.layers.patch_embed import PatchEmbed
from vit_torch.layers.position import sincos_1d, sincos_2d

__all__ = [
    "GELU",
    "MLP",
    "Attention",
    "AttentionPool",
    "Block",
    "Conv2d",
    "DropPath",
    "Dropout",
    "Flatten",
    "Identity",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "MeanPool",
    "PatchEmbed",
    "PreLogits",
    "ReLU",
    "TokenPool",
    "activation",
    "sincos_1d",
    "sincos_2d",
]
