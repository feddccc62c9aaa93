"""The mathematics that layers share, each forward beside its backward.

Sums along an axis are written as products with a vector: BLAS streams through memory
several times faster than a reduction does, and accumulates as many terms at once.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from vit_numpy.module import Array

# Elementwise work is done in pieces of this many elements: few enough that they stay in
# the second-level cache from one pass to the next, and enough that threads which work
# on different images seldom wait for each other's hold of the interpreter.
_PIECE = 65_536

# Up to about this many elements, what a loop over rows costs is its starting over.
_SHORT_ROW = 64

# Beyond ±40 the normal density is zero and its distribution 0 or 1, in float64 too:
# arguments are clipped there, so that none of their powers overflows.
_SATURATED = 40

# float32: erf(z) = tanh(z P(z²)), lowest degree first. P approximates atanh(erf(z))/z
# on 0 < z <= 4.3 by iteratively reweighted least squares (Lawson 1961) in the relative
# error of erf, which then is at most 7.1e-8. The last coefficient is positive, so that
# beyond 4.3 the tanh stays saturated.
_ERF_TANH = (
    1.128379247204365,
    0.10276986395834206,
    -0.00019528776806218475,
    -0.0006148386104945589,
    8.459674360570532e-05,
    -4.794639290308019e-06,
    2.7579520684892437e-08,
    5.421473520702085e-09,
)

# float64, |z| < 1: erf(z) = z + z P(z²), with P the interpolation of erf(z)/z - 1 at 13
# Chebyshev nodes in 0 <= z² <= 1. Leaving 1 out of P makes its rounding count less.
_ERF_NEAR = (
    0.1283791670955126,
    -0.3761263890318375,
    0.11283791670954879,
    -0.026866170645076792,
    0.0052239776248180145,
    -0.000854832698083379,
    0.0001205533111164271,
    -1.4925595266831182e-05,
    1.6461000484121368e-06,
    -1.6350312701054695e-07,
    1.4659775274047436e-08,
    -1.1372848856791674e-09,
    5.957176147748911e-11,
)

# float64, |z| >= 1: 1 - erf(z) = exp(-z²) P(v), with P the interpolation of
# erfc(z) exp(z²) at 16 Chebyshev nodes in -1 <= v <= 1. Here v is linear in
# s = 1 / (1 + z/2): -1 at z = 6, from where on erf rounds to 1, and 1 at z = 1.
_ERFC_FAR = (
    0.22142954022993183,
    0.16189356804102495,
    0.03856057042517874,
    0.005588816281840147,
    0.00019713917780504525,
    -8.079220427446305e-05,
    -7.340518554528134e-06,
    1.9795619117948363e-06,
    1.6350179331888468e-07,
    -7.005356150432754e-08,
    -5.937642934649034e-10,
    2.624803073179171e-09,
    -2.626041744982423e-10,
    -7.455104496206303e-11,
    1.83867534059934e-11,
    4.413385032946705e-13,
)
_S_SIX, _S_ONE = 1 / (1 + 6 / 2), 1 / (1 + 1 / 2)


# Turns powers of e into powers of two: eˣ = 2^(x log₂ e).
LOG2_E = 1.4426950408889634


def row_mean(x: Array) -> Array:
    """Mean over the last axis, which is kept: (..., D) -> (..., 1)."""
    dim = x.shape[-1]
    return (x @ _constant(dim, 1 / dim, x.dtype))[..., None]


def row_sum(x: Array) -> Array:
    """Sum over the last axis, which is kept: (..., D) -> (..., 1)."""
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ _constant(rows.shape[1], 1, x.dtype)).reshape(*x.shape[:-1], 1)


def row_dot(x: Array, y: Array) -> Array:
    """Sum of x y over the last axis, which is kept: (..., D) -> (..., 1)."""
    # vecdot starts anew in each row: for short ones, an array of products costs less.
    if x.shape[-1] < _SHORT_ROW:
        return row_sum(x * y)
    total: Array = np.vecdot(x, y)[..., None]
    return total


def column_sum(x: Array) -> Array:
    """Sum over all axes but the last: (..., D) -> (D,)."""
    rows = x.reshape(-1, x.shape[-1])
    return _constant(len(rows), 1, x.dtype) @ rows


def softmax(x: Array) -> Array:
    """Return exp(x) / Σ exp(x) over the last axis, (..., D) -> (..., D).

    A factor common to numerator and denominator changes nothing. So where exp could
    leave the range of floats, the row's maximum is subtracted from x first; elsewhere
    that would be two passes over x for the same result.

    The layers themselves have no array of shares to spare for it: attention leaves the
    division of `exp_scores` to the smaller product that follows, and the loss works
    with logarithms. This is the plain function that both are derived from, for use on
    outputs and in layers of your own.
    """
    ones = _constant(x.shape[-1], 1, x.dtype)
    with np.errstate(over="ignore"):
        y: Array = np.exp(x)
        total = y @ ones
    # From a sum of 1 on, no less of a row underflows than after the subtraction.
    if not ((total >= 1) & (total < np.inf)).all():
        np.subtract(x, x.max(axis=-1, keepdims=True), out=y)
        np.exp(y, out=y)
        total = y @ ones
    y /= total[..., None]
    return y


def softmax_backward(dy: Array, y: Array) -> Array:
    """Return dx = y (dy - Σ dy y), from the output y = softmax(x).

    The sum is there because raising one x lowers every other y by way of the
    denominator.
    """
    dx: Array = dy - np.vecdot(dy, y)[..., None]
    dx *= y
    return dx


def relu(x: Array) -> Array:
    """Return max(x, 0), elementwise."""
    # Four times as fast as np.maximum with a scalar.
    y: Array = np.clip(x, 0, np.inf)
    return y


def erf(z: Array) -> Array:
    """Return the error function 2/√π ∫₀ᶻ exp(-t²) dt, elementwise.

    It is right to 1.2 units in the last place in float64, and to 3 in float32.

    References
    ----------
    Cody 1969, "Rational Chebyshev Approximation for the Error Function", has the
    division into an odd function near 0 and erfc beyond.
    """
    flat, y = z.reshape(-1), np.empty(z.size, z.dtype)
    for start in range(0, z.size, _PIECE):
        piece = slice(start, start + _PIECE)
        clipped = np.clip(flat[piece], -_SATURATED, _SATURATED)
        _erf_into(y[piece], clipped, clipped * clipped)
    return y.reshape(z.shape)


def gelu(x: Array, derivative: bool = True) -> tuple[Array, Array | None]:
    """Return x Φ(x) and its derivative Φ(x) + x φ(x), elementwise.

    Φ(x) = (1 + erf(x/√2)) / 2 is the standard normal's distribution, and φ(x) =
    exp(-x²/2) / √(2π) its density. The derivative is None unless asked for.
    """
    return _in_pieces(_gelu_into, x, derivative)


def gelu_tanh(x: Array, derivative: bool = True) -> tuple[Array, Array | None]:
    """Return `gelu` with Φ(x) = (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2."""
    return _in_pieces(_gelu_tanh_into, x, derivative)


def _in_pieces(
    function: Callable[[Array, Array | None, Array, Array, Array], None],
    x: Array,
    derivative: bool,
) -> tuple[Array, Array | None]:
    """Fill y and dy/dx piece by piece, with two temporaries for all of them."""
    flat = x.reshape(-1)
    y = np.empty(x.size, x.dtype)
    dydx = np.empty(x.size, x.dtype) if derivative else None
    first, second = np.empty((2, min(x.size, _PIECE)), x.dtype)
    for start in range(0, x.size, _PIECE):
        piece = slice(start, start + _PIECE)
        length = y[piece].size
        function(
            y[piece],
            None if dydx is None else dydx[piece],
            flat[piece],
            first[:length],
            second[:length],
        )
    return y.reshape(x.shape), None if dydx is None else dydx.reshape(x.shape)


def _gelu_into(y: Array, dydx: Array | None, x: Array, z: Array, zz: Array) -> None:
    np.clip(x, -_SATURATED, _SATURATED, out=z)
    z *= math.sqrt(0.5)
    np.multiply(z, z, out=zz)
    _erf_into(y, z, zz)
    y += 1
    y *= 0.5  # Φ(x)
    if dydx is not None:
        # x φ(x) = z exp(-z²) / √π; exp2 takes half the time of exp.
        np.multiply(zz, -math.log2(math.e), out=dydx)
        np.exp2(dydx, out=dydx)
        dydx *= 1 / math.sqrt(math.pi)
        dydx *= z
        dydx += y
    y *= x


def _gelu_tanh_into(
    y: Array, dydx: Array | None, x: Array, clipped: Array, xx: Array
) -> None:
    linear = math.sqrt(2 / math.pi)
    cubic = 0.044715 * linear
    np.clip(x, -_SATURATED, _SATURATED, out=clipped)
    np.multiply(clipped, clipped, out=xx)
    np.multiply(xx, cubic, out=y)
    y += linear
    y *= clipped
    np.tanh(y, out=y)
    if dydx is not None:
        np.multiply(y, y, out=dydx)
        np.subtract(1, dydx, out=dydx)
        xx *= 3 * cubic
        xx += linear
        dydx *= xx
        dydx *= clipped  # 2 x φ̃(x)
        y += 1
        dydx += y
        dydx *= 0.5
    else:
        y += 1
    y *= 0.5  # Φ̃(x)
    y *= x


def _erf_into(y: Array, z: Array, zz: Array) -> None:
    """Write erf(z) to y, given z² too, for |z| at most `_SATURATED`."""
    if z.dtype == np.float32:
        _polynomial_into(y, zz, _ERF_TANH)
        y *= z
        np.tanh(y, out=y)
        return
    size = np.abs(z)
    near, far = np.empty_like(z), np.empty_like(z)
    _polynomial_into(near, zz, _ERF_NEAR)
    near *= size
    near += size
    s = 1 / (1 + np.clip(size, 1, 6) / 2)
    _polynomial_into(far, (2 * s - (_S_ONE + _S_SIX)) / (_S_ONE - _S_SIX), _ERFC_FAR)
    far *= np.exp(-zz)
    np.subtract(1, far, out=far)
    np.copysign(np.where(size < 1, near, far), z, out=y)


def _polynomial_into(y: Array, x: Array, coefficients: Sequence[float]) -> None:
    """Write Σ coefficients[k] xᵏ to y, by Horner's rule."""
    np.multiply(x, coefficients[-1], out=y)
    for coefficient in coefficients[-2:0:-1]:
        y += coefficient
        y *= x
    y += coefficients[0]


def exp_scores(q: Array, k: Array) -> tuple[Array, Array]:
    """Softmax of q kᵀ before its division: 2^(q kᵀ), and the sums of its rows.

    Powers of two cost less than powers of e; `q` carries the factor `LOG2_E` for them.
    A common factor of a row changes nothing after the division, so the largest exponent
    is made 0 only where a sum would otherwise leave the range in which no precision is
    lost. That spares two passes over the largest array of a Vision Transformer.

    Parameters
    ----------
    q, k : ndarray of shape (..., T, Dh)

    Returns
    -------
    e : ndarray of shape (..., T, T)
    total : ndarray of shape (..., T, 1)
    """
    k_columns = k.swapaxes(-1, -2)
    with np.errstate(over="ignore", invalid="ignore"):
        e: Array = q @ k_columns
        np.exp2(e, out=e)
        total = row_sum(e)
    if not (total.min() > 1e-12 and total.max() < 1e12):
        np.matmul(q, k_columns, out=e)
        e -= e.max(axis=-1, keepdims=True)
        np.exp2(e, out=e)
        total = row_sum(e)
    return e, total


def over_features(x: Array, head_dim: int) -> Array:
    """Repeat what each head has for a token: (B, h, T, 1) -> (B, T, h·Dh).

    An operation between arrays of heads would run over Dh elements at a time, and most
    of its time would go into starting over. The repetition is a product with a matrix
    of zeros and ones, hence exact, and what it returns lies as tokens do.
    """
    _, heads, _, _ = x.shape
    places = _head_places(heads, head_dim, x.dtype)
    return np.ascontiguousarray(x[..., 0].swapaxes(1, 2)) @ places


# Vectors and matrices of constants are kept for the next call: on the arrays of a small
# network, making one costs as much as the product that it is made for.
@lru_cache
def _constant(length: int, value: float, dtype: np.dtype[Any]) -> Array:
    """Return a vector that holds one number throughout, and is not to be written to."""
    return np.full(length, value, dtype)


@lru_cache
def _head_places(heads: int, head_dim: int, dtype: np.dtype[Any]) -> Array:
    """Return (h, h·Dh): 1 where a feature belongs to a head; not to be written to."""
    return np.repeat(np.eye(heads, dtype=dtype), head_dim, axis=1)
