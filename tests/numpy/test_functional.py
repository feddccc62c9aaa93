"""The accuracy of the shared mathematics, against numbers of 50 digits."""

import mpmath
import numpy as np
import pytest

from vit_numpy import functional
from vit_numpy.functional import erf, gelu, gelu_tanh, relu, softmax, softmax_backward

mpmath.mp.dps = 50
DTYPES = (np.float32, np.float64)


def exact(function, x):
    return [function(mpmath.mpf(float(v))) for v in x.ravel()]


def ulps(got, want):
    """Largest distance from the exact values, in units of their last place."""
    return max(
        float(abs(mpmath.mpf(float(g)) - w)) / float(np.spacing(abs(got.dtype.type(w))))
        for g, w in zip(got.ravel(), want, strict=True)
    )


def arguments(dtype):
    rng = np.random.default_rng(0)
    tiny = np.logspace(-30, -2, 100)
    z = np.concatenate([tiny, rng.uniform(0, 1, 400), rng.uniform(0.9, 6.5, 600)])
    return (z * rng.choice([-1, 1], z.size)).astype(dtype)


def interpolation(function, nodes, variable):
    """Coefficients of the polynomial in `variable(node)` through all the nodes."""
    powers = mpmath.matrix(
        [[variable(node) ** k for k in range(len(nodes))] for node in nodes]
    )
    solved = mpmath.lu_solve(powers, mpmath.matrix([function(n) for n in nodes]))
    return [float(c) for c in solved]


def chebyshev(n):
    return [mpmath.cos(mpmath.pi * (k + mpmath.mpf(1) / 2) / n) for k in range(n)]


def test_erf_near_coefficients_are_the_interpolation_they_are_said_to_be():
    squares = [(1 + v) / 2 for v in chebyshev(13)]
    derived = interpolation(
        lambda t: mpmath.erf(mpmath.sqrt(t)) / mpmath.sqrt(t) - 1, squares, lambda t: t
    )
    np.testing.assert_allclose(functional._ERF_NEAR, derived, rtol=1e-15)


def test_erfc_far_coefficients_are_the_interpolation_they_are_said_to_be():
    six, one = mpmath.mpf(1) / 4, mpmath.mpf(2) / 3

    def scaled_erfc(v):
        z = 2 / ((one - six) / 2 * v + (one + six) / 2) - 2
        return mpmath.erfc(z) * mpmath.exp(z * z)

    derived = interpolation(scaled_erfc, chebyshev(16), lambda v: v)
    np.testing.assert_allclose(functional._ERFC_FAR, derived, rtol=1e-10)


def test_erf_tanh_coefficients_are_as_good_as_they_are_said_to_be():
    z = np.linspace(1e-3, 12, 20001)
    polynomial = np.polynomial.Polynomial(functional._ERF_TANH)
    approximation = np.tanh(z * polynomial(z * z))
    assert np.abs(approximation / erf(z) - 1).max() < 7.2e-8


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1.2), (np.float32, 3)])
def test_erf_is_right_to_the_last_places(dtype, limit):
    z = arguments(dtype)
    assert ulps(erf(z), exact(mpmath.erf, z)) <= limit


def test_float32_erf_is_right_to_the_last_places_everywhere():
    z = np.geomspace(1e-20, 10, 400_001, dtype=np.float32)
    want = erf(z.astype(np.float64))
    distance = np.abs(erf(z) - want) / np.spacing(want.astype(np.float32))
    assert distance.max() <= 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_at_the_ends(dtype):
    inf, huge = np.inf, np.finfo(dtype).max
    z = np.array([-inf, -huge, -0.0, 0.0, huge, inf, np.nan], dtype)
    y = erf(z)
    np.testing.assert_array_equal(y, np.array([-1, -1, 0, 0, 1, 1, np.nan], dtype))
    assert np.signbit(y[2])
    assert not np.signbit(y[3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1, 30, 300])
def test_gelu_and_its_derivative_are_right(dtype, scale):
    x = (scale * np.random.default_rng(1).standard_normal(300)).astype(dtype)
    y, derivative = gelu(x)
    eps = np.finfo(dtype).eps
    distribution = np.array([float(v) for v in exact(mpmath.ncdf, x)])
    slope = np.array([float(v) for v in exact(lambda v: v * mpmath.npdf(v), x)])
    # Accurate relative to x, not to y: 1 + erf cancels where x is far below 0.
    assert (np.abs(y - x * distribution) <= 2 * eps * np.abs(x)).all()
    assert (np.abs(derivative - (distribution + slope)) <= 4 * eps).all()


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 300])
def test_gelu_tanh_and_its_derivative_are_right(scale):
    x = scale * np.random.default_rng(2).standard_normal(300)
    eps = np.finfo(np.float64).eps

    def exactly(v):
        u = mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3)
        return v * (1 + mpmath.tanh(u)) / 2

    y, derivative = gelu_tanh(x)
    want = np.array([float(v) for v in exact(exactly, x)])
    slope = [float(v) for v in exact(lambda v: mpmath.diff(exactly, v), x)]
    assert (np.abs(y - want) <= 2 * eps * np.abs(x)).all()
    # x du/dx is up to 40 before 1 - tanh² vanishes, and multiplies its rounding.
    assert (np.abs(derivative - np.array(slope)) <= 40 * eps).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [gelu, gelu_tanh])
def test_gelu_of_huge_numbers_is_a_ramp(dtype, function):
    huge = np.finfo(dtype).max
    y, derivative = function(np.array([-huge, -1e3, 1e3, huge], dtype))
    np.testing.assert_array_equal(y, np.array([0, 0, 1e3, huge], dtype))
    np.testing.assert_array_equal(derivative, [0, 0, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [gelu, gelu_tanh])
def test_gelu_does_not_depend_on_pieces_or_memory_layout(dtype, function, monkeypatch):
    x = np.random.default_rng(3).standard_normal((2, 7, 60)).astype(dtype)
    before = x.copy()
    whole = function(x)
    monkeypatch.setattr(functional, "_PIECE", 64)
    for got, want in zip(function(x), whole, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == dtype
        assert got.shape == x.shape
    strided = np.repeat(x, 2, axis=-1)[:, :, ::2]
    np.testing.assert_array_equal(function(strided)[0], whole[0])
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(erf(strided), erf(x))


@pytest.mark.parametrize("function", [gelu, gelu_tanh])
def test_gelu_makes_the_derivative_only_when_asked(function):
    x = np.linspace(-3, 3, 7)
    y, derivative = function(x, derivative=False)
    assert derivative is None
    np.testing.assert_array_equal(y, function(x)[0])


def test_nothing_in_gives_nothing_out():
    empty = np.empty((0, 5), np.float32)
    for y in (erf(empty), gelu(empty)[0], gelu_tanh(empty)[0], relu(empty)):
        assert y.shape == (0, 5)
    assert softmax(empty).shape == (0, 5)
    assert softmax_backward(empty, empty).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_right_on_either_side_of_the_range_of_exp(dtype):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((4, 1, 9)) * 2 + np.reshape([0, 700, -700, 1e4], (4, 1, 1))
    x = x.astype(dtype)
    eps = np.finfo(dtype).eps
    for row in x:
        powers = exact(mpmath.exp, row)
        want = np.array([float(p / sum(powers)) for p in powers])
        np.testing.assert_allclose(softmax(row)[0], want, rtol=8 * eps)
    # Together, the rows share the shift that some of them need.
    np.testing.assert_allclose(
        softmax(x), np.stack([softmax(row) for row in x]), rtol=8 * eps
    )


def test_softmax_keeps_small_shares():
    # Without its maximum, the row would lose the smaller share to underflow.
    x = np.array([[-60.0, -100.0]], np.float32)
    np.testing.assert_allclose(softmax(x)[0, 1], np.exp(-40.0), rtol=1e-6)


def test_softmax_backward_has_no_part_along_a_common_shift():
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, 3, 8))
    dx = softmax_backward(dy, softmax(x))
    assert np.abs(dx).max() > 1e-2
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-15)


def test_relu_lets_nan_through():
    x = np.array([-np.inf, -2, -0.0, 3, np.inf, np.nan], np.float32)
    y = relu(x)
    np.testing.assert_array_equal(y, np.array([0, 0, 0, 3, np.inf, np.nan]))
    assert y.dtype == np.float32
