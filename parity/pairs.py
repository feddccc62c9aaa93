"""The table of pairs: one row for every public layer, and what it is checked on."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from parity.adapters import module_problem
from parity.pair import Pair
from parity.strategies import Configuration, rows, width


def _linear(draw: DrawFn, regime: str) -> Configuration:
    features = draw(width())
    config = {
        "in_features": features,
        "out_features": draw(width()),
        "bias": draw(st.booleans()),
    }
    return config, {"x": (*rows(draw, regime), features)}


def _layer_norm(draw: DrawFn, regime: str) -> Configuration:
    # Of a single feature the normalised value is zero whatever goes in.
    dim = draw(st.integers(2, 48))
    config = {"dim": dim, "eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3)))}
    return config, {"x": (*rows(draw, regime), dim)}


PAIRS: tuple[Pair, ...] = (
    Pair(
        name="linear",
        candidate="vit_numpy.layers.linear:Linear",
        reference="vit_torch.layers.linear:Linear",
        draw=_linear,
        problem=module_problem,
        refused=(
            {"in_features": 0, "out_features": 1},
            {"in_features": 2.0, "out_features": 1},
            {"in_features": 2, "out_features": True},
        ),
    ),
    Pair(
        name="layer_norm",
        candidate="vit_numpy.layers.layer_norm:LayerNorm",
        reference="vit_torch.layers.layer_norm:LayerNorm",
        draw=_layer_norm,
        problem=module_problem,
        refused=({"dim": 0}, {"dim": 4, "eps": 0.0}, {"dim": "4"}),
    ),
)
