"""The engine: sums in fixed pairs, the same bits for any threads, memory let go."""

import threading
import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from vit_numpy import parallel, train
from vit_numpy.config import preset
from vit_numpy.functional import exp_scores, over_features, row_sum
from vit_numpy.init import init_weights
from vit_numpy.loss import CrossEntropy
from vit_numpy.model import VisionTransformer
from vit_numpy.optim import AdamW, flatten_parameters, param_groups
from vit_numpy.train import Trainer, evaluate, num_shards

THREADS = (1, 2, 4)

# Each has several shards; between them two activations, dropout, and one image a shard.
NETWORKS = [
    ("network2", {}, 100),
    ("network3", {}, 50),
    ("ti16", {"depth": 2, "act_drop": 0.1}, 4),
]


def make(name, overrides, batch_size):
    config = preset(name, **overrides)
    model = VisionTransformer(config)
    init_weights(model, 0)
    rng = np.random.default_rng(1)
    shape = (batch_size, config.in_chans, *config.image_hw)
    images = rng.standard_normal(shape, np.float32)
    return model, images, rng.integers(0, config.num_classes, batch_size)


@pytest.mark.parametrize(("name", "overrides", "batch_size"), NETWORKS)
def test_training_gives_the_same_bits_for_any_threads(
    name, overrides, batch_size, monkeypatch
):
    monkeypatch.setattr(train, "_SHARD_ROWS", 512)
    runs = []
    for threads in THREADS:
        monkeypatch.setattr(parallel, "_num_threads", threads)
        model, images, labels = make(name, overrides, batch_size)
        assert num_shards(model.config, batch_size) > 1
        flatten_parameters(model)
        trainer = Trainer(model, AdamW(param_groups(model, 0.01), 1e-3), clip_norm=0.5)
        results = [trainer.step(images, labels) for _ in range(2)]
        runs.append((results, model.state_dict()))
    for results, state in runs[1:]:
        assert results == runs[0][0]
        for key, value in runs[0][1].items():
            np.testing.assert_array_equal(state[key], value, strict=True)


@pytest.mark.parametrize("batch_size", [1, 20])
@pytest.mark.parametrize("name", ["network1", "network3", "ti16"])
def test_evaluation_gives_the_same_bits_for_any_threads(name, batch_size, monkeypatch):
    overrides = {"depth": 1} if name == "ti16" else {}
    model, images, _ = make(name, overrides, batch_size)
    logits = []
    for threads in THREADS:
        monkeypatch.setattr(parallel, "_num_threads", threads)
        logits.append(evaluate(model, images))
    np.testing.assert_array_equal(logits[1], logits[0], strict=True)
    np.testing.assert_array_equal(logits[2], logits[0], strict=True)
    np.testing.assert_allclose(logits[0], model(images), atol=1e-5)


def test_pairs_are_the_same_in_any_order():
    rng = np.random.default_rng(0)
    # Sums of such numbers depend on the order in every digit that is kept.
    terms = (10.0 ** rng.uniform(-4, 4, (4, 50))).astype(np.float32)
    expected = (terms[0] + terms[1]) + (terms[2] + terms[3])
    assert (expected != ((terms[0] + terms[1]) + terms[2]) + terms[3]).any()
    for order in permutations(range(4)):
        total = parallel.PairwiseSum(4, ["weight"])
        for shard in order:
            total.add(shard, {"weight": terms[shard].copy()})
        np.testing.assert_array_equal(total.totals["weight"], expected, strict=True)
        assert total.squares["weight"] == np.vdot(expected, expected)


def test_threads_that_add_at_once_lose_nothing():
    names = [f"parameter{i}" for i in range(20)]
    total = parallel.PairwiseSum(8, names)
    start = threading.Barrier(8, timeout=10)

    def hand_in(shard):
        start.wait()
        for name in names:
            total.add(shard, {name: np.full(1000, 2.0**shard)})

    threads = [threading.Thread(target=hand_in, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(total.totals) == names
    for array in total.totals.values():
        np.testing.assert_array_equal(array, np.full(1000, 255.0))


def test_a_sink_takes_the_gradients_that_backward_else_returns():
    model, images, labels = make("network2", {}, 3)
    logits, cache = model.forward(images)
    _, c_loss = CrossEntropy().forward(logits, labels)
    dlogits = CrossEntropy().backward(c_loss)
    dimages, grads = model.backward(dlogits, cache)
    assert dimages.shape == images.shape
    handed = []
    nothing, empty = model.backward(
        dlogits, cache, input_grad=False, sink=handed.append
    )
    assert nothing is None
    assert empty == {}
    # In several parts, so that the first can be used and freed before the last is made.
    assert len(handed) > len(model.blocks)
    merged = {name: grad for part in handed for name, grad in part.items()}
    assert merged.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_array_equal(merged[name], grad, strict=True)


def test_a_step_holds_few_copies_of_the_gradients(monkeypatch):
    monkeypatch.setattr(parallel, "_num_threads", 1)
    monkeypatch.setattr(train, "_SHARD_ROWS", 512)
    overrides = {"depth": 6, "image_size": 32, "patch_size": 4, "num_classes": 10}
    model, images, labels = make("s16", overrides, 64)
    assert num_shards(model.config, 64) == 8
    flatten_parameters(model)
    trainer = Trainer(model, AdamW(param_groups(model, 0.01), 1e-3))
    trainer.step(images, labels)
    size = sum(parameter.nbytes for _, parameter in model.named_parameters())
    _, one_shard = model.forward(images[:8])
    kept = sum({id(a): a.nbytes for a in arrays_of(one_shard)}.values())
    del one_shard
    tracemalloc.start()
    try:
        trainer.step(images, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of eight shards' gradients, those of one, and of 1, 2 and 4 that are summed.
    assert peak < 4 * size + 1.5 * kept


def arrays_of(cache):
    """Yield the arrays that own the memory a cache holds on to."""
    if isinstance(cache, np.ndarray):
        while cache.base is not None:
            cache = cache.base
        yield cache
    elif isinstance(cache, list | tuple):
        for part in cache:
            yield from arrays_of(part)


def test_no_grad_keeps_no_activations():
    peaks = []
    for depth in (2, 8):
        model, images, _ = make("network3", {"depth": depth}, 16)
        evaluate(model, images)
        tracemalloc.start()
        try:
            evaluate(model, images)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_recomputed_blocks_give_the_same_bits_for_less_memory():
    runs, peaks = [], []
    for recompute in (False, True):
        model, images, labels = make("network3", {"depth": 8}, 16)
        model.recompute = recompute
        flatten_parameters(model)
        trainer = Trainer(model, AdamW(param_groups(model, 0.01), 1e-3))
        tracemalloc.start()
        try:
            results = [trainer.step(images, labels) for _ in range(2)]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        runs.append((results, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for key, value in runs[0][1].items():
        np.testing.assert_array_equal(runs[1][1][key], value, strict=True)
    assert peaks[1] < 0.6 * peaks[0]


def test_features_of_heads_are_exact_copies():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 1)).astype(np.float32)
    expected = np.broadcast_to(x, (2, 3, 5, 4)).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    np.testing.assert_array_equal(over_features(x, 4), expected, strict=True)


@pytest.mark.parametrize("scale", [1, 1e3])
def test_sums_of_scores_are_those_of_their_rows(scale):
    rng = np.random.default_rng(0)
    q, k = scale * rng.standard_normal((2, 2, 3, 7, 4))
    e, total = exp_scores(q, k)
    assert total.shape == (2, 3, 7, 1)
    np.testing.assert_allclose(total[..., 0], e.sum(axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(row_sum(e), total)
