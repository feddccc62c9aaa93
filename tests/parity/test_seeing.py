"""The programs that show a trained network, as a person runs them."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity import recipes, sheets
from parity.data import load
from parity.program import main_of
from parity.training import open_data, open_stream, split_data
from vit_numpy import VisionTransformer, init_weights, preset, save

SCRIPTS = Path(__file__).parents[2] / "scripts"


def program(name, *arguments, monkeypatch):
    """Run a program in this process; return its exit status."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return main_of(module.run, module.parse)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda name, *args: program(name, *args, monkeypatch=monkeypatch)


@pytest.fixture
def checkpoint(tmp_path):
    model = VisionTransformer(preset("network1", depth=2))
    init_weights(model, seed=1)
    path = tmp_path / "model.safetensors"
    save(
        path,
        model,
        preprocessing={"mean": [0.13], "std": [0.31]},
        metadata={"data": "mnist-subset", "class_names": list("0123456789")},
    )
    return path


@pytest.fixture
def pictures(tmp_path):
    digits = load("mnist-subset").test_images[:2, 0]
    paths = []
    for i, digit in enumerate(digits):
        paths.append(tmp_path / f"digit{i}.png")
        Image.fromarray(255 - digit).resize((90, 90)).save(paths[-1])
    return paths


def one_line(capsys):
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def is_picture(path):
    with Image.open(path) as picture:
        picture.verify()
        return picture.width > 300


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_evaluate_writes_scores_tables_and_pictures(backend, run, checkpoint, tmp_path):
    out, file = tmp_path / "out", tmp_path / "scores.json"
    flags = ("--backend", backend, "--json", file, "--out", out, "--mistakes", 5)
    assert run("evaluate", checkpoint, *flags) == 0
    scores = json.loads(file.read_text())
    assert {"top1", "top5", "per_class", "confusion"} <= scores.keys()
    assert np.sum(scores["confusion"]) == 2000
    assert json.loads((out / "scores.json").read_text()) == scores
    lines = (out / "confusion.csv").read_text().splitlines()
    assert lines[0] == r"true class \ predicted,0,1,2,3,4,5,6,7,8,9"
    rows = [[int(cell) for cell in line.split(",")[1:]] for line in lines[1:]]
    assert rows == scores["confusion"]
    assert is_picture(out / "confusion.png")
    assert is_picture(out / "mistakes.png")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (5, r": the 5 most confident of 1,\d{3} mistakes"),
        (2000, r": all 1,\d{3} mistakes, the most confident first"),
    ],
)
def test_a_sheet_says_which_mistakes_it_shows(
    count, said, run, checkpoint, tmp_path, monkeypatch
):
    titles = []
    draw = sheets.mistakes_sheet

    def noted(mistakes, images, class_names, title):
        titles.append(title)
        return draw(mistakes[:5], images[:5], class_names, title)

    monkeypatch.setattr(sheets, "mistakes_sheet", noted)
    flags = ("--backend", "numpy", "--out", tmp_path / "out", "--mistakes", count)
    assert run("evaluate", checkpoint, *flags) == 0
    assert re.search(said + "$", titles[0])


def test_evaluate_says_which_is_which(run, checkpoint, capsys):
    assert run("evaluate", checkpoint, "--backend", "numpy") == 0
    said = capsys.readouterr().out
    assert "precision: of the images taken for the class" in said
    assert "recall: of the images of the class" in said
    assert "most often confused:" in said


def test_missing_matplotlib_is_said_before_the_work(
    run, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    assert run("evaluate", checkpoint, "--backend", "numpy", "--out", out) == 2
    assert "pip install 'vit-parity[plot]'" in one_line(capsys)
    assert not out.exists()


def test_predict_says_what_it_saw_and_what_it_did(
    run, checkpoint, pictures, tmp_path, capsys
):
    show = tmp_path / "seen.png"
    assert run("predict", checkpoint, *pictures, "--show", show, "--top", 2) == 0
    said = capsys.readouterr().out
    assert said.count("inverted (it is dark on light)") == 2
    assert is_picture(show)


def test_backends_predict_the_same(run, checkpoint, pictures, capsys):
    found = []
    for backend in ("numpy", "torch"):
        flags = ("--backend", backend, "--json", "-", "--top", 10)
        assert run("predict", checkpoint, *pictures, *flags) == 0
        found.append(json.loads(capsys.readouterr().out))
    for ours, theirs in zip(*found, strict=True):
        assert ours["prepared"] == theirs["prepared"]
        shares = [
            {row["class"]: row["probability"] for row in side["predictions"]}
            for side in (ours, theirs)
        ]
        assert sum(shares[0].values()) == pytest.approx(1)
        assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_unreadable_picture_is_named_and_the_others_are_handled(
    run, checkpoint, pictures, tmp_path, capsys
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    flags = ("--json", "-")
    assert run("predict", checkpoint, pictures[0], broken, pictures[1], *flags) == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 2
    assert said.err.count("\n") == 1
    assert "broken.png is no picture that can be read" in said.err
    assert run("predict", checkpoint, broken) == 2


def test_attention_maps_are_the_same_in_both_backends(run, checkpoint, tmp_path):
    arrays = []
    for backend in ("numpy", "torch"):
        out = tmp_path / backend
        flags = ("--index", 3, "--backend", backend, "--out", out)
        assert run("attention_maps", checkpoint, *flags) == 0
        assert is_picture(out / "attention.png")
        arrays.append(np.load(out / "attention.npz", allow_pickle=False))
    ours, theirs = arrays
    assert ours["heads"].shape == (2, 3, 4, 4)
    assert np.array_equal(ours["image"], theirs["image"])
    for name in ("heads", "rollout"):
        # tests/parity/test_attention.py holds them to their computed bound.
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)


def test_attention_maps_take_a_picture(run, checkpoint, pictures, tmp_path):
    assert run("attention_maps", checkpoint, pictures[0]) == 0
    assert is_picture(tmp_path / "attention" / "attention.png")


def test_summary_knows_presets_recipes_and_checkpoints(run, checkpoint, capsys):
    plain = shutil.copy(checkpoint, checkpoint.with_name("plain"))
    expected = ("b16", "86,567,656"), (checkpoint, "2,729"), (Path(plain).name, "2,729")
    for network, parameters in expected:
        assert run("summary", network) == 0
        assert parameters in capsys.readouterr().out
    assert run("summary", "network2", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 28_106


def test_plot_curves_names_runs_by_what_tells_them_apart(run, tmp_path, capsys):
    step = {"kind": "step", "step": 1, "epoch": 1, "loss": 2.0, "accuracy": 0.1}
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    (tmp_path / "b/run-numpy-0.jsonl").write_text(json.dumps(step) + "\n")
    assert run("plot_curves", "a/run", "b/run/metrics.jsonl") == 0
    assert capsys.readouterr().out == "a/run, b/run -> curves.png\n"
    assert run("plot_curves", "a/run", "b/run-numpy-0.jsonl") == 0
    assert capsys.readouterr().out == "run, run-numpy-0 -> curves.png\n"
    assert is_picture(tmp_path / "curves.png")
    assert run("plot_curves", "a/run", "a/run") == 2
    assert "named twice" in one_line(capsys)


@pytest.fixture
def shown(monkeypatch):
    """What a sheet of a batch is drawn of, most recent last."""
    calls = []
    figure = sheets.batch_sheet

    def sheet(stored, given, labels, title):
        calls.append((stored, given))
        return figure(stored, given, labels, title)

    monkeypatch.setattr(sheets, "batch_sheet", sheet)
    return calls


def test_show_batch_draws_what_both_backends_train_on(run, shown, tmp_path):
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(
        """
        data = "mnist-subset"
        preset = "network1"
        epochs = 2
        batch_size = 30
        augment = [{ name = "pad_crop", padding = 2 }, { name = "cutmix" }]
        optimizer = { name = "adamw", lr = 0.001 }
        """
    )
    assert run("show_batch", recipe, "--epoch", 2, "--count", 11) == 0
    assert is_picture(tmp_path / "batch.png")
    opened = recipes.load(recipe)
    part, _ = split_data(opened, open_data(opened))
    images = next(open_stream(opened, part).epoch(1)).images[:11]
    ((_, given),) = shown
    # Levels are whole numbers again.
    assert np.abs(given / 255 - (images * part.std + part.mean)).max() < 0.5001 / 255


def test_show_batch_leaves_out_the_images_to_validate_with(run, shown, tmp_path):
    recipe = tmp_path / "held.toml"
    recipe.write_text(
        """
        data = "mnist-subset"
        preset = "network1"
        epochs = 2
        batch_size = 30
        validation = 0.5
        optimizer = { name = "adamw", lr = 0.001 }
        """
    )
    assert run("show_batch", recipe, "--count", 30) == 0
    opened = recipes.load(recipe)
    part, _ = split_data(opened, open_data(opened))
    rows = next(open_stream(opened, part).epoch(0)).indices
    ((stored, _),) = shown
    assert np.array_equal(stored, part.images[rows])


ON_DIGITS = ("--backend", "numpy", "--data", "mnist-subset")
BAD = [
    (("show_batch", "network7"), "did you mean 'network"),
    (("evaluate", "none.safetensors", "--backend", "numpy"), "does not exist"),
    (("evaluate", "notes.txt", "--backend", "numpy"), "notes.txt"),
    (("evaluate", "damaged.safetensors", "--backend", "torch"), "damaged"),
    (
        ("evaluate", "model.safetensors", "--backend", "numpy", "--data", "mnits"),
        "did you mean 'mnist'",
    ),
    (
        ("evaluate", "model.safetensors", "--backend", "numpy", "--data", "folder:f"),
        "has 2 classes, the network 10",
    ),
    (
        ("evaluate", "bare.safetensors", *ON_DIGITS),
        "does not say by which mean and std images are normalised; add --mean --std",
    ),
    (
        ("evaluate", "bare.safetensors", *ON_DIGITS, "--std", "0.3"),
        "by which mean images are normalised; add --mean",
    ),
    (
        ("evaluate", "clothes.safetensors", "--backend", "numpy"),
        "clothes.safetensors knows the class 'shirt' where mnist-subset has '0'",
    ),
    (
        ("evaluate", "smaller.safetensors", "--backend", "numpy"),
        "mnist-subset has images of 28×28, got image_size=(14, 14)",
    ),
    (
        ("evaluate", "model.safetensors", "--backend", "numpy", "--json", "no/x.json"),
        "must be in a folder that exists",
    ),
    (("predict", "none.safetensors", "picture.png"), "does not exist"),
    (("predict", "bare.safetensors", "picture.png"), "add --mean --std"),
    (("predict", "model.safetensors", "none.png"), "give the path of a picture"),
    (
        ("predict", "model.safetensors", "picture.png", "--mean", "0.1", "0.2"),
        "mean and std must have the shape (1,)",
    ),
    (("attention_maps", "model.safetensors"), "or --index I, got neither"),
    (("attention_maps", "model.safetensors", "--index", "2000"), "0 to 1999"),
    (("attention_maps", "bare.safetensors", "--index", "0"), "add --data NAME"),
    (("summary", "b15"), "did you mean 'b16'"),
    (("summary", "none.safetensors"), "does not exist"),
    (("plot_curves", "none"), "holds no metrics.jsonl"),
    (("to_tensorboard", "none", "--out", "logs"), "holds no metrics.jsonl"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_answered_with_one_line(
    arguments, message, run, checkpoint, pictures, tmp_path, capsys
):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    data = checkpoint.read_bytes()
    (tmp_path / "damaged.safetensors").write_bytes(data[: len(data) // 2])
    small = VisionTransformer(preset("network1", depth=1, image_size=14))
    save(tmp_path / "smaller.safetensors", small, metadata={"data": "mnist-subset"})
    bare = VisionTransformer(preset("network1", depth=1))
    save(tmp_path / "bare.safetensors", bare)
    clothes = {"data": "mnist-subset", "class_names": ["shirt", *"123456789"]}
    save(tmp_path / "clothes.safetensors", bare, metadata=clothes)
    pictures[0].rename(tmp_path / "picture.png")
    for name in ("f/cat", "f/dog"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (28, 28), 99).save(tmp_path / name / f"{i}.png")
    assert run(*arguments) == 2
    assert message in one_line(capsys)
