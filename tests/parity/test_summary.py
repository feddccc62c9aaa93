"""The table of layers, against the model itself and torch's own counter."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parity.flops import forward_flops
from parity.summary import summarise
from vit_numpy.config import PRESETS, ViTConfig

TINY = dict(
    image_size=(8, 12),
    patch_size=4,
    in_chans=2,
    num_classes=5,
    dim=16,
    depth=2,
    num_heads=4,
    mlp_dim=24,
)
CONFIGS = [
    {},
    {"patch_embed": "linear", "qkv_bias": False, "patch_bias": False},
    {"num_registers": 3, "qk_norm": True, "layer_scale": 1e-5},
    {"class_token": False, "pool": "mean", "final_norm": "after"},
    {"class_token": False, "pool": "flatten", "pre_logits": 7},
    {"pool": "map", "num_registers": 1},
    {"distillation_token": True, "pre_logits": 6},
    {"pos_embed": "sincos2d", "num_classes": 0},
    {"pos_embed": "none", "final_norm": "none"},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_counts_are_those_of_the_model(changes):
    import vit_torch

    config = ViTConfig(**TINY | changes)
    found = summarise(config, batch_size=3)
    model = vit_torch.VisionTransformer(vit_torch.ViTConfig(**TINY | changes)).eval()
    assert found.parameters == sum(p.numel() for p in model.parameters())
    # The counter expects a graph wherever a tensor asks for gradients.
    model.requires_grad_(False)
    # It knows no operator of the fused attention on a CPU.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        out = model(torch.zeros(3, 2, 8, 12))
    assert found.flops == counter.get_total_flops()
    assert found.flops == forward_flops(config, 3)
    assert found.rows[-1].output == tuple(out.shape)


def test_shapes_are_those_of_the_modules():
    import vit_torch

    changes = {"qk_norm": True, "layer_scale": 1.0, "pool": "map", "pre_logits": 7}
    config = ViTConfig(**TINY | changes)
    model = vit_torch.VisionTransformer(vit_torch.ViTConfig(**TINY | changes)).eval()
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, out, name=name: shapes.update({name: tuple(out.shape)})
        )
    with torch.no_grad():
        model(torch.zeros(3, 2, 8, 12))
    checked = 0
    for row in summarise(config, batch_size=3).rows:
        name = row.name.replace("*", "0")
        if (
            " · " not in row.kind
            and name in shapes
            and name not in ("pool", "attn_pool")
        ):
            assert row.output == shapes[name], row.name
            checked += 1
    assert checked >= 17


def test_known_networks():
    assert summarise(PRESETS["b16"]).parameters == 86_567_656
    assert summarise(PRESETS["network1"]).parameters == 3_742
    assert summarise(PRESETS["network3"]).parameters == 141_962


def test_table_and_json_say_the_same():
    found = summarise(PRESETS["network1"], batch_size=10)
    text = found.text()
    assert "3,742" in text
    assert "blocks.*.attn.qkv ×3" in text
    assert "a forward pass of 10 images" in text
    whole = json.loads(json.dumps(found.to_dict()))
    assert sum(row["times"] * row["flops"] for row in whole["layers"]) == found.flops
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        summarise(PRESETS["network1"], 0)
