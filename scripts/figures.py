"""The documentation's figures as SVG text: code side by side, and the architecture.

Both follow the reader's light or dark setting. Nothing but the standard library is
needed, so that the same sources give the same bytes everywhere.
"""

from __future__ import annotations

import builtins
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from html import escape

MONO = (
    "ui-monospace, SFMono-Regular, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', "
    "'Liberation Mono', monospace"
)
SANS = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', Arial, sans-serif"
)


def style(light: dict[str, str], dark: dict[str, str], rules: str) -> str:
    """Return a style element whose colours follow the reader's setting."""
    one, other = (
        " ".join(f"--{name}: {value};" for name, value in colours.items())
        for colours in (light, dark)
    )
    return (
        f"<style>\nsvg {{ {one} }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {other} }} }}\n"
        f"{rules}</style>\n"
    )


def number(value: float) -> str:
    """Return a coordinate without needless digits."""
    return f"{value:.1f}".removesuffix(".0")


# --- code side by side ---------------------------------------------------------------

CODE_LIGHT = {
    "page": "#ffffff",
    "bar": "#f6f8fa",
    "line": "#d1d9e0",
    "text": "#1f2328",
    "dim": "#59636e",
    "comment": "#6e7781",
    "keyword": "#cf222e",
    "def": "#8250df",
    "string": "#0a3069",
    "number": "#0550ae",
    "self": "#953800",
    "band": "#f6f8fa",
}
CODE_DARK = {
    "page": "#0d1117",
    "bar": "#161b22",
    "line": "#30363d",
    "text": "#e6edf3",
    "dim": "#9198a1",
    "comment": "#8b949e",
    "keyword": "#ff7b72",
    "def": "#d2a8ff",
    "string": "#a5d6ff",
    "number": "#79c0ff",
    "self": "#ffa657",
    "band": "#12171f",
}
ADVANCE = 7.83  # width of a monospaced character at 13 px
SIZE, LEADING, MARGIN, BAR = 13, 19.5, 14, 40


def coloured(lines: Sequence[str]) -> Iterator[list[tuple[int, str, str]]]:
    """Yield each line's words as (column, text, class), by Python's own tokenizer."""
    rows: list[list[tuple[int, str, str]]] = [[] for _ in lines]
    before = ""
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        (row, column), text = token.start, token.string
        if not text.strip() or row > len(lines):
            continue
        kind = ""
        if token.type == tokenize.COMMENT:
            kind = "comment"
        elif token.type == tokenize.STRING:
            kind = "string"
        elif token.type == tokenize.NUMBER:
            kind = "number"
        elif token.type == tokenize.NAME:
            if text in ("None", "True", "False"):
                kind = "number"
            elif keyword.iskeyword(text):
                kind = "keyword"
            elif before in ("def", "class"):
                kind = "def"
            elif text == "self" or hasattr(builtins, text):
                kind = "self"
        before = text
        rows[row - 1].append((column, text, kind))
    yield from rows


def code_picture(
    titles: tuple[str, str],
    rows: Sequence[tuple[list[str], list[str]]],
    equations: Sequence[str],
) -> str:
    """Return two columns of code, level row by row, as an SVG.

    The last row has code on the left only; the equations stand opposite.
    """
    columns: list[list[str]] = [[], []]
    for left, right in rows:
        for column, lines in zip(columns, (left, right), strict=True):
            if column:
                column.append("")
            column.extend(lines)
    longest = [max(map(len, column)) for column in columns]
    widths = [2 * MARGIN + n * ADVANCE for n in longest]
    width = sum(widths)
    height = BAR + max(map(len, columns)) * LEADING + 2 * MARGIN - 6
    rules = (
        f"text {{ font: {SIZE}px {MONO}; fill: var(--text); white-space: pre; }}\n"
        f".title {{ font: 600 13px {SANS}; fill: var(--dim); }}\n"
        f".note {{ font: italic 13px {SANS}; fill: var(--dim); }}\n"
    ) + "".join(
        f".{name} {{ fill: var(--{name}); }}\n"
        for name in ("comment", "keyword", "def", "string", "number", "self")
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{number(width)}" '
        f'height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}" '
        f'role="img" aria-label="{escape(" beside ".join(titles))}">\n',
        style(CODE_LIGHT, CODE_DARK, rules),
        f'<clipPath id="card"><rect width="{number(width)}" height="{number(height)}" '
        'rx="10"/></clipPath>\n<g clip-path="url(#card)">\n',
        '<rect width="100%" height="100%" fill="var(--page)"/>\n',
        f'<rect width="100%" height="{BAR}" fill="var(--bar)"/>\n',
    ]
    x, top = 0.0, BAR + MARGIN + 9
    for title, column, each in zip(titles, columns, widths, strict=True):
        left_edge = x + MARGIN
        out.append(
            f'<text class="title" x="{number(left_edge)}" y="25">{escape(title)}'
            "</text>\n"
        )
        words = list(coloured(column))
        for i, line in enumerate(words):
            if not line:
                continue
            y = top + i * LEADING
            # One x for each word keeps columns level whatever font the reader has.
            spans = "".join(
                f'<tspan x="{number(left_edge + start * ADVANCE)}"'
                + (f' class="{kind}"' if kind else "")
                + f">{escape(text)}</tspan>"
                for start, text, kind in line
            )
            out.append(f'<text y="{number(y)}">{spans}</text>\n')
        x += each
    notes = ["autograd derives this; parity proves that both agree", "", *equations]
    first = max(map(len, columns)) - len(rows[-1][0])
    for i, note in enumerate(notes, start=first):
        if note:
            kind, y = ("code" if i > first else "note"), top + i * LEADING
            out.append(
                f'<text class="{kind}" x="{number(widths[0] + MARGIN)}" '
                f'y="{number(y)}">{escape(note)}</text>\n'
            )
    out.append(
        f'<path d="M0 {BAR}.5H{number(width)}M{number(widths[0])} 0V{number(height)}" '
        'stroke="var(--line)" fill="none"/>\n</g>\n'
        f'<rect x=".5" y=".5" width="{number(width - 1)}" '
        f'height="{number(height - 1)}" rx="10" fill="none" stroke="var(--line)"/>\n'
        "</svg>\n"
    )
    return "".join(out)


# --- the architecture ----------------------------------------------------------------

DIAGRAM_LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f8fa",
    "line": "#d1d9e0",
    "text": "#1f2328",
    "dim": "#59636e",
    "arrow": "#6e7781",
    "param": "#ddf4ff",
    "param-line": "#54aeff",
    "plain": "#ffffff",
    "token": "#fff8c5",
    "token-line": "#d4a72c",
    "tag": "#1a7f37",
    "tag-fill": "#dafbe1",
}
DIAGRAM_DARK = {
    "page": "#0d1117",
    "panel": "#151b23",
    "line": "#3d444d",
    "text": "#f0f6fc",
    "dim": "#9198a1",
    "arrow": "#8b949e",
    "param": "#0c2d6b",
    "param-line": "#388bfd",
    "plain": "#0d1117",
    "token": "#3b2300",
    "token-line": "#9e6a03",
    "tag": "#57d364",
    "tag-fill": "#0f2d1a",
}


class Drawing:
    """A list of SVG elements, drawn top to bottom in columns."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def add(self, part: str) -> None:
        """Append an element."""
        self.parts.append(part + "\n")

    def text(
        self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle"
    ) -> None:
        """Write `words` with their baseline at y."""
        cls = f' class="{kind}"' if kind else ""
        self.add(
            f'<text{cls} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def panel(self, x: float, y: float, w: float, h: float, title: str) -> None:
        """Draw a rounded background with its title at the top left."""
        self.add(
            f'<rect class="panel" x="{x}" y="{y}" width="{w}" height="{h}" rx="12"/>'
        )
        self.text(x + 16, y + 26, title, "title", "start")

    def box(
        self, x: float, y: float, label: str, kind: str = "plain", w: float = 150
    ) -> None:
        """Draw a box 30 high with its top centre at (x, y)."""
        self.add(
            f'<rect class="{kind}" x="{number(x - w / 2)}" y="{number(y)}" '
            f'width="{number(w)}" height="30" rx="6"/>'
        )
        self.text(x, y + 20, label)

    def plus(self, x: float, y: float) -> None:
        """Draw an addition with its centre at (x, y)."""
        self.add(f'<circle class="plain" cx="{x}" cy="{y}" r="11"/>')
        self.add(f'<path class="wire" d="M{x - 5} {y}h10M{x} {y - 5}v10"/>')

    def arrow(
        self, points: str, shape: str = "", at: tuple[float, float] = (0, 0)
    ) -> None:
        """Draw an arrow along an SVG path, a tensor's shape written beside it."""
        self.add(f'<path class="wire" marker-end="url(#tip)" d="{points}"/>')
        if shape:
            self.text(*at, shape, "shape", "start")

    def tag(self, x: float, y: float, name: str) -> None:
        """Mark a named intermediate: a dot on the wire at (x, y), and a label."""
        w = 6.7 * len(name) + 16
        self.add(
            f'<path class="lead" d="M{number(x)} {number(y)}h22"/>'
            f'<circle class="dot" cx="{number(x)}" cy="{number(y)}" r="4"/>'
            f'<rect class="tag" x="{number(x + 22)}" y="{number(y - 10)}" '
            f'width="{number(w)}" height="20" rx="10"/>'
        )
        self.text(x + 22 + w / 2, y + 4, name, "tagname")

    def svg(self, rules: str, label: str) -> str:
        """Return the whole figure."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
            f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(label)}">\n'
            + style(DIAGRAM_LIGHT, DIAGRAM_DARK, rules)
            + '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
            '<path d="M0 .8 7.4 4 0 7.2z" fill="var(--arrow)"/></marker></defs>\n'
            '<rect width="100%" height="100%" rx="14" fill="var(--page)"/>\n'
            + "".join(self.parts)
            + "</svg>\n"
        )


def column(
    d: Drawing, x: float, y: float, steps: Sequence[tuple[str, ...]], gap: float = 34
) -> float:
    """Draw boxes below one another, joined by arrows; return the y after the last.

    A step is (kind, label, shape after it, name of the intermediate after it).
    """
    for kind, label, shape, name in steps:
        if kind == "plus":
            d.plus(x, y + 11)
            y += 22
        else:
            d.box(x, y, label, kind)
            y += 30
        space = gap + (24 if name and shape else 0)
        d.arrow(f"M{x} {y}v{number(space - 1)}")
        if shape:
            d.text(x + 10, y + gap / 2 + 4, shape, "shape", "start")
        if name:
            d.tag(x, y + space - gap / 2 - (2 if shape else 0), name)
        y += space
    return y


def architecture() -> str:
    """Return the model, one block, attention and the MLP, with shapes on the arrows."""
    d = Drawing(1080, 866)
    d.panel(20, 20, 320, 800, "VisionTransformer")
    d.panel(360, 20, 330, 800, "Block")
    d.panel(710, 20, 350, 516, "Attention")
    d.panel(710, 552, 350, 268, "MLP")

    d.add('<path class="zoom" d="M201 396 360 32M201 426 360 808"/>')
    x = 126
    d.text(x, 72, "images")
    d.arrow(f"M{x} 80v35", "(B, C, H, W)", (x + 10, 101))
    end = column(
        d,
        x,
        116,
        [
            ("param", "patch_embed", "(B, N, D)", ""),
            ("token", "cls, dist, reg tokens", "(B, T, D)", ""),
            ("token", "+ pos_embed", "", ""),
            ("plain", "pos_drop", "(B, T, D)", "embedding"),
            ("param", "blocks × depth", "(B, T, D)", "blocks.{i}"),
            ("param", "norm", "", ""),
            ("plain", "pool", "(B, D)", ""),
            ("param", "pre_logits, tanh", "(B, D)", "pre_logits"),
            ("param", "head", "(B, K)", "logits"),
        ],
    )
    d.text(x, end + 18, "logits")
    d.text(x + 10, 534, "or after pool", "legend", "start")

    x, y = 480, 100.0
    d.arrow(f"M{x} 58v41", "(B, T, D)", (x + 10, 78))
    for n, branch in (("1", "attn"), ("2", "mlp")):
        top = y - 14
        y = column(
            d,
            x,
            y,
            [
                ("param", f"norm{n}", "", ""),
                ("param", branch, "(B, T, D)", f"blocks.{{i}}.{branch}"),
                ("param", f"ls{n}", "", ""),
                ("plain", f"drop_path{n}", "", ""),
            ],
        )
        d.arrow(f"M{x} {top}h-88q-8 0-8 8V{y + 3}q0 8 8 8h76")
        d.plus(x, y + 11)
        y += 22
        if n == "1":
            d.arrow(f"M{x} {y}v41", "(B, T, D)", (x + 10, y + 18))
            y += 42
    d.arrow(f"M{x} {y}v58", "(B, T, D)", (x + 10, y + 20))
    d.tag(x, y + 38, "blocks.{i}")

    x = 875
    d.arrow(f"M{x} 44v32", "(B, T, D)", (x + 10, 64))
    d.box(x, 77, "qkv", "param", 250)
    for name, at in (("q", 790), ("k", 875)):
        d.arrow(f"M{at} 107v34", name, (at + 9, 128))
        d.box(at, 142, f"{name}_norm", "param", 74)
        d.arrow(f"M{at} 172v34")
    d.arrow("M952 107v203", "v", (961, 128))
    d.text(961, 190, "(B, h, T, Dh)", "shape", "start")
    at = 832
    d.box(at, 207, "softmax(q kᵀ / √Dh)", "plain", 164)
    d.arrow(f"M{at} 237v28", "(B, h, T, T)", (at + 10, 256))
    d.box(at, 266, "attn_drop", "plain", 164)
    d.arrow(f"M{at} 296v14")
    d.box(x, 311, "weights × v", "plain", 250)
    d.arrow(f"M{x} 341v38", "(B, h, T, Dh)", (x + 10, 363))
    d.box(x, 380, "heads side by side", "plain", 250)
    d.arrow(f"M{x} 410v34", "(B, T, D)", (x + 10, 431))
    d.box(x, 445, "proj, proj_drop", "param", 250)
    d.arrow(f"M{x} 475v44", "(B, T, D)", (x + 10, 501))

    d.arrow(f"M{x} 572v32", "(B, T, D)", (x + 10, 592))
    column(
        d,
        x,
        605,
        [
            ("param", "fc1", "(B, T, M)", ""),
            ("plain", "act, drop1", "(B, T, M)", ""),
            ("param", "fc2, drop2", "(B, T, D)", ""),
        ],
    )

    x = 32
    for kind, meaning in (
        ("param", "has parameters"),
        ("token", "learned tokens and positions"),
        ("plain", "no parameters"),
        ("tag", "intermediate, returned by this name on request"),
    ):
        d.add(f'<rect class="{kind}" x="{x}" y="835" width="22" height="14" rx="4"/>')
        d.text(x + 30, 847, meaning, "legend", "start")
        x += 66 + round(6.3 * len(meaning))

    rules = (
        f"text {{ font: 13px {SANS}; fill: var(--text); }}\n"
        f".title {{ font: 600 15px {SANS}; }}\n"
        f".legend {{ font: 12px {SANS}; fill: var(--dim); }}\n"
        f".shape {{ font: 12px {MONO}; fill: var(--dim); }}\n"
        f".tagname {{ font: 11px {MONO}; fill: var(--tag); }}\n"
        ".panel { fill: var(--panel); stroke: var(--line); }\n"
        ".param { fill: var(--param); stroke: var(--param-line); }\n"
        ".plain { fill: var(--plain); stroke: var(--arrow); }\n"
        ".token { fill: var(--token); stroke: var(--token-line); }\n"
        ".tag { fill: var(--tag-fill); stroke: var(--tag); }\n"
        ".dot { fill: var(--tag); }\n"
        ".lead { stroke: var(--tag); stroke-dasharray: 2 2; fill: none; }\n"
        ".wire { stroke: var(--arrow); stroke-width: 1.4; fill: none; }\n"
        ".zoom { stroke: var(--arrow); stroke-dasharray: 3 5; fill: none; }\n"
    )
    return d.svg(
        rules,
        "The Vision Transformer: the model, a block, attention and the MLP, "
        "with the shape of every tensor",
    )
