"""The table of pairs: one row for every public layer, loss, optimizer and schedule.

Each row says how its cases are drawn; everything else is common to all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from parity.adapters import (
    clip_problem,
    function_problem,
    groups_problem,
    intermediates_problem,
    loss_problem,
    module_problem,
    optimizer_problem,
    schedule_problem,
    scores_problem,
    table_problem,
)
from parity.pair import Blind, LessAccurate, Pair
from parity.strategies import (
    Configuration,
    Shape,
    batch,
    generator,
    rate,
    rows,
    width,
)

ACTIVATIONS = st.sampled_from(("relu", "gelu", "gelu_tanh"))
EPS = st.sampled_from((1e-6, 1e-5, 1e-3))


# --- cases: configuration and shapes in a regime --------------------------------------


def _tokens(draw: DrawFn, regime: str, dim: int) -> dict[str, Shape]:
    return {"x": (*rows(draw, regime), dim)}


def _any_shape(draw: DrawFn, regime: str) -> Configuration:
    return {}, _tokens(draw, regime, draw(width()))


def _softmax(draw: DrawFn, regime: str) -> Configuration:
    # Of a single class the gradient is zero whatever goes in.
    config = {"dim": -1, "sign": draw(st.sampled_from((0, 1, -1)))}
    return config, _tokens(draw, regime, draw(st.integers(2, 17)))


def _scores(draw: DrawFn, regime: str) -> Configuration:
    # By less than the smallest float32, so that one row alone would vanish.
    config = {"shift": draw(st.sampled_from((0, -200, 200)))}
    return config, _tokens(draw, regime, draw(st.integers(2, 9)))


def _elementwise(draw: DrawFn, regime: str) -> Configuration:
    # Now and then more elements than are worked on in one go.
    first = rows(draw, regime)
    large = regime == "single" and draw(st.sampled_from((True, False)))
    last = 2**16 // math.prod(first) + 1 if large else draw(width())
    return {}, {"x": (*first, last)}


def _elementwise_tanh(draw: DrawFn, regime: str) -> Configuration:
    return {"approximate": "tanh"}, _elementwise(draw, regime)[1]


def _linear(draw: DrawFn, regime: str) -> Configuration:
    features = draw(width())
    config = {
        "in_features": features,
        "out_features": draw(width()),
        "bias": draw(st.booleans()),
    }
    return config, _tokens(draw, regime, features)


def _layer_norm(draw: DrawFn, regime: str) -> Configuration:
    # Of a single feature the normalised value is zero whatever goes in. Long rows are
    # summed in another way than short ones.
    dim = draw(st.one_of(st.integers(2, 48), st.integers(64, 80)))
    return {"dim": dim, "eps": draw(EPS)}, _tokens(draw, regime, dim)


def _gelu(draw: DrawFn, regime: str) -> Configuration:
    _, shapes = _elementwise(draw, regime)
    return {"approximate": draw(st.sampled_from(("none", "tanh")))}, shapes


def _activation(draw: DrawFn, regime: str) -> Configuration:
    return {"name": draw(ACTIVATIONS)}, _tokens(draw, regime, draw(width()))


def _dropout(draw: DrawFn, regime: str) -> Configuration:
    config = {"p": draw(rate()), "masked": draw(st.booleans())}
    return config, _tokens(draw, regime, draw(width()))


def _layer_scale(draw: DrawFn, regime: str) -> Configuration:
    dim = draw(width())
    return {"dim": dim}, _tokens(draw, regime, dim)


def _conv(draw: DrawFn, regime: str) -> Configuration:
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    disjoint = draw(st.booleans())
    stride = kernel if disjoint else draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 2))
    if disjoint and draw(st.integers(0, 3)):
        padding = (0, 0)
    if regime == "scales":
        # Windows that would be disjoint, but for the padding of one axis.
        stride, padding = kernel, draw(st.sampled_from(((1, 0), (0, 1))))
    config: dict[str, Any] = {
        "in_chans": draw(st.integers(1, 3)),
        "out_chans": draw(st.integers(1, 4)),
        "kernel_size": list(kernel),
        "stride": list(stride),
        "padding": list(padding),
        "bias": draw(st.booleans()),
    }
    size = [k if regime == "one_token" else k + draw(st.integers(0, 6)) for k in kernel]
    if regime == "single" and draw(st.sampled_from((True, False))):
        # Disjoint windows that leave pixels over.
        config |= {"kernel_size": [3, 2], "stride": [3, 2], "padding": [0, 0]}
        size = [7, 5]
    return config, {"x": (batch(draw, regime), config["in_chans"], *size)}


def _patch_embed(draw: DrawFn, regime: str) -> Configuration:
    side = draw(st.integers(1, 4))
    config: dict[str, Any] = {
        "patch_size": side,
        "in_chans": draw(st.integers(1, 3)),
        "dim": draw(width()),
        "bias": draw(st.booleans()),
        "method": draw(st.sampled_from(("conv", "linear"))),
    }
    grid = (
        (1, 1) if regime == "one_token" else draw(st.tuples(*[st.integers(1, 3)] * 2))
    )
    size = (grid[0] * side, grid[1] * side)
    return config, {"x": (batch(draw, regime), config["in_chans"], *size)}


def _heads(draw: DrawFn) -> tuple[int, int]:
    """Draw a number of heads, and a width that it divides."""
    heads = draw(st.integers(1, 4))
    return heads, heads * draw(st.integers(1, 5))


def _attention(draw: DrawFn, regime: str) -> Configuration:
    heads, dim = _heads(draw)
    config = {
        "dim": dim,
        "num_heads": heads,
        "qkv_bias": draw(st.booleans()),
        # Of a single feature the normalised value is zero whatever goes in.
        "qk_norm": dim > heads and draw(st.booleans()),
        "attn_drop": draw(rate()),
        "proj_drop": draw(rate()),
        "masked": draw(st.booleans()),
    }
    return config, _tokens(draw, regime, dim)


def _mlp(draw: DrawFn, regime: str) -> Configuration:
    dim = draw(width())
    config = {
        "dim": dim,
        "hidden_dim": draw(width()),
        "act": draw(ACTIVATIONS),
        "act_drop": draw(rate()),
        "drop": draw(rate()),
        "masked": draw(st.booleans()),
    }
    return config, _tokens(draw, regime, dim)


def _block(draw: DrawFn, regime: str) -> Configuration:
    heads, dim = _heads(draw)
    dim = max(dim, 2)
    heads = heads if dim % heads == 0 else 1
    config = {
        "dim": dim,
        "num_heads": heads,
        "mlp_dim": draw(width()),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": dim > heads and draw(st.booleans()),
        "act": draw(ACTIVATIONS),
        "norm_eps": draw(EPS),
        "layer_scale": draw(st.sampled_from((None, 0.1))),
        "attn_drop": draw(rate()),
        "proj_drop": draw(rate()),
        "act_drop": draw(rate()),
        "mlp_drop": draw(rate()),
        "drop_path": draw(rate()),
        "masked": draw(st.booleans()),
    }
    return config, _tokens(draw, regime, dim)


def _token_pool(draw: DrawFn, regime: str) -> Configuration:
    distilled = regime != "one_token" and draw(st.booleans())
    return {"distilled": distilled}, _tokens(draw, regime, draw(width()))


def _mean_pool(draw: DrawFn, regime: str) -> Configuration:
    images, tokens = rows(draw, regime)
    prefix = draw(st.integers(0, tokens - 1))
    return {"num_prefix_tokens": prefix}, {"x": (images, tokens, draw(width()))}


def _attention_pool(draw: DrawFn, regime: str) -> Configuration:
    heads, dim = _heads(draw)
    dim, heads = (dim, heads) if dim > 1 else (2, 1)
    images, tokens = rows(draw, regime)
    config = {
        "dim": dim,
        "num_heads": heads,
        "mlp_dim": draw(width()),
        "act": draw(ACTIVATIONS),
        "norm_eps": draw(EPS),
        "num_prefix_tokens": draw(st.integers(0, tokens - 1)),
    }
    return config, {"x": (images, tokens, dim)}


def _sincos_1d(draw: DrawFn, regime: str) -> Configuration:
    config = {"num_tokens": draw(st.integers(1, 40)), "dim": 2 * draw(width())}
    return config, {}


def _sincos_2d(draw: DrawFn, regime: str) -> Configuration:
    config = {
        "grid_h": draw(st.integers(1, 9)),
        "grid_w": draw(st.integers(1, 9)),
        "dim": 4 * draw(st.integers(2, 12)),
    }
    return config, {}


def _model(draw: DrawFn, regime: str) -> Configuration:
    heads = draw(st.integers(1, 3))
    dim = heads * 4 * draw(st.integers(2 if heads == 1 else 1, 3))
    dim = max(dim, 8)
    side = draw(st.integers(1, 3))
    grid = (
        (1, 1) if regime == "one_token" else draw(st.tuples(*[st.integers(1, 3)] * 2))
    )
    pool = draw(st.sampled_from(("token", "mean", "map", "flatten")))
    class_token = pool == "token" or draw(st.booleans())
    norms = ("before", "none") if pool == "flatten" else ("before", "after", "none")
    config: dict[str, Any] = {
        "image_size": [grid[0] * side, grid[1] * side],
        "patch_size": side,
        "in_chans": draw(st.integers(1, 3)),
        "num_classes": draw(st.sampled_from((3, 7, 0))),
        "dim": dim,
        "depth": draw(st.integers(1, 2)),
        "num_heads": heads,
        "mlp_dim": draw(st.integers(4, 17)),
        "act": draw(ACTIVATIONS),
        "norm_eps": draw(EPS),
        "patch_embed": draw(st.sampled_from(("conv", "linear"))),
        "patch_bias": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "layer_scale": draw(st.sampled_from((None, 0.1))),
        "class_token": class_token,
        "num_registers": draw(st.integers(0, 2)),
        "distillation_token": pool == "token" and draw(st.booleans()),
        "pos_embed": draw(st.sampled_from(("learned", "sincos1d", "sincos2d", "none"))),
        "pos_prefix": draw(st.booleans()),
        "pool": pool,
        "final_norm": draw(st.sampled_from(norms)),
        "pre_logits": draw(st.sampled_from((None, 5))),
    } | {
        name: draw(rate())
        for name in (
            "pos_drop",
            "attn_drop",
            "proj_drop",
            "act_drop",
            "mlp_drop",
            "drop_path",
        )
    }
    if regime == "extreme":
        # One with every kind of parameter but a distillation token, as the last case
        # is the one whose parameters are compared when they are new.
        config |= {"class_token": True, "num_registers": 2, "layer_scale": 0.1}
        config |= {"pos_embed": "learned", "pos_prefix": True, "pool": "map"}
        config |= {"distillation_token": False, "qk_norm": True, "pre_logits": 5}
    shape = (batch(draw, regime, 3), config["in_chans"], *config["image_size"])
    return {"config": config, "masked": draw(st.booleans())}, {"x": shape}


def _cross_entropy(draw: DrawFn, regime: str) -> Configuration:
    config = {
        "label_smoothing": draw(st.sampled_from((0.0, 0.1))),
        "targets": draw(st.sampled_from(("labels", "soft"))),
        "elsewhere": draw(st.sampled_from((0, 3))),
    }
    return config, {"x": (batch(draw, regime, 7), draw(st.integers(2, 17)))}


def _squared_error(draw: DrawFn, regime: str) -> Configuration:
    config = {"targets": "values", "elsewhere": draw(st.sampled_from((0, 3)))}
    return config, {"x": (batch(draw, regime, 7), draw(width()))}


def _parameters(draw: DrawFn) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"weight": (draw(width()), draw(width()))}
    return shapes | {"bias": (draw(width()),)}


def _sgd(draw: DrawFn, regime: str) -> Configuration:
    momentum = draw(st.sampled_from((0.0, 0.9)))
    config = {
        "steps": draw(st.integers(1, 4)),
        "lr": draw(st.sampled_from((0.1, 1e-3))),
        "momentum": momentum,
        "nesterov": momentum > 0 and draw(st.booleans()),
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "grouped": draw(st.booleans()),
    }
    return config, _parameters(draw)


def _adam(draw: DrawFn, regime: str) -> Configuration:
    config = {
        "steps": draw(st.integers(1, 4)),
        "lr": draw(st.sampled_from((0.1, 1e-3))),
        "betas": draw(st.sampled_from(([0.9, 0.999], [0.5, 0.9]))),
        "eps": draw(st.sampled_from((1e-8, 1e-3))),
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "grouped": draw(st.booleans()),
    }
    return config, _parameters(draw)


def _groups(draw: DrawFn, regime: str) -> Configuration:
    network: list[Any]
    frozen: list[str] = []
    if draw(st.booleans()):
        model = {"image_size": 2, "patch_size": 1, "dim": 4, "num_heads": 1}
        network = ["model:VisionTransformer", {"config": model | {"mlp_dim": 3}}]
        network[1]["config"] |= {"depth": draw(st.integers(1, 3)), "num_classes": 2}
        frozen = draw(
            st.sampled_from(([], ["patch_embed"], ["blocks.0"], ["blocks.0", "norm"]))
        )
    else:
        # Now and then more elements than an optimizer updates in one go.
        dims = (270, 245) if draw(st.integers(0, 3)) == 3 else (5, 7)
        network = ["layers.mlp:MLP", {"dim": dims[0], "hidden_dim": dims[1]}]
    config = {
        "network": network,
        "steps": draw(st.integers(1, 2)),
        # What is frozen leaves gaps in a flat buffer.
        "flat": bool(frozen) or draw(st.booleans()),
        "resumed": draw(st.booleans()),
        "lr": 0.1,
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "frozen": frozen,
    }
    if draw(st.booleans()):
        config["layer_decay"] = 0.5
    return config, {}


def _shown(draw: DrawFn, regime: str) -> Configuration:
    config, shapes = _model(draw, regime)
    del config["masked"]
    # What a model without classes or a last norm returns is its pre-logits themselves.
    config["config"]["num_classes"] = 3
    return config, shapes


def _clip(draw: DrawFn, regime: str) -> Configuration:
    return {"max_norm": draw(st.sampled_from((1.0, 30.0)))}, _parameters(draw)


def _schedule(draw: DrawFn, regime: str) -> Configuration:
    # What is not in the configuration is left to the default.
    # By a seed, as Hypothesis would draw some of so few far too seldom.
    decays = ("linear", "cosine", "step", "constant")
    rng = generator(draw(st.integers(0, 2**16 - 1)), "decay")
    decay = decays[int(rng.integers(len(decays)))]
    warmup = draw(st.integers(0, 9))
    config: dict[str, Any] = {"decay": decay} | ({"warmup": warmup} if warmup else {})
    if decay == "step":
        drops = draw(st.sets(st.integers(1, 30), min_size=1, max_size=3))
        config["drops"] = sorted(drops)
        if draw(st.booleans()):
            config["drop_factor"] = 0.5
    elif decay != "constant" or draw(st.booleans()):
        config["total"] = warmup + draw(st.integers(1, 25))
        if draw(st.booleans()):
            config["floor"] = 0.1
    # So many that every schedule comes to its end.
    return config, {"step": (draw(st.integers(35, 45)),)}


# --- gradients that are zero in truth -------------------------------------------------


def _key_slice(config: Mapping[str, Any]) -> slice:
    """Return the keys' part of a fused q, k, v bias."""
    fields = config.get("config", config)
    # A norm of the keys tells one key's bias from another's.
    return slice(0) if fields["qk_norm"] else slice(fields["dim"], 2 * fields["dim"])


def _pool_key_slice(config: Mapping[str, Any]) -> slice:
    return slice(config.get("config", config)["dim"])


_SAME_IN_EVERY_LOGIT = (
    "it adds the same to all logits of a row, which softmax takes no notice of"
)
_KEY_BIAS = Blind("d_*qkv.bias", _SAME_IN_EVERY_LOGIT, _key_slice)
_KEY_NORM_BIAS = Blind("d_*k_norm.bias", _SAME_IN_EVERY_LOGIT)
_POOL_KEY_BIAS = Blind("d_kv.bias", _SAME_IN_EVERY_LOGIT, _pool_key_slice)
_MODEL_POOL_KEY_BIAS = replace(_POOL_KEY_BIAS, tensor="d_attn_pool.kv.bias")


# --- the table ------------------------------------------------------------------------


def _layer(name: str, module: str, of: str, draw: Any, **options: Any) -> Pair:
    """Return the row of a class that is called ``of`` in both twins."""
    return Pair(
        name=name,
        candidate=f"vit_numpy.{module}:{of}",
        reference=f"vit_torch.{module}:{of}",
        draw=draw,
        **{"problem": module_problem} | options,
    )


_W = np.zeros((2, 3), np.float32)
_LOGITS = np.zeros((2, 3), np.float32)
_TINY = {"image_size": 4, "patch_size": 2, "dim": 4, "num_heads": 2, "depth": 1}
_RATES = ({"p": 1.0}, {"p": -0.1}, {"p": "0.1"}, {"p": float("nan")})
_NO_NUMBERS = ("normal",)
_FOR_PARAMETERS = ("normal", "scales")

PAIRS: tuple[Pair, ...] = (
    _layer(
        "linear",
        "layers.linear",
        "Linear",
        _linear,
        refused=(
            {"in_features": 0, "out_features": 1},
            {"in_features": 2.0, "out_features": 1},
            {"in_features": 2, "out_features": True},
        ),
    ),
    _layer(
        "layer_norm",
        "layers.layer_norm",
        "LayerNorm",
        _layer_norm,
        refused=({"dim": 0}, {"dim": 4, "eps": 0.0}, {"dim": "4"}),
    ),
    Pair(
        name="softmax",
        candidate="vit_numpy.functional:softmax",
        reference="torch:softmax",
        draw=_softmax,
        problem=function_problem,
        mirrored=False,
    ),
    Pair(
        name="exp_scores",
        candidate="vit_numpy.functional:exp_scores",
        reference="torch:softmax",
        draw=_scores,
        problem=scores_problem,
        regimes=("normal", "single"),
        mirrored=False,
    ),
    Pair(
        name="gelu_function",
        candidate="vit_numpy.functional:gelu",
        reference="torch.nn.functional:gelu",
        draw=_elementwise,
        problem=function_problem,
        mirrored=False,
    ),
    Pair(
        name="gelu_tanh_function",
        candidate="vit_numpy.functional:gelu_tanh",
        reference="torch.nn.functional:gelu",
        draw=_elementwise_tanh,
        problem=function_problem,
        mirrored=False,
    ),
    Pair(
        name="erf",
        candidate="vit_numpy.functional:erf",
        reference="torch.special:erf",
        draw=_elementwise,
        problem=function_problem,
        less_accurate=(
            LessAccurate(
                "out",
                "in float32 it is the tanh of a polynomial, right to 3 units in the "
                "last place and several times faster than a division into ranges; "
                "only GELU uses it, and adds 1, after which its error is PyTorch's",
            ),
        ),
        mirrored=False,
    ),
    _layer("relu", "layers.activation", "ReLU", _any_shape),
    _layer(
        "gelu",
        "layers.activation",
        "GELU",
        _gelu,
        refused=({"approximate": "erf"}, {"approximate": True}),
    ),
    _layer(
        "activation",
        "layers.activation",
        "activation",
        _activation,
        refused=({"name": "gelu_tan"}, {"name": None}),
    ),
    _layer("dropout", "layers.dropout", "Dropout", _dropout, refused=_RATES),
    _layer("drop_path", "layers.drop_path", "DropPath", _dropout, refused=_RATES),
    _layer(
        "layer_scale",
        "layers.layer_scale",
        "LayerScale",
        _layer_scale,
        refused=({"dim": 0}, {"dim": 4, "init": float("inf")}),
    ),
    _layer("identity", "layers.identity", "Identity", _any_shape),
    _layer("flatten", "layers.flatten", "Flatten", _any_shape),
    _layer(
        "conv2d",
        "layers.conv",
        "Conv2d",
        _conv,
        refused=(
            {"in_chans": 1, "out_chans": 1, "kernel_size": 0},
            {"in_chans": 1, "out_chans": 1, "kernel_size": (1, 2, 3)},
            {"in_chans": 1, "out_chans": 1, "kernel_size": 1, "padding": -1},
            {"in_chans": 1, "out_chans": 1, "kernel_size": 1, "stride": 0.5},
            {"in_chans": 1, "out_chans": 1, "kernel_size": 1, "stride": 0},
        ),
        refused_calls=(
            (
                {"in_chans": 1, "out_chans": 1, "kernel_size": 3},
                (np.zeros((1, 1, 2, 2), np.float32),),
            ),
        ),
    ),
    _layer(
        "patch_embed",
        "layers.patch_embed",
        "PatchEmbed",
        _patch_embed,
        refused=({"patch_size": 2, "in_chans": 1, "dim": 4, "method": "fold"},),
        refused_calls=(
            (
                {"patch_size": 2, "in_chans": 1, "dim": 4},
                (np.zeros((1, 1, 4, 5), np.float32),),
            ),
        ),
    ),
    _layer(
        "sincos_1d",
        "layers.position",
        "sincos_1d",
        _sincos_1d,
        problem=table_problem,
        regimes=_NO_NUMBERS,
        dtypes=("float64",),
        refused=({"num_tokens": 0, "dim": 2}, {"num_tokens": 1, "dim": 3}),
    ),
    _layer(
        "sincos_2d",
        "layers.position",
        "sincos_2d",
        _sincos_2d,
        problem=table_problem,
        regimes=_NO_NUMBERS,
        dtypes=("float64",),
        refused=({"grid_h": 1, "grid_w": 1, "dim": 4},),
    ),
    _layer(
        "attention",
        "layers.attention",
        "Attention",
        _attention,
        blind=(_KEY_BIAS, _KEY_NORM_BIAS),
        refused=(
            {"dim": 10, "num_heads": 3},
            {"dim": 4, "num_heads": 0},
            {"dim": 4, "num_heads": 2, "attn_drop": 1.0},
            {"dim": 4, "num_heads": 2, "qk_norm": True, "norm_eps": 0.0},
        ),
    ),
    _layer(
        "mlp",
        "layers.mlp",
        "MLP",
        _mlp,
        refused=(
            {"dim": 4, "hidden_dim": 0},
            {"dim": 4, "hidden_dim": 4, "act": "swish"},
            {"dim": 4, "hidden_dim": 4, "drop": 2},
        ),
    ),
    _layer(
        "block",
        "layers.block",
        "Block",
        _block,
        blind=(_KEY_BIAS, _KEY_NORM_BIAS),
        refused=(
            {"dim": 10, "num_heads": 3, "mlp_dim": 4},
            {"dim": 4, "num_heads": 2, "mlp_dim": 4, "drop_path": 1.0},
            {"dim": 4, "num_heads": 2, "mlp_dim": 4, "mlp_drop": -1},
        ),
    ),
    _layer("token_pool", "layers.heads", "TokenPool", _token_pool),
    _layer(
        "mean_pool",
        "layers.heads",
        "MeanPool",
        _mean_pool,
        refused=({"num_prefix_tokens": -1}, {"num_prefix_tokens": 1.0}),
    ),
    _layer(
        "attention_pool",
        "layers.heads",
        "AttentionPool",
        _attention_pool,
        blind=(_POOL_KEY_BIAS,),
        refused=(
            {"dim": 10, "num_heads": 3, "mlp_dim": 4},
            {"dim": 4, "num_heads": 2, "mlp_dim": 4, "num_prefix_tokens": -1},
        ),
    ),
    _layer("pre_logits", "layers.heads", "PreLogits", _linear),
    _layer(
        "cross_entropy",
        "loss",
        "CrossEntropy",
        _cross_entropy,
        problem=loss_problem,
        refused=({"label_smoothing": 1.0}, {"label_smoothing": None}),
        refused_calls=(
            ({}, (_LOGITS, np.array([0, 3]))),
            ({}, (_LOGITS, np.array([-1, 0]))),
            ({}, (_LOGITS, np.array([0.0, 1.0]))),
            ({}, (_LOGITS, np.array([0, 1, 2]))),
            ({}, (_LOGITS, np.zeros((2, 3)))),
            ({}, (_LOGITS[:0], np.zeros(0, np.int64))),
            ({}, (_LOGITS[0], np.array([0]))),
        ),
    ),
    _layer(
        "mean_squared_error",
        "loss",
        "MeanSquaredError",
        _squared_error,
        problem=loss_problem,
        refused_calls=(
            ({}, (_LOGITS, _LOGITS[:1])),
            ({}, (_LOGITS, _LOGITS.astype(np.float64))),
            ({}, (_LOGITS[:0], _LOGITS[:0])),
        ),
    ),
    _layer(
        "sgd",
        "optim",
        "SGD",
        _sgd,
        problem=optimizer_problem,
        regimes=_FOR_PARAMETERS,
        refused=(
            {"params": [("w", _W)], "lr": -1.0},
            {"params": [("w", _W)], "lr": 0.1, "momentum": 1.0},
            {"params": [("w", _W)], "lr": 0.1, "nesterov": True},
            {"params": [("w", _W)], "lr": 0.1, "weight_decay": -0.1},
            {"params": [], "lr": 0.1},
            {"params": [("w", _W), ("w", _W)], "lr": 0.1},
        ),
    ),
    _layer(
        "adam",
        "optim",
        "Adam",
        _adam,
        problem=optimizer_problem,
        regimes=_FOR_PARAMETERS,
        refused=(
            {"params": [("w", _W)], "betas": (0.9, 1.0)},
            {"params": [("w", _W)], "betas": 0.9},
            {"params": [("w", _W)], "eps": 0.0},
        ),
    ),
    _layer(
        "adamw",
        "optim",
        "AdamW",
        _adam,
        problem=optimizer_problem,
        regimes=_FOR_PARAMETERS,
        refused=({"params": [("w", _W)], "lr": "0.1"},),
    ),
    Pair(
        name="parameter_groups",
        candidate="vit_numpy.optim:AdamW",
        reference="vit_torch.optim:AdamW",
        draw=_groups,
        problem=groups_problem,
        regimes=_NO_NUMBERS,
        mirrored=False,
    ),
    _layer(
        "clip_grad_norm",
        "optim",
        "clip_grad_norm",
        _clip,
        problem=clip_problem,
        regimes=_FOR_PARAMETERS,
        refused=(
            {"grads": {"w": _W}, "max_norm": 0.0},
            {"grads": {}, "max_norm": 1.0},
        ),
    ),
    Pair(
        name="schedule",
        candidate="vit_numpy.schedule:Schedule",
        reference="parity.adapters:schedule_formula",
        draw=_schedule,
        problem=schedule_problem,
        regimes=_NO_NUMBERS,
        dtypes=("float64",),
        mirrored=False,
    ),
    Pair(
        name="intermediates",
        candidate="vit_numpy.model:VisionTransformer",
        reference="vit_torch.model:VisionTransformer",
        draw=_shown,
        problem=intermediates_problem,
        mirrored=False,
    ),
    _layer(
        "vision_transformer",
        "model",
        "VisionTransformer",
        _model,
        blind=(_KEY_BIAS, _KEY_NORM_BIAS, _MODEL_POOL_KEY_BIAS),
        refused=(
            {"config": "b16"},
            {"config": _TINY | {"num_heads": 3}},
            {"config": _TINY | {"patch_size": 3}},
            {"config": _TINY | {"num_head": 3}},
            {"config": _TINY | {"pool": "max"}},
        ),
        refused_calls=(
            ({"config": _TINY}, (np.zeros((1, 3, 4, 6), np.float32),)),
            ({"config": _TINY}, (np.zeros((1, 1, 4, 4), np.float32),)),
            ({"config": _TINY}, (np.zeros((0, 3, 4, 4), np.float32),)),
            ({"config": _TINY}, (np.zeros((1, 3, 4, 4), np.float64),)),
            ({"config": _TINY}, (np.zeros((1, 3, 4, 4), np.uint8),)),
            ({"config": _TINY}, ([[0.0]],)),
        ),
    ),
)
