"""What any operator can do to its upstream gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.causes.intercept import regrade, scaled_gradient
from parity.causes.operators.variant import ORIGINALS, OperatorVariant, backward_only

_UPSTREAM = ("gelu", "relu", "tanh", "softmax", "layer_norm", "linear", "conv2d")


def upstream() -> list[OperatorVariant]:
    """Return the variants of what comes back through an operator."""
    variants: list[OperatorVariant] = []
    for operator in _UPSTREAM:
        original = ORIGINALS[operator]

        def ignoring(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
            return regrade(_original(*args, **kwargs), torch.ones_like)

        variants += backward_only(
            "upstream-ignored", operator, ignoring, f"of {operator}"
        )
        if operator in ("gelu", "relu", "tanh", "layer_norm", "conv2d"):

            def divided(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
                y = _original(*args, **kwargs)
                return scaled_gradient(y, 1 / len(y))

            variants += backward_only(
                "batch-division", operator, divided, f"of {operator}"
            )
    return variants
