"""The Vision Transformer in NumPy, every forward and backward written by hand.

Shapes are written with these letters: images (B, C, H, W); patch side P; patches
N = HW/P²; tokens T = N + prefix tokens; width D; heads h; head width Dh; MLP width M;
classes K. A gradient is `d` + the name of what it is the gradient of.
"""

from vit_numpy import layers
from vit_numpy.checkpoint import from_pretrained, load, save
from vit_numpy.config import PRESETS, ViTConfig, preset
from vit_numpy.ema import EMA
from vit_numpy.finetune import adapt, frozen_layers, resize_positions
from vit_numpy.init import init_weights
from vit_numpy.loss import CrossEntropy, MeanSquaredError
from vit_numpy.masks import KeyedMasks
from vit_numpy.model import VisionTransformer
from vit_numpy.module import no_grad
from vit_numpy.optim import SGD, Adam, AdamW, clip_grad_norm, param_groups
from vit_numpy.schedule import Schedule
from vit_numpy.train import Trainer, evaluate

__all__ = [
    "EMA",
    "PRESETS",
    "SGD",
    "Adam",
    "AdamW",
    "CrossEntropy",
    "KeyedMasks",
    "MeanSquaredError",
    "Schedule",
    "Trainer",
    "ViTConfig",
    "VisionTransformer",
    "adapt",
    "clip_grad_norm",
    "evaluate",
    "from_pretrained",
    "frozen_layers",
    "init_weights",
    "layers",
    "load",
    "no_grad",
    "param_groups",
    "preset",
    "resize_positions",
    "save",
]
