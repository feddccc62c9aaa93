"""`parity bench`: rows, ratios within rounds, files, and what it refuses."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from parity.bench import runs, tables
from parity.bench.runs import Bench, Row, growth_workloads, measure, network_workloads
from parity.bench.subjects import batch, build, parameter_count
from parity.bench.worker import time_calls
from parity.cli import main
from vit_numpy.config import preset

SHORT = ["--rounds", "1", "--seconds", "0.01", "--threads", "1"]


def row(backend="numpy", **fields):
    usual = dict(network="network1", what="train", batch=4, dropout=False, threads=1)
    return Row(backend=backend, coretype="native", **(usual | fields))


def test_both_backends_are_measured_and_compared(tmp_path, capsys):
    path = tmp_path / "bench.json"
    picture = tmp_path / "bench.png"
    arguments = ["bench", "--networks", "network1", "--backends", "numpy", "torch"]
    arguments += ["--dropout", "on", "--json", str(path), "--plot", str(picture)]
    assert main(arguments + SHORT) == 0
    printed = capsys.readouterr().out
    assert "network1, train, batch 100, dropout" in printed
    content = json.loads(path.read_text())
    assert [r["backend"] for r in content["rows"]] == ["numpy", "torch"]
    for measured in content["rows"]:
        assert measured["network"] == "network1"
        assert measured["what"] == "train"
        assert 0 < measured["min_ms"] <= measured["median_ms"]
        assert measured["images_per_s"] == pytest.approx(
            100 / measured["median_ms"] * 1e3, rel=1e-2
        )
        assert 0 < measured["share_of_peak"] < 1
        assert measured["peak_mib"] > 0
    assert content["rows"][0]["ratio_to_torch_eager"] > 0
    assert content["rows"][1]["ratio_to_torch_eager"] == 1
    assert content["environment"]["cpu"]
    assert set(content["matmul_gflops"]) == {"numpy, 1 thread", "torch, 1 thread"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    # What was written is shown again without measuring.
    assert main(["bench", "--from-json", str(path), "--markdown"]) == 0
    assert "| numpy |" in capsys.readouterr().out


def test_ratio_is_taken_within_each_round():
    measured = row()
    # The machine was ten times slower in the second of three rounds, for both.
    runs._fill(measured, [[2.0] * 3, [20.0] * 3, [2.0] * 3], [[4.0], [40.0], [4.0]])
    assert measured.ratio_to_torch_eager == 0.5
    assert measured.median_ms == 2000
    assert measured.min_ms == 2000
    without_torch = row()
    runs._fill(without_torch, [[1.0, 2.0, 3.0]], None)
    assert without_torch.ratio_to_torch_eager is None
    assert without_torch.spread == pytest.approx(1.0)


def test_layers_have_a_row_each():
    workloads = network_workloads(["network1"], "layers", 1, batch=2)
    bench = measure(workloads, ["numpy", "torch"], rounds=1, seconds=0.1)
    by_layer = {(r.layer, r.backend): r for r in bench.rows}
    for layer in ("attention", "attention + backward", "gelu", "layer_norm", "adamw"):
        assert by_layer[layer, "numpy"].median_ms > 0
        assert by_layer[layer, "torch"].ratio_to_torch_eager == 1


def test_a_backend_that_fails_says_why_and_spoils_nothing(monkeypatch):
    workloads = network_workloads(["network1"], "infer", 1, batch=2)
    config = preset("network1", pool="map", class_token=False)
    odd = [runs.Workload("odd", config, "infer", 2, 1)]
    monkeypatch.setitem(runs.BACKENDS, "timm", "torch")
    rows = measure(odd, ["numpy", "timm"], rounds=1, seconds=0.01).rows
    assert rows[0].median_ms > 0
    assert not rows[0].error
    assert rows[1].median_ms is None
    assert rows[1].error
    rows = measure(workloads, ["numpy"], rounds=1, seconds=0.01, build_limit=0.001).rows
    assert rows[0].error == "not ready after 0.001 s"
    assert "not ready" in tables.text(Bench(rows))


@pytest.mark.parametrize(
    "backend",
    ["numpy", "torch", "torchvision"]
    + [
        pytest.param(n, marks=pytest.mark.peers)
        for n in ("timm", "transformers", "jax")
    ],
)
@pytest.mark.parametrize("name", ["network1", "network3"])
def test_every_backend_trains_the_same_network(backend, name):
    if find_spec(runs.BACKENDS[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    config = preset(name, act_drop=0.0)
    # Building refuses another number of parameters.
    build(backend, "train", config, 2)["step"]()
    build(backend, "infer", config, 2)["step"]()


def test_images_and_labels_are_the_same_for_every_backend():
    config = preset("network1")
    (images, labels), (again, same) = batch(config, 4), batch(config, 4)
    assert images.shape == (4, 1, 28, 28)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same)
    assert parameter_count(config) == 3742


def test_variants_and_batches():
    train = network_workloads(["network1", "ti16"], "train", 2)
    assert [(w.network, w.batch, w.dropout) for w in train] == [
        ("network1", 100, True),
        ("network1", 100, False),
        ("ti16", 8, False),
    ]
    infer = network_workloads(["ti16"], "infer", 2)
    assert [(w.batch, w.dropout) for w in infer] == [(1, False), (64, False)]
    assert (
        2
        < train[0].flops
        / network_workloads(["network1"], "infer", 2, batch=100)[0].flops
        < 3
    )


def test_growth_varies_one_thing_at_a_time():
    workloads = growth_workloads(1)
    assert {w.axis for w in workloads} == {
        "batch", "tokens", "width", "depth", "threads",
    }  # fmt: skip
    assert all(w.config.num_tokens == w.value for w in workloads if w.axis == "tokens")
    assert all(w.config.dim == w.value for w in workloads if w.axis == "width")
    assert all(w.batch == w.value for w in workloads if w.axis == "batch")


def test_tables_replace_those_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench infer -->\nold\n<!-- end -->\nb\n")
    bench = Bench([row(median_ms=12.34)])
    for _ in range(2):
        tables.write_into(bench, "infer", page)
        content = page.read_text()
        assert content.startswith("a\n<!-- bench infer -->\n")
        assert content.endswith("<!-- end -->\nb\n")
        assert "old" not in content
        assert content.count("| numpy | 12.3 |") == 1
    with pytest.raises(ValueError, match="bench train"):
        tables.write_into(bench, "train", page)


def test_growth_is_drawn(tmp_path):
    rows = [
        row(backend, axis=axis, value=value, median_ms=value, ratio_to_torch_eager=0.5)
        for axis in ("batch", "depth")
        for value in (1, 2, 4)
        for backend in ("numpy", "torch")
    ]
    tables.plot(Bench(rows), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_turn_has_three_steps_at_least():
    assert len(time_calls(lambda: None, 0.0)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--networks", "network9"], "did you mean 'network"),
        (["--backends", "torh"], "did you mean 'torch'"),
        (["--rounds", "0"], "must be"),
        (["--json", "/nowhere/at/all.json"], "folder"),
        (["--from-json", "empty.json"], "these are no measurements (KeyError('rows'))"),
        (["--from-json", "page.md"], "give a file that --json wrote"),
    ],
)
def test_bad_input_is_answered_with_one_line(
    arguments, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("no table")
    (tmp_path / "empty.json").write_text("{}")
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("page", ["page.md", "no.md"])
def test_a_page_without_a_place_is_refused_before_measuring(
    page, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("parity.commands.bench._measure", pytest.fail)
    (tmp_path / "page.md").write_text("no table")
    assert main(["bench", "--into", page]) == 2
    assert page in capsys.readouterr().err
