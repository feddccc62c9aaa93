"""The same network in JAX, compiled by XLA."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from parity.bench.subjects import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    Call,
    NotTheSameError,
    batch,
)
from vit_numpy.config import ViTConfig

Params = dict[str, Any]


def jax_step(what: str, config: ViTConfig, size: int) -> Call:
    """Return a jitted step of training by AdamW, or of inference.

    Raises
    ------
    NotTheSameError
        If the twin does not have a part of this network.
    """
    import vit_numpy

    jax: Any = import_module("jax")
    jnp = jax.numpy

    if (
        config.pool != "token"
        or config.pos_embed != "learned"
        or config.final_norm == "after"
        or config.num_prefix_tokens != 1
        or config.qk_norm
        or config.layer_scale is not None
        or config.pre_logits is not None
    ):
        raise NotTheSameError("the twin in JAX has plain Vision Transformers only")
    model = vit_numpy.VisionTransformer(config)
    vit_numpy.init_weights(model, 0)
    params = {name: jnp.array(value) for name, value in model.named_parameters()}
    images, labels = (jnp.array(array) for array in batch(config, size))

    if what == "infer":
        infer = jax.jit(lambda params, images: forward(config, params, images, None))
        return lambda: infer(params, images).block_until_ready()

    def loss(params: Params, key: Any) -> Any:
        logits = jax.nn.log_softmax(forward(config, params, images, key))
        return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()

    def update(state: tuple[Params, Params, Params, Any]) -> Any:
        params, first, second, count = state
        key = jax.random.fold_in(jax.random.key(0), count)
        value, grads = jax.value_and_grad(loss)(params, key)
        count = count + 1
        first = {n: 0.9 * m + 0.1 * grads[n] for n, m in first.items()}
        second = {n: 0.999 * v + 0.001 * grads[n] ** 2 for n, v in second.items()}
        rate = LEARNING_RATE / (1 - 0.9**count)
        root = jnp.sqrt(1 - 0.999**count)
        new = {}
        for name, p in params.items():
            decay = WEIGHT_DECAY if name.endswith("weight") and p.ndim >= 2 else 0.0
            move = first[name] / (jnp.sqrt(second[name]) / root + 1e-8)
            new[name] = (1 - LEARNING_RATE * decay) * p - rate * move
        return (new, first, second, count), value

    train = jax.jit(update, donate_argnums=0)
    zeros = {name: jnp.zeros_like(p) for name, p in params.items()}
    state = (params, zeros, {n: z.copy() for n, z in zeros.items()}, jnp.array(0))

    def step() -> object:
        nonlocal state
        state, value = train(state)
        return value.block_until_ready()

    return step


def forward(config: ViTConfig, params: Params, images: Any, key: Any) -> Any:
    """(B, C, H, W) -> logits (B, K); with a key, dropout is drawn."""
    jax: Any = import_module("jax")
    jnp = jax.numpy
    side, (rows, columns) = config.patch_size, config.grid
    heads, dim = config.num_heads, config.dim

    def linear(name: str, x: Any) -> Any:
        y = x @ params[f"{name}.weight"].T
        bias = params.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps)
        return x * params[f"{name}.weight"] + params[f"{name}.bias"]

    def act(x: Any) -> Any:
        if config.act == "relu":
            return jax.nn.relu(x)
        return jax.nn.gelu(x, approximate=config.act == "gelu_tanh")

    x = images.reshape(-1, config.in_chans, rows, side, columns, side)
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(len(images), rows * columns, -1)
    x = x @ params["patch_embed.proj.weight"].reshape(dim, -1).T
    if config.patch_bias:
        x = x + params["patch_embed.proj.bias"]
    cls = jnp.broadcast_to(params["cls_token"], (len(x), 1, dim))
    x = jnp.concatenate([cls, x], axis=1) + params["pos_embed"]
    for i in range(config.depth):
        name = f"blocks.{i}"
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        qkv = qkv.reshape(*x.shape[:2], 3, heads, dim // heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(dim // heads))
        h = (a @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + linear(f"{name}.attn.proj", h)
        h = act(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        if key is not None and config.act_drop:
            keep = 1 - config.act_drop
            drawn = jax.random.bernoulli(jax.random.fold_in(key, i), keep, h.shape)
            h = jnp.where(drawn, h / keep, 0)
        x = x + linear(f"{name}.mlp.fc2", h)
    if config.final_norm == "before":
        x = norm("norm", x)
    return linear("head", x[:, 0])
