"""vit_numpy against code that is not ours: torch.nn, torchvision, torch.optim.

Our own torch side is built from the same pieces, but composed by us; these are composed
by others.
"""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from parity.adapters import module_candidate, module_problem, parameters_of
from parity.pair import Blind, Pair, Problem, construct
from parity.pairs import PAIRS
from parity.runs import run_pair
from parity.strategies import batch, numbers, rows
from vit_numpy.optim import SGD, Adam, AdamW
from vit_torch._torchvision import import_torchvision

ROWS = {pair.name: pair for pair in PAIRS}


def linear(in_features, out_features, bias):
    return nn.Linear(in_features, out_features, bias)


def layer_norm(dim, eps):
    return nn.LayerNorm(dim, eps)


def gelu(approximate):
    return nn.GELU(approximate)


def conv2d(in_chans, out_chans, kernel_size, stride, padding, bias):
    return nn.Conv2d(
        in_chans,
        out_chans,
        tuple(kernel_size),
        tuple(stride),
        tuple(padding),
        bias=bias,
    )


class OverBatch(nn.Module):
    """A mean loss of torch's, divided by the images of a larger batch."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, targets, batch_size):
        loss = self.loss(x, targets)
        return loss if batch_size is None else loss * (len(x) / batch_size)


def cross_entropy(label_smoothing):
    return OverBatch(nn.CrossEntropyLoss(label_smoothing=label_smoothing))


def relu():
    return nn.ReLU()


def flatten():
    return nn.Flatten()


def mean_squared_error():
    return OverBatch(nn.MSELoss())


@pytest.mark.parametrize(
    "oracle",
    [
        linear,
        layer_norm,
        gelu,
        relu,
        conv2d,
        flatten,
        cross_entropy,
        mean_squared_error,
    ],
    ids=lambda oracle: oracle.__name__,
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layer_and_loss_agree_with_torch_nn(oracle, dtype):
    row = ROWS[oracle.__name__]
    pair = Pair(
        name=f"nn {row.name}",
        candidate=row.candidate,
        reference=f"{__name__}:{oracle.__name__}",
        draw=row.draw,
        problem=row.problem,
        mirrored=False,
    )
    assert run_pair(pair, dtype, examples=21).failures == []


def renamed_problem(pair, case):
    """Compare modules whose parameters have other names, which the reference maps."""
    module = construct(pair.load_candidate(), pair.candidate_config(case.config))
    twin, names = pair.load_reference()(**case.config)
    parameters = parameters_of(module, case.seed)

    def function(x, **parameters):
        state = {names[name]: value for name, value in parameters.items()}
        return torch.func.functional_call(twin, state, (x,))

    return Problem(
        inputs={"x": numbers(case, "x")} | parameters,
        candidate=module_candidate(module),
        function=function,
        parameters=frozenset(parameters),
    )


def encoder_layer(dim, num_heads, mlp_dim, act):
    module = nn.TransformerEncoderLayer(
        dim,
        num_heads,
        mlp_dim,
        dropout=0.0,
        activation=act,
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    names = {
        "attn.qkv.weight": "self_attn.in_proj_weight",
        "attn.qkv.bias": "self_attn.in_proj_bias",
    }
    for ours, theirs in (
        ("norm1", "norm1"),
        ("norm2", "norm2"),
        ("attn.proj", "self_attn.out_proj"),
        ("mlp.fc1", "linear1"),
        ("mlp.fc2", "linear2"),
    ):
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return module, names


def draw_encoder_layer(draw, regime):
    heads = draw(st.integers(1, 3))
    dim = heads * draw(st.integers(2, 4))
    config = {
        "dim": dim,
        "num_heads": heads,
        "mlp_dim": draw(st.integers(1, 9)),
        "act": draw(st.sampled_from(("relu", "gelu"))),
    }
    return config, {"x": (*rows(draw, regime), dim)}


def torchvision_model(image_size, patch_size, dim, depth, num_heads, mlp_dim, classes):
    module = import_torchvision().models.VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=num_heads,
        hidden_dim=dim,
        mlp_dim=mlp_dim,
        num_classes=classes,
    )
    names = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    layers = [
        ("patch_embed.proj", "conv_proj"),
        ("norm", "encoder.ln"),
        ("head", "heads.head"),
    ]
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"encoder.layers.encoder_layer_{i}"
        layers += [
            (f"{ours}.norm1", f"{theirs}.ln_1"),
            (f"{ours}.norm2", f"{theirs}.ln_2"),
            (f"{ours}.attn.proj", f"{theirs}.self_attention.out_proj"),
            (f"{ours}.mlp.fc1", f"{theirs}.mlp.0"),
            (f"{ours}.mlp.fc2", f"{theirs}.mlp.3"),
        ]
        for kind in ("weight", "bias"):
            names[f"{ours}.attn.qkv.{kind}"] = f"{theirs}.self_attention.in_proj_{kind}"
    for ours, theirs in layers:
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return module, names


def draw_torchvision(draw, regime):
    heads = draw(st.integers(1, 2))
    side, grid = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    config = {
        "image_size": side * grid,
        "patch_size": side,
        "dim": heads * draw(st.integers(2, 4)),
        "depth": draw(st.integers(1, 2)),
        "num_heads": heads,
        "mlp_dim": draw(st.integers(2, 9)),
        "classes": 3,
    }
    return config, {"x": (batch(draw, regime, 3), 3, side * grid, side * grid)}


class RenamedPair(Pair):
    """A pair whose candidate takes other arguments than the reference."""

    def candidate_config(self, config):
        if "classes" not in config:
            return config
        fields = dict(config)
        return {"config": fields | {"num_classes": fields.pop("classes")}}


def key_slice(config):
    return slice(config["dim"], 2 * config["dim"])


COMPOSED = {
    "encoder_layer": ("layers.block:Block", draw_encoder_layer),
    "torchvision_model": ("model:VisionTransformer", draw_torchvision),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_network_agrees_with_those_of_torch_and_torchvision(name, dtype):
    candidate, draw = COMPOSED[name]
    pair = RenamedPair(
        name=name,
        candidate=f"vit_numpy.{candidate}",
        reference=f"{__name__}:{name}",
        draw=draw,
        problem=renamed_problem,
        blind=(Blind("d_*attn.qkv.bias", "the same in every logit", key_slice),),
        mirrored=False,
    )
    result = run_pair(pair, dtype, examples=21)
    assert result.failures == []
    assert result.examples == 21


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
        (AdamW, torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95)}),
    ],
)
def test_optimizer_follows_that_of_torch(ours, theirs, options):
    rng = np.random.default_rng(0)
    param = rng.standard_normal((5, 3))
    twin = torch.tensor(param)
    optimizer, oracle = ours([("w", param)], **options), theirs([twin], **options)
    for _ in range(20):
        gradient = rng.standard_normal(param.shape)
        twin.grad = torch.tensor(gradient)
        optimizer.step({"w": gradient})
        oracle.step()
    np.testing.assert_allclose(param, twin.numpy(), rtol=1e-12)


def test_module_problem_gives_both_sides_the_same_masks():
    row = ROWS["dropout"]
    pair = Pair(
        name="dropout",
        candidate=row.candidate,
        reference=row.reference,
        draw=row.draw,
        problem=module_problem,
    )
    from parity.strategies import Case

    case = Case({"p": 0.5, "masked": True}, {"x": (8, 64)}, seed=3)
    problem = module_problem(pair, case)
    ours, _ = problem.candidate(problem.inputs)
    theirs = problem.function(torch.tensor(problem.inputs["x"]))
    dropped = ours["out"] == 0
    assert 0.4 < dropped.mean() < 0.6
    np.testing.assert_array_equal(dropped, theirs.numpy() == 0)
