"""The stream of batches, and the keyed orders under it."""

import numpy as np
import pytest

from parity.data import BatchStream, from_arrays, load, normalise
from parity.data.draws import permutation
from vit_numpy.draws import HorizontalFlip, Rotation


def make_part(count=103, channels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, 8, 6), np.uint8)
    return from_arrays(images, np.arange(count) % 10).train


def test_permutation():
    orders = [permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert (first == second).mean() < 0.02
    # Pinned: a run of today must be resumed in the same order by a later version.
    assert permutation(0, 0, 10).tolist() == [4, 3, 9, 0, 7, 8, 6, 5, 1, 2]


def test_epoch_visits_every_image_once():
    part = make_part()
    stream = BatchStream(part, 10, seed=3)
    batches = list(stream.epoch(4))
    assert len(batches) == len(stream) == 11
    assert [len(b.labels) for b in batches] == [10] * 10 + [3]
    rows = np.concatenate([b.indices for b in batches])
    np.testing.assert_array_equal(np.sort(rows), np.arange(103))
    assert (rows != np.arange(103)).any()
    for batch in batches:
        np.testing.assert_array_equal(batch.labels, part.labels[batch.indices])
    whole = BatchStream(part, 10, seed=3, drop_last=True)
    assert [len(b.labels) for b in whole.epoch(4)] == [10] * 10
    assert len(whole) == 10
    ordered = BatchStream(part, 50, seed=3, shuffle=False)
    np.testing.assert_array_equal(
        np.concatenate([b.indices for b in ordered.epoch(9)]), np.arange(103)
    )


@pytest.mark.parametrize("augment", [(), (HorizontalFlip(), Rotation())])
def test_resuming_needs_no_replay(augment):
    part = make_part()
    first = BatchStream(part, 10, seed=3, augment=augment)
    for epoch in range(3):
        batches = list(first.epoch(epoch))
    for start in (0, 1, 7, 11):
        fresh = BatchStream(part, 10, seed=3, augment=augment)
        resumed = list(fresh.epoch(2, start=start))
        assert len(resumed) == 11 - start
        for a, b in zip(resumed, batches[start:], strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)


def test_order_depends_on_seed_and_epoch():
    part = make_part()
    orders = {
        tuple(BatchStream(part, 10, seed=seed).order(epoch))
        for seed in (0, 1, 2**63)
        for epoch in range(3)
    }
    assert len(orders) == 9
    with pytest.raises(TypeError, match="epoch must be an int"):
        BatchStream(part, 10, seed=0).order(1.0)


def test_images_are_normalised_with_the_training_statistics():
    dataset = load("mnist-subset")
    stream = BatchStream(dataset.train, 10000, seed=0)
    images = next(stream.epoch(0)).images
    assert images.dtype == np.float32
    assert abs(images.mean(dtype=np.float64)) < 1e-6
    assert abs(images.std(dtype=np.float64) - 1) < 1e-6
    test = next(BatchStream(dataset.test, 5, 0, shuffle=False).epoch(0)).images
    expected = (dataset.test_images[:5] / 255 - dataset.mean) / dataset.std
    # Values of up to 4, rounded to float32 three times: 4 · 3 · 2⁻²⁴.
    np.testing.assert_allclose(test, expected, rtol=0, atol=1e-6)


def test_normalise_per_channel():
    images = make_part(5).images
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.247, 0.2435, 0.2616])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    for dtype in (np.uint8, np.float32):
        result = normalise(images.astype(dtype), mean, std)
        assert result.dtype == np.float32
        # Values of up to 2.1, rounded to float32 three times: 2.1 · 3 · 2⁻²⁴.
        np.testing.assert_allclose(result, expected, rtol=0, atol=5e-7)
    with pytest.raises(TypeError, match="uint8 or float32, got float64; cast"):
        normalise(images.astype(np.float64), mean, std)
    with pytest.raises(
        ValueError, match=r"shape \(3,\), one value a channel, got \(1,"
    ):
        normalise(images, mean[:1], std[:1])
    with pytest.raises(ValueError, match=r"mean must be finite in every channel"):
        normalise(images, mean * np.nan, std)
    with pytest.raises(ValueError, match=r"std must be above 0 in every channel"):
        normalise(images, mean, std * 0)


def test_raw_pixels_and_own_statistics():
    part = make_part()
    raw = next(BatchStream(part, 4, 0, normalise=False).epoch(0))
    assert raw.images.dtype == np.uint8
    np.testing.assert_array_equal(raw.images, part.images[raw.indices])
    own = next(BatchStream(part, 4, 0, mean=[0.0] * 3, std=[1.0] * 3).epoch(0))
    np.testing.assert_allclose(own.images, raw.images / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "batch_size must be at least 1, got batch", {"batch_size": 0}),
        (TypeError, "batch_size must be an int, got batch", {"batch_size": 2.0}),
        (ValueError, "seed must be at least 0 and below .* got -1", {"seed": -1}),
        (TypeError, "seed must be an int, got str", {"seed": "0"}),
        (ValueError, "at most the 103 images, got 104", {"drop_last": True}),
        (ValueError, "given together, got no std", {"mean": [0.0] * 3}),
    ],
)
def test_stream_refuses(error, message, options):
    with pytest.raises(error, match=message):
        BatchStream(make_part(), **({"batch_size": 104, "seed": 0} | options))


def test_stream_refuses_no_images_and_places_that_are_not_there():
    part = make_part()
    with pytest.raises(ValueError, match="at least one image, got none"):
        BatchStream(part.take(np.arange(0)), 1, 0)
    stream = BatchStream(part, 10, 0)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        stream.epoch(-1)
    with pytest.raises(
        ValueError, match=r"start must be 0 to the 11 batches .* got 12"
    ):
        stream.epoch(0, start=12)
