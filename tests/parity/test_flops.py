"""Operations counted from the configuration are those that torch counts as it runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vit_torch
from parity.flops import forward_flops, training_flops
from vit_numpy.config import preset

CONFIGS = {
    "network1": {},
    "network3": {},
    "ti16": {"depth": 2},
    "ti32": {
        "depth": 1,
        "pool": "map",
        "class_token": False,
        "num_registers": 0,
        "pre_logits": 10,
    },
    "s32": {"depth": 1, "distillation_token": True, "num_registers": 4},
    "ti14": {
        "depth": 1,
        "pool": "flatten",
        "image_size": (28, 42),
        "patch_embed": "linear",
        "final_norm": "none",
    },
    "ti8": {"depth": 1, "image_size": 32, "pool": "mean", "num_classes": 0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_torch(name):
    config = preset(name, **CONFIGS[name])
    torch_config = vit_torch.ViTConfig.from_dict(config.to_dict())
    model = vit_torch.VisionTransformer(torch_config).train()
    images = torch.randn(3, config.in_chans, *config.image_hw)
    # The plain formulation of attention: fused ones compute products a second time.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(images)
        forward = counter.get_total_flops()
        logits.backward(torch.randn_like(logits))
    assert forward_flops(config, 3) == forward
    assert training_flops(config, 3) == counter.get_total_flops()
