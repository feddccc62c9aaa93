"""The Vision Transformer's layers, one file each."""

from vit_numpy.layers.activation import GELU, ReLU, activation
from vit_numpy.layers.attention import Attention
from vit_numpy.layers.block import Block
from vit_numpy.layers.conv import Conv2d
from vit_numpy.layers.drop_path import DropPath
from vit_numpy.layers.dropout import Dropout
from vit_numpy.layers.flatten import Flatten
from vit_numpy.layers.heads import AttentionPool, MeanPool, PreLogits, TokenPool
from vit_numpy.layers.identity import Identity
from vit_numpy.layers.layer_norm import LayerNorm
from vit_numpy.layers.layer_scale import LayerScale
from vit_numpy.layers.linear import Linear
from vit_numpy.layers.mlp import MLP
from vit_numpy.layers.patch_embed import PatchEmbed
from vit_numpy.layers.position import sincos_1d, sincos_2d

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
