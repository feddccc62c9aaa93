"""Changes of positions: of which kind, in which order, and how they are resized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.doctor.setup import Change, Setup, on_weights, with_config
from vit_numpy.config import ViTConfig

RESIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "bicubic-antialias": (
        "bicubic with antialias, as timm",
        dict(mode="bicubic", antialias=True, align_corners=False),
    ),
    "bicubic": (
        "bicubic, half-pixel, as Hugging Face",
        dict(mode="bicubic", align_corners=False),
    ),
    "bicubic-corners": (
        "bicubic with align_corners, as torchvision",
        dict(mode="bicubic", align_corners=True),
    ),
    "bilinear": (
        "bilinear, half-pixel, as timm from npz files",
        dict(mode="bilinear", align_corners=False),
    ),
    "bilinear-corners": (
        "bilinear with align_corners, as Google's scipy zoom",
        dict(mode="bilinear", align_corners=True),
    ),
    "bilinear-antialias": (
        "bilinear with antialias",
        dict(mode="bilinear", antialias=True, align_corners=False),
    ),
    "nearest": ("to the nearest position", dict(mode="nearest")),
}


def positions(base: Setup) -> Iterator[Change]:
    """Yield other kinds, orders and places of positions."""
    config = base.config
    table = base.weights.get("pos_embed")
    prefix = config.num_prefix_tokens if config.pos_prefix else 0
    rows, columns = config.grid
    if table is not None and position_length(base) is None:
        if prefix:
            yield Change(
                "class-position:last",
                "the class token stands behind the patches, and so does its position",
                "move the last position to the front of pos_embed",
                on_weights("pos_embed", lambda w: w.roll(prefix, 1)),
            )
            yield Change(
                "class-position:zero",
                "the class token gets no position, or has it in the token already",
                "set the class token's position in pos_embed to zero",
                on_weights("pos_embed", _zeroed(prefix)),
            )
        if min(rows, columns) > 1:
            yield Change(
                "patch-grid:transposed",
                "the positions stand column after column",
                f"reshape pos_embed to ({columns}, {rows}) positions and swap the axes",
                on_weights("pos_embed", _grid_transposed(prefix, columns, rows)),
            )
        yield Change(
            "positions:none",
            "it adds no positions",
            "set pos_embed='none', or zero the table",
            on_weights("pos_embed", torch.zeros_like),
        )
    for kind, words in (
        ("sincos1d", "one-dimensional sines and cosines"),
        ("sincos2d", "two-dimensional sines and cosines"),
    ):
        if config.pos_embed != kind:
            yield Change(
                f"positions:{kind}",
                f"its positions are {words}",
                f"set pos_embed='{kind}'",
                _fixed_positions(kind),
            )


def resizes(base: Setup) -> Iterator[Change]:
    """Yield the ways to bring the positions of another grid to that of the images."""
    side = position_length(base)
    if side is None:
        return
    for name, (words, options) in RESIZES.items():
        yield Change(
            f"position-resize:{name}",
            f"it resizes its {side}×{side} positions {words}",
            f"resize pos_embed by torch.nn.functional.interpolate with {options}",
            on_weights("pos_embed", _resized(base.config, side, options)),
        )


def position_length(base: Setup) -> int | None:
    """Return the side of the table's grid if it is square and not the images'."""
    table = base.weights.get("pos_embed")
    if table is None or base.config.pos_embed != "learned":
        return None
    prefix = base.config.num_prefix_tokens if base.config.pos_prefix else 0
    patches = table.shape[1] - prefix
    side = math.isqrt(max(patches, 0))
    if patches == base.config.num_patches or side * side != patches:
        return None
    return side


# --- how they are made ----------------------------------------------------------------


def _zeroed(prefix: int) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.cat([torch.zeros_like(w[:, :prefix]), w[:, prefix:]], 1)


def _grid_transposed(
    prefix: int, columns: int, rows: int
) -> Callable[[Tensor], Tensor]:
    def transpose(w: Tensor) -> Tensor:
        grid = w[:, prefix:].reshape(1, columns, rows, -1).transpose(1, 2)
        return torch.cat([w[:, :prefix], grid.reshape(1, rows * columns, -1)], 1)

    return transpose


def _fixed_positions(kind: str) -> Callable[[Setup], Setup]:
    def apply(setup: Setup) -> Setup:
        weights = {n: w for n, w in setup.weights.items() if n != "pos_embed"}
        return with_config(pos_embed=kind)(replace(setup, weights=weights))

    return apply


def _resized(
    config: ViTConfig, side: int, options: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    def resize(table: Tensor) -> Tensor:
        prefix = table.shape[1] - side * side
        grid = table[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=config.grid, **options)
        grid = grid.flatten(2).mT
        return torch.cat([table[:, :prefix], grid], 1)

    return resize
