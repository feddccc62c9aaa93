"""Rows as text, as Markdown, and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from parity.bench.runs import Bench, Row
from parity.files import write_text
from parity.plots import NUMPY, STYLE, TORCH, save

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("ms", lambda row: _number(row.median_ms)),
    ("least", lambda row: _number(row.min_ms)),
    ("spread", lambda row: _share(row.spread)),
    ("images/s", lambda row: _number(row.images_per_s)),
    ("÷ torch", lambda row: _number(row.ratio_to_torch_eager)),
    ("MiB", lambda row: _number(row.peak_mib)),
    ("of peak", lambda row: _share(row.share_of_peak)),
)


def text(bench: Bench) -> str:
    """Return the rows as a table for a terminal, with what they were measured on."""
    lines = [_header(bench), ""]
    for title, rows in _groups(bench.rows):
        table = [["", *(name for name, _ in _COLUMNS)]] + [_cells(row) for row in rows]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines.append(title)
        for line in table:
            cells = [line[0].ljust(widths[0])]
            cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
            lines.append(f"  {'  '.join(cells)}".rstrip())
        lines += [*_errors(rows), ""]
    return "\n".join(lines)


def markdown(bench: Bench) -> str:
    """Return the rows as Markdown tables."""
    lines = [_header(bench), ""]
    for title, rows in _groups(bench.rows):
        lines += [f"**{title}**", ""]
        lines.append("| | " + " | ".join(name for name, _ in _COLUMNS) + " |")
        lines.append("|---|" + "---:|" * len(_COLUMNS))
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
        lines += ["", *_errors(rows), ""]
    return "\n".join(lines)


def write_into(bench: Bench, what: str, path: Path) -> None:
    """Put the tables into a Markdown file, in the place of those it has of `what`.

    That is between the lines ``<!-- bench train -->``, say, and ``<!-- end -->``.

    Raises
    ------
    ValueError
        If the file does not have these lines.
    """
    before, after = text_around(what, path)
    write_text(path, f"{before}\n{markdown(bench).strip()}\n\n{after}")


def text_around(what: str, path: Path) -> tuple[str, str]:
    """Return what stands before and after the tables in a file, with the two lines.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or does not have these lines.
    """
    begin, end = f"<!-- bench {what} -->\n", "<!-- end -->"
    before, found, rest = path.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f"{path} must have a line {begin.strip()!r} and after it a line {end!r}"
        )
    return before + begin, end + after


def plot(bench: Bench, path: Path) -> None:
    """Draw the ratios to torch by network, or the times along each axis of growth.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    matplotlib: Any = import_module("matplotlib")
    figure_class: Any = import_module("matplotlib.figure").Figure
    with matplotlib.rc_context(STYLE):
        if any(row.axis for row in bench.rows):
            figure = _plot_growth(bench, figure_class)
        else:
            figure = _plot_ratios(bench, figure_class)
        save(figure, path)


def _plot_ratios(bench: Bench, figure_class: Any) -> Any:
    rows = [row for row in bench.rows if row.ratio_to_torch_eager is not None]
    rows = [row for row in rows if row.backend != "torch"]
    groups = _groups(rows)
    height = 1 + 0.22 * len(rows) + 0.35 * len(groups)
    figure = figure_class(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    place, ticks, labels = 0.0, [], []
    for title, members in groups:
        axes.text(0, place - 0.75, title, fontweight="bold", va="center")
        for row in members:
            ratio = row.ratio_to_torch_eager or 0.0
            color = NUMPY if row.backend == "numpy" else TORCH
            axes.barh(place, ratio, color=color, height=0.8)
            axes.text(ratio + 0.01, place, f"{ratio:.2f}", va="center")
            ticks.append(place)
            labels.append(_label(row))
            place += 1
        place += 1.4
    axes.axvline(1, lw=1, color="#3C4248")
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time, PyTorch eager = 1")
    return figure


def _plot_growth(bench: Bench, figure_class: Any) -> Any:
    names = list(dict.fromkeys(row.axis for row in bench.rows))
    figure = figure_class(figsize=(1.9 * len(names), 4.4), layout="constrained")
    panels = figure.subplots(
        2, len(names), sharey="row", squeeze=False, height_ratios=(3, 2)
    )
    for column, axis in enumerate(names):
        upper, lower = panels[0][column], panels[1][column]
        rows = [row for row in bench.rows if row.axis == axis]
        for backend, color, label in (
            ("numpy", NUMPY, "NumPy"),
            ("torch", TORCH, "PyTorch"),
        ):
            own = [row for row in rows if row.backend == backend]
            values = [row.value for row in own]
            upper.plot(
                values, [row.median_ms for row in own], "o-", color=color, label=label
            )
        own = [row for row in rows if row.backend == "numpy"]
        lower.plot(
            [row.value for row in own],
            [row.ratio_to_torch_eager for row in own],
            "o-",
            color=NUMPY,
        )
        lower.axhline(1, lw=1, color="#3C4248")
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter("{x:g}")
        for axes in (upper, lower):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        lower.set_xlabel(axis)
    lower.set_ylim(0, 1.1 * lower.get_ylim()[1])
    panels[0][0].set_ylabel("ms a training step")
    panels[1][0].set_ylabel("NumPy ÷ PyTorch")
    panels[0][0].legend()
    return figure


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each workload, in order, under its title."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row.network}, {row.what}, batch {row.batch}"
        title += ", dropout" if row.dropout else ""
        title += "" if row.threads != 1 else ", 1 thread"
        title += "" if row.coretype == "native" else f", {row.coretype} kernel"
        groups.setdefault(title, []).append(row)
    return list(groups.items())


def _cells(row: Row) -> list[str]:
    return [_label(row), *(cell(row) for _, cell in _COLUMNS)]


def _label(row: Row) -> str:
    names = {"torch": "torch eager", "torch-compile": "torch.compile"}
    name = names.get(row.backend, row.backend)
    return f"{row.layer}, {name}" if row.layer else name


def _errors(rows: Sequence[Row]) -> list[str]:
    return [f"  {_label(row)}: {row.error}" for row in rows if row.error]


def _header(bench: Bench) -> str:
    environment = bench.environment
    blas = [
        f"{library['library']} {library['version']}, kernel {library['kernel']}"
        for library in environment.get("blas") or ()
    ]
    rates = [f"{rate:g} ({name})" for name, rate in bench.matmul_gflops.items()]
    packages = environment.get("packages", {})
    parts = [
        f"{environment.get('cpu', 'unknown CPU')}, {environment.get('cores')} cores",
        f"numpy {packages.get('numpy')}, torch {packages.get('torch')}",
        "; ".join(blas) or "unknown BLAS",
        f"matrix products, GFLOP/s: {', '.join(rates)}",
    ]
    return "; ".join(parts)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
