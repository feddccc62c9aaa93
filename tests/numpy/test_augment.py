"""Draws depend on the key alone; pixels go where they were drawn to."""

import numpy as np
import pytest

from vit_numpy.augment import Augment, horizontal_flip, pad_crop
from vit_numpy.draws import HorizontalFlip, PadCrop, draw


def images(dtype=np.float32):
    return np.arange(5 * 2 * 4 * 6).reshape(5, 2, 4, 6).astype(dtype)


def test_draws_do_not_depend_on_the_batch():
    whole = draw(PadCrop(4), 3, 2, range(50), 8, 8)
    assert draw(PadCrop(4), 3, 2, [7], 8, 8) == [whole[7]]
    assert draw(PadCrop(4), 3, 2, np.array([9, 8]), 8, 8) == [whole[9], whole[8]]
    assert whole != draw(PadCrop(4), 3, 3, range(50), 8, 8)
    assert whole != draw(PadCrop(4), 4, 2, range(50), 8, 8)
    assert whole != draw(PadCrop(4), 3, 2, range(50), 8, 8, place=1)


def test_draws_have_their_distribution():
    flips = draw(HorizontalFlip(0.3), 0, 0, range(4000), 8, 8)
    assert np.mean(flips) == pytest.approx(0.3, abs=0.03)
    corners = np.array(draw(PadCrop(2), 0, 0, range(5000), 8, 8)).T
    for axis in corners:
        counts = np.bincount(axis)
        assert len(counts) == 5
        assert (np.abs(counts - 1000) < 130).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_flip_and_crop_by_hand(dtype):
    x = images(dtype)
    flipped = horizontal_flip(x, [True, False, False, True, False])
    np.testing.assert_array_equal(flipped[0], x[0, :, :, ::-1])
    np.testing.assert_array_equal(flipped[1], x[1])
    corners = [(0, 0), (2, 2), (4, 4), (1, 3), (3, 0)]
    cut = pad_crop(x, corners, 2)
    assert cut.dtype == flipped.dtype == dtype
    for image, got, (top, left) in zip(x, cut, corners, strict=True):
        for row in range(4):
            for column in range(6):
                y, z = row + top - 2, column + left - 2
                inside = 0 <= y < 4 and 0 <= z < 6
                expected = image[:, y, z] if inside else 0
                np.testing.assert_array_equal(got[:, row, column], expected)


def test_images_are_left_as_they_are():
    x = images()
    Augment([HorizontalFlip(1.0), PadCrop(1)], 5)(x, 0, range(5))
    np.testing.assert_array_equal(x, images())


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
        HorizontalFlip(1.5)
    with pytest.raises(ValueError, match="padding must be at least 1"):
        PadCrop(0)
    with pytest.raises(ValueError, match="images must have shape"):
        Augment([PadCrop()])(images(), 0, range(4))
