"""What the page shows beside the pairs: moved weights, and training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from parity.curves import Comparison
from parity.markup import escaped, grid, table_row
from parity.page import Section

# A chart's own units; it is stretched to the width that there is.
_WIDTH, _HEIGHT = 1000.0, 100.0


def transfers_section(
    transfers: Sequence[Mapping[str, Any]], recipe: str, data: str
) -> Section:
    """Show what `parity all` found of weights that one backend reads from the other.

    Parameters
    ----------
    transfers : sequence of mapping
        With `from`, `to`, `tensors`, `weights_equal`, `images`, `same_predictions`.
    recipe, data : str
        What was trained before.
    """
    rows, failed = [], False
    for found in transfers:
        same = found["same_predictions"] == found["images"]
        failed |= not (found["weights_equal"] and same)
        arrays = f"{found['tensors']} tensors"
        cells = [
            f"{escaped(found['from'])} to {escaped(found['to'])}",
            _judged(same, f"{found['same_predictions']:,} of {found['images']:,}"),
            _judged(
                found["weights_equal"],
                f"{arrays} equal bit for bit"
                if found["weights_equal"]
                else f"{arrays}, not equal",
            ),
        ]
        rows.append(table_row(cells, []))
    header = ["from and to", "same predictions", "weights"]
    about = (
        f"<p>{escaped(recipe)}, trained for an epoch on {escaped(data)} in one backend "
        "and opened in the other.</p>"
    )
    return Section(
        "transfers", "Weights both ways", failed, about + grid(header, rows, left=1)
    )


def curves_section(comparison: Comparison, summary: str) -> Section:
    """Show how both backends trained, and how far they were apart.

    Parameters
    ----------
    comparison : Comparison
    summary : str
        What it has shown, in words.
    """
    c = comparison
    losses = {side: c.decisive.loss[side] for side in ("numpy", "torch")}
    apart = {
        "envelope": c.envelope.difference,
        "numpy": c.decisive.relative_difference,
    }
    html = (
        f"<p>{escaped(summary)}.</p>\n"
        + _chart(
            "Loss, of a batch",
            {"numpy": "NumPy", "torch": "PyTorch"},
            losses,
            logarithmic=False,
        )
        + _chart(
            "Relative difference of the two",
            {
                "numpy": "NumPy and PyTorch",
                "envelope": "PyTorch and itself, from weights moved by one unit in "
                "the last place",
            },
            apart,
            logarithmic=True,
        )
    )
    return Section("curves", "Training curves", c.diverged_at is not None, html)


def _judged(right: bool, said: str) -> str:
    return f'<span class="{"yes" if right else "no"}">{escaped(said)}</span>'


def _chart(
    title: str,
    names: Mapping[str, str],
    series: Mapping[str, Sequence[float]],
    *,
    logarithmic: bool,
) -> str:
    """Draw lines over steps; what a logarithm cannot show is left out."""

    def height(value: float) -> float:
        if not math.isfinite(value) or (logarithmic and value <= 0):
            return math.nan
        return math.log10(value) if logarithmic else value

    lines = {name: [height(v) for v in values] for name, values in series.items()}
    shown = [h for line in lines.values() for h in line if math.isfinite(h)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if logarithmic:
        low, high = math.floor(low), math.ceil(high)
    span = high - low or 1.0
    steps = max(len(line) for line in lines.values())

    def path(line: Sequence[float]) -> str:
        across = _WIDTH / max(steps - 1, 1)
        points = [
            f"{across * i:.1f} {_HEIGHT * (high - h) / span:.2f}"
            for i, h in enumerate(line)
            if math.isfinite(h)
        ]
        return "M" + "L".join(points) if points else ""

    def label(value: float) -> str:
        return f"1e{value:.0f}" if logarithmic else f"{value:.2f}"

    drawn = "".join(
        f'<path class="{name}" d="{path(line)}"/>' for name, line in lines.items()
    )
    key = " ".join(
        f'<span class="swatch {name}"></span> {escaped(words)}'
        for name, words in names.items()
    )
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}</figcaption>'
        f'<p class="key">{key}</p><div class="plot"><div class="scale">'
        f"<span>{label(high)}</span><span>{label(low)}</span></div>"
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'role="img"><title>{escaped(title)}</title>{drawn}</svg>'
        f'<div class="steps"><span>step 1</span><span>{steps}</span></div>'
        "</div></figure>"
    )
