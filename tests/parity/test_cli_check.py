"""The command line: what it prints, writes and returns."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from parity import pairs
from parity.adapters import module_problem
from parity.cli import COMMANDS, main
from parity.files import write_text
from parity.runs import run_pairs


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def wrong_bias(pair, case):
    right = module_problem(pair, case)

    def candidate(inputs):
        outputs, vjp = right.candidate(inputs)

        def wrong(cotangents):
            gradients = vjp(cotangents)
            return gradients | {"weight": gradients["weight"] * 1.01}

        return outputs, wrong

    return replace(right, candidate=candidate)


@pytest.fixture
def broken_linear(monkeypatch):
    rows = [
        replace(row, problem=wrong_bias) if row.name == "linear" else row
        for row in pairs.PAIRS
    ]
    monkeypatch.setattr(pairs, "PAIRS", tuple(rows))


def test_agreement_is_a_table_and_status_0(capsys, tmp_path):
    file = tmp_path / "report.json"
    status, out, err = run(
        capsys, "check", "--layer", "linear", "relu", "--examples", "14",
        "--workers", "1", "--json", str(file),
    )  # fmt: skip
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows[2:6]] == [
        ["linear", "float64", "14"],
        ["linear", "float32", "14"],
        ["relu", "float64", "14"],
        ["relu", "float32", "14"],
    ]
    report = json.loads(file.read_text())
    totals = report["totals"]
    assert totals["pairs"] == 2
    assert totals["failures"] == 0
    assert 0 < totals["max_bound_used"] <= 1
    assert totals["comparisons"] == sum(r["comparisons"] for r in report["records"])
    assert {(r["pair"], r["dtype"], r["tensor"]) for r in report["records"]} >= {
        ("linear", dtype, tensor)
        for dtype in ("float64", "float32")
        for tensor in ("out", "d_x", "d_weight", "d_bias")
    }
    assert report["environment"]["packages"]["numpy"]
    assert report["environment"]["cpu"]
    assert list(tmp_path.iterdir()) == [file]


def test_mismatch_is_status_1_and_its_command_reproduces_it(
    capsys, tmp_path, broken_linear
):
    file = tmp_path / "report.json"
    status, out, _ = run(
        capsys, "check", "--layer", "linear", "--dtype", "float32",
        "--examples", "14", "--json", str(file),
    )  # fmt: skip
    assert status == 1
    assert "d_params: d_weight" in out
    for word in ("candidate", "torch", "reference", "times the error bound", "regime"):
        assert word in out
    command = next(line for line in out.splitlines() if "reproduce" in line)
    arguments = shlex.split(command.partition("reproduce")[2])
    assert arguments[:2] == ["parity", "check"]
    status, again, _ = run(capsys, *arguments[1:])
    assert status == 1
    assert "d_params: d_weight" in again
    report = json.loads(file.read_text())
    failure = report["pairs"][0]["failures"][0]
    assert (failure["check"], failure["tensor"]) == ("d_params", "d_weight")
    assert failure["bound_used"] > 1
    assert shlex.split(failure["command"]) == arguments


def test_command_of_a_failure_passes_on_correct_code(capsys):
    case = '{"config":{"in_features":1,"out_features":1},"shapes":{"x":[2,2,1]}}'
    status, _, _ = run(capsys, "check", "--layer", "linear", "--case", case)
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required: command"),
        (("chek",), "did you mean 'check'?"),
        (("check", "--layer", "atention"), "did you mean 'attention'?"),
        (("check", "--dtype", "float16"), "float64"),
        (("check", "--examples", "0"), "at least 1"),
        (("check", "--examples", "many"), "whole number"),
        (("check", "--seed", "-1"), "--seed"),
        (("check", "--case", "{}"), "exactly one --layer"),
        (("check", "--layer", "linear", "--case", "{"), "must be JSON"),
        (("check", "--layer", "linear", "--case", "{}"), "config and shapes"),
        (
            ("check", "--layer", "relu", "--case", '{"config":{},"shapes":{}}'),
            "must fit the pair 'relu'",
        ),
        (("check", "--json", "no/such/folder/report.json"), "folder"),
        (("check", "--wrong"), "--wrong"),
        (("check", "--layer", "sincos_1d", "--dtype", "float32"), "choose float64"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("parity")
    assert words in err


@pytest.mark.parametrize(
    ("candidate", "reference", "words"),
    [
        ("lambda x: x", "lambda x: x", "by def at the top of a module, or check with"),
        ("abs", "torch.special.bessel_j0", 'register_rule("special_bessel_j0"'),
        ("abs", "kinked", "got relu, threshold_backward on a kink"),
        ("abs", "misshapen", "got RuntimeError: mat1 and mat2"),
        ("abs", "torch.nn.LSTM(4, 2)", "got tuple in out1; wrap it"),
    ],
)
def test_pairs_that_cannot_be_checked_are_one_line_and_status_2(
    capsys, tmp_path, monkeypatch, candidate, reference, words
):
    module = f"unchecked_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        "import torch\nfrom parity import make_pair\n"
        "def kinked(x): return (3 * x - 2 * x - x).relu()\n"
        "def misshapen(x): return x @ x\n"
        f"one = make_pair('one', {candidate}, {reference}, {{'x': (3, 4)}})\n"
        "PAIRS = (one,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = run(capsys, "check", "--pairs", f"{module}:PAIRS", "--workers=2")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_two_pairs_of_one_name_are_refused(capsys, monkeypatch):
    row = next(row for row in pairs.PAIRS if row.name == "relu")
    monkeypatch.setattr(pairs, "PAIRS", (row, replace(row, dtypes=("float32",))))
    status, out, err = run(capsys, "check")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "got 'relu' twice" in err
    with pytest.raises(ValueError, match="got 'relu' twice"):
        run_pairs(pairs.PAIRS)


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def interrupted_while_cleaning_up(*args, **kwargs):
    try:
        raise KeyboardInterrupt
    finally:
        raise AssertionError


@pytest.mark.parametrize("interrupted", [interrupted, interrupted_while_cleaning_up])
def test_interrupt_is_one_line_and_status_130(capsys, monkeypatch, interrupted):
    monkeypatch.setattr("parity.runs.run_pairs", interrupted)
    status, _, err = run(capsys, "check")
    assert status == 130
    assert err.count("\n") == 1


def test_blind_gradient_is_reported_with_the_run_that_shows_it(capsys, monkeypatch):
    row = next(row for row in pairs.PAIRS if row.name == "attention_pool")
    monkeypatch.setattr(pairs, "PAIRS", (replace(row, blind=()),))
    status, out, _ = run(capsys, "check", "--dtype", "float64", "--seed", "5")
    assert status == 1
    assert "visible: d_kv.bias" in out
    assert "--examples 42 --seed 5" in out
    assert "--case" not in out


def test_nothing_is_left_in_the_users_folder(tmp_path):
    command = [sys.executable, "-m", "parity", "check", "--layer", "relu"]
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [*command, "--examples", "14", "--workers", "1"], cwd=here, env=environment
    )
    assert done.returncode == 0
    assert list(here.iterdir()) == []


def test_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    for name in [name for name in sys.modules if name.startswith("parity.")]:
        if name not in ("parity.cli", "parity.data", "parity.names"):
            monkeypatch.delitem(sys.modules, name)
    status, _, err = run(capsys, "check", "--layer", "linear")
    assert status == 2
    assert "pip install 'vit-parity[check]'" in err


def test_demo_finds_the_defect_and_leaves_no_trace(capsys):
    status, out, _ = run(capsys, "demo")
    assert status == 0
    assert "attention does not agree" in out
    assert "d_qkv.weight" in out
    assert "times the error bound" in out
    assert "broken_attention" not in sys.modules
    assert run(capsys, "check", "--layer", "attention", "--examples", "14")[0] == 0


def test_help_imports_neither_torch_nor_hypothesis():
    code = (
        "import sys; from parity.cli import main; main(['--help']); "
        "sys.exit(bool({'torch', 'hypothesis'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    write_text(file, "first")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(file, "second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]
