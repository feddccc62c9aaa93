"""Changes of eps, activation, number of heads and attention scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from parity.doctor.setup import Change, Patch, Setup, on_weights, patched, with_config
from vit_numpy.config import ViTConfig


def numerics(config: ViTConfig) -> Iterator[Change]:
    """Yield other constants, activations, numbers of heads and scales."""
    for eps in (1e-5, 1e-6, 1e-12, 1e-8, 1e-3):
        if eps != config.norm_eps:
            yield Change(
                f"norm-eps:{eps:g}",
                f"its LayerNorm has eps {eps:g} (the port {config.norm_eps:g})",
                f"set norm_eps={eps:g}",
                with_config(norm_eps=eps),
            )
    forms = {
        "gelu": "the exact GELU, with erf",
        "gelu_tanh": "GELU by tanh",
        "relu": "ReLU",
    }
    for act, words in forms.items():
        if act != config.act:
            yield Change(
                f"activation:{act}",
                f"its activation is {words} (the port has {forms[config.act]})",
                f"set act='{act}'",
                with_config(act=act),
            )
    for name, words, kind in (
        ("quick-gelu", "x · sigmoid(1.702 x), as CLIP's", _QuickGELU),
        ("silu", "x · sigmoid(x)", nn.SiLU),
    ):
        yield Change(
            f"activation:{name}",
            f"its activation is {words} (the port has {forms[config.act]})",
            "the configuration has no such activation: use one that the weights were "
            "trained with",
            patched(f"activation:{name}", _activations(kind)),
        )
    # Where q and k are normalised, the weights of that norm give the heads' width.
    counts = () if config.qk_norm else (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)
    for heads in counts:
        if config.dim % heads == 0 and heads != config.num_heads:
            yield Change(
                f"num-heads:{heads}",
                f"it has {heads} heads (the port {config.num_heads})",
                f"set num_heads={heads}",
                with_config(num_heads=heads),
            )


def scales(config: ViTConfig) -> Iterator[Change]:
    """Yield other scales of attention, of queries whose weights are in their place."""
    where = "attn.q_norm" if config.qk_norm else "the rows of q in attn.qkv"
    for name, words, factor, times in (
        ("none", "does not scale the attention logits", "√head_dim", _root_of_head_dim),
        ("dim", "scales them by 1/√dim", "1/√num_heads", _one_by_root_of_heads),
    ):
        if config.num_heads > 1 or name == "none":
            yield Change(
                f"attention-scale:{name}",
                f"it {words} (the port by 1/√head_dim)",
                f"multiply {where} by {factor}, biases included",
                _with_queries_times(times),
            )


def _root_of_head_dim(config: ViTConfig) -> float:
    return math.sqrt(config.dim / config.num_heads)


def _one_by_root_of_heads(config: ViTConfig) -> float:
    return 1 / math.sqrt(config.num_heads)


def _with_queries_times(
    times: Callable[[ViTConfig], float],
) -> Callable[[Setup], Setup]:
    def apply(setup: Setup) -> Setup:
        factor = times(setup.config)
        if setup.config.qk_norm:
            # A factor before the norm would not come through.
            return on_weights("attn.q_norm.", lambda w: w * factor)(setup)

        def scaled(w: Tensor) -> Tensor:
            third = len(w) // 3
            return torch.cat([w[:third] * factor, w[third:]])

        return on_weights("attn.qkv.", scaled)(setup)

    return apply


class _QuickGELU(nn.Module):
    """GELU as CLIP approximates it."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return x * torch.sigmoid(1.702 * x)


def _activations(kind: Callable[[], nn.Module]) -> Patch:
    def patch(model: Any) -> None:
        for module in list(model.modules()):
            if hasattr(module, "fc1"):
                module.act = kind()

    return patch
