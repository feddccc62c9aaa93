"""Initial values: their distributions, and what they depend on."""

import numpy as np
import pytest

from vit_numpy.config import ViTConfig
from vit_numpy.init import init_weights
from vit_numpy.layers import sincos_2d
from vit_numpy.model import VisionTransformer

FIELDS = dict(
    image_size=32, patch_size=4, dim=64, depth=2, num_heads=4, mlp_dim=128,
    num_classes=10, num_registers=2, layer_scale=0.1, pool="map",
)  # fmt: skip


def built(seed=0, method="trunc_normal", **overrides):
    model = VisionTransformer(ViTConfig(**FIELDS | overrides))
    init_weights(model, seed, method)
    return model


def initialised(*args, **kwargs):
    return built(*args, **kwargs).state_dict()


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


def test_mimetic_lets_tokens_attend_to_those_like_them():
    state = initialised(method="mimetic", num_heads=1)
    q, k, v = np.split(state["blocks.0.attn.qkv.weight"], 3)
    proj = state["blocks.0.attn.proj.weight"]
    for product, scale, sign in ((q.T @ k, 0.7, 1), (proj @ v, 0.4, -1)):
        noise = product / scale - sign * np.eye(64)
        assert noise.std() == pytest.approx(1 / 8, rel=0.05)
        assert abs(np.diag(noise).mean()) < 0.05
    # Both factors have a product's singular values as squares of their own.
    for one, other in ((q, k), (proj.T, v)):
        np.testing.assert_allclose(one @ one.T, other @ other.T, atol=2e-6)


def test_mimetic_draws_each_head_and_layer_anew():
    one, four = (initialised(method="mimetic", num_heads=n) for n in (1, 4))
    name = "blocks.0.attn.qkv.weight"
    # The first head is the same draw, of which it has the 16 largest of 64 values.
    np.testing.assert_allclose(four[name][:16], one[name][:16], atol=2e-6)
    q, k, _ = four[name].reshape(3, 4, 16, 64)
    for head in range(4):
        np.testing.assert_allclose(q[head] @ q[head].T, k[head] @ k[head].T, atol=2e-6)
        assert np.trace(q[head].T @ k[head]) > 0.3 * np.linalg.norm(q[head]) ** 2
    assert (q[0] != q[1]).all()
    assert (four[name] != four["blocks.1.attn.qkv.weight"]).all()
    assert (four[name] != initialised(1, "mimetic", num_heads=4)[name]).all()


def test_mimetic_leaves_the_rest_to_xavier():
    mimetic, xavier = initialised(method="mimetic"), initialised(method="xavier")
    for name, value in mimetic.items():
        if name.endswith(("attn.qkv.weight", "attn.proj.weight")):
            assert (value != xavier[name]).all(), name
        elif name != "pos_embed":
            np.testing.assert_array_equal(value, xavier[name], err_msg=name)


@pytest.mark.parametrize("pos_prefix", [True, False])
def test_mimetic_starts_positions_of_patches_from_sines_and_cosines(pos_prefix):
    one, other = (
        initialised(method=method, pos_prefix=pos_prefix, image_size=(16, 32))
        for method in ("mimetic", "xavier")
    )
    prefix = 3 if pos_prefix else 0
    patches = one["pos_embed"][0, prefix:]
    np.testing.assert_array_equal(patches, sincos_2d(4, 8, 64).astype(np.float32))
    for state in (one, other):
        assert state["pos_embed"].shape == (1, prefix + 32, 64)
    np.testing.assert_array_equal(
        one["pos_embed"][:, :prefix], other["pos_embed"][:, :prefix]
    )


@pytest.mark.parametrize(
    "changes",
    [{"pos_embed": "none"}, {"pos_embed": "sincos1d"}, {"dim": 62}, {"dim": 4}],
)
def test_mimetic_leaves_positions_that_cannot_have_them(changes):
    one, other = (
        built(method=method, num_heads=2, **changes).pos_embed
        for method in ("mimetic", "xavier")
    )
    if changes.get("pos_embed") == "none":
        assert one is other is None
    else:
        np.testing.assert_array_equal(one, other)


def test_mimetic_has_the_same_bits_for_any_number_of_threads():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    states = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, "blas"):
            config = ViTConfig(**FIELDS | {"dim": 192})
            model = VisionTransformer(config).to(np.float64)
            init_weights(model, 0, "mimetic")
            states.append(model.state_dict())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


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
