"""Curves show what was recorded, of runs that are finished or not."""

import json
from pathlib import Path

import numpy as np
import pytest

from parity.curves import Comparison, Curves, Envelope
from parity.plots import (
    NUMPY,
    TORCH,
    centred_mean,
    compare_runs,
    plot_comparison,
    read_metrics,
    run_curves,
    save,
)


def records(epochs=3, steps=10, unfinished=4, offset=0.0):
    rows = [{"kind": "run", "backend": "numpy"}]
    for step in range(1, epochs * steps + unfinished + 1):
        rows.append(
            {
                "kind": "step",
                "step": step,
                "epoch": (step - 1) // steps + 1,
                "loss": 2 / step + offset,
                "accuracy": 1 - 1 / step,
            }
        )
        if step % steps == 0 and step <= epochs * steps:
            rows.append(
                {
                    "kind": "epoch",
                    "step": step,
                    "epoch": step // steps,
                    "test_loss": 1 / step + offset,
                    "test_accuracy": [0.9, 0.95, 0.93][step // steps - 1],
                }
            )
    return rows


def test_centred_mean_does_not_lag():
    rising = np.arange(9.0)
    assert centred_mean(rising, 5)[2:-2].tolist() == rising[2:-2].tolist()
    peak = np.array([0.0, 0, 9, 0, 0, 0, 0])
    assert centred_mean(peak, 3).tolist() == [0, 3, 3, 3, 0, 0, 0]
    assert np.array_equal(centred_mean(peak, 1), peak)


def test_centred_mean_ends_in_means_too():
    """A last value that stood for itself would look like a jump."""
    values = np.array([4.0, 2, 0, 0, 0, 3, 9])
    assert centred_mean(values, 3).tolist() == [3, 2, 2 / 3, 0, 1, 4, 6]


def test_gaps_are_left_out_of_the_mean():
    values = np.array([1.0, np.nan, 3, np.nan, np.nan, np.nan, 5])
    found = centred_mean(values, 3)
    assert found[1] == 2
    assert np.isnan(found[4])


def line_of(figure, panel, number):
    return np.asarray(figure.axes[panel].lines[number].get_xydata())


def test_values_stand_where_they_were_recorded():
    rows = records()
    figure = run_curves(rows, smooth=1)
    steps = [row for row in rows if row["kind"] == "step"]
    raw = line_of(figure, 0, 0)
    assert raw[:, 1].tolist() == [row["loss"] for row in steps]
    # Along epochs, of ten steps each: the run in progress reaches into the fourth.
    assert raw[:, 0].tolist() == pytest.approx([row["step"] / 10 for row in steps])
    assert np.array_equal(line_of(figure, 0, 1), raw)
    assert line_of(figure, 1, 2).tolist() == [[1, 90], [2, 95], [3, 93]]
    (legend,) = figure.legends
    (text,) = [t.get_text() for t in legend.get_texts()]
    assert text == (
        "training · 93.00% of the test images after epoch 3 (best 95.00%, epoch 2)"
    )
    # Tests between 90 and 95 %: the axis is cut, and says so.
    assert figure.axes[1].get_ylim()[0] == 90
    assert figure.axes[1].get_ylabel() == "accuracy, from 90%"


def test_runs_without_an_epoch_are_laid_along_steps():
    runs = {"a": records(), "b": records(epochs=0, unfinished=5)}
    figure = compare_runs(runs)
    assert figure.axes[1].get_xlabel() == "step"
    assert line_of(figure, 0, 0)[:, 0].tolist() == list(range(1, 35))
    # Each run's batches would hide the other's mean.
    assert len(figure.axes[0].lines) == 1 + 1 + 1 + len(runs)
    with pytest.raises(ValueError, match="b has finished no epoch yet"):
        compare_runs(runs, by="epoch")
    with pytest.raises(ValueError, match="c has recorded no step yet"):
        compare_runs({"c": records(0, 10, 0)})
    with pytest.raises(ValueError, match="unknown by 'steps'; did you mean 'step'"):
        compare_runs(runs, by="steps")


def test_what_is_not_recorded_leaves_a_gap():
    rows = records()
    (third,) = [row for row in rows if row["kind"] == "epoch" and row["epoch"] == 3]
    del third["test_accuracy"]
    rows[1]["loss"] = None
    figure = run_curves(rows)
    (text,) = [t.get_text() for t in figure.legends[0].get_texts()]
    assert text == "training · 95.00% of the test images after epoch 2"
    assert np.isnan(line_of(figure, 1, 2)[2, 1])
    assert np.isnan(line_of(figure, 0, 0)[0, 1])


def test_more_runs_than_colours_are_drawn():
    figure = compare_runs({str(i): records(offset=i) for i in range(9)})
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 9
    assert len(figure.axes[0].lines) == 9 * 3


def test_runs_of_a_group_share_a_colour_and_an_entry():
    runs = {"a0": records(), "b0": records(), "a1": records(offset=1.0)}
    groups = {"a0": "NumPy", "a1": "NumPy", "b0": "PyTorch"}
    figure = compare_runs(runs, groups=groups)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "NumPy, 2 runs · 93.00%, 93.00% of the test images after epoch 3",
        "PyTorch · 93.00% of the test images after epoch 3 (best 95.00%, epoch 2)",
    ]
    one, _, other, *_ = (line.get_color() for line in figure.axes[0].lines)
    assert one != other
    # Two runs as long as each other are one line, half of 1 above the first, in a band.
    mean, alone = line_of(figure, 0, 0), line_of(figure, 0, 2)
    assert np.allclose(mean[:, 1] - 0.5, alone[:, 1])
    (band,) = figure.axes[0].collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert low == pytest.approx(alone[:, 1].min())
    assert high == pytest.approx(alone[:, 1].max() + 1)
    runs["a1"] = records(epochs=2)
    figure = compare_runs(runs, groups=groups)
    # Accuracies after different epochs do not stand in one list.
    assert figure.legends[0].get_texts()[0].get_text() == "NumPy, 2 runs"
    assert not figure.axes[0].collections


def test_the_best_epoch_is_that_of_the_validation():
    rows = records()
    for row in rows:
        if row["kind"] == "epoch":
            row["validation_accuracy"] = [0.8, 0.7, 0.9][row["epoch"] - 1]
    (text,) = [t.get_text() for t in run_curves(rows).legends[0].get_texts()]
    shown = "training · 93.00% of the test images after epoch 3"
    assert text == f"{shown}, the best by validation"
    rows[-5]["validation_accuracy"] = 0.75
    (text,) = [t.get_text() for t in run_curves(rows).legends[0].get_texts()]
    assert text == f"{shown} (90.00% after 1, the best by validation)"


def test_names_are_no_formulas_and_pictures_are_whole_or_as_before(
    tmp_path, monkeypatch
):
    path = tmp_path / "curves.png"
    save(run_curves(records(), "a$\\frac$ 猫"), path)
    before = path.read_bytes()

    def full(self, part, **options):
        Path(part).write_bytes(before[:99])
        raise OSError(28, "No space left on device")

    figure = run_curves(records())
    monkeypatch.setattr(type(figure), "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save(figure, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis():
    assert run_curves(records(offset=1.0)).axes[0].get_yscale() == "linear"
    assert run_curves(records(), smooth=1).axes[0].get_yscale() == "log"
    figure = compare_runs({"a": records()}, smooth=1, log_loss=False)
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_ylim()[0] == 0


def test_half_a_last_line_is_no_error_and_half_another_is(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row) for row in records()]
    file.write_text("\n".join(lines) + "\n" + lines[1][:20])
    assert read_metrics(tmp_path) == records()
    assert read_metrics(file) == records()
    file.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    with pytest.raises(ValueError, match="line 2 is no record of a run"):
        read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.jsonl"):
        read_metrics(tmp_path / "absent")


def test_figures_are_written_with_their_folder(tmp_path):
    path = tmp_path / "new" / "curves.png"
    save(run_curves(records()), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_shows_the_largest_difference_so_far(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("parity.plots.save", lambda figure, path: drawn.append(figure))
    loss = np.linspace(3, 1, 600).tolist()
    difference = [1e-15, 3e-15, 2e-15] * 200
    comparison = Comparison(
        recipe="r",
        data="d",
        dtype="float64",
        steps=600,
        free=Curves({"numpy": [x * (1 + 1e-13) for x in loss], "torch": loss}),
        envelope=Envelope(loss, loss, difference),
        lockstep=None,
        verdict=None,
        diverged_at=None,
        parting=None,
    )
    plot_comparison(comparison, tmp_path / "curves.png")
    upper, lower = drawn[0].axes
    assert upper.get_ylabel() == "training loss,\nmean of 3 steps"
    bold, thin = (np.asarray(line.get_ydata()) for line in lower.lines)
    assert np.array_equal(bold, np.maximum.accumulate(thin))
    assert thin == pytest.approx(1e-13, rel=0.01)


def test_a_backend_has_its_colour_alone_as_beside_the_other():
    colours = {"NumPy": NUMPY, "PyTorch": TORCH}
    for names in (["PyTorch"], ["NumPy", "PyTorch"]):
        groups = {name: name for name in names}
        loss, _ = compare_runs(dict.fromkeys(names, records()), groups=groups).axes
        shown = [line.get_color() for line in loss.lines[-len(names) :]]
        assert shown == [colours[name] for name in names]
