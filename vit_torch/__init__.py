"""The Vision Transformer in PyTorch, the mirror of `vit_numpy`.

Shapes are written with these letters: images (B, C, H, W); patch side P; patches
N = HW/P²; tokens T = N + prefix tokens; width D; heads h; head width Dh; MLP width M;
classes K. A gradient is `d` + the name of what it is the gradient of.
"""

from vit_torch import layers
from vit_torch.checkpoint import from_pretrained, load, save
from vit_torch.config import PRESETS, ViTConfig, preset
from vit_torch.ema import EMA
from vit_torch.finetune import adapt, frozen_layers, resize_positions
from vit_torch.init import init_weights
from vit_torch.loss import CrossEntropy, MeanSquaredError
from vit_torch.masks import KeyedMasks
from vit_torch.model import VisionTransformer
from vit_torch.optim import SGD, Adam, AdamW, clip_grad_norm, param_groups
from vit_torch.schedule import Schedule
from vit_torch.train import Trainer, evaluate

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
    "param_groups",
    "preset",
    "resize_positions",
    "save",
]
