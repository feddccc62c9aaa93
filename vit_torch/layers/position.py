"""Fixed position tables: sines and cosines of wavelengths from 2π to 20,000π."""

import torch
from torch import Tensor

from vit_torch.config import check_int


def sincos_1d(num_tokens: int, dim: int) -> Tensor:
    """Return a position for each place in a sequence.

    Parameters
    ----------
    num_tokens : int
        Number T of tokens.
    dim : int
        Width D of the tokens; must be even.

    Returns
    -------
    Tensor of shape (T, D), float64

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
    omega = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(num_tokens)[:, None] * omega
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(-1, dim)


def sincos_2d(grid_h: int, grid_w: int, dim: int) -> Tensor:
    """Return a position for each patch of a grid, row after row.

    Parameters
    ----------
    grid_h, grid_w : int
        Rows and columns of patches; N = `grid_h` · `grid_w`.
    dim : int
        Width D of the tokens; must be divisible by 4, and at least 8.

    Returns
    -------
    Tensor of shape (N, D), float64

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
    steps = torch.arange(dim // 4, dtype=torch.float64)
    omega = 10000.0 ** -(steps / (dim // 4 - 1))
    y, x = torch.meshgrid(torch.arange(grid_h), torch.arange(grid_w), indexing="ij")
    x = x.reshape(-1, 1) * omega
    y = y.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
