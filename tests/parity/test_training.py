"""Runs leave whole files behind, and need no torch in NumPy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity import recipes
from parity.data import from_arrays
from parity.training import (
    Backend,
    Epoch,
    RunFolder,
    Step,
    build_model,
    build_trainer,
    check_fit,
    open_stream,
    predict,
    train,
    warmup_advice,
)
from vit_numpy import VisionTransformer, preset
from vit_numpy.checkpoint import save

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe():
    return recipes.load("network1").replace(
        {
            "epochs": 3,
            "batch_size": 16,
            "model.depth": 1,
            "schedule.warmup_steps": 2,
            "schedule.drop_after": [1],
            "augment": [{"name": "flip"}, {"name": "pad_crop", "padding": 2}],
        }
    )


@pytest.fixture
def dataset():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % 10
    return from_arrays(images[:40], labels[:40], images[40:], labels[40:])


def run(recipe, backend, dataset, path, **options):
    """Train into a new folder."""
    folder = RunFolder(path)
    folder.create(recipe, Backend.load(backend), overwrite=False)
    return list(train(recipe, Backend.load(backend), dataset, folder, **options))


def records_of(path):
    lines = (path / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_run_leaves_recipe_metrics_and_checkpoint(backend, recipe, dataset, tmp_path):
    records = run(recipe, backend, dataset, tmp_path)
    steps = [r for r in records if isinstance(r, Step)]
    epochs = [r for r in records if isinstance(r, Epoch)]
    assert [s.step for s in steps] == list(range(1, 10))
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert [s.lr for s in steps[:3]] == pytest.approx([0.005, 0.01, 0.01])
    assert steps[3].lr == pytest.approx(0.001)
    sizes = [16, 16, 8]
    mean = sum(n * s.loss for n, s in zip(sizes, steps[:3], strict=True)) / 40
    assert epochs[0].train_loss == pytest.approx(mean)
    kinds = [record["kind"] for record in records_of(tmp_path)]
    assert kinds == ["run"] + ["step", "step", "step", "epoch"] * 3
    assert recipes.load(tmp_path / "recipe.toml") == recipe.resolved()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "recipe.toml", "metrics.jsonl", "last.safetensors", "best.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_checkpoint_predicts_the_same_in_the_other_backend(
    backend, recipe, dataset, tmp_path
):
    run(recipe, backend, dataset, tmp_path)
    logits = [
        predict(
            Backend.load(name)
            .module("checkpoint")
            .from_pretrained(tmp_path / "last.safetensors"),
            Backend.load(name),
            dataset.test,
        )
        for name in ("numpy", "torch")
    ]
    assert np.array_equal(logits[0].argmax(axis=1), logits[1].argmax(axis=1))
    # Far above float32's rounding, 2⁻²⁴, which the layers' own tests bound.
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_a_run_that_diverges_at_once_says_that_there_is_no_checkpoint(
    recipe, dataset, tmp_path
):
    bad = recipe.replace({"optimizer.lr": 1e30, "schedule.warmup_steps": 0})
    with pytest.raises(FloatingPointError, match="no checkpoint was written"):
        run(bad, "numpy", dataset, tmp_path)
    assert not (tmp_path / "last.safetensors").exists()
    # What was measured before is kept.
    assert [record["kind"] for record in records_of(tmp_path)] == ["run", "step"]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_an_update_that_overflows_is_not_saved(recipe, dataset, tmp_path):
    steep = recipe.replace({"optimizer.lr": 1e39, "schedule.warmup_steps": 0})
    with pytest.raises(FloatingPointError, match=r"step 1 left '.*' not finite; no"):
        run(steep, "numpy", dataset, tmp_path, save_steps=1)
    assert not (tmp_path / "last.safetensors").exists()


def test_a_warm_up_is_given_in_steps_or_epochs(recipe, dataset):
    longer = {"schedule.warmup_steps": 0, "schedule.warmup_epochs": 2}
    assert not warmup_advice(recipe.replace(longer), 3)
    backend = Backend("numpy")
    changed = recipe.replace(longer)
    trainer = build_trainer(changed, backend, build_model(changed, backend), 3)
    assert trainer.schedule.warmup == 6
    with pytest.raises(ValueError, match="a warm-up has steps or epochs"):
        recipe.replace({"schedule.warmup_steps": 1, "schedule.warmup_epochs": 1})
    advice = warmup_advice(recipe.replace(longer | {"schedule.warmup_epochs": 30}), 3)
    assert advice.startswith("the warm-up of 90 steps takes the whole training of 9;")


def test_folder_in_use_is_refused(recipe, dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder(tmp_path)
    with pytest.raises(FileExistsError, match="is not empty; choose another folder"):
        folder.create(recipe, Backend("numpy"), overwrite=False)
    folder.create(recipe, Backend("numpy"), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        RunFolder(tmp_path / "absent").reopen()


def test_augmentation_is_that_of_the_recipe(recipe, dataset):
    plain = open_stream(recipe.replace({"augment": []}), dataset.train)
    changed = open_stream(recipe, dataset.train)
    (a, labels, _), (b, same_labels, _) = next(plain.epoch(0)), next(changed.epoch(0))
    assert np.array_equal(labels, same_labels)
    assert not np.array_equal(a, b)
    assert np.array_equal(b, next(open_stream(recipe, dataset.train).epoch(0)).images)


def test_data_that_does_not_fit_is_refused(recipe, dataset):
    with pytest.raises(ValueError, match=r"has images of shape \(1, 28, 28\)"):
        check_fit(dataset, recipe.replace({"model.image_size": 14}).config())
    with pytest.raises(ValueError, match="a network with num_classes=10"):
        check_fit(dataset, recipe.replace({"model.num_classes": 7}).config())
    untested = from_arrays(dataset.train_images, dataset.train_labels)
    with pytest.raises(ValueError, match="has no test images; give it test_images"):
        check_fit(untested, recipe.config())


def test_unknown_backend_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'numpy'"):
        Backend.load("nunpy")


# A finder before all others makes torch uninstalled for the program that follows.
WITHOUT_TORCH = """
import importlib.abc, runpy, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "vit_torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

sys.meta_path.insert(0, NoTorch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def grey_pictures(folder, greys):
    """Write two pictures of each of two classes, and return the folder."""
    for name, grey in zip(("a/0", "a/1", "b/0", "b/1"), greys, strict=True):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), grey).save(path)
    return folder


def test_programs_train_and_evaluate_without_torch(tmp_path):
    out = tmp_path / "run"
    flags = ["--data", "mnist-subset", "--epochs", "1", "--batch-size", "500"]
    train_args = ["scripts/train.py", "network1", *flags, "--out", out, "--backend"]
    done = program(*train_args, "numpy")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    again = program(*train_args, "numpy", "--resume")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to train" in again.stdout
    scores = tmp_path / "scores.json"
    done = program(
        "scripts/evaluate.py",
        out / "last.safetensors",
        *("--backend", "numpy", "--json", scores),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(scores.read_text("utf-8"))
    assert found["images"] == len(found["predictions"]) == 2000
    assert 0 < found["top1"] < found["top5"] <= 1
    assert len(found["confusion"]) == len(found["per_class"]) == 10
    for arguments, message in [
        ([*train_args, "numpy"], "is not empty"),
        ([*train_args, "torch"], "backend 'torch' needs PyTorch"),
        (["scripts/train.py", "netwrok1", "--backend", "numpy"], "did you mean"),
        ([*train_args, "numpy", "--set", "optimizer.lrr=3"], "did you mean"),
        (["scripts/evaluate.py", "absent", "--backend", "numpy"], "does not exist"),
    ]:
        done = program(*arguments)
        assert done.returncode == 2, done
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_cannot_be_trained_takes_no_run_away(tmp_path):
    out = tmp_path / "run"
    flags = ["--data", "mnist-subset", "--epochs", "1", "--batch-size", "500"]
    start = ["scripts/train.py", "network1", "--backend", "numpy", "--out", out, *flags]
    assert program(*start).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = shutil.copy(out / "best.safetensors", tmp_path)
    plain = grey_pictures(tmp_path / "plain", [99, 99, 99, 99])
    for changes, message in [
        (["--set", "optimizer.betas=3"], "betas must be two numbers"),
        (["--set", 'augment=[{name="mixup"},{name="flip"}]'], "must come before MixUp"),
        (["--from", out / "best.safetensors"], "which the run is to start from"),
        (["--save-minutes", "0"], "must be a number of minutes above 0"),
        (
            ["--set", "schedule.decay=linear", "--set", "schedule.drop_after=[]"],
            "the warm-up of 100 steps takes the whole training of 20; take more epochs",
        ),
        (["--lr", "1" + 400 * "0"], "must be finite"),
        (["--data", f"folder:{plain}"], "std must be above 0"),
        (["--from", other, "--set", "model.depth=7"], "that of the file to start from"),
        (["--from", other, "--image-size", "32"], "for the pictures of folder:PATH"),
    ]:
        done = program(*start, "--overwrite", *changes)
        assert done.returncode == 2, done
        assert message in done.stderr
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_epochs_added_to_a_run_are_those_of_its_recipe(tmp_path):
    out = tmp_path / "run"
    flags = ["--data", "mnist-subset", "--batch-size", "500", "--out", out]
    start = ["scripts/train.py", "mnist-sincos", "--backend", "numpy", *flags]
    few = ["--set", "schedule.warmup_steps=5"]
    assert program(*start, *few, "--epochs", "1").returncode == 0
    done = program(*start, "--resume", "--epochs", "2")
    assert "epoch 2/2" in done.stdout
    assert "the cosine decay, begun for 1 epochs, ends with the new ones" in done.stdout
    written = (out / "recipe.toml").read_text("utf-8")
    assert "\nepochs = 2\n" in written
    fewer = program(*start, "--resume", "--epochs", "1")
    assert fewer.returncode == 2
    assert "was trained for 2 epochs already, got epochs=1" in fewer.stderr
    assert (out / "recipe.toml").read_text("utf-8") == written


def test_a_compiler_that_is_not_there_costs_no_run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.toml").write_text("a run's")
    done = subprocess.run(
        [
            *(sys.executable, "scripts/train.py", "network1", "--backend", "torch"),
            *("--data", "mnist-subset", "--compile", "--out", str(out), "--overwrite"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Where nothing is cached that was compiled before.
        env=os.environ
        | {"CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 2, done
    assert "torch.compile does not work here" in done.stderr
    assert "leave --compile out" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (out / "recipe.toml").read_text() == "a run's"


def test_image_size_is_heard_wherever_a_fine_tuning_is_said(tmp_path):
    """By a recipe of its own, by one that a run has spelled out, and when resuming."""
    source = tmp_path / "source.safetensors"
    network = VisionTransformer(preset("network1", depth=1))
    save(source, network, preprocessing={"mean": [0.5], "std": [0.5]})
    pictures = grey_pictures(tmp_path / "pictures", [0, 50, 100, 150])
    recipe = recipes.load("network1").replace(
        {
            "data": f"folder:{pictures}",
            "epochs": 1,
            "schedule.warmup_steps": 0,
            "finetune.source": str(source),
        }
    )
    own = tmp_path / "own.toml"
    own.write_text(recipe.to_toml(), encoding="utf-8")
    first, second = tmp_path / "first", tmp_path / "second"
    for by, out, size in ((own, first, 14), (first / "recipe.toml", second, 21)):
        start = ("scripts/train.py", by, "--backend", "numpy", "--out", out)
        flags = ("--image-size", size)
        done = program(*start, *flags)
        assert done.returncode == 0, done.stderr
        found = recipes.load(out / "recipe.toml")
        assert found.config().image_hw == (size, size)
        assert (found.config().depth, found.config().num_classes) == (1, 2)
        again = program(*start, *flags, "--resume")
        assert "nothing is left to train" in again.stdout, again.stderr
        refused = program(*start, "--resume", "--image-size", "7")
        assert f"was run with finetune.image_size={size}" in refused.stderr
        refused = program(*start, "--set", "model.depth=2", "--overwrite")
        assert "that of the file to start from" in refused.stderr


def test_size_of_a_folders_pictures_can_be_said_again(tmp_path):
    pictures = grey_pictures(tmp_path / "pictures", [0, 50, 100, 150])
    flags = ["--data", f"folder:{pictures}", "--image-size", "14", "--epochs", "1"]
    flags += ["--set", "schedule.warmup_steps=0"]
    start = ["scripts/train.py", "network1", "--backend", "numpy", *flags]
    start += ["--out", tmp_path / "run"]
    assert program(*start).returncode == 0
    again = program(*start, "--resume")
    assert "nothing is left to train" in again.stdout, again.stderr
