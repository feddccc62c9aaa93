"""Files of one backend in the other, and files that are not what they should be."""

import errno
import json
import os
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import vit_numpy.checkpoint as numpy_checkpoint
import vit_torch.checkpoint as torch_checkpoint
from parity import weights
from vit_numpy import config as numpy_config
from vit_numpy import ema as numpy_ema
from vit_numpy import init as numpy_init
from vit_numpy import model as numpy_model
from vit_numpy import optim as numpy_optim
from vit_numpy import train as numpy_train
from vit_torch import config as torch_config
from vit_torch import ema as torch_ema
from vit_torch import init as torch_init
from vit_torch import model as torch_model
from vit_torch import optim as torch_optim
from vit_torch import train as torch_train

FIELDS = dict(
    image_size=[8, 8], patch_size=4, in_chans=1, dim=8, depth=2, num_heads=2,
    mlp_dim=16, num_classes=4, act_drop=0.1, qk_norm=True, num_registers=1,
)  # fmt: skip
PREPROCESSING = {"mean": [0.5], "std": [0.25]}


class NumPy:
    checkpoint = numpy_checkpoint
    average = numpy_ema.EMA

    def trainer(self, seed=0, **overrides):
        config = numpy_config.ViTConfig.from_dict(FIELDS | overrides)
        model = numpy_model.VisionTransformer(config)
        numpy_init.init_weights(model, seed, zero_head=False)
        groups = numpy_optim.param_groups(model, 0.1)
        return numpy_train.Trainer(model, numpy_optim.AdamW(groups, 0.01), seed=seed)

    def batch(self, seed):
        rng = np.random.default_rng(seed)
        images = rng.normal(size=(6, 1, 8, 8)).astype(np.float32)
        return images, rng.integers(0, 4, 6)

    def array(self, value):
        return np.asarray(value)


class Torch(NumPy):
    checkpoint = torch_checkpoint
    average = torch_ema.EMA

    def trainer(self, seed=0, **overrides):
        config = torch_config.ViTConfig.from_dict(FIELDS | overrides)
        model = torch_model.VisionTransformer(config)
        torch_init.init_weights(model, seed, zero_head=False)
        groups = torch_optim.param_groups(model, 0.1)
        return torch_train.Trainer(model, torch_optim.AdamW(groups, 0.01), seed=seed)

    def batch(self, seed):
        return tuple(map(torch.from_numpy, super().batch(seed)))

    def array(self, value):
        return value.detach().numpy()


BACKENDS = [NumPy(), Torch()]
each = pytest.mark.parametrize("backend", BACKENDS, ids=["numpy", "torch"])
pairs = pytest.mark.parametrize(
    ("source", "target"),
    [(a, b) for a in BACKENDS for b in BACKENDS],
    ids=["numpy-numpy", "numpy-torch", "torch-numpy", "torch-torch"],
)


def same(source, model, target, other):
    """Assert equal weights, by name and bit."""
    state, loaded = model.state_dict(), other.state_dict()
    assert state.keys() == loaded.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(source.array(value), target.array(loaded[name]))


@pairs
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_opens_in_either_backend(source, target, dtype, tmp_path):
    model = source.trainer().model
    model = model.to(getattr(torch, dtype) if source is BACKENDS[1] else dtype)
    path = tmp_path / "model.safetensors"
    source.checkpoint.save(path, model, PREPROCESSING, {"note": "ä"})
    loaded = target.checkpoint.from_pretrained(path)
    same(source, model, target, loaded)
    assert loaded.config.to_dict() == model.config.to_dict()
    header = target.checkpoint.load(path).header
    assert header["preprocessing"] == PREPROCESSING
    assert header["metadata"] == {"note": "ä"}
    assert header["backend"] in ("numpy", "torch")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@each
def test_a_resumed_training_is_the_one_never_stopped(backend, tmp_path):
    path = tmp_path / "state.safetensors"
    straight, first = backend.trainer(), backend.trainer()
    for i in range(3):
        straight.step(*backend.batch(i))
        first.step(*backend.batch(i))
    backend.checkpoint.save_training(path, first, epoch=2)
    resumed = backend.trainer(seed=9)
    header = backend.checkpoint.load_training(path, resumed)
    assert header["training"] == {"step": 3, "seed": 0, "epoch": 2}
    for i in range(3, 6):
        straight.step(*backend.batch(i))
        resumed.step(*backend.batch(i))
    same(backend, straight.model, backend, resumed.model)


@pairs
def test_a_training_state_opens_in_either_backend(source, target, tmp_path):
    path = tmp_path / "state.safetensors"
    trainer = source.trainer()
    trainer.step(*source.batch(0))
    source.checkpoint.save_training(path, trainer)
    other = target.trainer(seed=1)
    target.checkpoint.load_training(path, other)
    same(source, trainer.model, target, other.model)
    same(source, trainer.optimizer, target, other.optimizer)
    same(source, trainer.model, target, target.checkpoint.from_pretrained(path))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_half_precision_is_widened_exactly(backend, dtype, suffix, tmp_path):
    path = tmp_path / f"half{suffix}"
    state = {
        k: v.to(dtype) for k, v in BACKENDS[1].trainer().model.state_dict().items()
    }
    if suffix == ".pt":
        torch.save({"config": FIELDS, "state_dict": state}, path)
    else:
        header = {"vit_parity": json.dumps({"format": 1, "config": FIELDS})}
        save_file(state, path, header)
    loaded = backend.checkpoint.from_pretrained(path).state_dict()
    for name, value in state.items():
        np.testing.assert_array_equal(
            backend.array(loaded[name]), value.float().numpy(), strict=True
        )


@each
def test_arrays_that_are_not_contiguous_are_written_right(backend, tmp_path):
    path = tmp_path / "model.safetensors"
    model = backend.trainer().model
    weight = model.blocks[0].attn.proj.weight
    if backend is BACKENDS[0]:
        model.blocks[0].attn.proj.weight = weight.T
    else:
        weight.data = weight.data.T
    backend.checkpoint.save(path, model)
    same(backend, model, backend, backend.checkpoint.from_pretrained(path))


@each
def test_a_failed_write_leaves_the_old_file(backend, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = backend.trainer().model
    backend.checkpoint.save(path, model)
    before = path.read_bytes()

    def half(arrays, part, metadata):
        Path(part).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(backend.checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        backend.checkpoint.save(path, backend.trainer(seed=1).model)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@each
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space")],
)
def test_a_full_disk_is_told_with_the_file_that_it_did_not_take(
    backend, error, tmp_path, monkeypatch
):
    def full(arrays, part, metadata):
        raise error

    monkeypatch.setattr(backend.checkpoint, "save_file", full)
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written \(No sp"):
        backend.checkpoint.save(path, backend.trainer().model)
    assert not list(tmp_path.iterdir())


@each
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_lets(backend, umask, tmp_path):
    path = tmp_path / "model.safetensors"
    before = os.umask(umask)
    try:
        backend.checkpoint.save(path, backend.trainer().model)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def write(path, config=FIELDS, form=1, drop=None, **arrays):
    state = {**BACKENDS[1].trainer().model.state_dict(), **arrays}
    state.pop(drop, None)
    header = {"vit_parity": json.dumps({"format": form, "config": config})}
    save_file(state, path, header)


def truncated(path):
    write(path)
    path.write_bytes(path.read_bytes()[:-9])


BAD = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "not safetensors": (lambda path: path.write_bytes(b"hello"), "is damaged"),
    "huge header": (
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "is damaged",
    ),
    "truncated": (truncated, "is damaged"),
    "unknown key": (lambda path: write(path, FIELDS | {"dmi": 8}), "mean 'dim'"),
    "bad value": (lambda path: write(path, FIELDS | {"dim": 9}), "divisible"),
    "no object": (lambda path: write(path, [3]), "cannot be read"),
    "newer": (lambda path: write(path, form=2), "update vit-parity"),
    "missing array": (
        lambda path: write(path, drop="head.bias"),
        r"state has no 'head\.bias'",
    ),
    "unknown array": (
        lambda path: write(path, **{"haed.bias": torch.zeros(4)}),
        r"did you mean 'head\.bias'",
    ),
    "shape": (
        lambda path: write(path, **{"head.bias": torch.zeros(3)}),
        r"head\.bias must have shape \(4,\), got shape \(3,\)",
    ),
    "mixed": (
        lambda path: write(path, **{"head.bias": torch.zeros(4, dtype=torch.float64)}),
        "all be float32 or all float64, got float32, float64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_alike(case, tmp_path):
    make, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    make(path)
    said = []
    for backend in BACKENDS:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            backend.checkpoint.from_pretrained(path)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]
    assert "\n" not in said[0][1]


@each
def test_a_training_state_of_something_else_is_refused(backend, tmp_path):
    path = tmp_path / "state.safetensors"
    trainer = backend.trainer()
    backend.checkpoint.save(path, trainer.model)
    with pytest.raises(ValueError, match="a model without a training state"):
        backend.checkpoint.load_training(path, trainer)
    backend.checkpoint.save_training(path, trainer)
    with pytest.raises(ValueError, match="mlp_dim=16, but the model has mlp_dim=8"):
        backend.checkpoint.load_training(path, backend.trainer(mlp_dim=8))


def without(part, name):
    def change(state):
        state[part] = {k: v for k, v in state[part].items() if k != name}

    return change


def with_step(value):
    def change(state):
        step = state["optimizer"]["step"] * 0 + value
        state["optimizer"] = state["optimizer"] | {"step": step}

    return change


WRONG_STATES = {
    "half a step": (with_step(1.5), "step in the optimizer state must be a whole num"),
    "no number": (with_step(float("nan")), "must be a whole number of at least 0, got"),
    "step below 0": (with_step(-1), "of at least 0, got -1$"),
    "no part": (lambda s: s.pop("seed"), "the training state has no 'seed'"),
    "missing weight": (without("model", "head.bias"), r"^state has no 'head\.bias'"),
    "missing moment": (
        without("optimizer", "exp_avg.head.bias"),
        r"optimizer state has no 'exp_avg\.head\.bias'",
    ),
    "unknown weight": (
        lambda s: s.update(model=s["model"] | {"haed.bias": s["model"]["head.bias"]}),
        r"in the state 'haed\.bias'; did you mean 'head\.bias'",
    ),
    "shape": (
        lambda s: s.update(model=s["model"] | {"head.bias": s["model"]["cls_token"]}),
        r"head\.bias must have shape \(4,\), got shape \(1, 1, 8\)",
    ),
    "text": (lambda s: s.update(step="7"), "step must be an int, got step='7'"),
    "below 0": (lambda s: s.update(step=-3), "step must be at least 0, got step=-3"),
    "part of a step": (lambda s: s.update(seed=1.5), "seed must be an int, got"),
}


@pytest.mark.parametrize("case", WRONG_STATES)
def test_a_wrong_training_state_leaves_the_trainer_as_it_was(case):
    change, message = WRONG_STATES[case]
    said = []
    for backend in BACKENDS:
        trained = backend.trainer(seed=1)
        trained.step(*backend.batch(0))
        state = trained.state_dict()
        change(state)
        trainer, same_start = backend.trainer(), backend.trainer()
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            trainer.load_state_dict(state)
        said.append((caught.type, str(caught.value)))
        same(backend, same_start.model, backend, trainer.model)
        same(backend, same_start.optimizer, backend, trainer.optimizer)
        assert (trainer.steps, trainer.seed) == (0, 0)
    assert said[0] == said[1]


def rewrite(path, **entries):
    """Put other entries into a file's header."""
    arrays, metadata = numpy_checkpoint.read_safetensors(path)
    header = json.loads(metadata["vit_parity"]) | entries
    numpy_checkpoint.write_safetensors(path, arrays, {"vit_parity": json.dumps(header)})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"training": 5}, "cannot be read .*training is no object"),
        ({"training": {}}, "the training state has no 'epoch'"),
        ({"training": {"epoch": 1, "seed": 0}}, "the training state has no 'step'"),
        (
            {"training": {"epoch": 1, "seed": 0, "step": "7"}},
            "step must be an int, got step='7'",
        ),
        (
            {"training": {"epoch": 1, "seed": -1, "step": 7}},
            "seed must be at least 0, got seed=-1",
        ),
        (
            {"training": {"epoch": None, "seed": 0, "step": 7}},
            "epoch must be an int, got epoch=None",
        ),
        ({"config": FIELDS | {"dim": "8"}}, "dim must be an int, got dim='8'"),
        ({"config": FIELDS | {"dmi": 8}}, "did you mean 'dim'"),
    ],
    ids=str,
)
def test_a_training_state_with_a_wrong_header_is_refused_by_name(
    entries, message, tmp_path
):
    path = tmp_path / "state.safetensors"
    numpy_checkpoint.save_training(path, BACKENDS[0].trainer())
    rewrite(path, **entries)
    said = []
    for backend in BACKENDS:
        trainer = backend.trainer(seed=1)
        with pytest.raises(ValueError, match=rf"state\.safetensors: .*{message}") as e:
            backend.checkpoint.load_training(path, trainer)
        said.append(str(e.value))
        assert trainer.steps == 0
    assert said[0] == said[1]


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Path("surprise")}, path)
    with pytest.raises(ValueError, match="is not unpickled"):
        weights.load(path)


def test_weights_without_configuration_ask_for_one(tmp_path):
    path = tmp_path / "plain.pt"
    model = BACKENDS[1].trainer().model
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="without a configuration"):
        weights.load(path)
    config, arrays = weights.load(path, FIELDS)
    assert config == FIELDS
    assert arrays.keys() == model.state_dict().keys()
    loaded = numpy_checkpoint.from_pretrained(path, numpy_config.ViTConfig(**FIELDS))
    same(BACKENDS[0], loaded, BACKENDS[1], model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_conversion_keeps_every_bit(suffix, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / f"b{suffix}"
    trainer = BACKENDS[1].trainer()
    trainer.step(*BACKENDS[1].batch(0))
    torch_checkpoint.save_training(source, trainer)
    weights.save(target, *weights.load(source))
    for backend in BACKENDS:
        loaded = backend.checkpoint.from_pretrained(target)
        same(BACKENDS[1], trainer.model, backend, loaded)
    said = weights.inspect(target)
    assert said["family"] == "vit-parity"
    assert said["config"] == trainer.model.config.to_dict()
    assert said["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert said["dtypes"] == {"float32": said["tensors"]}
    assert weights.inspect(source)["training"]["step"] == 1
    json.dumps(said)


def test_of_a_training_the_average_is_converted_where_it_has_one(tmp_path):
    source, target = tmp_path / "last.safetensors", tmp_path / "there.safetensors"
    for backend in BACKENDS:
        trainer = backend.trainer()
        trainer.ema = backend.average(trainer.model, 0.5)
        trainer.step(*backend.batch(0))
        backend.checkpoint.save_training(source, trainer)
        weights.save(target, *weights.load(source))
        expected = backend.checkpoint.from_pretrained(source)
        same(backend, expected, backend, backend.checkpoint.from_pretrained(target))
        assert weights.inspect(source)["parameters"] == sum(
            array.size for array in weights.load(target)[1].values()
        )


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_weights_of_several_dtypes_are_not_rounded_to_one(dtype, tmp_path):
    model = BACKENDS[0].trainer().model
    mixed = dict(model.state_dict())
    mixed["head.weight"] = mixed["head.weight"].astype(dtype)
    with pytest.raises(ValueError, match=f"got float32, {dtype}|got {dtype}, float32"):
        weights.save(tmp_path / "a.pt", model.config.to_dict(), mixed)
    assert not (tmp_path / "a.pt").exists()


def test_unknown_files_say_what_is_known(tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"encoder.weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"no known family; it holds encoder\.weight"):
        weights.load(other)
    strange = tmp_path / "weights.tfl"
    strange.write_bytes(b"")
    with pytest.raises(ValueError, match=r"unknown suffix '\.tfl'"):
        weights.load(strange)
    model = BACKENDS[0].trainer().model
    with pytest.raises(ValueError, match="unknown suffix"):
        weights.save(strange, model.config.to_dict(), model.state_dict())


def test_without_parity_the_command_is_named(tmp_path, monkeypatch):
    path = tmp_path / "plain.pt"
    torch.save(BACKENDS[1].trainer().model.state_dict(), path)
    monkeypatch.setitem(__import__("sys").modules, "parity", None)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="parity convert"):
            backend.checkpoint.from_pretrained(path)
