"""Build docs/layers from the derivations and the sources, and the two figures.

A page is a hand-written derivation (docs/derivations/NAME.md) followed by the two
implementations side by side, read from the sources. Every line of Python that a
derivation quotes must stand in the NumPy source, so neither half of a page can drift.

    python scripts/build_docs.py            write what has changed
    python scripts/build_docs.py --check    write nothing; exit 1 and name what differs
    python scripts/build_docs.py --demo     run `parity demo` for the README as well
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from figures import architecture, code_picture

ROOT = Path(__file__).resolve().parent.parent
DERIVATIONS = ROOT / "docs" / "derivations"
NUMPY_ONLY = "<em>NumPy only</em>"
AUTOGRAD = "<em>autograd does this</em>"
# Characters a line of the figure: pages show it 800 px wide, in letters still large.
COLUMN = 58
SIMILAR = 0.5  # how alike two lines must be to stand opposite each other


class DocsError(Exception):
    """A derivation that does not fit the sources."""


@dataclass(frozen=True)
class Piece:
    """A class header, a method or a function, without its docstring."""

    name: str
    code: str


def source_of(module: str, package: str) -> Path:
    """Return the file of a page's module: `linear` is in layers/, `loss` beside it."""
    for path in (ROOT / package / "layers", ROOT / package):
        if (path / f"{module}.py").is_file():
            return path / f"{module}.py"
    return ROOT / package / f"{module}.py"


def without_docstrings(node: ast.AST) -> set[int]:
    """Return the numbers (from 0) of the lines that docstrings take up."""
    hidden: set[int] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Module):
            first = child.body[0] if child.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                hidden.update(range(first.lineno - 1, first.end_lineno or 0))
    return hidden


def cut(lines: list[str], start: int, stop: int, hidden: set[int]) -> str:
    """Return lines start..stop without the hidden ones, dedented, ends trimmed."""
    kept = [
        lines[i]
        for i in range(start, stop)
        if i not in hidden and (lines[i].strip() or i - 1 not in hidden)
    ]
    while kept and not kept[0].strip():
        kept.pop(0)
    while kept and not kept[-1].strip():
        kept.pop()
    indents = [len(line) - len(line.lstrip()) for line in kept if line.strip()]
    return "\n".join(line[min(indents, default=0) :] for line in kept)


def pieces(path: Path) -> dict[str, Piece]:
    """Return a module's classes, methods, functions and constants in source order."""
    text = path.read_text()
    lines = text.splitlines()
    tree = ast.parse(text)
    hidden = without_docstrings(tree)
    found: dict[str, Piece] = {}

    def start_of(node: ast.stmt) -> int:
        decorators = getattr(node, "decorator_list", [])
        start: int = min([node.lineno, *(d.lineno for d in decorators)]) - 1
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1  # a comment that stands on a definition belongs to it
        return start

    for node in tree.body:
        start, stop = start_of(node), node.end_lineno or node.lineno
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            head_stop = start_of(methods[0]) if methods else stop
            found[node.name] = Piece(node.name, cut(lines, start, head_stop, hidden))
            for method in methods:
                name = f"{node.name}.{method.name}"
                code = cut(lines, start_of(method), method.end_lineno or 0, hidden)
                found[name] = Piece(name, code)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = Piece(node.name, cut(lines, start, stop, hidden))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = ast.unparse(target)
            if name != "__all__":
                found[name] = Piece(name, cut(lines, start, stop, hidden))
    return found


def opposite(left: str, right: str) -> tuple[list[str], list[str]]:
    """Pad two pieces of code with blank lines so that similar lines stand level.

    The best order-preserving pairing of lines by similarity, as in sequence alignment.
    """
    a, b = left.splitlines(), right.splitlines()

    def alike(x: str, y: str) -> float:
        x, y = x.strip(), y.strip()
        if not x or not y:
            return 0.0
        if x.startswith(("def ", "class ")) and y.startswith(("def ", "class ")):
            return 1.0
        # A cache beside the result and `.forward` are the twins' conventions.
        x = re.sub(r", c_\w+(?= =)|\.forward(?=\()", "", x)
        ratio = difflib.SequenceMatcher(None, x, y, autojunk=False).ratio()
        return ratio if ratio >= SIMILAR else 0.0

    score = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            pair = alike(a[i], b[j])
            score[i][j] = max(
                score[i + 1][j],
                score[i][j + 1],
                pair + score[i + 1][j + 1] if pair else 0.0,
            )
    out: tuple[list[str], list[str]] = ([], [])
    i = j = 0
    while i < len(a) or j < len(b):
        together = (
            i < len(a)
            and j < len(b)
            and (pair := alike(a[i], b[j])) > 0
            and score[i][j] == pair + score[i + 1][j + 1]
        )
        if together:
            out[0].append(a[i])
            out[1].append(b[j])
            i, j = i + 1, j + 1
            continue
        # Unpaired lines of both sides share rows until the next pair.
        run_a, run_b = [], []
        while i < len(a) or j < len(b):
            if i < len(a) and j < len(b):
                pair = alike(a[i], b[j])
                if pair and score[i][j] == pair + score[i + 1][j + 1]:
                    break
            if i < len(a) and score[i][j] == score[i + 1][j]:
                run_a.append(a[i])
                i += 1
            else:
                run_b.append(b[j])
                j += 1
        height = max(len(run_a), len(run_b))
        out[0].extend(run_a + [""] * (height - len(run_a)))
        out[1].extend(run_b + [""] * (height - len(run_b)))
    return out


def aligned(module: str) -> Iterator[tuple[Piece | None, Piece | None]]:
    """Yield the pieces of the two sources, those of one name together."""
    left = pieces(source_of(module, "vit_numpy"))
    right = pieces(source_of(module, "vit_torch"))
    rest = list(right)
    for name, piece in left.items():
        if name in right:
            # What only torch has comes before the piece that follows it there.
            while rest and rest[0] != name and rest[0] not in left:
                yield None, right[rest.pop(0)]
            rest.remove(name)
        yield piece, right.get(name)
    for name in rest:
        yield None, right[name]


def fence(lines: list[str]) -> str:
    """Return a cell's code block; the blank lines make Markdown read it as one."""
    return "\n\n```python\n" + "\n".join(lines).rstrip() + "\n```\n\n"


def side_by_side(module: str) -> str:
    """Return the HTML table of both implementations, a row for each definition."""
    source = source_of(module, "vit_numpy").relative_to(ROOT)
    if not source_of(module, "vit_torch").is_file():
        return f"## Source\n\n[{source}](../../{source}); PyTorch has it built in.\n"
    rows = []
    for left, right in aligned(module):
        if left and right:
            cells = [fence(lines) for lines in opposite(left.code, right.code)]
        elif left:
            method = left.name.rpartition(".")[2]
            other = AUTOGRAD if method.startswith("backward") else NUMPY_ONLY
            cells = [fence(left.code.splitlines()), other]
        elif right:
            cells = ["<em>torch only</em>", fence(right.code.splitlines())]
        rows.append(f'<tr valign="top"><td>{cells[0]}</td><td>{cells[1]}</td></tr>\n')
    paths = [source_of(module, package) for package in ("vit_numpy", "vit_torch")]
    heads = "".join(
        f'<th align="left"><a href="../../{path.relative_to(ROOT)}">'
        f"{path.relative_to(ROOT)}</a></th>"
        for path in paths
    )
    return (
        "## Side by side\n\nDocstrings are left out; they are in the sources.\n\n"
        f"<table>\n<tr>{heads}</tr>\n{''.join(rows)}</table>\n"
    )


def misquoted(module: str) -> list[str]:
    """Return the lines of Python that a derivation quotes and no source has."""
    derivation = (DERIVATIONS / f"{module}.md").read_text()
    sources = [source_of(module, "vit_numpy"), ROOT / "vit_numpy" / "functional.py"]
    present = {line.strip() for p in sources for line in p.read_text().splitlines()}
    return [
        line.strip()
        for block in re.findall(r"```python\n(.*?)```", derivation, re.DOTALL)
        for line in block.splitlines()
        if line.strip() not in present | {""}
    ]


def github_math(text: str) -> str:
    """Return `text` with its formulas in the forms that Markdown leaves alone.

    Between plain dollars, a line that starts with a minus would become a list, and two
    subscripts emphasis.
    """
    text = re.sub(r"^\$\$\n(.*?)\n\$\$$", r"```math\n\1\n```", text, flags=re.M | re.S)
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    blocks[::2] = [re.sub(r"\$([^$\n`]+)\$", r"$`\1`$", prose) for prose in blocks[::2]]
    return "".join(blocks)


def page(module: str) -> str:
    """Return the page of one layer."""
    derivation = (DERIVATIONS / f"{module}.md").read_text()
    return (
        f"<!-- Built by `make docs` from docs/derivations/{module}.md and the sources: "
        f"edit those. -->\n\n{github_math(derivation).rstrip()}\n\n"
        f"{side_by_side(module)}"
    )


def index(modules: list[str]) -> str:
    """Return the table of contents: each page with its first sentence."""
    lines = [
        "<!-- Built by `make docs`: edit docs/derivations. -->\n",
        "# Layer by layer\n",
        "Each page has the equation, the shapes, the derivation of every gradient down "
        "to the line of code that computes it, and the two implementations side by "
        "side.\n",
    ]
    for module in modules:
        title, _, body = (DERIVATIONS / f"{module}.md").read_text().partition("\n")
        first = re.split(r"(?<=\.)\s", " ".join(body.split()), maxsplit=1)[0]
        lines.append(f"- [{title.lstrip('# ')}]({module}.md): {first}")
    return "\n".join(lines) + "\n"


ORDER = [
    "linear",
    "layer_norm",
    "activation",
    "functional",
    "dropout",
    "drop_path",
    "layer_scale",
    "identity",
    "conv",
    "flatten",
    "patch_embed",
    "position",
    "attention",
    "mlp",
    "block",
    "heads",
    "model",
    "loss",
]


def modules() -> list[str]:
    """Return the documented modules in reading order; all must have a derivation."""
    layers = {p.stem for p in (ROOT / "vit_numpy" / "layers").glob("[!_]*.py")}
    wanted = layers | {"functional", "loss", "model"}
    missing = [name for name in wanted if not (DERIVATIONS / f"{name}.md").is_file()]
    if missing:
        raise DocsError(f"no derivation for {', '.join(sorted(missing))}")
    if idle := {path.stem for path in DERIVATIONS.glob("*.md")} - wanted:
        raise DocsError(f"no source for the derivation of {', '.join(sorted(idle))}")
    wrong = [
        f"docs/derivations/{name}.md quotes what its source does not have: {line}"
        for name in sorted(wanted)
        for line in misquoted(name)
    ]
    if wrong:
        raise DocsError("\n".join(wrong))
    return sorted(wanted, key=lambda n: (ORDER.index(n) if n in ORDER else 99, n))


def folded(code: str) -> str:
    """Return `code` in short lines, those of one argument each filled up."""

    def fill(match: re.Match[str]) -> str:
        words = " ".join(match[0].split())
        return textwrap.indent(textwrap.fill(words, COLUMN - 12), match[1]) + "\n"

    code = re.sub(r"^( +)\w+,\n(?:\1\w+,\n){4,}", fill, code, flags=re.MULTILINE)
    return "\n".join(part for line in code.splitlines() for part in fold(line))


def fold(line: str) -> list[str]:
    """Return a line in lines of at most `COLUMN` characters, if it can be broken.

    A comment is wrapped. Code is broken within brackets, as few as there are, behind a
    comma, or else before an operator.
    """
    if len(line) <= COLUMN:
        return [line]
    words = line.lstrip()
    indent = line[: len(line) - len(words)]
    if words.startswith("# "):
        return textwrap.wrap(
            words, COLUMN, initial_indent=indent, subsequent_indent=f"{indent}# "
        )
    depth, breaks = 0, []
    for at, sign in enumerate(line[: COLUMN + 1]):
        depth += (sign in "([{") - (sign in ")]}")
        comma = line[at - 1] == ","
        if sign == " " and depth and (comma or line[at + 1] in "+-*/@|"):
            breaks.append((-depth, comma, at))
    if not breaks:
        return [line]
    *_, at = max(breaks)
    return [line[:at], *fold(f"{indent}        {line[at + 1 :]}")]


def fold_equation(line: str) -> list[str]:
    """Return an equation in lines of at most `COLUMN` characters, remarks below it."""
    lines: list[str] = []
    for part in re.split(" {3,}", line):
        if lines and len(lines[-1]) + 3 + len(part) <= COLUMN:
            lines[-1] += f"   {part}"
        else:
            lines.append(f"    {part}" if lines else part)
    return lines


def equations(module: str, cls: str) -> list[str]:
    """Return the first block of equations in the Notes of a class."""
    tree = ast.parse(source_of(module, "vit_numpy").read_text())
    (node,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls]
    notes = (ast.get_docstring(node) or "").partition("Notes\n-----\n")[2]
    block = re.search(r"::\n\n((?: +.*\n|\n)+)", notes)
    if not block:
        raise DocsError(f"{cls} has no equations in its Notes")
    lines = textwrap.dedent(block[1]).rstrip().splitlines()
    return [part for line in lines for part in fold_equation(line)]


def picture(module: str, cls: str) -> str:
    """Return forward and backward of a class, the twins side by side, as an SVG."""
    paths = [source_of(module, package) for package in ("vit_numpy", "vit_torch")]
    sides = [pieces(path) for path in paths]
    rows = []
    for method in ("forward", "backward"):
        left, right = (
            folded(side[f"{cls}.{method}"].code) if f"{cls}.{method}" in side else ""
            for side in sides
        )
        rows.append(opposite(left, right))
    titles = [path.relative_to(ROOT).as_posix() for path in paths]
    return code_picture((titles[0], titles[1]), rows, equations(module, cls))


def build() -> dict[Path, str]:
    """Return every built file's path and text."""
    names = modules()
    docs = ROOT / "docs"
    out = {docs / "layers" / f"{name}.md": page(name) for name in names}
    out[docs / "layers" / "README.md"] = index(names)
    out[docs / "architecture.svg"] = architecture()
    out[docs / "attention.svg"] = picture("attention", "Attention")
    return out


def readme_with_demo() -> str:
    """Return the README with what `parity demo` says now."""
    said = subprocess.run(
        [sys.executable, "-m", "parity", "demo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    before, start, rest = (ROOT / "README.md").read_text().partition("$ parity demo\n")
    if not start:
        raise DocsError("README.md has no block that begins with `$ parity demo`")
    return before + start + said + rest[rest.index("```") :]


def main() -> int:
    """Write or check all built files; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--demo", action="store_true", help="refresh the README")
    arguments = parser.parse_args()
    check = arguments.check
    try:
        files = build()
        if arguments.demo:
            files[ROOT / "README.md"] = readme_with_demo()
    except DocsError as error:
        print(f"build_docs: {error}", file=sys.stderr)
        return 1
    stale = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text() != text
    ]
    orphans = set((ROOT / "docs" / "layers").glob("*.md")) - set(files)
    for path in [*stale, *sorted(orphans)]:
        relative = path.relative_to(ROOT)
        if check:
            print(f"{relative} is out of date; run `make docs`", file=sys.stderr)
        elif path in orphans:
            path.unlink()
            print(f"removed {relative}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
            print(f"wrote {relative}")
    return int(check and bool(stale or orphans))


if __name__ == "__main__":
    sys.exit(main())
