"""The Vision Transformer in NumPy, every forward and backward written by hand.

Shapes are written with these letters: images (B, C, H, W); patch side P; patches
N = HW/P²; tokens T = N + prefix tokens; width D; heads h; head width Dh; MLP width M;
classes K. A gradient is `d` + the name of what it is the gradient of.
"""

from vit_numpy import layers
from vit_numpy.config import PRESETS, ViTConfig, preset
from vit_numpy.masks import KeyedMasks
from vit_numpy.model import VisionTransformer
from vit_numpy.module import no_grad

__all__ = [
    "PRESETS",
    "KeyedMasks",
    "ViTConfig",
    "VisionTransformer",
    "layers",
    "no_grad",
    "preset",
]
