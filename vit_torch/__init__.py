"""The Vision Transformer in PyTorch, the mirror of `vit_numpy`.

Shapes are written with these letters: images (B, C, H, W); patch side P; patches
N = HW/P²; tokens T = N + prefix tokens; width D; heads h; head width Dh; MLP width M;
classes K. A gradient is `d` + the name of what it is the gradient of.
"""

from vit_torch import layers
from vit_torch.config import PRESETS, ViTConfig, preset
from vit_torch.masks import KeyedMasks
from vit_torch.model import VisionTransformer

__all__ = [
    "PRESETS",
    "KeyedMasks",
    "ViTConfig",
    "VisionTransformer",
    "layers",
    "preset",
]
