"""Pictures of training curves; needs matplotlib, from the extra `plot`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from parity.curves import Comparison

# Blue and orange are told apart by everybody (Okabe, Ito 2008).
NUMPY, TORCH, BAND, INK = "#0072B2", "#E69F00", "#C9CDD2", "#3C4248"
ALARM = "#B3261E"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#AEB4BA",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ECEEF0",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": 160,
}


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the loss in both backends, and beneath it their relative difference.

    The band is where torch itself goes when its parameters are moved by one unit in the
    last place after every step.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    matplotlib, figures, ticker = _matplotlib()
    c = comparison
    steps = np.arange(1, c.steps + 1)
    if c.verdict is None:
        shown = f"loss equal to {max(c.free.relative_difference):.1e}"
    else:
        shown = f"a judged step uses ≤ {c.verdict.max_bound_used:.2f} of its bound"
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(7.2, 5.4), layout="constrained")
        upper, lower = figure.subplots(
            2, 1, sharex=True, height_ratios=(3, 2), gridspec_kw={"hspace": 0.06}
        )
        upper.fill_between(
            steps, c.envelope.low, c.envelope.high, color=BAND, lw=0, alpha=0.7
        )
        # The curves lie on each other: the upper one is dashed, to show the lower.
        upper.plot(steps, c.free.loss["torch"], color=TORCH, lw=2.4, label="PyTorch")
        upper.plot(
            steps,
            c.free.loss["numpy"],
            color=NUMPY,
            lw=1.1,
            ls=(0, (4, 2.5)),
            label="NumPy",
        )
        upper.set_ylabel("training loss")
        upper.set_ylim(bottom=0)
        upper.legend(loc="upper right", handlelength=2.6)
        upper.set_title(
            f"{c.recipe} on {c.data} in {c.dtype}: NumPy against PyTorch",
            loc="left",
            fontsize=11,
            fontweight="bold",
            pad=24,
        )
        upper.text(
            0,
            1.045,
            f"same weights, batches and dropout masks · {c.steps} steps · {shown}",
            transform=upper.transAxes,
            va="bottom",
        ).set_in_layout(False)

        # A difference of zero has no place on a logarithmic axis: half the smallest
        # step of the dtype stands for it.
        floor = float(np.finfo(c.dtype).eps) / 2
        lower.fill_between(
            steps,
            floor,
            np.maximum(c.envelope.difference, floor),
            color=BAND,
            lw=0,
            alpha=0.7,
            label="PyTorch against itself, moved by 1 ulp a step",
        )
        lower.plot(
            steps,
            np.maximum(c.free.relative_difference, floor),
            color=NUMPY,
            lw=1.1,
            label="NumPy against PyTorch",
        )
        if c.diverged_at is not None:
            for axes in (upper, lower):
                axes.axvline(c.diverged_at, color=ALARM, lw=1, ls=":")
            late = c.diverged_at > c.steps / 2
            upper.annotate(
                f"beyond rounding from step {c.diverged_at}",
                (c.diverged_at, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if late else 5, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                color=ALARM,
            )
        lower.set_yscale("log")
        lower.yaxis.set_minor_formatter(ticker.NullFormatter())
        lower.set_ylim(bottom=floor)
        lower.set_xlim(1, c.steps)
        lower.set_ylabel("relative difference\nof the loss")
        lower.set_xlabel("step")
        # Above the axes: within them the band or the curve may be anywhere.
        lower.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2
        )
        figure.align_ylabels()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        matplotlib = import_module("matplotlib")
        figures = import_module("matplotlib.figure")
        return matplotlib, figures, import_module("matplotlib.ticker")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a plot needs matplotlib, which is not installed; "
            "install it with pip install 'vit-parity[plot]'"
        ) from None
