"""Averages, accumulation, and everything that drops, in both twins alike."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

import vit_numpy
import vit_torch
from parity.bounds import reference
from parity.masks import TorchMasks
from parity.transfer import copy_weights, weights
from vit_numpy.parallel import PairwiseSum

TWINS = [vit_numpy, vit_torch]
both = pytest.mark.parametrize("twin", TWINS, ids=["numpy", "torch"])
FIELDS = dict(
    image_size=8, patch_size=4, in_chans=1, num_classes=4, dim=8, depth=2,
    num_heads=2, mlp_dim=12,
)  # fmt: skip
DROPS = dict(
    pos_drop=0.1, attn_drop=0.2, proj_drop=0.1, act_drop=0.3, mlp_drop=0.1,
    drop_path=0.4,
)  # fmt: skip


def trainer_of(twin, dtype="float64", optimizer="AdamW", config=None, **options):
    model = twin.VisionTransformer(twin.ViTConfig(**FIELDS | (config or {})))
    twin.init_weights(model, 0, zero_head=False)
    model.to(dtype if twin is vit_numpy else getattr(torch, dtype))
    groups = twin.param_groups(model, 0.1, layer_decay=0.8)
    if options.pop("average", False):
        options["ema"] = twin.EMA(model, 0.9)
    loss = twin.CrossEntropy(0.1)
    kind = getattr(twin, optimizer)
    return twin.Trainer(model, kind(groups, lr=0.01), loss=loss, seed=5, **options)


def pair_of(**options):
    """Return a trainer of each twin, with equal weights and masks."""
    ours, theirs = (trainer_of(twin, **options) for twin in TWINS)
    copy_weights(ours.model, theirs.model)
    for trainer in (ours, theirs):
        if trainer.ema is not None:
            twin = vit_numpy if trainer is ours else vit_torch
            trainer.ema = twin.EMA(trainer.model, trainer.ema.decay)
    if ours.masks is not None:
        theirs.masks = TorchMasks(ours.masks)
    return ours, theirs


def batch(seed, size=10, dtype=np.float64):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((size, 1, 8, 8)).astype(dtype)
    return images, rng.integers(0, 4, size)


def tensors(arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def test_everything_at_once_trains_alike():
    """Every dropout, smoothing, both decays, clipping, accumulation, an average."""
    options = dict(clip_norm=0.5, accumulate=3, average=True, config=DROPS)
    ours, theirs = pair_of(**options)
    # Float64: rounding of 2⁻⁵³, grown by sums and by five updates of Adam.
    for seed in range(5):
        a, b = ours.step(*batch(seed)), theirs.step(*tensors(batch(seed)))
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-11)
        assert a.accuracy == b.accuracy
    one, other = weights(ours.model), weights(theirs.model)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            ours.ema.average[name], theirs.ema.average[name], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulating_is_the_large_batch_within_its_bound(parts):
    """Loss and gradients of parts are those of one step on the whole, in both twins."""
    trainers = pair_of(dtype="float32", accumulate=parts, config=DROPS)
    images, labels = batch(2, dtype=np.float32)
    masks = TorchMasks(trainers[0].masks.at(0))
    model = trainers[1].model.train()

    def loss(images, labels, **parameters):
        logits = functional_call(model, parameters, (images, masks))
        return {"loss": trainers[1].loss(logits, labels)}

    state = weights(model)
    whole = reference(
        loss,
        {"images": images, "labels": labels, **state},
        dtype=torch.float32,
        differentiate=list(state),
        cotangents={"loss": torch.tensor(1.0)},
    )
    captured = {}
    trainers[0].optimizer.step = captured.update
    results = [
        trainers[0].step(images, labels),
        trainers[1].step(*tensors((images, labels))),
    ]
    torchs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for result, grads in zip(results, (captured, torchs), strict=True):
        assert whole.share("loss", np.float32(result.loss)).max() <= 1
        for name, grad in grads.items():
            assert whole.share(f"d_{name}", grad).max() <= 1, name


@pytest.mark.parametrize("shards", range(1, 10))
def test_any_number_of_shards_is_summed_in_one_order(shards):
    rng = np.random.default_rng(shards)
    parts = rng.standard_normal((shards, 50)).astype(np.float32)
    totals = []
    for order in (range(shards), rng.permutation(shards)):
        total = PairwiseSum(shards, ["w"])
        for i in order:
            total.add(int(i), {"w": parts[i].copy(), "frozen": parts[i]})
        totals.append(total.totals["w"])
        assert total.totals.keys() == {"w"}
        square = np.linalg.norm(totals[0]) ** 2
        assert total.squares["w"] == pytest.approx(square, rel=1e-6)
    assert np.array_equal(*totals)
    np.testing.assert_allclose(totals[0], parts.sum(axis=0), rtol=0, atol=1e-5)


@both
def test_the_average_follows_its_equation(twin):
    trainer = trainer_of(twin, average=True)
    expected = {name: a.copy() for name, a in weights(trainer.model).items()}
    for step in range(1, 4):
        arrays = batch(step) if twin is vit_numpy else tensors(batch(step))
        trainer.step(*arrays)
        share = 1 - min(0.9, (step + 1) / (step + 10))
        for name, array in weights(trainer.model).items():
            expected[name] += share * (array - expected[name])
    raw = {name: a.copy() for name, a in weights(trainer.model).items()}
    with trainer.ema.applied():
        for name, array in weights(trainer.model).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-13, atol=1e-16)
            assert not np.array_equal(array, raw[name])
    for name, array in weights(trainer.model).items():
        assert np.array_equal(array, raw[name])
    state = dict(trainer.ema.state_dict())
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"average has no 'head\.bias'; it holds"):
        trainer.ema.load_state_dict(state)
    state = trainer.ema.state_dict()
    with pytest.raises(ValueError, match="unknown name in the average 'bias'"):
        trainer.ema.load_state_dict(state | {"bias": state["head.bias"]})


@both
def test_a_file_with_an_average_opens_as_the_average(twin, tmp_path):
    checkpoint = vit_numpy.checkpoint if twin is vit_numpy else vit_torch.checkpoint
    path = tmp_path / "training.safetensors"
    trainer = trainer_of(twin, average=True)
    arrays = [batch(i) if twin is vit_numpy else tensors(batch(i)) for i in range(4)]
    for step in arrays[:2]:
        trainer.step(*step)
    checkpoint.save_training(path, trainer, progress={"third": 1 / 3})
    opened = weights(checkpoint.from_pretrained(path))
    with trainer.ema.applied():
        for name, array in weights(trainer.model).items():
            assert np.array_equal(array, opened[name])
    resumed = trainer_of(twin, average=True)
    header = checkpoint.load_training(path, resumed)
    assert header["training"]["progress"] == {"third": 1 / 3}
    for step in arrays[2:]:
        assert trainer.step(*step) == resumed.step(*step)
    for name, array in trainer.ema.average.items():
        assert (array == resumed.ema.average[name]).all()
    with pytest.raises(ValueError, match="has an average of the parameters, but the"):
        checkpoint.load_training(path, trainer_of(twin))


# --- how torch may compute -----------------------------------------------------------


def torch_steps(trainer, count=3, dtype=np.float32):
    return [trainer.step(*tensors(batch(i, dtype=dtype))) for i in range(count)]


def test_recomputing_blocks_gives_the_same_bits():
    kept, recomputed = (
        trainer_of(vit_torch, "float32", config=DROPS) for _ in range(2)
    )
    recomputed.model.recompute = True
    assert torch_steps(kept) == torch_steps(recomputed)
    a, b = weights(kept.model), weights(recomputed.model)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_bfloat16_stays_within_its_rounding():
    """bfloat16 keeps 8 bits: a relative 2⁻⁸ a product, and the network is 2 deep."""
    exact, rounded = (
        trainer_of(vit_torch, "float32", config=DROPS, amp=amp) for amp in (False, True)
    )
    for a, b in zip(torch_steps(exact, 1), torch_steps(rounded, 1), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=2**-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=2**-4)
        assert a.loss != b.loss
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in rounded.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_alike():
    """The compiler's order of operations is another: the losses differ by rounding."""
    plain = trainer_of(vit_torch, config=DROPS)
    compiled = trainer_of(vit_torch, config=DROPS, compile=True)
    results = torch_steps(plain, dtype=np.float64)
    for a, b in zip(results, torch_steps(compiled, dtype=np.float64), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)
