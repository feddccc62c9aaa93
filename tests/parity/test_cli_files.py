"""The commands convert, inspect and data."""

import json

import numpy as np
import pytest
import torch

import vit_numpy
import vit_torch
from parity.cli import main

FIELDS = dict(
    image_size=8, patch_size=4, in_chans=1, dim=8, depth=1, num_heads=2, mlp_dim=16,
    num_classes=3,
)  # fmt: skip


@pytest.fixture
def model():
    model = vit_numpy.VisionTransformer(vit_numpy.ViTConfig(**FIELDS))
    vit_numpy.init_weights(model, seed=3, zero_head=False)
    return model


@pytest.fixture
def checkpoint(tmp_path, model):
    path = tmp_path / "numpy.safetensors"
    metadata = {"class_names": ["a", "b", "c"]}
    vit_numpy.save(path, model, {"mean": [0.25], "std": [0.5]}, metadata)
    return path


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_convert_keeps_every_weight(tmp_path, capsys, checkpoint, model, suffix):
    there = tmp_path / f"there{suffix}"
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(checkpoint), str(there)]) == 0
    assert main(["convert", str(there), str(back)]) == 0
    assert "parameters" in capsys.readouterr().out
    twin = vit_torch.from_pretrained(back)
    for name, parameter in twin.state_dict().items():
        assert np.array_equal(parameter.numpy(), model.state_dict()[name])


def test_convert_keeps_what_the_file_says_of_itself(tmp_path, capsys, checkpoint):
    there = tmp_path / "there.safetensors"
    main(["convert", str(checkpoint), str(there)])
    capsys.readouterr()
    assert main(["inspect", str(there), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["preprocessing"] == {"mean": [0.25], "std": [0.5]}
    assert said["metadata"] == {"class_names": ["a", "b", "c"]}
    assert said["config"]["dim"] == 8


def test_bare_weights_need_a_configuration(tmp_path, capsys, model):
    bare = tmp_path / "bare.pt"
    torch.save({k: torch.tensor(v) for k, v in model.state_dict().items()}, bare)
    there = tmp_path / "there.safetensors"
    assert "configuration" in refused(capsys, "convert", bare, there)
    assert not there.exists()
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    config = str(tmp_path / "config.json")
    assert main(["convert", str(bare), str(there), "--config", config]) == 0
    assert vit_numpy.from_pretrained(there).config.num_classes == 3


def test_convert_replaces_a_file_only_when_told(tmp_path, capsys, checkpoint):
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    assert "--overwrite" in refused(capsys, "convert", checkpoint, there)
    assert there.read_text() == "mine"
    assert main(["convert", str(checkpoint), str(there), "--overwrite"]) == 0


def test_inspect_names_every_tensor(capsys, checkpoint, model):
    assert main(["inspect", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in model.state_dict())
    assert "float32" in said


def test_bad_input_is_answered_with_one_line(tmp_path, capsys, checkpoint):
    missing = tmp_path / "missing.safetensors"
    assert "missing.safetensors" in refused(capsys, "inspect", missing)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:100])
    assert "damaged.safetensors" in refused(capsys, "inspect", damaged)
    wrong = tmp_path / "there.onnx"
    assert ".safetensors" in refused(capsys, "convert", checkpoint, wrong)
    assert "mnist" in refused(capsys, "data", "fetch", "mnits")
    assert "name a data set" in refused(capsys, "data", "fetch")


def test_data_lists_what_ships(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_PARITY_CACHE", str(tmp_path))
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "mnist-subset" in said
    assert "parity data fetch cifar10" in said
