"""Gradients inside a function under vmap are those of every copy by itself."""

import pytest
import torch

from parity.bounds import reference
from parity.bounds.vmapped import gradients, watch


def shown(x, dy):
    with torch.enable_grad():
        hidden = torch.tanh(watch(x)).T
        out = (hidden * hidden).sum(0)
        found = gradients(out, [hidden, out, x], dy)
    return out.detach(), *found


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradients_are_those_of_each_copy(axis):
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    dy = torch.randn(5, 3, dtype=torch.float64)
    several = torch.vmap(shown, in_dims=(axis, 0))(x.movedim(0, axis).clone(), dy)
    for i in range(5):
        for one, copies in zip(shown(x[i].clone(), dy[i]), several, strict=True):
            torch.testing.assert_close(copies[i], one, rtol=1e-13, atol=0)


def test_cotangent_may_be_common_to_all_copies():
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    dy = torch.randn(3, dtype=torch.float64)
    several = torch.vmap(shown, in_dims=(0, None))(x.clone(), dy)
    one = shown(x[2].clone(), dy)
    torch.testing.assert_close(several[3][2], one[3], rtol=1e-13, atol=0)


def test_what_does_not_depend_has_zeros():
    def function(x):
        with torch.enable_grad():
            watch(x)
            return gradients(x.sum(0), [x * 2], torch.ones(4))[0]

    assert not torch.vmap(function)(torch.randn(5, 3, 4)).any()
    assert not function(torch.randn(3, 4)).any()


def test_noise_of_gradients_is_that_of_runs_one_by_one():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(3, 4), "dy": torch.randn(3)}
    together, alone = (
        reference(shown, inputs, differentiate=False, runs=64, batched=batched)
        for batched in (True, False)
    )
    spreads = [
        {name: ref.quantities[name].spread.mean() for name in ref.names}
        for ref in (together, alone)
    ]
    # The gradient of the output itself is what came in.
    assert spreads[0].pop("out2") == spreads[1].pop("out2") == 0
    for name, spread in spreads[0].items():
        assert 0.7 < spread / spreads[1][name] < 1.4
