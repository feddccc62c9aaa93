"""Fixed position tables: sines and cosines of wavelengths from 2π to 20,000π."""

import numpy as np

from vit_numpy.config import check_int
from vit_numpy.module import Array


def sincos_1d(num_tokens: int, dim: int) -> Array:
    """Return a position for each place in a sequence.

    Parameters
    ----------
    num_tokens : int
        Number T of tokens.
    dim : int
        Width D of the tokens; must be even.

    Returns
    -------
    ndarray of shape (T, D), float64

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, or `dim` is odd.

    Notes
    -----
    Sines and cosines alternate::

        table[t, 2i]     = sin(t / 10000^(2i / D))
        table[t, 2i + 1] = cos(t / 10000^(2i / D))

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    check_int("num_tokens", num_tokens, 1)
    check_int("dim", dim, 1)
    if dim % 2:
        raise ValueError(f"dim must be even, got dim={dim}")
    omega = 10000.0 ** -(np.arange(0, dim, 2) / dim)
    angles = np.arange(num_tokens)[:, None] * omega
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1, dim)


def sincos_2d(grid_h: int, grid_w: int, dim: int) -> Array:
    """Return a position for each patch of a grid, row after row.

    Parameters
    ----------
    grid_h, grid_w : int
        Rows and columns of patches; N = `grid_h` · `grid_w`.
    dim : int
        Width D of the tokens; must be divisible by 4, and at least 8.

    Returns
    -------
    ndarray of shape (N, D), float64

    Raises
    ------
    TypeError, ValueError
        If a size is no int or below 1, or `dim` breaks its rule.

    Notes
    -----
    For the patch in row y and column x, with ω_i = 10000^(-i / (D/4 - 1)) and
    0 <= i < D/4, the four quarters of a token are::

        sin(ω x)   cos(ω x)   sin(ω y)   cos(ω y)

    References
    ----------
    Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision
    Transformers" (MoCo v3); Beyer et al. 2022, "Better plain ViT baselines for
    ImageNet-1k", whose code, big_vision, has this order.
    """
    check_int("grid_h", grid_h, 1)
    check_int("grid_w", grid_w, 1)
    check_int("dim", dim, 1)
    if dim % 4 or dim < 8:
        raise ValueError(f"dim must be divisible by 4 and at least 8, got dim={dim}")
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim // 4 - 1))
    y, x = np.mgrid[:grid_h, :grid_w]
    x = x.reshape(-1, 1) * omega
    y = y.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
