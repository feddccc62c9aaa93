"""Losses against their definitions, in pure Python, and at the edges of the range."""

import math

import numpy as np
import pytest

from vit_numpy.loss import CrossEntropy, MeanSquaredError


def by_definition(logits, targets, smoothing):
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        norm = math.fsum(math.exp(z) for z in row)
        for z, t in zip(row, target, strict=True):
            weight = (1 - smoothing) * t + smoothing / len(row)
            total -= weight * math.log(math.exp(z) / norm)
    return total / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_what_it_says(smoothing, soft):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(6, 5))
    labels = rng.integers(0, 5, 6)
    weights = rng.dirichlet(np.ones(5), 6) if soft else np.eye(5)[labels]
    loss = CrossEntropy(smoothing)(logits, weights if soft else labels)
    assert loss == pytest.approx(by_definition(logits, weights, smoothing), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype)
    loss, cache = CrossEntropy().forward(logits, np.array([1, 2]))
    assert loss.dtype == dtype
    assert loss == pytest.approx((2e4 + math.log(3)) / 2, rel=1e-6)
    dlogits = CrossEntropy().backward(cache)
    assert dlogits.dtype == dtype
    np.testing.assert_allclose(dlogits[0], [0.5, -0.5, 0], atol=1e-7)


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), MeanSquaredError()])
def test_parts_of_a_batch_sum_to_the_whole(loss):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(7, 4))
    targets = rng.random((7, 4))
    whole, cache = loss.forward(logits, targets)
    parts = [
        loss.forward(logits[s], targets[s], batch_size=7)
        for s in (slice(0, 3), slice(3, 7))
    ]
    assert sum(value for value, _ in parts) == pytest.approx(whole, rel=1e-14)
    np.testing.assert_allclose(
        np.concatenate([loss.backward(c) for _, c in parts]), loss.backward(cache)
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_of_any_integer_dtype(dtype):
    logits = np.random.default_rng(2).normal(size=(3, 4))
    labels = np.array([3, 0, 1])
    expected = CrossEntropy()(logits, labels)
    assert CrossEntropy()(logits, labels.astype(dtype)) == expected
