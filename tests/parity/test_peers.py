"""vit_numpy against the Vision Transformers of timm and of Hugging Face.

Their modules are the reference, with random parameters; those of timm have the same
names as ours, so that nothing is mapped.
"""

import re

import pytest

import vit_numpy
from parity import assert_parity
from vit_torch._torchvision import import_torchvision

pytestmark = pytest.mark.peers

SMALL = dict(
    image_size=16, patch_size=8, num_classes=5, dim=12, depth=2, num_heads=3, mlp_dim=24
)
TIMM = dict(
    img_size=16, patch_size=8, num_classes=5, embed_dim=12, depth=2, num_heads=3,
    mlp_ratio=2,
)  # fmt: skip
IMAGES = {"images": (2, 3, 16, 16)}


@pytest.fixture(autouse=True)
def _torchvision():
    """Import torchvision as the peers cannot, where torch is for the CPU alone."""
    import_torchvision()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (dict(pool="mean", final_norm="after"), dict(global_pool="avg")),
        (
            dict(pool="map", class_token=False),
            dict(global_pool="map", class_token=False),
        ),
        (
            dict(num_registers=2, pos_prefix=False, layer_scale=0.1, qk_norm=True),
            dict(reg_tokens=2, no_embed_class=True, init_values=0.1, qk_norm=True),
        ),
        (
            dict(act="gelu_tanh", qkv_bias=False),
            dict(act_layer="gelu_tanh", qkv_bias=False),
        ),
    ],
    ids=["token", "mean", "map", "registers", "tanh"],
)
def test_timm(ours, theirs):
    timm = pytest.importorskip("timm.models.vision_transformer")
    twin = timm.VisionTransformer(**TIMM | theirs)
    model = vit_numpy.VisionTransformer(vit_numpy.ViTConfig(**SMALL | ours))
    blind = {
        f"d_{name}": "it adds the same to all logits of a row, which softmax ignores"
        for name, _ in model.named_parameters()
        if name.endswith("k_norm.bias")
    }
    agreement = assert_parity(model, twin, IMAGES, blind=blind)
    names = {f"d_{name}" for name, _ in model.named_parameters()}
    assert names <= set(agreement.tensors)


def test_timm_with_a_distillation_token():
    timm = pytest.importorskip("timm.models.deit")
    twin = timm.VisionTransformerDistilled(**TIMM).eval()
    config = vit_numpy.ViTConfig(**SMALL, distillation_token=True)
    assert_parity(vit_numpy.VisionTransformer(config), twin, IMAGES)


def test_hugging_face():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, num_labels=5, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=24, attn_implementation="sdpa",
    )  # fmt: skip
    twin = transformers.ViTForImageClassification(config)

    class Logits(torch.nn.Module):
        """Hugging Face's network with our names: q, k and v are rows of one matrix."""

        def forward(self, images, **ours):
            state = dict(renamed(ours, twin.state_dict()))
            return torch.func.functional_call(twin, state, (images,)).logits

    ours = vit_numpy.ViTConfig(**SMALL, norm_eps=config.layer_norm_eps)
    model = vit_numpy.VisionTransformer(ours)
    shapes = {name: array.shape for name, array in model.named_parameters()}
    module = Logits()
    assert_parity(
        model,
        lambda images, **parameters: module(images, **parameters),
        IMAGES,
        parameters=shapes,
    )


def renamed(ours, theirs):
    """Yield Hugging Face's parameters, made from ours."""
    plain = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "classifier": "head",
    }
    inside = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for name in theirs:
        short = name.removeprefix("vit.")
        stem, _, kind = short.rpartition(".")
        if short in plain:
            yield name, ours[plain[short]]
        elif stem in plain:
            yield name, ours[f"{plain[stem]}.{kind}"]
        else:
            i, rest = re.match(r"layers\.(\d+)\.(.*)", stem).groups()
            if rest in inside:
                yield name, ours[f"blocks.{i}.{inside[rest]}.{kind}"]
            else:
                part = ("q_proj", "k_proj", "v_proj").index(rest.rpartition(".")[2])
                yield name, ours[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)[part]
