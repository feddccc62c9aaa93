"""Flat blocks change nothing but time, and state is restored to the bit."""

import numpy as np
import pytest

from vit_numpy import optim, parallel
from vit_numpy.config import ViTConfig
from vit_numpy.init import init_weights
from vit_numpy.model import VisionTransformer
from vit_numpy.optim import SGD, Adam, AdamW, flatten_parameters, param_groups

MAKERS = {
    "sgd": lambda p: SGD(p, 0.1),
    "nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, 0.01),
    "adamw": lambda p: AdamW(p, 0.01),
}


def small_model(seed=0):
    config = ViTConfig(
        image_size=8, patch_size=4, dim=8, depth=2, num_heads=2, mlp_dim=16,
        num_classes=3, num_registers=1, layer_scale=0.1,
    )  # fmt: skip
    model = VisionTransformer(config)
    init_weights(model, seed, zero_head=False)
    return model


def random_grads(model, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=param.shape).astype(param.dtype)
        for name, param in model.named_parameters()
    }


def test_only_matrices_decay():
    decayed, others = param_groups(small_model(), 0.1)
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert {name.rpartition(".")[2] for name in decayed["names"]} == {"weight"}
    assert not any("norm" in name for name in decayed["names"])
    assert {"cls_token", "pos_embed", "reg_token", "norm.weight"} <= set(
        others["names"]
    )
    assert "blocks.0.ls1.gamma" in others["names"]


def test_flatten_keeps_values_and_makes_views():
    model, same = small_model(), small_model()
    flat = flatten_parameters(model)
    assert flat.size == sum(p.size for _, p in same.named_parameters())
    assert list(model.state_dict()) == list(same.state_dict())
    for name, param in model.named_parameters():
        np.testing.assert_array_equal(param, same.state_dict()[name])
        assert np.shares_memory(param, flat)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("block", [7, 64, 65_536])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_do_not_change_a_bit(name, block, threads, monkeypatch):
    plain = small_model()
    plain_optimizer = MAKERS[name](param_groups(plain, 0.1))
    flat = small_model()
    flatten_parameters(flat)
    monkeypatch.setattr(optim, "BLOCK", block)
    monkeypatch.setattr(parallel, "_num_threads", threads)
    flat_optimizer = MAKERS[name](param_groups(flat, 0.1))
    for step in range(3):
        grads = random_grads(plain, step)
        copies = {key: grad.copy() for key, grad in grads.items()}
        plain_optimizer.step(grads)
        flat_optimizer.step(grads)
        for key in grads:
            np.testing.assert_array_equal(grads[key], copies[key])
    for key, param in plain.named_parameters():
        np.testing.assert_array_equal(param, flat.state_dict()[key], err_msg=key)
    for key, value in plain_optimizer.state_dict().items():
        np.testing.assert_array_equal(value, flat_optimizer.state_dict()[key])


@pytest.mark.parametrize("name", MAKERS)
def test_saved_state_continues_exactly(name):
    model, other = small_model(), small_model()
    optimizer, resumed = (MAKERS[name](m.named_parameters()) for m in (model, other))
    optimizer.step(random_grads(model, 0))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other, resumed)):
        o.step(random_grads(m, 1))
    for key, param in model.named_parameters():
        np.testing.assert_array_equal(param, other.state_dict()[key])


def test_gradients_are_checked_by_name():
    model = small_model()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    optimizer = AdamW(model.named_parameters())
    good = random_grads(model, 0)
    bad = {k: v for k, v in good.items() if k != "head.bias"}
    with pytest.raises(ValueError, match=r"no gradient for 'head\.bias'"):
        optimizer.step(bad)
    with pytest.raises(ValueError, match=r"did you mean 'head\.bias'"):
        optimizer.step(good | {"haed.bias": good["head.bias"]})
    with pytest.raises(ValueError, match=r"gradient of head\.bias must have shape"):
        optimizer.step(good | {"head.bias": good["head.bias"][:-1]})
    with pytest.raises(TypeError, match=r"gradient of head\.bias must be float32"):
        optimizer.step(good | {"head.bias": good["head.bias"].astype(np.float64)})
    assert optimizer.steps == 0
    for key, value in before.items():
        np.testing.assert_array_equal(model.state_dict()[key], value)


def test_a_parameter_that_cannot_be_updated_in_place_is_refused():
    transposed = np.zeros((2, 3), np.float32).T
    with pytest.raises(ValueError, match="C-contiguous"):
        SGD([("weight", transposed)], 0.1)


def test_a_name_given_twice_is_refused():
    w = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="'w' twice"):
        SGD([("w", w), ("w", w.copy())], 0.1)


def test_an_optimizer_must_say_how_it_updates():
    with pytest.raises(TypeError, match="_update"):
        optim.Optimizer([("a", np.zeros(2))], lr=0.1, weight_decay=0.0)
