"""Resizing of positions in another mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from parity.causes.intercept import Rule
from parity.causes.operators.variant import OperatorVariant, everywhere


def _resized(**changes: Any) -> Rule:
    def rule(
        x: Tensor, size: Any = None, scale_factor: Any = None, **options: Any
    ) -> Any:
        given = {k: v for k, v in options.items() if v is not None}
        changed = given | changes
        if changed.get("mode", "nearest") in ("nearest", "area", "nearest-exact"):
            changed.pop("align_corners", None)
            changed.pop("antialias", None)
        if changed == given:
            return NotImplemented
        return F.interpolate(x, size=size, scale_factor=scale_factor, **changed)

    return rule


def positions() -> list[OperatorVariant]:
    """Return the variants of resizing."""
    variants: list[OperatorVariant] = []
    modes: dict[str, dict[str, Any]] = {
        "bilinear": {"mode": "bilinear"},
        "bicubic": {"mode": "bicubic"},
        "nearest": {"mode": "nearest"},
        "antialias on": {"antialias": True},
        "antialias off": {"antialias": False},
        "align_corners on": {"align_corners": True, "antialias": False},
        "align_corners off": {"align_corners": False},
        "bilinear, antialias on": {"mode": "bilinear", "antialias": True},
        "bicubic, antialias on": {"mode": "bicubic", "antialias": True},
        "bicubic, align_corners on": {
            "mode": "bicubic",
            "align_corners": True,
            "antialias": False,
        },
        "bilinear, align_corners on": {
            "mode": "bilinear",
            "align_corners": True,
            "antialias": False,
        },
    }
    for detail, changes in modes.items():
        variants += everywhere(
            "position-resize", "interpolate", _resized(**changes), detail
        )
    return variants
