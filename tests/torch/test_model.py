"""The torch twin: against torchvision's and torch's own, and against the NumPy twin."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vit_numpy
import vit_torch
from vit_torch._torchvision import import_torchvision
from vit_torch.layers import Attention, Block, PatchEmbed

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
DROPPED = dict(
    pos_drop=0.1,
    attn_drop=0.2,
    proj_drop=0.1,
    act_drop=0.1,
    mlp_drop=0.1,
    drop_path=0.3,
)
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
    "dropped": DROPPED,
}


class SharedMasks:
    """NumPy's masks, for torch."""

    def __init__(self, seed: int) -> None:
        self.source = vit_numpy.KeyedMasks(seed)

    def keep(self, name: str, shape: tuple[int, ...], p: float) -> Tensor:
        return torch.from_numpy(self.source.keep(name, shape, p))


def randomised(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(std=0.5, generator=generator)
    return module


def close(name: str, candidate: np.ndarray, reference: Tensor) -> None:
    expected = reference.detach().numpy()
    scale = max(float(np.abs(expected).max()), 1.0)
    np.testing.assert_allclose(
        candidate, expected, rtol=0, atol=1e-12 * scale, err_msg=name
    )


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_numpy_twin_agrees(options: dict) -> None:
    """Every intermediate, its gradient and every parameter's, in float64."""
    model = vit_torch.VisionTransformer(vit_torch.ViTConfig(**TINY | options))
    randomised(model, 0)
    twin = vit_numpy.VisionTransformer(vit_numpy.ViTConfig(**TINY | options))
    twin.to(np.float64)
    twin.load_state_dict({k: v.numpy() for k, v in model.state_dict().items()})
    rng = np.random.default_rng(1)
    images = rng.normal(size=(3, 2, 8, 12))

    seen: dict[str, np.ndarray] = {}
    gradients: dict[str, np.ndarray] = {}
    logits, cache = twin.forward(images, vit_numpy.KeyedMasks(3), seen)
    dlogits = rng.normal(size=logits.shape)
    dimages, grads = twin.backward(dlogits, cache, record=gradients)

    leaf = torch.tensor(images, requires_grad=True)
    expected = model.intermediates(leaf, SharedMasks(3))
    for value in expected.values():
        value.retain_grad()
    expected["logits"].backward(torch.tensor(dlogits))

    assert list(seen) == list(expected)
    for name, value in expected.items():
        close(name, seen[name], value)
        close(f"d{name}", gradients[name], value.grad)
    close("dimages", dimages, leaf.grad)
    parameters = dict(model.named_parameters())
    assert grads.keys() == parameters.keys()
    for name, parameter in parameters.items():
        close(name, grads[name], parameter.grad)
    model.eval()
    weights = model.attention_weights(torch.tensor(images))
    for i, of_block in enumerate(twin.attention_weights(images)):
        close(f"weights of block {i}", of_block, weights[i])


def test_torchvision_agrees() -> None:
    import_torchvision()
    from torchvision.models import VisionTransformer

    oracle = VisionTransformer(
        image_size=24,
        patch_size=8,
        num_layers=3,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=48,
        num_classes=7,
    )
    randomised(oracle, 0)
    renamed = {}
    for name, value in oracle.state_dict().items():
        for theirs, ours in (
            ("class_token", "cls_token"),
            ("encoder.pos_embedding", "pos_embed"),
            ("conv_proj", "patch_embed.proj"),
            ("encoder.layers.encoder_layer_", "blocks."),
            ("encoder.ln", "norm"),
            ("heads.head", "head"),
            ("ln_1", "norm1"),
            ("ln_2", "norm2"),
            ("self_attention.in_proj_", "attn.qkv."),
            ("self_attention.out_proj", "attn.proj"),
            ("mlp.0", "mlp.fc1"),
            ("mlp.3", "mlp.fc2"),
        ):
            name = name.replace(theirs, ours)
        renamed[name] = value
    model = vit_torch.VisionTransformer(
        vit_torch.ViTConfig(
            image_size=24,
            patch_size=8,
            depth=3,
            num_heads=4,
            dim=32,
            mlp_dim=48,
            num_classes=7,
        )
    ).double()
    model.load_state_dict(renamed)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(model(images), oracle(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_torch_encoder_layer_agrees(act: str) -> None:
    oracle = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, activation=act, batch_first=True, norm_first=True
    )
    randomised(oracle, 0)
    state = oracle.state_dict()
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    block = Block(24, 4, 40, act=act, norm_eps=1e-5).double()
    block.load_state_dict(
        {
            ours + kind: state[theirs + kind]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
    )
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(block(x), oracle(x), rtol=1e-12, atol=1e-12)


def test_given_masks_take_the_plain_path_to_the_same_result() -> None:
    attention = randomised(Attention(16, 4), 0)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    fused = attention(x)
    plain = attention(x, SharedMasks(0))
    torch.testing.assert_close(fused, plain, rtol=1e-13, atol=1e-13)


def test_dropout_is_off_in_evaluation() -> None:
    model = vit_torch.VisionTransformer(vit_torch.ViTConfig(**TINY | DROPPED)).eval()
    randomised(model, 0)
    images = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(model(images), model(images, SharedMasks(3)))
    model.train()
    assert not torch.allclose(model(images), model(images))


def test_both_patch_embeddings_share_weights() -> None:
    conv = randomised(PatchEmbed(3, 2, 7), 0)
    linear = PatchEmbed(3, 2, 7, method="linear").double()
    linear.load_state_dict(conv.state_dict())
    images = torch.randn(2, 2, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(conv(images), linear(images), rtol=0, atol=1e-13)


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
    with torch.device("meta"):
        model = vit_torch.VisionTransformer(vit_torch.PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0]],
        np.zeros((2, 8, 12), np.float32),
        np.zeros((1, 3, 8, 12), np.float32),
        np.zeros((0, 2, 8, 12), np.float32),
        np.zeros((1, 2, 8, 12), np.float64),
        np.zeros((1, 2, 8, 12), np.uint8),
    ],
)
def test_bad_images_are_answered_alike(bad: object) -> None:
    errors = []
    for package in (vit_numpy, vit_torch):
        model = package.VisionTransformer(package.ViTConfig(**TINY))
        given = bad
        if package is vit_torch and isinstance(bad, np.ndarray):
            given = torch.from_numpy(bad)
        with pytest.raises((TypeError, ValueError)) as raised:
            model.forward(given)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
