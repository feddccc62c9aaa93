"""Initial values of a model's parameters."""

import math
from hashlib import blake2b

import numpy as np

from vit_numpy.config import check_choice, check_int, check_positive
from vit_numpy.module import Array, Module

METHODS = ("trunc_normal", "xavier")

# Matrices that hold several side by side, each of which is initialised as its own.
_STACKED = {"qkv": 3, "kv": 2}


def init_weights(
    model: Module,
    seed: int,
    method: str = "trunc_normal",
    std: float = 0.02,
    zero_head: bool = True,
) -> None:
    """Fill every parameter of the model, in place.

    Parameters
    ----------
    model : Module
    seed : int, at least 0
    method : {'trunc_normal', 'xavier'}, default 'trunc_normal'
        How matrices and patch kernels are drawn: from a normal distribution truncated
        at two standard deviations, or uniformly in ±√(6 / (fan in + fan out)).
    std : float, default 0.02
        Standard deviation of the normal before it is truncated, which leaves 0.88 of
        it. Positions and the distillation token are drawn so for either method.
    zero_head : bool, default True
        Start `head` and `head_dist` from zero: every class is equally likely at first.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above.

    Notes
    -----
    Biases start at 0, scales of norms at 1; class and register tokens nearly at 0, from
    a normal of 1e-6, and the latent of attention pooling from a truncated normal of
    D^-½. LayerScale keeps the value that it was built with. The q, k and v of one
    `qkv.weight` each count as a matrix of their own.

    The values depend on the seed and the parameter's name alone, so that a layer more
    or less changes no other's. `vit_torch` draws from the same distributions, by its
    own generator: equal models start from one `state_dict`.

    References
    ----------
    Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", equation 16. Truncation really at 2 std differs from timm, whose
    `trunc_normal_` cuts at ±2 whatever the std.
    """
    check_int("seed", seed, 0)
    check_choice("method", method, METHODS)
    check_positive("std", std)
    for name, param in model.named_parameters():
        rng = np.random.default_rng(_key(seed, name))
        owner, _, kind = name.rpartition(".")
        layer = owner.rpartition(".")[2]
        if kind == "gamma":
            continue
        if kind == "bias":
            param[...] = 0
        elif kind in ("cls_token", "reg_token"):
            param[...] = 1e-6 * rng.standard_normal(param.shape)
        elif kind == "latent":
            _trunc_normal(param, param.shape[-1] ** -0.5, rng)
        elif kind != "weight":
            _trunc_normal(param, std, rng)
        elif param.ndim == 1:
            param[...] = 1
        elif zero_head and layer in ("head", "head_dist"):
            param[...] = 0
        elif method == "trunc_normal":
            _trunc_normal(param, std, rng)
        else:
            fan_out = len(param) // _STACKED.get(layer, 1)
            fan_in = math.prod(param.shape[1:])
            limit = math.sqrt(6 / (fan_in + fan_out))
            param[...] = rng.uniform(-limit, limit, param.shape)


def _trunc_normal(param: Array, std: float, rng: np.random.Generator) -> None:
    """Fill from a normal truncated at ±2 std, by drawing again what lies beyond."""
    values = rng.standard_normal(param.size)
    beyond = np.flatnonzero(np.abs(values) > 2)
    while beyond.size:
        values[beyond] = rng.standard_normal(beyond.size)
        beyond = beyond[np.abs(values[beyond]) > 2]
    param[...] = (std * values).reshape(param.shape)


def _key(seed: int, name: str) -> int:
    """Return a key for the generator of one parameter."""
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
