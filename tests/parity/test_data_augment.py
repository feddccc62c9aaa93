"""Pillow's operations equal torchvision's; the stream augments, mixes and resumes."""

import math

import numpy as np
import pytest

from parity.data import AUGMENTATIONS, Augmentation, BatchStream, from_arrays
from parity.data.pixels import (
    _OPERATIONS,
    _RAND_AUGMENT,
    ColorJitter,
    RandAugment,
    apply_operations,
)
from vit_numpy.augment import Mix
from vit_numpy.draws import (
    CutMix,
    HorizontalFlip,
    MixUp,
    PadCrop,
    RandomErasing,
    Rotation,
    draw,
    from_table,
)

pytest.importorskip("PIL")

# Every kind of transform at once.
EVERYTHING = [
    *(
        kind()
        for name, kind in AUGMENTATIONS.items()
        if name not in ("mixup", "cutmix")
    ),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    MixUp(p=0.5),
    CutMix(),
]


def make_images(count=12, channels=3, height=16, width=20, seed=0):
    """Return pictures with structure, and with noise on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, channels, height // 4, width // 4))
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return (fine + rng.integers(0, 56, fine.shape)).astype(np.uint8)


def make_part(count=37, **shape):
    return from_arrays(make_images(count, **shape), np.arange(count) % 5).train


@pytest.fixture(scope="module")
def torchvision_operation():
    """Return what does one operation of RandAugment to a picture, in torchvision."""
    pytest.importorskip("torch")
    from vit_torch._torchvision import import_torchvision

    import_torchvision()
    from torchvision.transforms import InterpolationMode, v2

    names = {
        "shear_x": "ShearX",
        "shear_y": "ShearY",
        "translate_x": "TranslateX",
        "translate_y": "TranslateY",
        "autocontrast": "AutoContrast",
    }

    def operation(picture, name, value):
        if name == "hue":
            return v2.functional.adjust_hue(picture, value)
        if name in ("brightness", "color", "contrast", "sharpness"):
            value -= 1
        if name == "solarize":
            value /= 255
        return v2.RandAugment()._apply_image_or_video_transform(
            picture,
            names.get(name, name.title()),
            value,
            interpolation=InterpolationMode.NEAREST,
            fill={},
        )

    return operation


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", _OPERATIONS)
def test_operation_equals_torchvision(name, channels, torchvision_operation):
    from PIL import Image

    images = make_images(8, channels)
    if name == "hue":
        values = [-0.5, -0.21, 0.0, 0.07, 0.5]
    else:
        values = [
            _RAND_AUGMENT[name](strength, sign * strength, *images.shape[2:])
            for strength in (0.0, 0.3, 0.7, 1.0)
            for sign in (1, -1)
        ]
    changed = 0
    for value in values:
        ours = apply_operations(images, [[(name, value)]] * len(images))
        for image, got in zip(images, ours, strict=True):
            pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            expected = np.asarray(torchvision_operation(picture, name, value))
            got = got[0] if channels == 1 else got.transpose(1, 2, 0)
            np.testing.assert_array_equal(got, expected)
            changed += (got != pixels).any()
    assert changed or (channels == 1 and name in ("hue", "color"))


def test_magnitudes_are_torchvisions():
    pytest.importorskip("torch")
    from vit_torch._torchvision import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    space = v2.RandAugment._AUGMENTATION_SPACE
    theirs = {name.lower(): entry for name, entry in space.items()}
    assert [n.replace("_", "") for n in _RAND_AUGMENT] == list(theirs)
    for name, ours in _RAND_AUGMENT.items():
        magnitudes, signed = theirs[name.replace("_", "")]
        values = magnitudes(31, 20, 32)
        for magnitude in range(31):
            got = {ours(magnitude / 30, s * magnitude / 30, 20, 32) for s in (1, -1)}
            if values is None:
                assert got == {0.0}
                continue
            value = float(values[magnitude])
            if name in ("brightness", "color", "contrast", "sharpness"):
                expected = {1 + value, 1 - value}
            elif name == "solarize":
                expected = {255 * value}
            elif name.startswith("translate"):
                expected = {int(value), -int(value)}
            else:
                expected = {value, -value} if signed else {value}
            # Theirs are rounded to float32.
            pairs = zip(sorted(got), sorted(expected), strict=True)
            for one, other in pairs:
                assert math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)


def test_jitter_draws_its_ranges_in_any_order():
    jitter = ColorJitter(0.2, 1.5, 0.3, 0.1)
    drawn = draw(jitter, 0, 0, range(4000), 8, 8)
    values = {}
    for operations in drawn:
        assert len(operations) == 4
        for name, value in operations:
            values.setdefault(name, []).append(value)
    ranges = {
        "brightness": (0.8, 1.2),
        "contrast": (0.0, 2.5),
        "color": (0.7, 1.3),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        assert low <= min(values[name]) < low + 0.01 * (high - low)
        assert high >= max(values[name]) > high - 0.01 * (high - low)
    orders = [tuple(name for name, _ in operations) for operations in drawn]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    # Five standard deviations of a count of 4000 in 24.
    assert max(abs(count - 4000 / 24) for count in counts) < 64
    assert draw(ColorJitter(), 0, 0, [0], 8, 8) == [[]]


def test_rand_augment_draws_every_operation():
    drawn = draw(RandAugment(3, 30), 0, 0, range(2000), 8, 8)
    assert {len(operations) for operations in drawn} == {3}
    names = [name for operations in drawn for name, _ in operations]
    counts = [names.count(name) for name in _RAND_AUGMENT]
    assert max(abs(count - 6000 / 14) for count in counts) < 5 * (6000 / 14) ** 0.5
    turns = {value for operations in drawn for n, value in operations if n == "rotate"}
    assert turns == {-30, 30}


def test_threads_change_nothing(monkeypatch):
    images = make_images(9, height=100, width=100)
    drawn = draw(RandAugment(2, 20), 0, 0, range(9), 100, 100)
    threaded = apply_operations(images, drawn)
    monkeypatch.setattr("parity.data.pixels._MOST_THREADS", 1)
    np.testing.assert_array_equal(apply_operations(images, drawn), threaded)
    assert (threaded != images).any()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_augmented_stream_resumes_and_does_not_depend_on_the_batch(prefetch):
    part = make_part()
    before = part.images.copy()
    whole = list(BatchStream(part, 5, seed=3, augment=EVERYTHING).epoch(2))
    fresh = BatchStream(part, 5, seed=3, augment=EVERYTHING, prefetch=prefetch)
    for start in (0, 3, 8):
        resumed = list(fresh.epoch(2, start=start))
        assert len(resumed) == 8 - start
        for got, expected in zip(resumed, whole[start:], strict=True):
            for x, y in zip(got, expected, strict=True):
                np.testing.assert_array_equal(x, y)
    singles = [t for t in EVERYTHING if not isinstance(t, MixUp | CutMix)]
    results = []
    for batch_size in (5, 37):
        stream = BatchStream(part, batch_size, seed=3, augment=singles)
        batches = list(stream.epoch(2))
        rows = np.concatenate([b.indices for b in batches])
        images = np.concatenate([b.images for b in batches])
        results.append(images[np.argsort(rows)])
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(part.images, before)
    other = next(BatchStream(part, 5, seed=3, augment=EVERYTHING).epoch(1))
    assert not np.array_equal(other.images, whole[0].images)


def test_a_batch_made_ahead_raises_what_it_raised():
    stream = BatchStream(make_part(), 5, 0, augment=[RandAugment()], prefetch=2)
    stream.part = from_arrays(make_images(20, channels=2), np.arange(20) % 5).train
    with pytest.raises(ValueError, match="1 or 3"):
        list(stream.epoch(0))
    batches = BatchStream(make_part(), 5, 0, prefetch=2).epoch(0)
    next(batches)
    batches.close()


def test_mixed_batches_are_soft_and_of_the_normalised_images():
    part = make_part()
    plain = next(BatchStream(part, 37, seed=1).epoch(0))
    mixed = next(BatchStream(part, 37, seed=1, augment=[MixUp(0.4)]).epoch(0))
    assert mixed.labels.shape == (37, 5)
    assert mixed.images.dtype == mixed.labels.dtype == np.float32
    images, targets = Mix([MixUp(0.4)], 5, 1)(
        plain.images, plain.labels, 0, plain.indices.tolist()
    )
    np.testing.assert_array_equal(mixed.images, images)
    np.testing.assert_array_equal(mixed.labels, targets)


def test_two_of_a_kind_draw_apart():
    images = make_images(40)
    once = Augmentation([HorizontalFlip()], 5).change(images, 0, range(40))
    twice = Augmentation([HorizontalFlip()] * 2, 5).change(images, 0, range(40))
    assert (once != images).any()
    assert (twice != images).any()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_transform_is_built_from_a_table(name):
    built = from_table({"name": name}, AUGMENTATIONS)
    assert built == AUGMENTATIONS[name]()
    with pytest.raises(ValueError, match=f"unknown {name} parameter 'strenght'"):
        from_table({"name": name, "strenght": 1}, AUGMENTATIONS)


def test_tables_with_values():
    built = from_table({"name": "random_erasing", "p": 1, "scale": [0.1, 0.2]})
    assert built == RandomErasing(p=1, scale=(0.1, 0.2))


@pytest.mark.parametrize(
    ("error", "message", "table"),
    [
        (
            ValueError,
            "unknown augment 'rotatoin'; did you mean 'rotation'?",
            "rotatoin",
        ),
        (ValueError, "did you mean 'rand_augment'?", "randaugment"),
        (ValueError, "did you mean 'magnitude'?", ("rand_augment", "magnitud", 3)),
        (ValueError, "magnitude must be at most 30", ("rand_augment", "magnitude", 31)),
        (TypeError, "num_ops must be an int", ("rand_augment", "num_ops", 1.5)),
        (ValueError, "hue must be in [0, 0.5]", ("color_jitter", "hue", 0.6)),
        (ValueError, "contrast must be at least 0", ("color_jitter", "contrast", -1)),
        (ValueError, "degrees must be above 0", ("rotation", "degrees", 0)),
        (ValueError, "degrees must be at most 180", ("rotation", "degrees", 181)),
        (ValueError, "fraction must be at most 1", ("translation", "fraction", 2)),
        (TypeError, "scale must be a pair", ("affine", "scale", 0.9)),
        (ValueError, "a smallest and a largest", ("affine", "scale", [1.1, 0.9])),
        (ValueError, "scale must be at most 1", ("random_erasing", "scale", [0.1, 2])),
        (ValueError, "fill must be in [0, 255]", ("random_erasing", "fill", 256)),
        (ValueError, "ratio must be above 0", ("random_resized_crop", "ratio", [0, 1])),
        (ValueError, "alpha must be above 0", ("mixup", "alpha", 0)),
        (ValueError, "p must be in [0, 1]", ("cutmix", "p", 1.5)),
    ],
)
def test_bad_tables_are_answered(error, message, table):
    if isinstance(table, str):
        table = {"name": table}
    else:
        table = {"name": table[0], table[1]: table[2]}
    with pytest.raises(error) as caught:
        from_table(table, AUGMENTATIONS)
    assert message in str(caught.value)


def test_what_is_no_table_is_refused():
    with pytest.raises(TypeError, match="augment must be a list of tables, got 'flip'"):
        from_table("flip")
    with pytest.raises(ValueError, match=r"must have a name, one of flip, .*got \{"):
        from_table({"p": 0.5})


def test_wrong_order_and_use_are_refused():
    with pytest.raises(ValueError, match="PadCrop must come before MixUp"):
        Augmentation([Rotation(), MixUp(), PadCrop()], 5)
    with pytest.raises(ValueError, match="must be normalised to be mixed"):
        BatchStream(make_part(), 5, 0, augment=[MixUp()], normalise=False)
    with pytest.raises(ValueError, match="prefetch must be at least 0"):
        BatchStream(make_part(), 5, 0, prefetch=-1)
    with pytest.raises(TypeError, match="uint8 for Pillow to change them, got float32"):
        apply_operations(make_images(1).astype(np.float32), [[]])
    with pytest.raises(ValueError, match=r"shape \(2, 1 or 3, H, W\)"):
        apply_operations(make_images(1), [[], []])
