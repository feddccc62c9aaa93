"""Masks are functions of seed, step, layer and image, and of nothing else."""

import pytest
import torch

from vit_torch.layers.drop_path import DropPath
from vit_torch.layers.dropout import Dropout
from vit_torch.masks import KeyedMasks

NAME = "blocks.0.mlp.drop1"


@pytest.mark.parametrize("shape", [(12,), (12, 1, 1), (12, 16), (12, 5, 7)])
def test_shards_are_rows_of_the_whole(shape):
    masks = KeyedMasks(seed=3, step=7)
    whole = masks.keep(NAME, shape, 0.4)
    assert whole.shape == shape
    assert whole.dtype == torch.bool
    for a, b in ((0, 5), (5, 12), (3, 4)):
        shard = masks.shard(a, b).keep(NAME, (b - a, *shape[1:]), 0.4)
        assert torch.equal(shard, whole[a:b])


def test_each_part_of_the_key_counts():
    keys = [
        (KeyedMasks(1), NAME),
        (KeyedMasks(2), NAME),
        (KeyedMasks(1).at(2), NAME),
        (KeyedMasks(1), "blocks.1.mlp.drop1"),
    ]
    drawn = [masks.keep(name, (100, 400), 0.5) for masks, name in keys]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs((first == second).double().mean() - 0.5) < 0.0125


def test_masks_leave_torchs_own_generator_alone():
    state = torch.get_rng_state()
    KeyedMasks(1).keep(NAME, (3, 4), 0.5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", [Dropout(0.3), DropPath(0.3)])
def test_dropout_is_active_in_training_only(layer):
    x = torch.ones(4000, 3)
    masks = KeyedMasks(2)
    layer.train()
    keep = masks.keep(layer.name, layer.mask_shape((4000, 3)), 0.3)
    assert torch.equal(layer(x, masks) != 0, keep.expand(4000, 3))
    for y in (layer(x, masks), layer(x)):
        assert abs(y.mean() - 1) < 0.06
        assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    layer.eval()
    assert torch.equal(layer(x, masks), x)
    assert torch.equal(layer(x), x)
