"""The documentation says what is so: its pages, its pictures, the README's code."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILDER = ROOT / "scripts" / "build_docs.py"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def test_built_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, BUILDER, "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_page_that_drifts_is_noticed(tmp_path: Path) -> None:
    """Copy what the builder reads, change one line of a source, and it must say so."""
    for name in ("vit_numpy", "vit_torch", "docs", "scripts"):
        for source in (ROOT / name).rglob("*"):
            if source.suffix in (".py", ".md", ".svg"):
                target = tmp_path / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tmp_path / "scripts" / "build_docs.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )

    assert check().returncode == 0
    torch_side = tmp_path / "vit_torch" / "layers" / "linear.py"
    torch_side.write_text(torch_side.read_text().replace("F.linear(x", "F.linear(+x"))
    drifted = check()
    assert drifted.returncode == 1
    assert "docs/layers/linear.md is out of date" in drifted.stderr

    numpy_side = tmp_path / "vit_numpy" / "layers" / "layer_norm.py"
    numpy_side.write_text(numpy_side.read_text().replace("dx *= rstd", "dx = dx*rstd"))
    misquoted = check()
    assert misquoted.returncode == 1
    assert "layer_norm.md quotes" in misquoted.stderr
    assert "dx *= rstd" in misquoted.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:href|src|srcset)=\"([^\"]+)\"", text)
    for link in filter(None, (one or other for one, other in links)):
        if not link.startswith(("http://", "https://", "#")):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("name", ["architecture.svg", "attention.svg"])
def test_pictures_are_well_formed(name: str) -> None:
    root = ElementTree.parse(ROOT / "docs" / name).getroot()
    assert root.tag.endswith("svg")
    assert root.get("aria-label")
    assert "prefers-color-scheme: dark" in (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("name", ["architecture.svg", "attention.svg"])
def test_letters_are_readable_where_pages_show_them(name: str) -> None:
    """A page of 800 px, and the smallest size at which its own notes are set."""
    text = (ROOT / "docs" / name).read_text()
    width = float(ElementTree.fromstring(text).get("width") or 0)
    (size,) = re.findall(r"^text { font: (\d+)px", text, re.MULTILINE)
    assert float(size) * min(1, 800 / width) > 9.5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_formulas_are_in_the_form_that_markdown_leaves_alone(page: Path) -> None:
    """Braces balance, and the built pages have no formula between plain dollars."""
    text = page.read_text()
    for block in re.findall(r"^```math\n(.*?)^```|\$`([^`]*)`\$", text, re.M | re.S):
        formula = "".join(block)
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\left") == formula.count(r"\right"), formula
    if page.parent.name == "layers":
        prose = re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.M | re.S)
        assert not re.search(r"\$[^$]", prose.replace("$$", ""))


def test_readme_has_an_example_for_each_package() -> None:
    code = "\n".join(python_blocks(ROOT / "README.md"))
    for package in ("vit_numpy", "vit_torch", "parity"):
        assert f"import {package}" in code or f"from {package}" in code


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_examples_run(page: str, tmp_path: Path) -> None:
    """In the order in which they stand, each in the names that those before it left."""
    code = "\n".join(python_blocks(ROOT / page))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"print\(.*\)  # (.*)", code)
    assert done.stdout.splitlines() == printed


def test_readme_shows_what_the_demo_says() -> None:
    """Line for line but for numbers, which vary with the machine in the last digits."""
    readme = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"^```text\n\$ parity demo\n(.*?)^```", readme, re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-m", "parity", "demo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def without_numbers(text: str) -> list[str]:
        return re.sub(r"\d[\d.,e-]*", "#", text).splitlines()

    assert without_numbers(done.stdout) == without_numbers(shown)
