"""Masks are functions of seed, step, layer and image, and of nothing else."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from vit_numpy.layers.activation import GELU
from vit_numpy.layers.drop_path import DropPath
from vit_numpy.layers.dropout import Dropout
from vit_numpy.masks import KeyedMasks, name_dropouts
from vit_numpy.module import Module

NAME = "blocks.0.mlp.drop1"


@pytest.mark.parametrize("shape", [(12,), (12, 1, 1), (12, 16), (12, 5, 7)])
def test_shards_are_rows_of_the_whole(shape):
    masks = KeyedMasks(seed=3, step=7)
    whole = masks.keep(NAME, shape, 0.4)
    assert whole.shape == shape
    assert whole.dtype == np.bool_
    for bounds in ([0, 12], [0, 5, 12], [0, 1, 2, 3, 12]):
        shards = [
            masks.shard(a, b).keep(NAME, (b - a, *shape[1:]), 0.4)
            for a, b in pairwise(bounds)
        ]
        np.testing.assert_array_equal(np.concatenate(shards), whole)


def test_a_larger_batch_starts_with_the_smaller():
    masks = KeyedMasks(seed=3)
    np.testing.assert_array_equal(
        masks.keep(NAME, (9, 40), 0.5)[:4], masks.keep(NAME, (4, 40), 0.5)
    )


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_mask_is_empty(shape):
    assert KeyedMasks(3).keep(NAME, shape, 0.5).shape == shape


def test_each_part_of_the_key_counts():
    keys = [
        (KeyedMasks(1), NAME),
        (KeyedMasks(2), NAME),
        (KeyedMasks(1, step=1), NAME),
        (KeyedMasks(1).at(2), NAME),
        (KeyedMasks(1), "blocks.1.mlp.drop1"),
        (KeyedMasks(1).shard(100, 200), NAME),
    ]
    drawn = [masks.keep(name, (100, 400), 0.5).ravel() for masks, name in keys]
    # Of unrelated masks 40,000 long, half agrees, ± 0.0025 (one standard deviation).
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs((first == second).mean() - 0.5) < 0.0125


def test_the_same_key_gives_the_same_mask():
    first = KeyedMasks(1).at(5).keep(NAME, (8, 30), 0.5)
    np.testing.assert_array_equal(first, KeyedMasks(1, step=5).keep(NAME, (8, 30), 0.5))


def test_masks_do_not_depend_on_the_process():
    program = (
        "from vit_numpy.masks import KeyedMasks; "
        f"print(KeyedMasks(1).keep({NAME!r}, (64,), 0.5).astype(int).tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    here = KeyedMasks(1).keep(NAME, (64,), 0.5).astype(int).tolist()
    assert printed == {f"{here}\n"}


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_rate_is_honoured(p):
    keep = KeyedMasks(11).keep(NAME, (1000, 1000), p)
    deviation = np.sqrt(p * (1 - p) / keep.size)
    # Five standard deviations, and the rounding of p to 16 bits.
    assert abs((~keep).mean() - p) <= 5 * deviation + 2**-17


def test_the_highest_rate_leaves_something():
    p = np.nextafter(1.0, 0.0)
    kept = KeyedMasks(11).keep(NAME, (1024, 4096), float(p)).sum()
    assert 20 < kept < 140  # 64 in 2**22 expected, ± 8


def test_a_shard_needs_its_own_number_of_rows():
    with pytest.raises(ValueError, match=r"^shape must start with the 3 images of the"):
        KeyedMasks(0).shard(2, 5).keep(NAME, (4, 2), 0.5)
    with pytest.raises(ValueError, match=r"^shape must have an axis"):
        KeyedMasks(0).keep(NAME, (), 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be at least 0, got seed=-1"),
        ({"seed": 2**64}, ValueError, r"seed must be below 2\*\*64"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
        ({"seed": 0, "step": -1}, ValueError, "step must be at least 0"),
        ({"seed": 0, "start": 3, "stop": 2}, ValueError, "stop must be at least 3"),
    ],
)
def test_bad_keys_are_refused(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        KeyedMasks(**arguments)


class Branch(Module):
    def __init__(self):
        self.act = GELU()
        self.drop = Dropout(0.5)
        name_dropouts(self)


class Root(Module):
    def __init__(self):
        self.drop = Dropout(0.5)
        self.branches = [Branch(), Branch()]
        self.drop_path = DropPath(0.5)
        name_dropouts(self)


def test_dropouts_are_named_by_their_path_in_the_outermost_module():
    root = Root()
    names = [m.name for _, m in root.named_modules() if isinstance(m, Dropout)]
    assert names == ["drop", "branches.0.drop", "branches.1.drop", "drop_path"]
    assert Dropout(0.5).name == "dropout"
    assert DropPath(0.5).name == "drop_path"


@pytest.mark.parametrize("layer", [Dropout(0.3), DropPath(0.3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_drops_where_the_mask_says_and_keeps_the_mean(layer, dtype):
    x = np.ones((4000, 3, 5), dtype)
    masks = KeyedMasks(2)
    y, cache = layer.forward(x, masks)
    keep = masks.keep(layer.name, layer.mask_shape(x.shape), 0.3)
    np.testing.assert_array_equal(y != 0, np.broadcast_to(keep, x.shape))
    assert abs(y.mean() - 1) < 0.06
    assert y.dtype == dtype
    dx, grads = layer.backward(x, cache)
    np.testing.assert_array_equal(dx, y)
    assert grads == {}


@pytest.mark.parametrize("layer", [Dropout(0.3), DropPath(0.3)])
def test_dropout_without_a_mask_source_is_the_identity(layer):
    x = np.random.default_rng(0).standard_normal((2, 3))
    y, cache = layer.forward(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(layer.backward(x, cache)[0], x)


def test_drop_path_drops_whole_samples():
    assert DropPath(0.5).mask_shape((6, 4, 3)) == (6, 1, 1)
    assert DropPath(0.5).mask_shape((6,)) == (6,)
