"""Pictures of training curves; needs matplotlib, from the extra `plot`."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vit_numpy.checkpoint import write_atomically
from vit_numpy.config import check_choice

if TYPE_CHECKING:
    from parity.curves import Comparison

# Blue and orange are told apart by everybody (Okabe, Ito 2008).
NUMPY, TORCH, BAND, INK = "#0072B2", "#E69F00", "#C9CDD2", "#3C4248"
FAINT = "#767C82"
ALARM = "#B3261E"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#6B6B6B")

_BACKENDS = {"NumPy": NUMPY, "PyTorch": TORCH}

_METRICS = "metrics.jsonl"

# Percentages of wrong answers that are marked on a logarithmic axis: none too close.
_WRONG = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 50)

# Fills of a dot, one for each thing that results were computed on.
_FILLS = ("full", "none", "left", "right", "top", "bottom")

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# How far a loss falls before its axis is logarithmic.
_LOG_FROM = 20

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
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
    last place after every step. Of a long run the upper lines are a running mean, as
    single batches would hide one line beneath the other.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    c = comparison
    steps = np.arange(1, c.steps + 1)
    if c.verdict is None:
        shown = f"loss equal to {max(c.free.relative_difference):.1e}"
    else:
        shown = f"a judged step uses ≤ {c.verdict.max_bound_used:.2f} of its bound"
    window = c.steps // 200 | 1

    def smooth(values: Sequence[float]) -> NDArray[np.float64]:
        return centred_mean(np.asarray(values, np.float64), window)

    with styled() as new_figure:
        figure = new_figure(figsize=(7.2, 5.4), layout="constrained")
        upper, lower = figure.subplots(
            2, 1, sharex=True, height_ratios=(3, 2), gridspec_kw={"hspace": 0.06}
        )
        upper.fill_between(
            steps,
            smooth(c.envelope.low),
            smooth(c.envelope.high),
            color=BAND,
            lw=0,
            alpha=0.7,
        )
        # The curves lie on each other: the upper one is dashed, to show the lower.
        upper.plot(
            steps, smooth(c.free.loss["torch"]), color=TORCH, lw=2.4, label="PyTorch"
        )
        upper.plot(
            steps,
            smooth(c.free.loss["numpy"]),
            color=NUMPY,
            lw=1.1,
            ls=(0, (4, 2.5)),
            label="NumPy",
        )
        upper.set_ylabel(
            "training loss" + (f",\nmean of {window} steps" if window > 1 else "")
        )
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
            f"same weights, batches and dropout masks · {c.steps:,} steps · {shown}",
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
            label="PyTorch against itself, moved by 1 ulp a step: largest so far",
        )
        difference = np.maximum(c.free.relative_difference, floor)
        lower.plot(
            steps,
            np.maximum.accumulate(difference),
            color=NUMPY,
            lw=1.4,
            label="NumPy against PyTorch: largest so far",
        )
        lower.plot(
            steps,
            difference,
            color=NUMPY,
            lw=0.6,
            alpha=0.45,
            label="NumPy: at each step",
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
        lower.yaxis.set_major_formatter(lambda value, _: _power(value))
        lower.yaxis.set_minor_formatter("")
        lower.set_ylim(bottom=floor)
        lower.set_xlim(1, max(c.steps, 2))
        lower.set_ylabel("relative difference\nof the loss")
        lower.set_xlabel("step")
        # Above the axes: within them the band or the curve may be anywhere.
        lower.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            borderaxespad=0.2,
            columnspacing=1.2,
        )
        figure.align_ylabels()
        save(figure, path)


def _power(value: float) -> str:
    """Write a power of ten."""
    digits = str(round(math.log10(value))).translate(_RAISED)
    return f"10{digits}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run, finished or in progress.

    Parameters
    ----------
    path : Path
        The folder of a run, its ``metrics.jsonl``, or a curve that was kept of it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line other than the last is no record.
    """
    file = path / _METRICS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} holds no {_METRICS}; give the folder of a run, "
            "as scripts/train.py makes it"
        )
    lines = file.read_text("utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError:
            if number == len(lines):
                # A run in progress may be writing it just now.
                continue
            raise ValueError(f"{file}: line {number} is no record of a run") from None
        records.append(record)
    return records


def run_curves(
    metrics: Sequence[Mapping[str, Any]],
    name: str = "training",
    smooth: int | None = None,
) -> Any:
    """Draw loss and accuracy of one run, finished or in progress.

    Parameters
    ----------
    metrics : sequence of dict
        Its records, as `read_metrics` returns them.
    name : str
        For the title.
    smooth : int, optional
        As `compare_runs`.

    Returns
    -------
    matplotlib.figure.Figure
        `save` writes it.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    ValueError
        If no step is recorded.
    """
    return compare_runs({name: metrics}, smooth, title=f"{name}: loss and accuracy")


def compare_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    smooth: int | None = None,
    by: str = "auto",
    log_loss: bool | None = None,
    groups: Mapping[str, str] | None = None,
    title: str = "Loss and accuracy",
) -> Any:
    """Draw loss and accuracy of several runs on one pair of axes.

    Lines are the mean of the training batches over a window around each, which does not
    lag behind them; a run by itself, of no group, has the batches too, thin. Dotted are
    the test images after each epoch. Lines of earlier runs are wider, to be seen
    beneath later ones that lie on them.

    Parameters
    ----------
    runs : dict of str to sequence of dict
        The records of each run, by the name it shall have.
    smooth : int, optional
        Steps in the window; by default a fiftieth of the run's.
    by : {'auto', 'epoch', 'step'}
        What to lay along the axis. By default epochs where every run has finished one:
        runs with different batch sizes have then seen as much at the same place.
    log_loss : bool, optional
        Whether the axis of the loss is logarithmic. By default where a line falls to a
        twentieth: what comes later would be flat.
    groups : dict of str to str, optional
        The group of each run, such as its backend. Runs of a group have one colour and
        one entry in the legend; if they are as long as each other, their mean is drawn,
        and as a band from which value to which they go. By default each is a group.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    ValueError
        If a run has recorded no step, or none of its epochs is finished and `by` is
        ``'epoch'``.
    """
    check_choice("by", by, ("auto", "epoch", "step"))
    curves = {name: _Curve.of(name, records) for name, records in runs.items()}
    finished = all(len(curve.epochs) for curve in curves.values())
    if by == "epoch" and not finished:
        name = next(name for name, curve in curves.items() if not len(curve.epochs))
        raise ValueError(f"{name} has finished no epoch yet; use steps")
    per_epoch = finished and by != "step"
    single = len(curves) == 1 and groups is None
    names = list(curves) if groups is None else [groups[name] for name in curves]
    members: dict[str, list[_Curve]] = {}
    for group, curve in zip(names, curves.values(), strict=True):
        members.setdefault(group, []).append(curve)
    # A backend has its colour by itself too.
    colours = {
        group: _BACKENDS.get(group, COLOURS[i % len(COLOURS)])
        for i, group in enumerate(members)
    }
    with styled() as new_figure:
        figure = new_figure(
            figsize=(7.6, 5.6 + 0.2 * len(members)), layout="constrained"
        )
        loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
        faint = (
            0.22 if max(len(curve.steps) for curve in curves.values()) < 2000 else 0.1
        )
        span, top = 1.0, 0.0
        lines = [
            (group, bundle)
            for group, of_group in members.items()
            for bundle in _bundles(of_group)
        ]
        for i, (group, bundle) in enumerate(lines):
            colour = colours[group]
            width = 1.1 + 0.6 * min(len(lines) - 1 - i, 3)
            window = smooth or max(1, len(bundle[0].steps) // 50)
            x, x_test = bundle[0].places(per_epoch)
            for axes, key, unit in (
                (loss_axes, "loss", 1),
                (accuracy_axes, "accuracy", 100),
            ):
                values = unit * np.stack([getattr(curve, key) for curve in bundle])
                tested = unit * np.stack(
                    [getattr(curve, f"test_{key}") for curve in bundle]
                )
                means = np.stack([centred_mean(row, window) for row in values])
                if single:
                    axes.plot(x, values[0], color=colour, lw=0.5, alpha=faint)
                if len(bundle) > 1:
                    low, high = means.min(axis=0), means.max(axis=0)
                    axes.fill_between(x, low, high, color=colour, lw=0, alpha=0.25)
                mean, test = means.mean(axis=0), tested.mean(axis=0)
                if axes is loss_axes:
                    span = max(span, *map(_span, (*means, *tested)))
                    top = max(top, *np.nan_to_num([means.max(), *test], posinf=0.0))
                axes.plot(x, mean, color=colour, lw=width)
                if len(test):
                    axes.plot(
                        x_test,
                        test,
                        color=INK if single else colour,
                        lw=1.3,
                        ls=(0, (1, 1.4)),
                        marker="o",
                        ms=4 if len(test) < 40 else 2.6,
                        markeredgecolor="white",
                        markeredgewidth=0.5,
                        zorder=3,
                    )
        for group, of_group in members.items():
            loss_axes.plot(
                [], [], color=colours[group], lw=3, label=_result(group, of_group)
            )
        loss_axes.set_ylabel("loss")
        if log_loss or (log_loss is None and span >= _LOG_FROM):
            loss_axes.set_yscale("log", subs=(2, 5))
            loss_axes.yaxis.set_major_formatter("{x:g}")
            loss_axes.yaxis.set_minor_formatter("{x:g}")
            loss_axes.yaxis.grid(which="minor")
        else:
            # A few batches at the start may lie far above all that matters.
            loss_axes.set_ylim(0, 1.06 * top or None)
        floor = _accuracy_floor(curves.values())
        accuracy_axes.set_ylabel(f"accuracy, from {floor}%" if floor else "accuracy")
        accuracy_axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}%")
        accuracy_axes.set_ylim(bottom=floor, top=100.5)
        accuracy_axes.set_xlabel("epoch" if per_epoch else "step")
        accuracy_axes.set_xlim(left=0)
        accuracy_axes.locator_params(axis="x", integer=True)
        figure.legend(
            loc="outside upper left",
            handlelength=1.2,
            title=title,
            alignment="left",
            title_fontproperties={"weight": "bold", "size": 11},
        )
        figure.align_ylabels()
        notes = ["line: running mean of training batches"]
        if single:
            notes = ["thin: training batches", "bold: their running mean"]
        if any(len(bundle) > 1 for _, bundle in lines):
            notes = ["line: training batches, mean of the runs", "band: least to most"]
        notes.append("dotted: test images after each epoch")
        figure.supxlabel("   ·   ".join(notes), fontsize=8, color=FAINT)
    return figure


def _bundles(members: Sequence[_Curve]) -> list[list[_Curve]]:
    """Return the runs of a group together if they are as long, else one by one."""
    lengths = {(len(curve.steps), len(curve.epochs)) for curve in members}
    return [list(members)] if len(lengths) == 1 else [[curve] for curve in members]


@dataclass(frozen=True)
class Timed:
    """What training by a recipe reached, and in what time.

    Attributes
    ----------
    recipe, backend, data : str
    minutes : float
        Of training, from the first step to the last.
    accuracy : float
        Of the test images, from 0 to 1.
    where : str
        On what the steps were made: '2 threads', or the name of an accelerator.
    """

    recipe: str
    backend: str
    data: str
    minutes: float
    accuracy: float
    where: str


def accuracy_against_time(results: Sequence[Timed]) -> Any:
    """Draw what recipes reach against the time that they take, a panel a data set.

    The share of test images that are wrong is laid along a logarithmic axis, upside
    down, as the way from 98 to 99 % is as long as that from 96 to 98. A line joins
    both backends' results of a recipe.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    panels: dict[str, dict[str, list[Timed]]] = {}
    for result in results:
        panels.setdefault(result.data, {}).setdefault(result.recipe, []).append(result)
    machines = sorted({result.where for result in results}, reverse=True)
    fills = dict(zip(machines, cycle(_FILLS)))
    with styled() as new_figure:
        heights = [0.9 + 0.35 * len(by_recipe) for by_recipe in panels.values()]
        figure = new_figure(figsize=(7.6, 1 + sum(heights)), layout="constrained")
        rows = figure.subplots(
            len(panels), 1, squeeze=False, sharex=True, height_ratios=heights
        )[:, 0]
        for axes, (data, by_recipe) in zip(rows, panels.items(), strict=True):
            first = [_place(members[0]) for members in by_recipe.values()]
            for recipe, members in by_recipe.items():
                spots = [_place(member) for member in members]
                axes.plot(*zip(*spots, strict=True), color=BAND, lw=1)
                for member, spot in zip(members, spots, strict=True):
                    colour = NUMPY if member.backend == "numpy" else TORCH
                    axes.plot(*spot, color=colour, **_dot(fills[member.where]))
                beside = any(_is_just_above(other, spots[0]) for other in first)
                axes.annotate(
                    recipe,
                    spots[0],
                    xytext=(-7, 0) if beside else (2, 5),
                    textcoords="offset points",
                    ha="right",
                    va="center" if beside else "bottom",
                    fontsize=8,
                )
            axes.set_xscale("log", subs=(2, 5))
            axes.set_yscale("log", subs=())
            axes.set_yticks(_WRONG)
            wrong = [
                y for members in by_recipe.values() for _, y in map(_place, members)
            ]
            axes.set_ylim(1.5 * max(wrong), min(wrong) / 1.5)
            axes.margins(x=0.1)
            axes.xaxis.grid(which="minor")
            axes.yaxis.set_major_formatter(lambda wrong, _: f"{100 - wrong:.3g}%")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.tick_params(which="both", length=3, pad=4)
            axes.set_title(data, loc="left", fontsize=9, weight="bold")
        for name, colour in _BACKENDS.items():
            rows[0].plot([], [], "o", color=colour, label=name)
        if len(machines) > 1:
            for where in machines:
                rows[0].plot([], [], color=INK, label=where, **_dot(fills[where]))
        figure.legend(
            loc="outside upper left",
            ncols=4,
            handletextpad=0.2,
            title="Test accuracy against training time",
            alignment="left",
            title_fontproperties={"weight": "bold", "size": 11},
        )
        rows[-1].set_xlabel("minutes of training")
        figure.supylabel("test accuracy", fontsize=9)
    return figure


def _dot(fill: str) -> dict[str, Any]:
    """Return how a result is marked, with its dot filled so."""
    dot = {"marker": "o", "ms": 6, "ls": "", "mfcalt": "white"}
    # One without a fill would let the line behind it through.
    return dot | ({"mfc": "white"} if fill == "none" else {"fillstyle": fill})


def _place(result: Timed) -> tuple[float, float]:
    """Return where a result lies: its minutes, and the percentage that is wrong."""
    # A logarithmic axis has no place for a network that is never wrong.
    return result.minutes, max(100 * (1 - result.accuracy), 0.01)


def _is_just_above(other: tuple[float, float], place: tuple[float, float]) -> bool:
    """Tell whether a better result lies so near that names above both would meet."""
    minutes, wrong = (a / b for a, b in zip(other, place, strict=True))
    return 0.6 < minutes < 2 and 0.8 < wrong < 1


@dataclass(frozen=True)
class _Curve:
    """What is drawn of one run: arrays of a value a step, and of a value an epoch."""

    steps: NDArray[np.int64]
    epoch_of_step: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    epochs: NDArray[np.int64]
    step_of_epoch: NDArray[np.int64]
    test_loss: NDArray[np.float64]
    test_accuracy: NDArray[np.float64]
    validation_accuracy: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, records: Sequence[Mapping[str, Any]]) -> Self:
        steps = [r for r in records if r.get("kind") == "step"]
        epochs = [r for r in records if r.get("kind") == "epoch"]
        if not steps:
            raise ValueError(f"{name} has recorded no step yet; wait for the first")

        def column(rows: list[Mapping[str, Any]], key: str) -> list[Any]:
            # What is not recorded, or no number, leaves a gap.
            return [math.nan if row.get(key) is None else row[key] for row in rows]

        return cls(
            np.array(column(steps, "step"), np.int64),
            np.array(column(steps, "epoch"), np.int64),
            np.array(column(steps, "loss"), np.float64),
            np.array(column(steps, "accuracy"), np.float64),
            np.array(column(epochs, "epoch"), np.int64),
            np.array(column(epochs, "step"), np.int64),
            np.array(column(epochs, "test_loss"), np.float64),
            np.array(column(epochs, "test_accuracy"), np.float64),
            np.array(column(epochs, "validation_accuracy"), np.float64),
        )

    def places(
        self, per_epoch: bool
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        """Return where steps and epochs stand on the axis."""
        if not per_epoch:
            return self.steps.astype(np.float64), self.step_of_epoch.astype(np.float64)
        steps_per_epoch = self.step_of_epoch[0] / self.epochs[0]
        return self.steps / steps_per_epoch, self.epochs.astype(np.float64)

    @property
    def tests(self) -> list[tuple[float, int]]:
        """Test accuracies and their epochs, where there are any."""
        pairs = zip(self.test_accuracy.tolist(), self.epochs.tolist(), strict=True)
        return [(share, epoch) for share, epoch in pairs if math.isfinite(share)]

    @property
    def result(self) -> str:
        """The last test accuracy, and that of the best epoch where it is another."""
        if not len(self.epochs):
            return f"step {self.steps[-1]}, no epoch finished yet"
        if not self.tests:
            return f"epoch {self.epochs[-1]}, not tested yet"
        last, epoch = self.tests[-1]
        text = f"{last:.2%} of the test images after epoch {epoch}"
        if np.isfinite(self.validation_accuracy).any():
            best = int(np.nanargmax(self.validation_accuracy))
            best_epoch, accuracy = self.epochs[best], self.test_accuracy[best]
            if best_epoch == epoch:
                return f"{text}, the best by validation"
            return f"{text} ({accuracy:.2%} after {best_epoch}, the best by validation)"
        most, epoch = max(self.tests, key=lambda test: test[0])
        return text if most == last else f"{text} (best {most:.2%}, epoch {epoch})"


def centred_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of each value and those around it.

    Parameters
    ----------
    values : ndarray of shape (N,)
    window : int
        Values in a mean, half of them on either side; an even number counts as the next
        odd one. At the ends it holds what there is.
    """
    if window <= 1:
        return values
    places, reach = np.arange(len(values)), window // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    start = np.maximum(places - reach, 0)
    stop = np.minimum(places + reach + 1, len(values))
    number = counts[stop] - counts[start]
    total = sums[stop] - sums[start]
    # Where nothing was a number there is a gap.
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _result(group: str, members: Sequence[_Curve]) -> str:
    """Return the legend of a run, or of several that share a colour."""
    if len(members) == 1:
        return f"{group} · {members[0].result}"
    text = f"{group}, {len(members)} runs"
    last = [curve.tests[-1] for curve in members if curve.tests]
    epochs = {epoch for _, epoch in last}
    if len(last) < len(members) or len(epochs) > 1:
        return text
    shares = ", ".join(f"{accuracy:.2%}" for accuracy, _ in last)
    return f"{text} · {shares} of the test images after epoch {epochs.pop()}"


def _span(values: NDArray[np.float64]) -> float:
    """Return how many times the first number is as large as the last."""
    numbers = values[np.isfinite(values)]
    if not len(numbers) or numbers[-1] <= 0:
        return 1.0
    return float(numbers[0] / numbers[-1])


def _accuracy_floor(curves: Iterable[_Curve]) -> int:
    """Return where the axis of accuracy begins, in percent.

    That is below nine in ten test results and the last half of the training, where
    these are above one half.
    """
    low = 1.0
    for curve in curves:
        tested = curve.test_accuracy[np.isfinite(curve.test_accuracy)]
        if not len(tested):
            return 0
        late = curve.accuracy[len(curve.accuracy) // 2 :]
        common = float(np.quantile(tested, 0.1, method="lower"))
        low = min(low, common, float(np.nanmean(late)))
    return math.floor(low * 20) * 5 if low >= 0.5 else 0


def check_matplotlib() -> None:
    """Raise if matplotlib is missing, before the work whose result it shall draw.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed.
    """
    with styled():
        pass


@contextmanager
def styled() -> Iterator[Any]:
    """Yield matplotlib's `Figure` class, in the project's style.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    try:
        matplotlib, figures = (
            import_module(name) for name in ("matplotlib", "matplotlib.figure")
        )
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a plot needs matplotlib, which is not installed; "
            "install it with pip install 'vit-parity[plot]'"
        ) from None
    with matplotlib.rc_context(STYLE):
        yield figures.Figure


def save(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure to a file of the kind that its name says, and make its folder.

    The file is whole or as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Letters that the font lacks are drawn as boxes, which the picture itself shows.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(path, lambda part: figure.savefig(part, **options))
