"""How commands and programs begin and end, whatever the terminal or pipe."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity.program import check_picture, check_target, make_folder

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "scripts" / "train.py")


def start(*arguments, **changes):
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONUNBUFFERED": ""} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "arguments", [("-m", "parity", "data", "list"), ("-m", "parity", "--help")]
)
def test_a_reader_that_has_seen_enough_ends_the_program_quietly(arguments):
    process = start(*arguments)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('cannot allocate')"])
def test_a_lack_of_memory_is_one_line(error):
    code = f"""
import sys
from parity.program import main_of

def run(args):
    raise {error}

sys.exit(main_of(run, lambda: None))
"""
    out, err = start("-c", code).communicate(timeout=60)
    assert out == b""
    assert err.count(b"\n") == 1
    assert b"out of memory; take smaller batches" in err


def test_signs_that_the_output_cannot_show_are_replaced():
    process = start("-m", "parity", "demo", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert b"Checking attention ?" in out


@pytest.mark.parametrize("program", sorted((ROOT / "scripts").glob("*.py")), ids=str)
def test_programs_run_without_docstrings(program):
    source = program.read_text("utf-8")
    if "main_of" not in source:
        pytest.skip("reads the docstrings")
    process = start("-OO", str(program), "--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"usage:")


@pytest.mark.parametrize("program", sorted((ROOT / "scripts").glob("*.py")), ids=str)
def test_ctrl_c_during_the_imports_is_one_line(program, tmp_path):
    if "main_of" not in program.read_text("utf-8"):
        pytest.skip("imports nothing that takes time")
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    process = start(str(program), "--help", PYTHONPATH=str(tmp_path))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == f"{program.name}: interrupted\n"


def test_other_errors_that_nothing_catches_are_shown_whole():
    code = "import parity.program; 1 / 0"
    process = start("-c", code)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"Traceback")
    assert err.rstrip().endswith(b"ZeroDivisionError: division by zero")


@pytest.mark.parametrize("moment", ["metrics.jsonl", "last.safetensors"])
def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(tmp_path, moment):
    out = tmp_path / "run"
    process = start(
        TRAIN, "network1", "--backend", "numpy", "--data", "mnist-subset",
        "--epochs", "500", "--out", str(out),
    )  # fmt: skip
    while not (out / moment).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = err.decode().splitlines()
    assert line.startswith("train.py: ")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_bad_usage_of_a_program_is_one_line():
    process = start(TRAIN, "network1", "--backend", "jax")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.decode().splitlines()
    assert line.endswith("see train.py --help")


def test_processes_in_torch_are_refused_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    process = start(
        TRAIN, "network1", "--backend", "torch", "--processes", "2", "--out", str(out)
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.decode().splitlines()
    assert "processes is of backend 'numpy' alone" in line
    assert not out.exists()


def test_targets_are_checked_before_work_is_spent(tmp_path):
    check_target("--json", None)
    check_target("--json", tmp_path / "new.json")
    with pytest.raises(ValueError, match="--json must be a file, got the folder"):
        check_target("--json", tmp_path)
    with pytest.raises(ValueError, match=r"folder that exists, got .*; make it first"):
        check_target("--json", tmp_path / "none" / "new.json")


def test_pictures_are_of_a_known_kind(tmp_path):
    check_picture("--plot", None)
    check_picture("--plot", tmp_path / "new.PNG")
    for name in ("new.xyz", "new"):
        with pytest.raises(ValueError, match=r"must be a picture, as new\.png, got"):
            check_picture("--plot", tmp_path / name)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    make_folder("--out", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match=r"--out must be a folder, got .*, a file"):
            make_folder("--out", path)
