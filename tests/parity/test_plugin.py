"""The pytest plugin, in a session of its own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

TESTS = """
import numpy as np
import torch

def tanh(x):
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y * y)

def wrong(x):
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y)

def test_right(parity):
    agreement = parity(tanh, torch.tanh, (3, 4))
    assert agreement.share <= 1
    assert parity.seed == parity.seed % 2**16

def test_wrong(parity):
    parity(wrong, torch.tanh, (3, 4))
"""


def run(folder: Path, *arguments: str) -> str:
    plugin = ["-p", "parity.pytest_plugin", "-p", "no:cacheprovider"]
    # Alone, and once: an installed package brings the plugin by its entry point. And
    # not as in CI, where pytest's last lines repeat the whole of a failure.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_the_fixture_and_the_summary(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    out = run(tmp_path, "--junitxml=out.xml")
    assert "1 failed, 1 passed" in out
    assert "activation-derivative" in out
    # The report stands alone and once, without a traceback through this package.
    assert "parity/api.py" not in out
    assert out.count("likely cause") == 1
    assert "of the error bound used, in test_mine.py::test_right" in out
    assert "parity_bound_used" in (tmp_path / "out.xml").read_text()


def test_a_project_that_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_light():\n"
        "    assert not {'torch', 'hypothesis', 'parity.api'} & set(sys.modules)\n"
    )
    out = run(tmp_path)
    assert "1 passed" in out
    assert "error bound" not in out


def test_it_comes_with_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    entries = tomllib.loads(text)["project"]["entry-points"]["pytest11"]
    assert entries == {"parity": "parity.pytest_plugin"}
