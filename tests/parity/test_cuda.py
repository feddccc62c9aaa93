"""What `--device cuda` promises: the same network, and the same bits when resumed."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import vit_numpy
import vit_torch
from parity import assert_parity, recipes
from parity.data import from_arrays
from parity.masks import TorchMasks
from parity.training import Backend, RunFolder, TrainingStopped, train
from parity.transfer import copy_weights
from vit_numpy.checkpoint import load
from vit_torch import augment, layers
from vit_torch.draws import TRANSFORMS, draw

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"
)

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


@pytest.fixture
def backend(monkeypatch):
    """PyTorch on the GPU as the programs set it up; afterwards as it was."""
    monkeypatch.setattr(
        torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32
    )
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    backend = Backend.load("torch", device="cuda")
    backend.prepare()
    yield backend
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def recipe():
    """Everything that has a state: moments, dropout, an average, augmentation."""
    return recipes.load("network1").replace(
        {
            "epochs": 3,
            "batch_size": 8,
            "ema": 0.9,
            "accumulate": 2,
            "clip_norm": 1.0,
            "model.drop_path": 0.1,
            "schedule.warmup_steps": 2,
            "schedule.drop_after": [1],
            "augment": [{"name": "flip"}, {"name": "mixup"}],
        }
    )


@pytest.fixture
def dataset():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % 10
    return from_arrays(images[:40], labels[:40], images[40:], labels[40:])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_gpu_stays_within_the_bound(name, backend):
    make, shape = LAYERS[name]
    assert_parity(make().to("cuda"), make(), [shape], device="cuda")


def test_the_model_on_the_gpu_stays_within_the_bound(backend):
    def make():
        return vit_torch.VisionTransformer(vit_torch.ViTConfig(**MODEL))

    assert_parity(make().to("cuda"), make(), [(2, 3, 16, 16)], device="cuda")


def test_without_the_set_up_convolutions_would_be_off(backend):
    """The bound sees the 10 bits of TensorFloat-32, which is torch's default here."""
    make = partial(layers.PatchEmbed, 8, 16, 64)
    inputs = [(4, 16, 32, 32)]
    assert_parity(make().to("cuda"), make(), inputs, device="cuda", dtype="float32")
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(AssertionError):
        assert_parity(make().to("cuda"), make(), inputs, device="cuda", dtype="float32")


class SharedMasks(TorchMasks):
    """NumPy's masks for torch's trainer."""

    def at(self, step):
        return SharedMasks(self.source.at(step), "cuda")

    def shard(self, start, stop):
        return SharedMasks(self.source.shard(start, stop), "cuda")


def test_numpy_and_the_gpu_train_alike(backend):
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
    theirs.masks = SharedMasks(ours.masks, "cuda")
    rng = np.random.default_rng(0)
    for _ in range(20):
        images, labels = rng.standard_normal((12, 3, 16, 16)), rng.integers(0, 5, 12)
        a = ours.step(images, labels)
        b = theirs.step(backend.array(images, "float64"), backend.array(labels, ""))
        # Rounding of 2⁻⁵³, grown by sums and by twenty updates of Adam.
        assert a.loss == pytest.approx(b.loss, rel=1e-11)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)


def run(recipe, backend, dataset, path, **options):
    folder = RunFolder(path)
    if not folder.checkpoint.exists():
        folder.create(recipe, backend, overwrite=True)
    return list(train(recipe, backend, dataset, folder, **options))


def stop_after(steps):
    """Return a function that says to stop when it is asked for the nth time."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


@pytest.mark.parametrize("drops", [0.1, 0.0], ids=["plain", "fused"])
def test_a_stop_at_any_step_changes_no_bit(drops, backend, recipe, dataset, tmp_path):
    """Without dropout attention is one fused kernel, whose backward sums freely."""
    changes = {"model.act_drop": drops, "model.drop_path": drops, "model.dim": 24}
    recipe = recipe.replace(changes)
    run(recipe, backend, dataset, tmp_path / "whole")
    for steps in (3, 3, 1, 6):
        with pytest.raises(TrainingStopped):
            run(recipe, backend, dataset, tmp_path / "parts", stop=stop_after(steps))
    run(recipe, backend, dataset, tmp_path / "parts")
    whole, parts = (
        load(tmp_path / name / "last.safetensors").arrays for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[key], parts[key]) for key in whole)


def test_a_run_names_its_gpu_and_opens_in_numpy(backend, recipe, dataset, tmp_path):
    run(recipe, backend, dataset, tmp_path)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["options"] == {"device": "cuda"}
    assert first["environment"]["accelerator"] == torch.cuda.get_device_name()
    images = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
    path = tmp_path / "best.safetensors"
    ours = vit_numpy.from_pretrained(path)(images)
    theirs = vit_torch.from_pretrained(path).to("cuda").eval()
    logits = backend.numpy(theirs(backend.array(images, "float32")))
    assert np.array_equal(ours.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)


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


def test_recomputing_blocks_gives_the_same_bits(backend):
    kept, recomputed = (trainer_on_gpu(torch.float32) for _ in range(2))
    recomputed.model.recompute = True
    assert steps_of(kept, torch.float32) == steps_of(recomputed, torch.float32)


def test_bfloat16_stays_within_its_rounding(backend):
    """bfloat16 keeps 8 bits: a relative 2⁻⁸ a product, and the network is 3 deep."""
    exact, rounded = (trainer_on_gpu(torch.float32, amp=amp) for amp in (False, True))
    (a,), (b,) = (steps_of(t, torch.float32, 1) for t in (exact, rounded))
    assert a.loss == pytest.approx(b.loss, rel=2**-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=2**-4)
    assert a.loss != b.loss
    assert {p.grad.dtype for p in rounded.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_alike(backend):
    plain, compiled = (trainer_on_gpu(torch.float64, compile=c) for c in (False, True))
    pairs = zip(
        steps_of(plain, torch.float64), steps_of(compiled, torch.float64), strict=True
    )
    for a, b in pairs:
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - {"mixup", "cutmix"}))
def test_augmentation_on_the_gpu_changes_pixels_alike(name, backend):
    transform = TRANSFORMS[name]()
    images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8)
    drawn = draw(transform, 0, 0, range(8), 12, 12)
    one = augment.apply(transform, images, drawn)
    other = augment.apply(transform, images.cuda(), drawn).cpu()
    # Interpolated values may be rounded to the next of 256 levels.
    assert (one.int() - other.int()).abs().max() <= 1
