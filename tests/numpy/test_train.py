"""Training: it learns, the same for any number of threads, and stops at a NaN."""

import numpy as np
import pytest

from vit_numpy import parallel, train
from vit_numpy.config import ViTConfig, preset
from vit_numpy.init import init_weights
from vit_numpy.loss import CrossEntropy
from vit_numpy.model import VisionTransformer
from vit_numpy.module import no_grad
from vit_numpy.optim import (
    AdamW,
    clip_grad_norm,
    flatten_parameters,
    grad_norm,
    param_groups,
)
from vit_numpy.schedule import Schedule
from vit_numpy.train import Trainer, evaluate, num_shards

CONFIG = ViTConfig(
    image_size=8, patch_size=4, in_chans=1, dim=16, depth=2, num_heads=2, mlp_dim=32,
    num_classes=4, act_drop=0.1, attn_drop=0.1, drop_path=0.1,
)  # fmt: skip


def make_trainer(config=CONFIG, seed=0, **options):
    model = VisionTransformer(config)
    init_weights(model, seed, "xavier")
    flatten_parameters(model)
    return Trainer(model, AdamW(param_groups(model, 0.01), 0.01), seed=seed, **options)


def batch(seed, size=16):
    """Four patterns under noise: easy to tell apart."""
    patterns = np.random.default_rng(0).normal(size=(4, 1, 8, 8))
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(0, 4, size)
    images = patterns[labels] + 0.5 * rng.normal(size=(size, 1, 8, 8))
    return images.astype(np.float32), labels


def weights(trainer):
    return {k: v.copy() for k, v in trainer.model.state_dict().items()}


def test_it_learns():
    trainer = make_trainer(schedule=Schedule(warmup=10), clip_norm=1.0)
    results = [trainer.step(*batch(i)) for i in range(120)]
    assert results[0].loss == pytest.approx(np.log(4), abs=1e-6)
    assert np.mean([r.loss for r in results[-10:]]) < 0.3
    images, labels = batch(999, 200)
    assert (evaluate(trainer.model, images).argmax(axis=1) == labels).mean() > 0.95
    assert [r.step for r in results[:3]] == [1, 2, 3]
    assert results[0].lr == pytest.approx(0.001)
    assert results[9].lr == results[10].lr == 0.01


def test_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(train, "_SECOND_WORK", 1000)
    monkeypatch.setattr(train, "_SHARD_WORK", 1000)
    monkeypatch.setattr(train, "_SHARD_ROWS", 8)
    assert num_shards(CONFIG, 16) == 8
    runs = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(parallel, "_num_threads", threads)
        trainer = make_trainer()
        losses = [trainer.step(*batch(i)).loss for i in range(5)]
        logits = evaluate(trainer.model, batch(9)[0], batch_size=3)
        runs.append((losses, weights(trainer), logits))
    for losses, state, logits in runs[1:]:
        assert losses == runs[0][0]
        np.testing.assert_array_equal(logits, runs[0][2])
        for name, value in state.items():
            np.testing.assert_array_equal(value, runs[0][1][name])


def test_clipping_in_float64_does_not_depend_on_the_threads_of_blas():
    """Which cuts up a sum of more than 10,000 products."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=300_000), "b": rng.normal(size=200_000)}
    found = []
    for threads in (1, 2, 3):
        clipped = {name: grad.copy() for name, grad in grads.items()}
        with threadpoolctl.threadpool_limits(threads, "blas"):
            norm = clip_grad_norm(clipped, 1.0)
            assert norm == grad_norm(grads)
        found.append((norm, clipped))
    for norm, clipped in found[1:]:
        assert norm == found[0][0]
        np.testing.assert_array_equal(clipped["a"], found[0][1]["a"])


def test_shards_give_the_gradient_of_the_whole_batch(monkeypatch):
    """Against one forward and backward of the whole batch, with the same masks."""
    monkeypatch.setattr(train, "_SECOND_WORK", 1000)
    monkeypatch.setattr(train, "_SHARD_WORK", 1000)
    model = VisionTransformer(CONFIG)
    init_weights(model, 1, "xavier", zero_head=False)
    model.to(np.float64)
    trainer = Trainer(model, AdamW(model.named_parameters()), seed=3)
    images, labels = batch(0, 13)
    images = images.astype(np.float64)
    logits, cache = model.forward(images, trainer.masks.at(0).shard(0, 13))
    loss, c_loss = CrossEntropy().forward(logits, labels)
    _, grads = model.backward(CrossEntropy().backward(c_loss), cache)
    seen = {}
    monkeypatch.setattr(trainer.optimizer, "step", seen.update)
    result = trainer.step(images, labels)
    assert result.loss == pytest.approx(loss, rel=1e-13)
    assert seen.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(seen[name], grad, rtol=1e-9, atol=1e-13)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-12)


def test_number_of_shards_follows_from_the_work():
    assert num_shards(preset("network1"), 16) == 1
    assert num_shards(preset("network1"), 100) == 2
    assert num_shards(preset("network3"), 50) == 2
    assert num_shards(preset("network3"), 128) == 4
    assert num_shards(preset("ti16"), 8) == 2
    assert num_shards(preset("ti16"), 64) == 8
    assert num_shards(preset("b16"), 2) == 2
    assert num_shards(preset("b16"), 1) == 1


def test_a_step_that_is_not_finite_changes_nothing():
    trainer = make_trainer()
    trainer.step(*batch(0))
    images, labels = batch(1)
    images[3, 0, 0, 0] = np.inf
    before, state = (
        weights(trainer),
        trainer.optimizer.state_dict()["exp_avg.head.bias"],
    )
    moments = state.copy()
    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 2; first in 'emb"
    ):
        trainer.step(images, labels)
    np.testing.assert_array_equal(state, moments)
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    trainer.model.blocks[1].mlp.fc1.bias[2] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"first in 'blocks\.1\.mlp\.fc1\.bias'"
    ):
        trainer.step(*batch(1))


def test_state_dict_resumes_exactly():
    straight = make_trainer()
    for i in range(6):
        straight.step(*batch(i))
    first = make_trainer()
    for i in range(3):
        first.step(*batch(i))
    resumed = make_trainer(seed=7)
    resumed.load_state_dict(first.state_dict())
    for i in range(3, 6):
        resumed.step(*batch(i))
    for name, value in straight.model.state_dict().items():
        np.testing.assert_array_equal(value, resumed.model.state_dict()[name])


def test_a_conversion_to_the_same_dtype_leaves_the_optimizer_its_arrays():
    trainer = make_trainer()
    trainer.model.to(np.float32)
    before = weights(trainer)
    trainer.step(*batch(0))
    assert (trainer.model.head.weight != before["head.weight"]).any()


@pytest.mark.parametrize("replace", [flatten_parameters, lambda m: m.to(np.float64)])
def test_an_optimizer_made_before_the_models_arrays_is_refused(replace):
    model = VisionTransformer(CONFIG)
    optimizer = AdamW(model.named_parameters())
    replace(model)
    with pytest.raises(ValueError, match="must hold the model's own parameters"):
        Trainer(model, optimizer)


def test_wrong_calls_say_so():
    trainer = make_trainer()
    images, labels = batch(0)
    with pytest.raises(ValueError, match="labels must be as many as images, got 15"):
        trainer.step(images, labels[:-1])
    with pytest.raises(ValueError, match="at least one image"):
        trainer.step(images[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got 4"):
        trainer.step(images, labels * 0 + 4)
    with pytest.raises(ValueError, match="no_grad"), no_grad():
        trainer.step(images, labels)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(trainer.model, images, 0)
    assert trainer.steps == 0
