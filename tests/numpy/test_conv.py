"""The two ways in which a convolution goes through its windows."""

import numpy as np
import pytest

from vit_numpy.layers.conv import Conv2d


class OverlapConv2d(Conv2d):
    """A Conv2d that always takes the way which overlapping windows need."""

    _disjoint = False


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (4, 2)])
def test_disjoint_windows_give_the_same_either_way(size):
    rng = np.random.default_rng(0)
    layers = [c(3, 5, (4, 2), stride=(4, 2)) for c in (Conv2d, OverlapConv2d)]
    for name in ("weight", "bias"):
        drawn = rng.standard_normal(getattr(layers[0], name).shape)
        for layer in layers:
            setattr(layer, name, drawn)
    x = rng.standard_normal((2, 3, *size))
    (y, cache), (other_y, other_cache) = (layer.forward(x) for layer in layers)
    np.testing.assert_array_equal(y, other_y)
    dy = rng.standard_normal(y.shape)
    dx, grads = layers[0].backward(dy, cache)
    other_dx, other_grads = layers[1].backward(dy, other_cache)
    np.testing.assert_array_equal(dx, other_dx)
    assert grads.keys() == other_grads.keys() == {"weight", "bias"}
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, other_grads[name])


@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_every_window_meets_the_kernel(stride, padding):
    rng = np.random.default_rng(1)
    layer = Conv2d(2, 3, (3, 2), stride, padding).to(np.float64)
    layer.weight[...] = rng.standard_normal(layer.weight.shape)
    layer.bias[...] = rng.standard_normal(3)
    x = rng.standard_normal((2, 2, 6, 7))
    y = layer(x)
    (pad_h, pad_w), (step_h, step_w) = layer.padding, layer.stride
    padded = np.zeros((2, 2, 6 + 2 * pad_h, 7 + 2 * pad_w))
    padded[:, :, pad_h : pad_h + 6, pad_w : pad_w + 7] = x
    assert y.shape == (2, 3, *layer.output_size(6, 7))
    for b, o, i, j in np.ndindex(y.shape):
        top, left = i * step_h, j * step_w
        window = padded[b, :, top : top + 3, left : left + 2]
        want = (window * layer.weight[o]).sum() + layer.bias[o]
        np.testing.assert_allclose(y[b, o, i, j], want, rtol=1e-12, atol=1e-12)


def test_an_image_below_the_kernel_is_refused():
    layer = Conv2d(1, 1, 5, padding=(0, 1))
    with pytest.raises(ValueError, match=r"^image with its padding must be at least"):
        layer(np.zeros((1, 1, 4, 9), np.float32))
    assert layer.output_size(5, 3) == (1, 1)


def test_no_images_give_no_images():
    layer = Conv2d(2, 3, 2)
    y, cache = layer.forward(np.zeros((0, 2, 4, 4), np.float32))
    assert y.shape == (0, 3, 3, 3)
    dx, grads = layer.backward(y, cache)
    assert dx.shape == (0, 2, 4, 4)
    np.testing.assert_array_equal(grads["weight"], 0)
