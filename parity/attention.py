"""Where a network looks: attention maps of each head, and attention rollout.

Weights come from `attention_weights` of a model of either backend, as NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import ViTConfig

Array: TypeAlias = NDArray[np.floating[Any]]


def head_maps(weights: Sequence[Array], config: ViTConfig) -> Array:
    """Return what the tokens that the head reads take from each patch, block and head.

    Parameters
    ----------
    weights : sequence of ndarray of shape (B, h, T, T)
        One a block, as `VisionTransformer.attention_weights` returns them.
    config : ViTConfig
        That of the model.

    Returns
    -------
    ndarray of shape (B, depth, h, rows, columns)
        Shares of attention; a map sums to 1 less what goes to class, distillation and
        register tokens. What the head reads is the class token, with the distillation
        token where there is one; if it pools by mean or attention, all patches; if it
        takes all tokens, flattened, these. Of several tokens it is their mean.

    Raises
    ------
    ValueError
        If the weights are not those of such a model.
    """
    _check(weights, config)
    return np.stack([_read(block, config) for block in weights], axis=1)


def rollout(weights: Sequence[Array], config: ViTConfig) -> Array:
    """Return how much of each patch reaches the tokens that the head reads.

    Parameters
    ----------
    weights, config
        As `head_maps`.

    Returns
    -------
    ndarray of shape (B, rows, columns)
        Shares of these tokens after the last block, as far as attention alone moves
        them; a map sums to 1 less the share of tokens that are no patches.

    Raises
    ------
    ValueError
        If the weights are not those of such a model.

    Notes
    -----
    With the mean A of a block's heads, and the residual connection as half of the
    way::

        rollout = (A_L + I)/2 ... (A_2 + I)/2 (A_1 + I)/2

    References
    ----------
    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.
    """
    _check(weights, config)
    flow: Array | None = None
    for block in weights:
        mean = block.mean(axis=1)
        step = (mean + np.eye(config.num_tokens, dtype=block.dtype)) / 2
        flow = step if flow is None else step @ flow
    # `_check` has seen that there is a block.
    return _read(np.asarray(flow), config)


def reader(config: ViTConfig) -> str:
    """Say whose attention is shown."""
    if config.pool == "token":
        if config.distillation_token:
            return "the mean of class and distillation token"
        return "the class token"
    if config.pool == "map":
        return "the mean of all patches, which the head weighs by its own attention,"
    if config.pool == "flatten" and config.num_prefix_tokens:
        return "the mean of all tokens"
    return "the mean of all patches"


def _read(weights: Array, config: ViTConfig) -> Array:
    """(..., T, T) -> (..., rows, columns): what the head reads of patches alone."""
    prefix = config.num_prefix_tokens
    read = {
        "token": slice(1 + config.distillation_token),
        "flatten": slice(None),
    }.get(config.pool, slice(prefix, None))
    rows: Array = weights[..., read, prefix:].mean(axis=-2)
    return rows.reshape(*rows.shape[:-1], *config.grid)


def _check(weights: Sequence[Array], config: ViTConfig) -> None:
    """Raise unless there is one array a block, of the model's heads and tokens."""
    expected = (config.num_heads, config.num_tokens, config.num_tokens)
    shapes = [tuple(block.shape[1:]) for block in weights]
    if shapes != [expected] * config.depth:
        raise ValueError(
            f"weights must be {config.depth} arrays of shape "
            f"(B, {', '.join(map(str, expected))}), got {len(shapes)} of "
            f"{sorted(set(shapes))}"
        )
