"""Initial values: their distributions, and what they depend on."""

import numpy as np
import pytest

from vit_numpy.config import ViTConfig
from vit_numpy.init import init_weights
from vit_numpy.model import VisionTransformer

FIELDS = dict(
    image_size=32, patch_size=4, dim=64, depth=2, num_heads=4, mlp_dim=128,
    num_classes=10, num_registers=2, layer_scale=0.1, pool="map",
)  # fmt: skip


def initialised(seed=0, method="trunc_normal", **overrides):
    model = VisionTransformer(ViTConfig(**FIELDS | overrides))
    init_weights(model, seed, method)
    return model.state_dict()


def test_truncated_normal_is_truncated():
    weight = initialised()["blocks.0.mlp.fc1.weight"]
    assert 0.0399 < np.abs(weight).max() <= 0.04
    # A normal cut at ±2 has 0.7737 of its variance left.
    assert weight.std() == pytest.approx(0.02 * 0.7737**0.5, rel=0.02)
    assert abs(weight.mean()) < 5e-4


def test_xavier_has_its_limit():
    state = initialised(method="xavier")
    limits = {
        "patch_embed.proj.weight": (6 / (3 * 16 + 64)) ** 0.5,
        "blocks.0.mlp.fc1.weight": (6 / (64 + 128)) ** 0.5,
        "blocks.0.attn.qkv.weight": (6 / (64 + 64)) ** 0.5,
        "attn_pool.kv.weight": (6 / (64 + 64)) ** 0.5,
    }
    for name, limit in limits.items():
        assert 0.99 * limit < np.abs(state[name]).max() <= limit
        assert state[name].std() == pytest.approx(limit / 3**0.5, rel=0.03)


def test_the_rest():
    state = initialised()
    for name, value in state.items():
        if name.endswith(".bias") or name == "head.weight":
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        elif name.endswith("gamma"):
            assert (value == np.float32(0.1)).all(), name
        else:
            assert len(np.unique(value)) > 0.5 * value.size, name
    assert np.abs(state["reg_token"]).max() < 1e-5
    assert state["attn_pool.latent"].std() == pytest.approx(0.88 * 64**-0.5, rel=0.2)


def test_values_depend_on_seed_and_name_alone():
    state = initialised()
    for name, value in initialised(depth=3, num_classes=5).items():
        if name in state and value.shape == state[name].shape:
            np.testing.assert_array_equal(value, state[name])
    other = initialised(seed=1)
    assert (other["pos_embed"] != state["pos_embed"]).all()
    first, second = (state[f"blocks.{i}.attn.proj.weight"] for i in (0, 1))
    assert (first != second).any()


def test_float64_starts_from_the_same_values():
    model = VisionTransformer(ViTConfig(**FIELDS)).to(np.float64)
    init_weights(model, 0)
    for name, value in initialised().items():
        np.testing.assert_array_equal(model.state_dict()[name].astype("f4"), value)
