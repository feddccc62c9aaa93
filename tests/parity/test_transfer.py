"""Weights go from one twin to the other and back."""

import numpy as np
import pytest
import torch

import vit_numpy.layers
import vit_torch.layers
from parity.transfer import copy_weights, weights


def test_both_ways_and_into_the_dtype_of_the_target():
    source = vit_torch.layers.MLP(4, 6).double()
    ours, back = vit_numpy.layers.MLP(4, 6), vit_torch.layers.MLP(4, 6)
    copy_weights(source, ours)
    copy_weights(ours, back)
    for name, array in weights(source).items():
        assert weights(ours)[name].dtype == np.float32
        np.testing.assert_array_equal(weights(ours)[name], array.astype(np.float32))
        np.testing.assert_array_equal(weights(back)[name], weights(ours)[name])


def test_weights_are_copies():
    module = vit_torch.layers.Linear(2, 3)
    weights(module)["weight"][...] = 7
    assert not torch.any(module.weight == 7)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (vit_numpy.layers.Linear(2, 3, bias=False), (2, 3), "the source has no 'bias'"),
        (vit_numpy.layers.MLP(2, 3), (2, 3), "the source has no"),
        (vit_numpy.layers.Linear(2, 4), (2, 3), r"must have shape \(3, 2\)"),
    ],
)
@pytest.mark.parametrize("twin", [vit_numpy.layers, vit_torch.layers])
def test_what_does_not_fit_is_refused_and_changes_nothing(twin, source, target, words):
    module = twin.Linear(*target)
    before = weights(module)
    with pytest.raises(ValueError, match=words):
        copy_weights(source, module)
    for name, array in weights(module).items():
        np.testing.assert_array_equal(array, before[name])


def test_unexpected_name_is_refused():
    target = vit_torch.layers.Linear(2, 3, bias=False)
    with pytest.raises(ValueError, match="the target has no 'bias'"):
        copy_weights(vit_numpy.layers.Linear(2, 3), target)
