"""Layers and kernels by themselves: forward and backward, on one thread.

One thread, as the engine gives each core an image or more, and a layer one core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.bench.subjects import LEARNING_RATE, Call
from vit_numpy.config import ViTConfig


def _shapes(config: ViTConfig, size: int) -> dict[str, tuple[int, ...]]:
    """Return the input shape of each layer."""
    tokens = (size, config.num_tokens, config.dim)
    hidden = (size, config.num_tokens, config.mlp_dim)
    return {
        "patch_embed": (size, config.in_chans, *config.image_hw),
        "linear": tokens,
        "layer_norm": tokens,
        "gelu": hidden,
        "gelu_tanh": hidden,
        "relu": hidden,
        "dropout": hidden,
        "attention": tokens,
        "mlp": tokens,
        "block": tokens,
    }


def _modules(layers: Any, config: ViTConfig) -> dict[str, Any]:
    """Return the layers of one of the twins."""
    dim, heads, hidden = config.dim, config.num_heads, config.mlp_dim
    return {
        "patch_embed": layers.PatchEmbed(config.patch_size, config.in_chans, dim),
        "linear": layers.Linear(dim, hidden),
        "layer_norm": layers.LayerNorm(dim),
        "gelu": layers.GELU(),
        "gelu_tanh": layers.GELU("tanh"),
        "relu": layers.ReLU(),
        "dropout": layers.Dropout(0.1),
        "attention": layers.Attention(dim, heads),
        "mlp": layers.MLP(dim, hidden, config.act),
        "block": layers.Block(dim, heads, hidden, act=config.act),
    }


def numpy_layers(config: ViTConfig, size: int) -> dict[str, Call]:
    """Return forward and backward of each layer of vit_numpy, and an AdamW step."""
    import vit_numpy

    rng = np.random.default_rng(0)
    masks = vit_numpy.KeyedMasks(0)
    calls: dict[str, Call] = {}
    modules = _modules(vit_numpy.layers, config)
    for name, shape in _shapes(config, size).items():
        module = modules[name]
        for _, parameter in module.named_parameters():
            parameter[...] = rng.standard_normal(parameter.shape) * 0.02
        x = rng.standard_normal(shape, np.float32)
        dy = rng.standard_normal(module(x).shape, np.float32)
        extra = (masks,) if name == "dropout" else ()
        forward, both = _numpy_calls(module, x, dy, extra)
        calls |= {name: forward, f"{name} + backward": both}
    model = vit_numpy.VisionTransformer(config)
    grads = {n: np.full_like(p, 1e-3) for n, p in model.named_parameters()}
    optimizer = vit_numpy.AdamW(model.named_parameters(), LEARNING_RATE)
    calls["adamw"] = lambda: optimizer.step(grads)
    return calls


def _numpy_calls(
    module: Any, x: Any, dy: Any, extra: tuple[Any, ...]
) -> tuple[Call, Call]:
    from vit_numpy import no_grad

    def forward() -> object:
        with no_grad():
            return module(x, *extra)

    def both() -> object:
        _, cache = module.forward(x, *extra)
        return module.backward(dy, cache)

    return forward, both


def torch_layers(config: ViTConfig, size: int) -> dict[str, Call]:
    """Return the same of vit_torch."""
    import torch

    import vit_torch

    torch.manual_seed(0)
    calls: dict[str, Call] = {}
    modules = _modules(vit_torch.layers, config)
    for name, shape in _shapes(config, size).items():
        module = modules[name].train()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(shape, requires_grad=True)
        dy = torch.randn_like(module(x))
        forward, both = _torch_calls(module, x, dy)
        calls |= {name: forward, f"{name} + backward": both}
    own_config = vit_torch.ViTConfig.from_dict(config.to_dict())
    model = vit_torch.VisionTransformer(own_config)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
    calls["adamw"] = optimizer.step
    return calls


def _torch_calls(module: Callable[..., Any], x: Any, dy: Any) -> tuple[Call, Call]:
    import torch

    def forward() -> object:
        with torch.inference_mode():
            return module(x)

    def both() -> None:
        module(x).backward(dy)

    return forward, both
