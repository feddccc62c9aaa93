"""The NumPy model by itself: no torch is imported here."""

import numpy as np
import pytest

from vit_numpy import PRESETS, KeyedMasks, VisionTransformer, ViTConfig, no_grad, preset
from vit_numpy.layers import Attention, Block, PatchEmbed, sincos_1d, sincos_2d
from vit_numpy.module import Array, Module

TINY = dict(
    image_size=(8, 12),
    patch_size=4,
    in_chans=2,
    num_classes=5,
    dim=16,
    depth=2,
    num_heads=2,
    mlp_dim=12,
)

# Between them these touch every option of the configuration.
CONFIGS = {
    "plain": {},
    "linear patches, flattened": dict(
        patch_embed="linear", pool="flatten", patch_bias=False, pos_embed="sincos1d"
    ),
    "mean, norm after": dict(
        class_token=False, pool="mean", final_norm="after", pos_embed="sincos2d"
    ),
    "map": dict(pool="map", num_registers=2, pos_prefix=False, act="gelu_tanh"),
    "distilled": dict(distillation_token=True, pre_logits=7, final_norm="none"),
    "scaled, normalised": dict(
        layer_scale=0.5, qk_norm=True, qkv_bias=False, pos_embed="none", act="relu"
    ),
    "features only": dict(num_classes=0, pre_logits=3, norm_eps=1e-3),
    "dropped": dict(
        pos_drop=0.1,
        attn_drop=0.2,
        proj_drop=0.1,
        act_drop=0.1,
        mlp_drop=0.1,
        drop_path=0.3,
    ),
}


def randomised(module: Module, seed: int) -> Module:
    rng = np.random.default_rng(seed)
    module.to(np.float64)
    for _, parameter in module.named_parameters():
        parameter[...] = rng.normal(scale=0.5, size=parameter.shape)
    return module


def model_of(options: dict, seed: int = 0) -> VisionTransformer:
    model = VisionTransformer(ViTConfig(**TINY | options))
    randomised(model, seed)
    return model


def images_of(model: VisionTransformer, batch: int = 3, seed: int = 1) -> Array:
    config = model.config
    shape = (batch, config.in_chans, *config.image_hw)
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_directional_derivative(options: dict) -> None:
    """⟨dy, J v⟩ by central differences equals ⟨Jᵀ dy, v⟩ by backward."""
    model = model_of(options)
    images = images_of(model)
    masks = KeyedMasks(seed=3)
    rng = np.random.default_rng(2)
    logits, cache = model.forward(images, masks)
    dlogits = rng.normal(size=logits.shape)
    dimages, grads = model.backward(dlogits, cache)
    assert set(grads) == set(model.state_dict())

    parameters = model.state_dict()
    start = {name: value.copy() for name, value in parameters.items()}
    moves = {name: rng.normal(size=value.shape) for name, value in start.items()}
    image_move = rng.normal(size=images.shape)

    def along(step: float) -> float:
        for name, value in parameters.items():
            value[...] = start[name] + step * moves[name]
        return float(np.vdot(dlogits, model(images + step * image_move, masks)))

    step = 1e-6
    numeric = (along(step) - along(-step)) / (2 * step)
    exact = float(np.vdot(dimages, image_move))
    exact += sum(float(np.vdot(grads[name], moves[name])) for name in grads)
    # Central differences are right to about ε^(2/3), times what cancels in the sum.
    assert numeric == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_backward_is_repeatable_and_mutates_nothing(options: dict) -> None:
    model = model_of(options)
    images = images_of(model)
    kept = images.copy()
    logits, cache = model.forward(images, KeyedMasks(seed=3))
    dlogits = np.random.default_rng(2).normal(size=logits.shape)
    dlogits_kept = dlogits.copy()
    first, first_grads = model.backward(dlogits, cache)
    second, second_grads = model.backward(dlogits, cache)
    np.testing.assert_array_equal(first, second)
    for name, grad in first_grads.items():
        np.testing.assert_array_equal(grad, second_grads[name], err_msg=name)
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(dlogits, dlogits_kept)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_float32_stays_float32(options: dict) -> None:
    model = model_of(options).to(np.float32)
    record: dict[str, Array] = {}
    gradients: dict[str, Array] = {}
    images = images_of(model).astype(np.float32)
    logits, cache = model.forward(images, KeyedMasks(seed=3), record)
    dimages, grads = model.backward(logits, cache, record=gradients)
    arrays = [dimages, *record.values(), *gradients.values(), *grads.values()]
    assert {array.dtype.name for array in arrays} == {"float32"}
    for name, grad in grads.items():
        assert grad.shape == model.state_dict()[name].shape, name


def test_gradients_of_intermediates_chain() -> None:
    """A change of 'embedding' reaches the logits as its recorded gradient says."""
    model = model_of({})
    images = images_of(model)
    record: dict[str, Array] = {}
    gradients: dict[str, Array] = {}
    logits, cache = model.forward(images, record=record)
    dlogits = np.random.default_rng(2).normal(size=logits.shape)
    model.backward(dlogits, cache, record=gradients)
    assert sorted(gradients) == sorted(record)
    assert list(record) == list(model.intermediates(images))
    for name, value in record.items():
        assert gradients[name].shape == value.shape, name

    move = np.random.default_rng(4).normal(size=record["embedding"].shape)

    def logits_from(x: Array) -> Array:
        for block in model.blocks:
            x = block(x)
        return model.head(model.pool(model.norm(x)))

    step = 1e-6
    change = logits_from(record["embedding"] + step * move) - logits_from(
        record["embedding"] - step * move
    )
    numeric = np.vdot(dlogits, change) / (2 * step)
    assert numeric == pytest.approx(np.vdot(gradients["embedding"], move), rel=1e-6)


def test_consume_frees_the_blocks_and_refuses_a_second_backward() -> None:
    model = model_of({})
    logits, cache = model.forward(images_of(model))
    kept, grads = model.backward(logits, cache)
    consumed, consumed_grads = model.backward(logits, cache, consume=True)
    np.testing.assert_array_equal(kept, consumed)
    np.testing.assert_array_equal(grads["cls_token"], consumed_grads["cls_token"])
    assert cache.c_blocks == []
    with pytest.raises(ValueError, match="cache must hold 2 blocks, got 0; a backward"):
        model.backward(logits, cache)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_no_grad_keeps_nothing(options: dict) -> None:
    model = model_of(options)
    images = images_of(model)
    with no_grad():
        logits, cache = model.forward(images)
    assert cache is None
    np.testing.assert_array_equal(logits, model(images))


def test_one_step_against_the_gradient_lowers_the_loss() -> None:
    model = model_of({})
    images = images_of(model)
    target = np.random.default_rng(5).normal(size=(3, 5))
    losses = []
    for _ in range(20):
        logits, cache = model.forward(images)
        losses.append(float(((logits - target) ** 2).sum()))
        _, grads = model.backward(2 * (logits - target), cache, consume=True)
        for name, parameter in model.named_parameters():
            parameter -= 1e-4 * grads[name]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ti16", 5_717_416),
        ("s16", 22_050_664),
        ("b16", 86_567_656),
        ("l16", 304_326_632),
        ("h14", 632_045_800),
        ("network1", 3_742),
        ("network2", 28_106),
        ("network3", 141_962),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    # New weights are zeros, which the system hands out only when they are touched.
    model = VisionTransformer(PRESETS[name])
    assert sum(parameter.size for _, parameter in model.named_parameters()) == count


def test_parameters_have_timms_names() -> None:
    config = preset("ti16", depth=1, num_registers=4, layer_scale=1e-5, qk_norm=True)
    names = set(VisionTransformer(config).state_dict())
    block = "norm1 attn.qkv attn.q_norm attn.k_norm attn.proj norm2 mlp.fc1 mlp.fc2"
    layers = ["patch_embed.proj", "norm", "head"]
    layers += [f"blocks.0.{layer}" for layer in block.split()]
    assert names == {
        f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
    } | {
        "cls_token",
        "reg_token",
        "pos_embed",
        "blocks.0.ls1.gamma",
        "blocks.0.ls2.gamma",
    }


def test_map_head_has_timms_names() -> None:
    names = VisionTransformer(preset("ti16", depth=1, pool="map")).state_dict()
    layers = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
    assert {name for name in names if name.startswith("attn_pool.")} == {
        "attn_pool.latent",
        *(f"attn_pool.{layer}.{k}" for layer in layers for k in ("weight", "bias")),
    }


def test_fixed_positions_are_no_parameters_but_are_converted() -> None:
    model = VisionTransformer(ViTConfig(**TINY | dict(pos_embed="sincos2d")))
    assert "pos_embed" not in model.state_dict()
    assert model.to(np.float64).pos_embed.dtype == np.float64


def test_both_patch_embeddings_share_weights() -> None:
    conv = PatchEmbed(3, 2, 7)
    randomised(conv, 0)
    linear = PatchEmbed(3, 2, 7, method="linear").to(np.float64)
    linear.load_state_dict(conv.state_dict())
    images = np.random.default_rng(1).normal(size=(2, 2, 6, 9))
    tokens, c_conv = conv.forward(images)
    same_tokens, c_linear = linear.forward(images)
    np.testing.assert_allclose(tokens, same_tokens, rtol=0, atol=1e-14)
    dy = np.random.default_rng(2).normal(size=tokens.shape)
    dx, grads = conv.backward(dy, c_conv)
    same_dx, same_grads = linear.backward(dy, c_linear)
    np.testing.assert_allclose(dx, same_dx, rtol=0, atol=1e-13)
    assert grads.keys() == same_grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, same_grads[name], rtol=0, atol=1e-13)


def test_sincos_1d_alternates_sine_and_cosine() -> None:
    table = sincos_1d(5, 6)
    assert table.shape == (5, 6)
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table[0], [0, 1, 0, 1, 0, 1])
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert table[t, 2 * i] == pytest.approx(np.sin(angle), abs=1e-15)
            assert table[t, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-15)


def test_sincos_2d_has_columns_before_rows() -> None:
    table = sincos_2d(2, 3, 8).reshape(2, 3, 8)
    for y in range(2):
        for x in range(3):
            expected = [
                f(c * w) for c in (x, y) for f in (np.sin, np.cos) for w in (1, 1e-4)
            ]
            np.testing.assert_allclose(table[y, x], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("pos_embed", "pos_prefix", "rows"),
    [("sincos1d", True, 8), ("sincos1d", False, 6), ("sincos2d", True, 8)],
)
def test_positions_of_prefix_tokens(
    pos_embed: str, pos_prefix: bool, rows: int
) -> None:
    options = dict(pos_embed=pos_embed, pos_prefix=pos_prefix, num_registers=1)
    table = VisionTransformer(ViTConfig(**TINY | options)).pos_embed
    assert table.shape == (1, rows, 16)
    if pos_embed == "sincos2d":
        assert not table[0, :2].any()
        np.testing.assert_array_equal(table[0, 2:], sincos_2d(2, 3, 16).astype("f4"))
    else:
        np.testing.assert_array_equal(table[0], sincos_1d(rows, 16).astype("f4"))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_attention_weights_are_a_distribution_at_any_scale(scale: float) -> None:
    attention = Attention(8, 2, qk_norm=False)
    randomised(attention, 0).to(np.float32)
    x = np.random.default_rng(1).normal(scale=scale, size=(2, 5, 8)).astype(np.float32)
    weights = attention.attention_weights(x)
    assert weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    y, cache = attention.forward(x)
    dx, _ = attention.backward(np.ones_like(y), cache)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


def test_attention_shows_what_is_not_a_number() -> None:
    attention = randomised(Attention(8, 2), 0)
    x = np.full((1, 3, 8), np.nan)
    assert np.isnan(attention(x)).all()


def test_masks_do_not_depend_on_how_the_batch_is_cut() -> None:
    model = model_of(CONFIGS["dropped"])
    images = images_of(model, batch=4)
    masks = KeyedMasks(seed=3)
    whole = model(images, masks)
    halves = [model(images[i : i + 2], masks.shard(i, i + 2)) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-12)
    assert not np.allclose(whole, model(images))


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        ([[1.0]], TypeError, "images must be an array for vit_numpy and a tensor"),
        (np.zeros((2, 8, 12)), ValueError, r"must have shape \(B, 2, 8, 12\), got"),
        (np.zeros((1, 3, 8, 12)), ValueError, r"got shape \(1, 3, 8, 12\)"),
        (np.zeros((1, 2, 12, 8)), ValueError, r"got shape \(1, 2, 12, 8\)"),
        (np.zeros((0, 2, 8, 12)), ValueError, "at least one image, got an empty batch"),
        (
            np.zeros((1, 2, 8, 12), "f4"),
            TypeError,
            "must be float64, as the parameters",
        ),
    ],
)
def test_bad_images(images: object, error: type[Exception], text: str) -> None:
    model = model_of({})
    for use in (model.forward, model.intermediates, model.attention_weights):
        with pytest.raises(error, match=text):
            use(images)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (
            lambda: VisionTransformer({"dim": 8}),
            TypeError,
            "config must be this package.s ViTConfig, got builtins.dict; ",
        ),
        (lambda: Attention(10, 3), ValueError, "got dim=10, num_heads=3"),
        (
            lambda: Block(8, 2, 8, drop_path=1.0),
            ValueError,
            r"drop_path must be in \[0",
        ),
        (lambda: Block(8, 2, 8, mlp_drop=-0.1), ValueError, r"mlp_drop must be in \[0"),
        (lambda: PatchEmbed(4, 3, 8, method="cnov"), ValueError, "did you mean 'conv'"),
        (lambda: sincos_1d(4, 7), ValueError, "dim must be even, got dim=7"),
        (lambda: sincos_2d(2, 2, 4), ValueError, "divisible by 4 and at least 8"),
    ],
)
def test_bad_construction(build, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_patches_must_fit_the_image() -> None:
    with pytest.raises(
        ValueError, match="divisible by patch_size, got 8×9, patch_size=4"
    ):
        PatchEmbed(4, 1, 8)(np.zeros((1, 1, 8, 9), np.float32))
