"""The twins' augmentations agree: NumPy's against torchvision's, element by element."""

import numpy as np
import pytest
import torch

from vit_numpy import augment as numpy_augment
from vit_numpy import draws
from vit_torch import augment as torch_augment
from vit_torch import draws as torch_draws

EXACT = {
    "flip": {},
    "vertical_flip": {},
    "pad_crop": {"padding": 3},
    "translation": {"fraction": 1.0},
    "random_erasing": {"p": 0.8, "fill": 93},
}
INTERPOLATING = {
    "random_resized_crop": {},
    "rotation": {"degrees": 180},
    "affine": {"degrees": 40, "fraction": 0.2, "scale": (0.5, 2.0), "shear": 30},
}
SHAPES = [(30, 3, 32, 32), (25, 1, 28, 20), (5, 2, 61, 80), (1, 3, 5, 5), (0, 3, 8, 8)]
LARGEST = 255


def make_pixels(shape, dtype):
    """Return noise: the images with the steepest slopes that there are."""
    rng = np.random.default_rng(0)
    return rng.integers(0, LARGEST + 1, shape).astype(dtype)


def apply_both(name, options, images):
    """Return NumPy's and torchvision's result for the same draws."""
    arguments = (3, 1, range(70, 70 + len(images)), *images.shape[2:], 2)
    ours = draws.TRANSFORMS[name](**options)
    theirs = torch_draws.TRANSFORMS[name](**options)
    drawn = draws.draw(ours, *arguments)
    assert drawn == torch_draws.draw(theirs, *arguments)
    before = images.copy()
    one = numpy_augment.apply(ours, images, drawn)
    other = torch_augment.apply(theirs, torch.from_numpy(images), drawn).numpy()
    np.testing.assert_array_equal(images, before)
    assert one.dtype == other.dtype == images.dtype
    assert one.shape == other.shape == images.shape
    assert one.flags.c_contiguous
    return one, other


def interpolation_bound(shape, dtype):
    """Return how far bilinear interpolation can be off for rounding.

    A place is computed in a handful of operations on numbers of up to about the size of
    the image, twice that where it is made smaller: within 4 · 2 · eps · size. Along
    each of two axes a value changes by at most `LARGEST` a pixel. Interpolating what
    was found adds less than 8 eps of the value.
    """
    eps = np.finfo(dtype).eps
    return LARGEST * eps * (2 * 8 * max(shape[2:]) + 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_moved_pixels_are_equal(name, shape, dtype):
    images = make_pixels(shape, dtype)
    ours, theirs = apply_both(name, EXACT[name], images)
    np.testing.assert_array_equal(ours, theirs)
    assert len(images) < 2 or (ours != images).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INTERPOLATING)
def test_interpolated_float64_is_torchvisions(name, shape):
    images = make_pixels(shape, np.float64)
    ours, theirs = apply_both(name, INTERPOLATING[name], images)
    bound = 2 * interpolation_bound(shape, np.float64)  # each side's own
    assert np.abs(ours - theirs).max(initial=0) <= bound
    assert len(images) < 2 or (ours != images).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INTERPOLATING)
def test_interpolated_float32_and_uint8_are_float64_rounded(name, shape):
    """Against torchvision in float64: uint8 is the nearest level, not just a near one.

    torchvision's own uint8 resize has weights of 16 bits and may be a level off.
    """
    _, reference = apply_both(name, INTERPOLATING[name], make_pixels(shape, np.float64))
    bound = interpolation_bound(shape, np.float32)
    single, _ = apply_both(name, INTERPOLATING[name], make_pixels(shape, np.float32))
    assert np.abs(single - reference).max(initial=0) <= bound
    ours, theirs = apply_both(name, INTERPOLATING[name], make_pixels(shape, np.uint8))
    assert np.abs(ours - reference).max(initial=0) <= 0.5 + bound
    assert np.abs(ours.astype(int) - theirs.astype(int)).max(initial=0) <= 1
    assert bound < 0.3


def test_quarter_turns_are_exact_in_direction():
    """Counter-clockwise, as one looks at the picture; right and down are positive."""
    image = make_pixels((1, 2, 6, 6), np.float64)
    turned = numpy_augment.rotate(image, [90.0])
    expected = np.rot90(image, axes=(2, 3))
    # The sine and cosine of 90° are off by 2⁻⁵³, over levels of 255 and 6 pixels.
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-9)
    shifted = numpy_augment.translate(image, [(2, 1)])
    np.testing.assert_array_equal(shifted[..., 1:, 2:], image[..., :-1, :-2])
    assert not shifted[..., :1, :].any()
    assert not shifted[..., :2].any()


def test_whole_image_cut_out_is_the_image():
    for dtype in (np.uint8, np.float64):
        images = make_pixels((3, 3, 7, 9), dtype)
        same = numpy_augment.resized_crop(images, [(0, 0, 7, 9)] * 3)
        np.testing.assert_array_equal(same, images)


MIXES = {
    "mixup": [("mixup", {"alpha": 0.3})],
    "mixup, half": [("mixup", {"alpha": 1.0, "p": 0.5})],
    "cutmix": [("cutmix", {})],
    "either": [("mixup", {"p": 0.5}), ("cutmix", {"p": 0.7})],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MIXES)
def test_mixing_agrees(kind, dtype):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((40, 3, 12, 16)).astype(dtype)
    labels = rng.integers(0, 7, 40)
    results = []
    for module, kinds, convert in (
        (numpy_augment, draws.TRANSFORMS, np.asarray),
        (torch_augment, torch_draws.TRANSFORMS, torch.from_numpy),
    ):
        mix = module.Mix([kinds[n](**options) for n, options in MIXES[kind]], 7, 5)
        results.append(mix(convert(images), convert(labels), 2, range(40)))
    (ours, targets), (theirs, their_targets) = results
    assert ours.dtype == targets.dtype == dtype
    np.testing.assert_array_equal(ours, theirs.numpy())
    np.testing.assert_array_equal(targets, their_targets.numpy())
    np.testing.assert_allclose(targets.sum(1), 1, atol=2 * np.finfo(dtype).eps)
    assert (ours != images).any()


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixing_a_pair_is_torchvisions(name):
    """torchvision mixes a whole batch by one draw; of a pair, the second is ours."""
    from vit_torch._torchvision import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    rng = np.random.default_rng(2)
    images = rng.standard_normal((9, 3, 10, 14))
    labels = rng.integers(0, 4, 9)
    transform = getattr(draws, name)()
    ours, targets = numpy_augment.Mix([transform], 4, 8)(images, labels, 6, range(9))
    drawn = draws.draw(transform, 8, 6, range(9), 10, 14)
    theirs = getattr(v2, name)(num_classes=4)
    for i in range(1, 9):
        pair = torch.from_numpy(images[i - 1 : i + 1])
        pair_labels = torch.from_numpy(labels[i - 1 : i + 1])
        if name == "MixUp":
            parameters = {"lam": drawn[i]}
        else:
            top, left, rows, columns = drawn[i]
            parameters = {
                "box": (left, top, left + columns, top + rows),
                "lam_adjusted": 1 - rows * columns / 140,
            }
        parameters |= {"labels": pair_labels, "batch_size": 2}
        np.testing.assert_array_equal(
            ours[i], theirs.transform(pair, parameters)[1].numpy()
        )
        # torchvision computes shares of labels in float32.
        np.testing.assert_allclose(
            targets[i], theirs.transform(pair_labels, parameters)[1].numpy(), atol=1e-6
        )


def test_an_image_is_mixed_once_and_with_what_was_there_before():
    images = np.arange(200.0)[:, None, None, None] * np.ones((1, 1, 8, 8))
    labels = np.arange(200)
    mix = numpy_augment.Mix([draws.MixUp(p=0.5), draws.CutMix()], 200, 0)
    mixed, targets = mix(images, labels, 0, range(200))
    smooth = np.array([len(np.unique(image)) == 1 for image in mixed])
    assert 70 < (smooth & (mixed[:, 0, 0, 0] != labels)).sum() < 130
    # However an image was mixed, its mean is that of the labels, by their shares.
    expected = targets @ labels
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), expected, rtol=1e-12, atol=1e-9)
    assert (np.count_nonzero(targets, 1) <= 2).all()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.8, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha):
    scale = 20_000
    drawn = draws.draw(draws.MixUp(alpha), 0, 0, range(scale), 8, 8)
    shares = np.array(drawn)
    assert shares.min() >= 0
    assert shares.max() <= 1
    # The density of log(x / (1 - x)), integrated numerically far into both tails.
    y = np.linspace(-300, 300, 600_001)
    density = np.exp(-alpha * (np.logaddexp(0, y) + np.logaddexp(0, -y)))
    theoretical = np.cumsum(density) / density.sum()
    places = np.searchsorted(y, np.linspace(-30, 3, 1000))
    empirical = np.searchsorted(np.sort(shares), 1 / (1 + np.exp(-y[places]))) / scale
    # Kolmogorov and Smirnov: by chance about once in ten thousand.
    assert np.abs(empirical - theoretical[places]).max() < 2.2 / scale**0.5


def test_crops_have_their_areas_and_shapes():
    crop = draws.RandomResizedCrop((0.2, 0.6), (0.5, 2.0))
    boxes = np.array(draws.draw(crop, 0, 0, range(3000), 100, 100))
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= 100).all()
    assert (left + columns <= 100).all()
    # Sides are rounded to a pixel in 30 or more.
    assert 0.19 < (rows * columns / 1e4).min() < 0.22
    assert 0.58 < (rows * columns / 1e4).max() < 0.62
    assert 0.47 < (columns / rows).min() < 0.55
    assert 1.8 < (columns / rows).max() < 2.1


def test_a_crop_that_never_fits_is_the_largest_in_the_middle():
    wide = draws.RandomResizedCrop((1.0, 1.0), (4.0, 4.0))
    assert draws.draw(wide, 0, 0, [0], 20, 40) == [(5, 0, 10, 40)]
    tall = draws.RandomResizedCrop((1.0, 1.0), (0.25, 0.25))
    assert draws.draw(tall, 0, 0, [0], 40, 20) == [(0, 5, 40, 10)]
    everything = draws.RandomErasing(1.0, (1.0, 1.0))
    assert draws.draw(everything, 0, 0, [0], 8, 8) == [None]


def test_erased_share_and_probability():
    boxes = draws.draw(draws.RandomErasing(0.25), 0, 0, range(4000), 64, 64)
    erased = [box for box in boxes if box is not None]
    assert abs(len(erased) / 4000 - 0.25) < 0.035
    areas = np.array([rows * columns for _, _, rows, columns in erased]) / 64**2
    assert 0.015 < areas.min() < 0.04
    assert 0.3 < areas.max() < 0.35


@pytest.mark.parametrize("module", [numpy_augment, torch_augment])
def test_wrong_use_is_refused_alike(module):
    convert = np.asarray if module is numpy_augment else torch.from_numpy
    kinds = draws if module is numpy_augment else torch_draws
    images = convert(np.zeros((2, 1, 4, 4), np.uint8))
    with pytest.raises(
        TypeError, match="one that changes images one by one, got MixUp"
    ):
        module.apply(kinds.MixUp(), images, [None, None])
    with pytest.raises(TypeError, match="must be MixUp or CutMix, got PadCrop"):
        module.Mix([kinds.PadCrop()], 3)
    with pytest.raises(
        ValueError, match="MixUp with p=1 mixes every image, and leaves"
    ):
        module.Mix([kinds.MixUp(), kinds.CutMix()], 3)
    with pytest.raises(ValueError, match=r"scale must be at least 0\.01"):
        kinds.Affine(scale=(1e-300, 1.0))
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        module.Mix([], 0)
    message = "images must be floating-point to be mixed, got uint8; normalise them"
    with pytest.raises(TypeError, match=message):
        module.Mix([kinds.MixUp()], 3)(images, convert(np.array([0, 1])), 0, [0, 1])
    floats = convert(np.zeros((2, 1, 4, 4), np.float32))
    for labels, message in (
        ([0, 3], r"labels must be in \[0, 3\), got 3"),
        ([-1, 0], r"labels must be in \[0, 3\), got -1"),
        ([0], r"labels must have shape \(2,\), got shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module.Mix([kinds.MixUp()], 3)(floats, convert(np.array(labels)), 0, [0, 1])
    with pytest.raises(ValueError, match=r"shape \(3, C, H, W\).*\(2, 1, 4, 4\)"):
        module.Augment([])(images, 0, [0, 1, 2])
