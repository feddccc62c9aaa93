"""Functions of JAX as candidates: their values and vjps, jitted or not."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from parity import ParityError, assert_parity

pytestmark = pytest.mark.peers

jax = pytest.importorskip("jax", reason="needs jax: make test-peers")
jnp = jax.numpy

NORM = {
    "inputs": {"x": (3, 5, 8)},
    "parameters": {"weight": (8,), "bias": (8,)},
    "names": {"weight": "scale", "bias": "shift"},
}


def norm(x, scale, shift, eps=1e-6, ddof=0):
    mean = x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True, ddof=ddof)
    return (x - mean) * jax.lax.rsqrt(variance + eps) * scale + shift


def norm_twin(x, weight, bias):
    return F.layer_norm(x, (8,), weight, bias, 1e-6)


@jax.custom_vjp
def relu(x):
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x), x), lambda x, dy: (dy,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("candidate", [norm, jax.jit(norm)], ids=["plain", "jit"])
def test_right_function_agrees(candidate, dtype):
    agreement = assert_parity(candidate, norm_twin, **NORM, backend="jax", dtype=dtype)
    assert agreement.tensors == ("out", "d_x", "d_weight", "d_bias")
    assert 0 < agreement.share <= 1


def test_what_jit_made_is_known_as_such():
    assert_parity(jax.jit(norm), norm_twin, **NORM)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "plain"])
@pytest.mark.parametrize(
    ("options", "cause"),
    [({"eps": 1e-3}, "norm-eps"), ({"ddof": 1}, "variance-unbiased")],
)
def test_wrong_function_is_named(jit, options, cause):
    wrong = jit(lambda x, scale, shift: norm(x, scale, shift, **options))
    with pytest.raises(ParityError) as caught:
        assert_parity(wrong, norm_twin, **NORM, backend="jax")
    assert caught.value.cause == cause


def test_wrong_vjp_is_named():
    with pytest.raises(ParityError, match="d_x") as caught:
        assert_parity(relu, torch.relu, {"x": (3, 7)})
    assert caught.value.cause == "backward-skipped"


def test_several_outputs_and_outputs_by_name():
    def both(x, y):
        return x * y, jnp.tanh(x)

    def twin(x, y):
        return x * y, x.tanh()

    shapes = {"x": (3, 4), "y": (3, 4)}
    assert_parity(both, twin, shapes, backend="jax")
    assert_parity(
        lambda x, y: dict(zip("ab", both(x, y), strict=True)),
        lambda x, y: dict(zip("ab", twin(x, y), strict=True)),
        shapes,
        backend="jax",
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_integers_have_no_gradient(dtype):
    agreement = assert_parity(
        lambda index, table: table[index],
        lambda index, table: F.embedding(index, table),
        {"index": np.array([[0, 2], [1, 1]])},
        parameters={"table": (3, 4)},
        backend="jax",
        dtype=dtype,
    )
    assert agreement.tensors == ("out", "d_table")


def test_a_dtype_that_is_not_kept_is_the_answer():
    with pytest.raises(ParityError, match="float64 went in, float32 came out"):
        assert_parity(
            lambda x: jnp.tanh(x).astype(jnp.float32),
            torch.tanh,
            {"x": (3, 4)},
            backend="jax",
        )


def test_plain_function_is_told_of_its_backend():
    with pytest.raises(ParityError, match='give backend="jax"'):
        assert_parity(jnp.tanh, torch.tanh, {"x": (3, 4)}, backend="numpy")


def test_the_precision_of_the_process_is_left_alone():
    assert_parity(jnp.tanh, torch.tanh, {"x": (3, 4)}, backend="jax")
    assert jnp.ones(1).dtype == jnp.float32
