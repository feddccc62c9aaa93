"""Attention maps and rollout, by hand, and the same in both backends."""

import numpy as np
import pytest
import torch

from parity.attention import head_maps, reader, rollout
from parity.bounds import reference
from parity.classifier import Classifier
from parity.training import Backend
from vit_numpy import VisionTransformer, ViTConfig, save

SMALL = dict(
    image_size=(8, 12),
    patch_size=4,
    in_chans=1,
    num_classes=3,
    dim=8,
    depth=3,
    num_heads=2,
    mlp_dim=16,
)


def weights_of(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, config.num_heads, config.num_tokens, config.num_tokens)
    scores = np.exp(rng.standard_normal((config.depth, *shape)))
    return list(scores / scores.sum(axis=-1, keepdims=True))


def test_head_maps_are_the_class_tokens_row_over_the_grid():
    config = ViTConfig(**SMALL, num_registers=1)
    weights = weights_of(config)
    maps = head_maps(weights, config)
    assert maps.shape == (2, 3, 2, 2, 3)
    # Tokens: class, register, then patches row by row.
    assert maps[1, 2, 0, 1, 2] == weights[2][1, 0, 0, 2 + 5]
    assert reader(config) == "the class token"


def test_without_a_class_token_all_patches_read():
    config = ViTConfig(**SMALL, class_token=False, pool="mean", num_registers=1)
    weights = weights_of(config)
    expected = weights[1][0, 1, 1:, 1 + 4].mean()
    assert head_maps(weights, config)[0, 1, 1, 1, 1] == pytest.approx(expected)
    assert reader(config) == "the mean of all patches"


@pytest.mark.parametrize(
    ("changes", "read", "said"),
    [
        ({"distillation_token": True}, slice(2), "class and distillation token"),
        ({"pool": "mean"}, slice(2, None), "the mean of all patches"),
        ({"pool": "map"}, slice(2, None), "the head weighs by its own attention"),
        (
            {"pool": "flatten", "final_norm": "before"},
            slice(None),
            "the mean of all tokens",
        ),
    ],
)
def test_what_the_head_reads_is_shown(changes, read, said):
    """A class token that the head does not look at tells nothing of it."""
    registers = 0 if "distillation_token" in changes else 1
    config = ViTConfig(**SMALL, num_registers=registers, **changes)
    weights = weights_of(config)
    expected = weights[1][0, 1, read, 2 + 4].mean()
    assert head_maps(weights, config)[0, 1, 1, 1, 1] == pytest.approx(expected)
    half = np.eye(config.num_tokens) / 2
    flow = np.linalg.multi_dot([w[0].mean(axis=0) / 2 + half for w in weights[::-1]])
    got = rollout(weights, config)[0, 1, 1]
    assert got == pytest.approx(flow[read, 2 + 4].mean())
    assert said in reader(config)


def test_rollout_of_one_block_is_half_of_the_mean_attention():
    config = ViTConfig(**SMALL | {"depth": 1})
    (block,) = weights_of(config)
    flow = rollout([block], config)
    expected = block.mean(axis=1)[:, 0, 1:].reshape(2, 2, 3) / 2
    np.testing.assert_allclose(flow, expected, rtol=1e-15)


def test_rollout_follows_the_order_of_the_blocks():
    config = ViTConfig(**SMALL | {"depth": 2, "num_heads": 1})
    tokens = config.num_tokens
    # First all patches read patch 3 (token 4), then the class token reads patch 0.
    first, second = np.tile(np.eye(tokens), (2, 1, 1, 1, 1))
    first[..., 1:, :] = np.eye(tokens)[4]
    second[..., 0, :] = np.eye(tokens)[1]
    flow = rollout([first, second], config)[0]
    # Half stays with the class token; of the other half, patch 0 kept half of its own.
    assert flow.ravel().tolist() == [0.25, 0, 0, 0.25, 0, 0]


def test_flow_is_conserved():
    config = ViTConfig(**SMALL, class_token=False, pool="mean")
    flow = rollout(weights_of(config), config)
    np.testing.assert_allclose(flow.sum(axis=(1, 2)), 1, rtol=1e-14)


def test_weights_of_another_network_are_refused():
    config = ViTConfig(**SMALL)
    with pytest.raises(ValueError, match="weights must be 3 arrays of shape"):
        head_maps(weights_of(config)[:2], config)
    with pytest.raises(ValueError, match="weights must be 3 arrays of shape"):
        rollout(weights_of(ViTConfig(**SMALL, num_registers=1)), config)


class TorchMaps(torch.nn.Module):
    """Maps and rollout, with torch's operators; pools token or mean."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        config = self.model.config
        weights = torch.stack(self.model.attention_weights(images), dim=1)
        prefix = config.num_prefix_tokens
        read = slice(1) if config.pool == "token" else slice(prefix, None)
        steps = weights.mean(dim=2) / 2 + torch.eye(config.num_tokens).to(images) / 2
        first, second, third = steps.unbind(dim=1)
        flow = third @ second @ first
        heads = weights[..., read, prefix:].mean(dim=-2)
        return {
            "heads": heads.unflatten(-1, config.grid),
            "rollout": flow[:, read, prefix:].mean(dim=1).unflatten(-1, config.grid),
        }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_registers": 2, "qk_norm": True, "layer_scale": 0.5},
        {"pool": "mean"},
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_both_backends_draw_the_same(backend, changes, tmp_path):
    """Within the bound computed for this network and image, element by element."""
    config = ViTConfig(**SMALL, **changes)
    rng = np.random.default_rng(3)
    model = VisionTransformer(config)
    for array in model.state_dict().values():
        array[...] = rng.standard_normal(array.shape).astype(np.float32)
    path = tmp_path / "model.safetensors"
    save(path, model, preprocessing={"mean": [0.4], "std": [0.3]})
    network = Classifier.open(path, Backend.load(backend))
    images = rng.integers(0, 256, (2, 1, 8, 12), dtype=np.uint8)
    inputs = network.inputs(images)

    twin = Classifier.open(path, Backend.load("torch")).model
    maps = TorchMaps(twin)
    ref = reference(
        lambda images, **parameters: torch.func.functional_call(
            maps, parameters, (images,)
        ),
        {"images": network.backend.numpy(inputs)} | dict(maps.named_parameters()),
        differentiate=False,
    )
    assert not ref.ambiguous
    weights = network.attention_weights(inputs)
    for name, got in (
        ("heads", head_maps(weights, config)),
        ("rollout", rollout(weights, config)),
    ):
        assert ref.mismatch(name, got) is None
        assert ref.share(name, got).max() <= 1
        # The check can see: a thousandth more is flagged.
        assert ref.share(name, got * np.float32(1.001)).max() > 1
