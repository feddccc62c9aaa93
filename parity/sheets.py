"""Pictures of what a network does: its mistakes, its predictions, where it looks.

Needs matplotlib, from the extra `plot`. Each function returns a figure, which
`parity.plots.save` writes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.pictures import Prepared
from parity.plots import ALARM, FAINT, INK, NUMPY, styled
from parity.scores import Mistake, Scores

_RIGHT, _WRONG = "#0072B2", "#D55E00"

# With more classes a number in each cell can no longer be read.
_MOST_NUMBERS = 20


def confusion_matrix(scores: Scores, title: str) -> Any:
    """Draw the confusion matrix: a row a true class, a column a predicted one.

    The colour is the share of the row, blue for right and orange for wrong ones, on a
    square-root scale, which lets single mistakes be seen. Recall stands at the end of
    each row, precision at the foot of each column.

    Parameters
    ----------
    scores : Scores
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    counts = scores.confusion
    classes = len(counts)
    images = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strength = np.sqrt(counts / images)[..., None]
    colour = np.where(np.eye(classes, dtype=bool)[..., None], *_rgb(_RIGHT, _WRONG))
    cells = 1 - strength * (1 - colour)
    side = min(0.46 * classes, 9) + 1.2
    longest = max(len(name) for name in scores.class_names)
    width = max(side + 1.1 + 0.06 * longest, 4.2)
    # A bold letter takes a tenth of an inch; a data set's name may be a whole path.
    title = textwrap.fill(title, int(10 * width) - 3)
    lines = title.count("\n") + 1
    with styled() as new_figure:
        figure = new_figure(
            figsize=(width, side + 0.75 + 0.17 * lines + 0.04 * longest),
            layout="constrained",
        )
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.imshow(cells, interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.suptitle(title, x=0.12 / width, ha="left", weight="bold", size=11)
        size = 8 if classes <= _MOST_NUMBERS else 5
        # Of more classes than names find room, every so many is named.
        places = range(0, classes, 1 + classes // 80)
        names = [_short(scores.class_names[k]) for k in places]
        turned = 0 if longest <= 3 else 45
        axes.set_xticks(
            places,
            names,
            rotation=turned,
            ha="left" if turned else "center",
            rotation_mode="anchor",
            fontsize=size,
        )
        axes.set_yticks(places, names, fontsize=size)
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.set_xlabel("predicted class", labelpad=8)
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("true class", labelpad=8)
        if classes <= _MOST_NUMBERS:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.tick_params(which="minor", length=0)
            axes.grid(which="minor", lw=0.6)
            _number_cells(axes, scores, strength[..., 0])
        else:
            axes.text(
                0,
                -0.02,
                "colour: share of the row; blue right, orange wrong",
                transform=axes.transAxes,
                va="top",
                color=FAINT,
            )
    return figure


def _number_cells(axes: Any, scores: Scores, strength: NDArray[np.float64]) -> None:
    """Write the counts into the cells, and recall and precision along the sides."""
    counts = scores.confusion
    classes = len(counts)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(
                column,
                row,
                f"{count}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if strength[row, column] > 0.6 else INK,
            )
    for k, row in enumerate(scores.per_class()):
        for value, x, y, ha in (
            (row["recall"], classes - 0.3, k, "left"),
            (row["precision"], k, classes - 0.1, "center"),
        ):
            text = "–" if value is None else f"{100 * value:.1f}"
            axes.text(x, y, text, ha=ha, va="center", fontsize=7.5, color=FAINT)
    for x, ha, text in (
        (classes - 0.3, "left", "↑ recall %"),
        (-0.75, "right", "precision % →"),
    ):
        axes.text(x, classes - 0.1, text, ha=ha, va="center", fontsize=7.5, color=FAINT)


def mistakes_sheet(
    mistakes: Sequence[Mistake],
    images: NDArray[np.uint8],
    class_names: Sequence[str],
    title: str,
) -> Any:
    """Draw the images of mistakes, each with what it is and what it was taken for.

    Parameters
    ----------
    mistakes : sequence of Mistake
    images : ndarray of shape (N, C, H, W), uint8
        One for each mistake.
    class_names : sequence of str
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    columns = min(6, max(4, len(mistakes)))
    rows = max(1, -(-len(mistakes) // columns))
    # Long names take a line each.
    long = max(len(name) for name in class_names) > 4
    width, height = 1.3, 1.92 if long else 1.7
    with styled() as new_figure:
        figure = new_figure(figsize=(columns * width + 0.2, rows * height + 0.75))
        top = 0.62 / figure.get_figheight()
        left = 0.14 / figure.get_figwidth()
        figure.text(
            left,
            1 - 0.3 / figure.get_figheight(),
            title,
            fontweight="bold",
            fontsize=11,
            va="center",
        )
        grid = figure.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": left,
                "right": 1 - left,
                "top": 1 - top,
                "bottom": (0.62 if long else 0.48) / figure.get_figheight(),
                "wspace": 0.14,
                "hspace": 0.56 if long else 0.42,
            },
        )
        for axes in grid.flat:
            axes.set_axis_off()
        if not mistakes:
            figure.text(left, 0.4, "None: every image was named rightly.")
        for axes, mistake, image in zip(grid.flat, mistakes, images, strict=False):
            _show(axes, image)
            true, predicted = (
                _short(class_names[k]) for k in (mistake.true, mistake.predicted)
            )
            words = [
                (f"“{predicted}” {mistake.probability:.1%}", ALARM),
                (f"is {true}, given {_percent(mistake.true_probability)}", INK),
            ]
            if long:
                words = [
                    (predicted, ALARM),
                    (f"{mistake.probability:.1%}", ALARM),
                    (f"is {true} ({_percent(mistake.true_probability)})", INK),
                ]
            for line, (text, colour) in enumerate(words):
                axes.annotate(
                    text,
                    (0, 0),
                    xycoords="axes fraction",
                    xytext=(0, -9 - 9.5 * line),
                    textcoords="offset points",
                    fontsize=7.2,
                    color=colour,
                )
    return figure


def predictions_sheet(
    names: Sequence[str],
    prepared: Sequence[Prepared],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    top: int,
) -> Any:
    """Draw each picture beside what the network saw, and what it took that for.

    Parameters
    ----------
    names : sequence of str
        One a picture.
    prepared : sequence of Prepared
    probabilities : ndarray of shape (N, K)
    class_names : sequence of str
    top : int
        Classes to show.

    Returns
    -------
    matplotlib.figure.Figure
    """
    height = max(2.3, 0.19 * top + 1.1)
    with styled() as new_figure:
        figure = new_figure(figsize=(8.2, height * len(prepared)))
        panels = figure.subfigures(len(prepared), 1, squeeze=False)[:, 0]
        for panel, name, item, shares in zip(
            panels, names, prepared, probabilities, strict=True
        ):
            given, seen, bars = panel.subplots(
                1,
                3,
                width_ratios=(1.2, 0.8, 1.25),
                gridspec_kw={
                    "left": 0.02,
                    "right": 0.95,
                    "top": 1 - 0.42 / height,
                    "bottom": 0.62 / height,
                    "wspace": 0.42,
                },
            )
            _show(given, item.original.transpose(2, 0, 1))
            given.set_anchor("W")
            given.set_title(name, loc="left", fontsize=9, fontweight="bold")
            _show(seen, item.pixels)
            seen.set_title("what the network saw", loc="left", fontsize=9)
            seen.annotate(
                "",
                (-0.04, 0.5),
                (-0.22, 0.5),
                xycoords="axes fraction",
                arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 1.2},
            )
            _bars(bars, shares, class_names, top)
            panel.text(
                0.02,
                0.5 / height,
                textwrap.fill(" · ".join(item.steps), 118),
                va="top",
                fontsize=7.5,
                color=FAINT,
            )
    return figure


def _bars(
    axes: Any, shares: NDArray[np.float64], class_names: Sequence[str], top: int
) -> None:
    """Draw the largest probabilities, their classes' names beside them."""
    best = np.argsort(-shares, kind="stable")[:top]
    places = np.arange(len(best))
    axes.barh(places, shares[best], color=[NUMPY] + ["#A9BCCB"] * (len(best) - 1))
    axes.set_yticks(places, [_short(class_names[k], 18) for k in best], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(best), 5) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    for place, k in zip(places, best, strict=True):
        inside = shares[k] > 0.7
        axes.text(
            shares[k] + (-0.02 if inside else 0.02),
            place,
            _percent(shares[k]),
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside else INK,
        )
    axes.set_title("what it took it for", loc="left", fontsize=9)


def batch_sheet(
    originals: NDArray[np.uint8],
    augmented: NDArray[np.uint8],
    captions: Sequence[str],
    title: str,
) -> Any:
    """Draw images as they are stored, and beneath each what the network is given.

    Parameters
    ----------
    originals, augmented : ndarray of shape (N, C, H, W), uint8
    captions : sequence of str
        N labels.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    columns = min(8, len(originals))
    blocks = -(-len(originals) // columns)
    cell, foot = 1.05, 0.42
    width = columns * cell + 0.75
    height = 0.6 + blocks * (2 * cell + foot)
    with styled() as new_figure:
        figure = new_figure(figsize=(width, height))
        figure.text(
            0.14 / width,
            1 - 0.3 / height,
            title,
            fontweight="bold",
            fontsize=11,
            va="center",
        )
        for i, pair in enumerate(zip(originals, augmented, strict=True)):
            block, column = divmod(i, columns)
            left, top = 0.6 + column * cell, 0.6 + block * (2 * cell + foot)
            for row, image in enumerate(pair):
                bottom = height - top - (row + 1) * cell
                side = cell - 0.08
                axes = figure.add_axes(
                    (left / width, bottom / height, side / width, side / height)
                )
                _show(axes, image)
            axes.annotate(
                captions[i],
                (0, 0),
                xycoords="axes fraction",
                # The first line of each, at one height whatever its letters.
                xytext=(0, -9.5 - 8.5 * captions[i].count("\n")),
                textcoords="offset points",
                fontsize=6.8,
                va="baseline",
                linespacing=1.25,
            )
        for block in range(blocks):
            for row, text in enumerate(("stored", "given")):
                middle = 0.6 + block * (2 * cell + foot) + (row + 0.5) * cell
                figure.text(
                    0.35 / width,
                    1 - middle / height,
                    text,
                    rotation=90,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=FAINT,
                )
    return figure


def attention_sheet(
    image: NDArray[np.uint8], maps: NDArray[Any], flow: NDArray[Any], title: str
) -> Any:
    """Draw the attention of every head over the picture, and their rollout.

    Parameters
    ----------
    image : ndarray of shape (C, H, W), uint8
    maps : ndarray of shape (depth, h, rows, columns)
        As `parity.attention.head_maps` returns them, of one image.
    flow : ndarray of shape (rows, columns)
        As `parity.attention.rollout`.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    depth, heads = maps.shape[:2]
    cell = 1.35 if heads <= 6 else 0.85
    big = 2.1
    width = max(2 * big + 2.6, heads * cell + 0.75)
    height = 0.7 + big + 1.05 + depth * (cell + 0.16) + 0.15
    with styled() as new_figure:
        figure = new_figure(figsize=(width, height))

        def place(left: float, top: float, side: float) -> Any:
            """Make axes at inches from the left and top edges."""
            axes = figure.add_axes(
                (left / width, 1 - (top + side) / height, side / width, side / height)
            )
            axes.set_axis_off()
            return axes

        def write(left: float, top: float, text: str, **style: Any) -> None:
            figure.text(left / width, 1 - top / height, text, va="top", **style)

        write(0.15, 0.15, title, fontweight="bold", fontsize=11)
        _show(place(0.15, 0.72, big), image)
        write(0.15, 0.5, "what the network saw", fontsize=9)
        axes = place(0.4 + big, 0.72, big)
        _show(axes, _lit(image, flow))
        _largest(axes, flow)
        write(0.4 + big, 0.5, "attention rollout", fontsize=9)
        _scale(figure, 0.6 + 2 * big, 0.95)
        top = 0.72 + big + 0.6
        write(0.15, top - 0.27, "each head of each block", fontsize=9)
        for head in range(heads):
            write(0.5 + head * cell, top + 0.02, f"head {head}", fontsize=7.5)
        for block in range(depth):
            y = top + 0.2 + block * (cell + 0.16)
            figure.text(
                0.3 / width,
                1 - (y + cell / 2) / height,
                f"block {block}",
                rotation=90,
                ha="center",
                va="center",
                fontsize=8,
                color=FAINT,
            )
            for head in range(heads):
                axes = place(0.5 + head * cell, y, cell - 0.08)
                _show(axes, _lit(image, maps[block, head]))
                _largest(axes, maps[block, head])
    return figure


def _largest(axes: Any, weights: NDArray[Any]) -> None:
    """Write the largest weight of a map below it, and in even shares."""
    largest = float(weights.max())
    axes.annotate(
        f"{_percent(largest)} · {largest * weights.size:.1f}×",
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, -7.5),
        textcoords="offset points",
        fontsize=6.5,
        color=FAINT,
    )


def _scale(figure: Any, left: float, top: float) -> None:
    """Explain the colours, at inches from the left and top edges."""
    width, height = figure.get_size_inches()
    strip = figure.add_axes(
        (left / width, 1 - (top + 1) / height, 0.12 / width, 1 / height)
    )
    strip.imshow(_colours(np.linspace(1, 0, 64)[:, None]), aspect="auto")
    strip.set_axis_off()
    for right, down, text, colour in (
        (0.2, 0, "a map's largest weight", INK),
        (0.2, 0.9, "none", INK),
        (
            0,
            1.18,
            "each map has its own scale;\nits largest weight is below it,\n"
            "and how many times that is\nan even share of all patches.",
            FAINT,
        ),
    ):
        figure.text(
            (left + right) / width,
            1 - (top + down) / height,
            text,
            fontsize=7.5,
            va="top",
            color=colour,
        )


def _lit(image: NDArray[np.uint8], weights: NDArray[Any]) -> NDArray[np.uint8]:
    """Lay a map over a picture, patch by patch: (3, H, W).

    The picture is grey and pale, so that colour is attention alone.
    """
    _, height, width = image.shape
    shares = weights.astype(np.float64) / max(float(weights.max()), 1e-30)
    rows, columns = weights.shape
    large = shares.repeat(height // rows, axis=0).repeat(width // columns, axis=1)
    grey = image.mean(axis=0)[..., None] / 255
    colour = _colours(large)
    # Part of the light is the picture's, so that its shapes show through any colour.
    mixed = colour * (0.8 + 0.2 * grey) + 0.2 * grey * (1 - large[..., None])
    lit = (255 * mixed.clip(0, 1)).round().astype(np.uint8)
    return np.ascontiguousarray(lit.transpose(2, 0, 1))


def _colours(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return red, green and blue for shares in [0, 1]."""
    colormap = import_module("matplotlib").colormaps["inferno"]
    rgb: NDArray[np.float64] = colormap(0.12 + 0.82 * shares)[..., :3]
    return rgb


def _show(axes: Any, image: NDArray[np.uint8]) -> None:
    """Show an image (C, H, W), its pixels as they are."""
    channels, height, _ = image.shape
    pixels = np.repeat(image, 3, axis=0) if channels == 1 else image
    # Small images show their pixels; photographs are drawn smoothly.
    smooth = "nearest" if height <= 96 else "antialiased"
    axes.imshow(pixels.transpose(1, 2, 0), interpolation=smooth)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    # A white picture would have no edges.
    axes.spines[:].set(visible=True, color="#D5D9DD", linewidth=0.6)


def _rgb(*colours: str) -> Iterable[NDArray[np.float64]]:
    to_rgb = import_module("matplotlib.colors").to_rgb
    return [np.array(to_rgb(colour)) for colour in colours]


def _short(name: str, width: int = 22) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _percent(share: float) -> str:
    """Return a probability without claiming certainty that it has not."""
    if share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1:
        return "> 99.9%"
    return f"{share:.1%}"
