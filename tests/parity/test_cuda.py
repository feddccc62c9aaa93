"""What `--device cuda` promises: the same network, trained alike."""

from functools import partial

import numpy as np
import pytest
import torch

import vit_numpy
import vit_torch
from parity import assert_parity
from parity.masks import TorchMasks
from parity.transfer import copy_weights
from vit_torch import augment, layers
from vit_torch.draws import TRANSFORMS, draw

TWINS = (vit_numpy, vit_torch)
LAYERS = {
    "linear": (partial(layers.Linear, 6, 10), (2, 5, 6)),
    "layer_norm": (partial(layers.LayerNorm, 24), (2, 5, 24)),
    "gelu": (layers.GELU, (2, 5, 24)),
    "conv": (partial(layers.Conv2d, 3, 8, 3, stride=2, padding=1), (2, 3, 9, 9)),
    "patch_embed": (partial(layers.PatchEmbed, 4, 3, 16), (2, 3, 8, 8)),
    "attention": (partial(layers.Attention, 24, 3), (2, 9, 24)),
    "block": (partial(layers.Block, 24, 3, 48, layer_scale=0.1), (2, 9, 24)),
    "attention_pool": (
        partial(layers.AttentionPool, 24, 3, 48, "gelu", 1e-6, 1),
        (2, 9, 24),
    ),
}
MODEL = dict(
    image_size=16, patch_size=4, in_chans=3, num_classes=5, dim=24, depth=3,
    num_heads=3, mlp_dim=48,
)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_gpu_stays_within_the_bound(name, cuda):
    make, shape = LAYERS[name]
    assert_parity(make().to("cuda"), make(), [shape], device="cuda")


def test_writes_on_the_gpu_are_seen(cuda):
    def double(x):
        return x.mul_(2).clone()

    options = {"backend": "torch", "device": "cuda", "differentiate": False}
    with pytest.raises(AssertionError, match="wrote into"):
        assert_parity(double, lambda x: x * 2, [(3, 4)], **options)


def test_the_model_on_the_gpu_stays_within_the_bound(cuda):
    def make():
        return vit_torch.VisionTransformer(vit_torch.ViTConfig(**MODEL))

    assert_parity(make().to("cuda"), make(), [(2, 3, 16, 16)], device="cuda")


def test_without_the_set_up_convolutions_would_be_off(cuda):
    """The bound sees the 10 bits of TensorFloat-32, which is torch's default here."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU is older than TensorFloat-32")
    make = partial(layers.PatchEmbed, 8, 16, 64)
    inputs = [(4, 16, 32, 32)]
    assert_parity(make().to("cuda"), make(), inputs, device="cuda", dtype="float32")
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(AssertionError):
        assert_parity(make().to("cuda"), make(), inputs, device="cuda", dtype="float32")


def test_numpy_and_the_gpu_train_alike(cuda):
    """From the same weights, on the same batches, with the same masks, in float64."""
    config = MODEL | dict(act_drop=0.1, attn_drop=0.1, drop_path=0.2)
    mine, other = (twin.VisionTransformer(twin.ViTConfig(**config)) for twin in TWINS)
    vit_numpy.init_weights(mine, 0, "xavier", zero_head=False)
    mine.to("float64")
    other.to("cuda", torch.float64)
    copy_weights(mine, other)
    ours, theirs = (
        twin.Trainer(
            model,
            twin.AdamW(twin.param_groups(model, 0.05), lr=0.001),
            clip_norm=1.0,
            accumulate=2,
        )
        for twin, model in zip(TWINS, (mine, other), strict=True)
    )
    theirs.masks = TorchMasks(ours.masks, "cuda")
    rng = np.random.default_rng(0)
    for _ in range(20):
        images, labels = rng.standard_normal((12, 3, 16, 16)), rng.integers(0, 5, 12)
        a = ours.step(images, labels)
        b = theirs.step(cuda.array(images, "float64"), cuda.array(labels, "float64"))
        # Rounding of 2⁻⁵³, grown by sums and by twenty updates of Adam.
        assert a.loss == pytest.approx(b.loss, rel=1e-11)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)


def trainer_on_gpu(dtype, **options):
    config = vit_torch.ViTConfig(**MODEL, act_drop=0.1, drop_path=0.2)
    model = vit_torch.VisionTransformer(config)
    vit_torch.init_weights(model, 0, "xavier", zero_head=False)
    model.to("cuda", dtype)
    groups = vit_torch.param_groups(model, 0.05)
    return vit_torch.Trainer(model, vit_torch.AdamW(groups, 0.01), seed=3, **options)


def steps_of(trainer, dtype, count=3):
    g = torch.Generator().manual_seed(1)
    return [
        trainer.step(
            torch.randn(12, 3, 16, 16, generator=g, dtype=dtype).cuda(),
            torch.randint(5, (12,), generator=g).cuda(),
        )
        for _ in range(count)
    ]


def test_recomputing_blocks_gives_the_same_bits(cuda):
    kept, recomputed = (trainer_on_gpu(torch.float32) for _ in range(2))
    recomputed.model.recompute = True
    assert steps_of(kept, torch.float32) == steps_of(recomputed, torch.float32)


def test_bfloat16_stays_within_its_rounding(cuda):
    """bfloat16 keeps 8 bits: a relative 2⁻⁸ a product, and the network is 3 deep."""
    exact, rounded = (trainer_on_gpu(torch.float32, amp=amp) for amp in (False, True))
    (a,), (b,) = (steps_of(t, torch.float32, 1) for t in (exact, rounded))
    assert a.loss == pytest.approx(b.loss, rel=2**-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=2**-4)
    assert a.loss != b.loss
    assert {p.grad.dtype for p in rounded.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_alike(cuda):
    """The compiler's order of operations is another: the losses differ by rounding."""
    plain, compiled = (trainer_on_gpu(torch.float64, compile=c) for c in (False, True))
    pairs = zip(
        steps_of(plain, torch.float64), steps_of(compiled, torch.float64), strict=True
    )
    for a, b in pairs:
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - {"mixup", "cutmix"}))
def test_augmentation_on_the_gpu_changes_pixels_alike(name, cuda):
    transform = TRANSFORMS[name]()
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=g)
    drawn = draw(transform, 0, 0, range(8), 12, 12)
    one = augment.apply(transform, images, drawn)
    other = augment.apply(transform, images.cuda(), drawn).cpu()
    # Interpolated values may be rounded to the next of 256 levels.
    assert (one.int() - other.int()).abs().max() <= 1
