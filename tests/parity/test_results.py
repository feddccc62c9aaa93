"""Results are kept as they come, and the page says what was met and what was not."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from parity import recipes
from parity.plots import Timed, accuracy_against_time, read_metrics
from parity.results import (
    TIMES,
    Job,
    Result,
    Results,
    difference_of_means,
    draw_curves,
    draw_times,
    keep_curves,
    page,
    plan,
    thinned,
)

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu": "Abacus 9", "cores": 2, "python": "3.12.1",
    "packages": {"numpy": "2.4.6", "torch": None}, "blas": None,
    "numpy_threads": 2, "torch_threads": 1,
}  # fmt: skip
RESULT = Result(
    "network1", "numpy", 0, data="mnist", epochs=20, planned_epochs=20,
    fingerprint=recipes.load("network1").fingerprint(), steps=12000,
    test_accuracy=0.97, test_loss=0.1, seconds=25.0, evaluation_seconds=2.8,
    environment=MACHINE,
)  # fmt: skip


def record(results, recipe="network1", backend="numpy", seed=0, **changes):
    made = replace(RESULT, recipe=recipe, backend=backend, seed=seed, **changes)
    by = {"data": made.data, "epochs": made.planned_epochs}
    fingerprint = recipes.load(recipe).replace(by).fingerprint()
    result = replace(made, fingerprint=changes.get("fingerprint", fingerprint))
    results.record(result.job, result)


def test_every_recipe_is_planned_once_in_both_backends():
    jobs = plan(folder=True)
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.recipe for job in jobs} == set(recipes.names())
    for name in recipes.names():
        seeds = 3 if name in ("network1", "network1-cosine", "mnist-compact") else 1
        for backend in ("numpy", "torch"):
            made = [j.seed for j in jobs if (j.recipe, j.backend) == (name, backend)]
            assert made == list(range(seeds))
    assert "folder-224" not in {job.recipe for job in plan()}


def test_every_recipe_but_the_folder_promises_an_accuracy():
    for name in recipes.names():
        target = recipes.load(name).target
        assert (target is None) == (name == "folder-224")
        assert target is None or 0.7 < target < 1


def test_results_are_read_back_and_damage_is_named(tmp_path):
    path = tmp_path / "docs" / "results.json"
    results = Results(path)
    record(results)
    results.record(Job("network2", "numpy", 0), None)
    results.record(Job("network3", "numpy", 0), None, "no room")
    again = Results(path)
    assert again.by_name == results.by_name == {"network1-numpy-0": RESULT}
    assert again.failed == {"network3-numpy-0": "no room"}
    assert "| `network3` | numpy | 0 | failed: no room |" in page(again, tmp_path)
    results.record(Job("network3", "numpy", 0), None)
    assert not Results(path).failed
    path.write_text('{"runs": {"network1-numpy-0": {"epochs": 3}}}')
    with pytest.raises(ValueError, match="holds no results"):
        Results(path)
    path.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match="holds no results"):
        Results(path)


def test_the_page_says_what_was_met_missed_and_left(tmp_path):
    results = Results(tmp_path / "results.json")
    for seed, accuracy in enumerate((0.970, 0.968, 0.972)):
        record(results, seed=seed, test_accuracy=accuracy)
        record(results, backend="torch", seed=seed, test_accuracy=accuracy - 0.001)
    record(results, "network2", planned_epochs=30, epochs=30, test_accuracy=0.9829)
    few = {"data": "mnist-subset", "epochs": 2, "planned_epochs": 2}
    record(results, "mnist-sincos", **few)
    record(results, "mnist-flat", epochs=7, planned_epochs=36, test_accuracy=0.5)
    text = page(results, tmp_path / "results")
    # 97.00 and 96.90 %, both above 96.7 %.
    assert "| 97.00% (mean of 3 seeds), met | 96.90% (mean of 3 seeds), met |" in text
    assert "98.29%, **missed** | not run yet" in text
    assert "97.00%, a trial of 2 epochs, on mnist-subset |" in text
    assert "| `mnist-flat` | numpy | 0 | 7 of 36 epochs, 50.00% so far |" in text
    assert "| `mnist-strong` | torch | 0 | not begun |" in text
    # The same spread of 0.2 % around means 0.1 % apart: 2 √(2 · 0.2² / 3) = 0.33 %.
    assert "| +0.10% | 0.33% | yes |" in text
    # 278 s published, 27.8 s with evaluation here.
    assert "| `network1` | 278 s | 28 s (2 threads) | 10.0 | ≥ 5, met |" in text
    assert "Abacus 9, 2 cores; Python 3.12.1, numpy 2.4.6; 2 threads (" in text


def test_the_page_says_on_what_a_time_was_taken(tmp_path):
    results = Results(tmp_path / "results.json")
    record(results, seconds=60.0)
    record(results, seed=1, seconds=120.0, environment=MACHINE | {"numpy_threads": 1})
    record(results, backend="torch", seconds=60.0)
    before = {k: v for k, v in MACHINE.items() if k != "numpy_threads"}
    record(results, "network2", environment=before, seconds=60.0)
    on_gpu = MACHINE | {"accelerator": "Abacus 3000"}
    record(results, "network3", backend="torch", environment=on_gpu, seconds=60.0)
    record(results, "network3", seconds=60.0)
    text = page(results, tmp_path / "results")
    assert "| 1.0 (2 threads) | 1.0 (Abacus 3000) |" in text
    assert "numpy 2.4.6; Abacus 3000 (network3-torch-0)" in text
    assert "| 1.5 (1 or 2 threads) | 1.0 (1 thread) |" in text
    assert "| 1.0 (unknown threads) | – |" in text
    assert "numpy 2.4.6; 1 thread (network1-numpy-1, network1-torch-0)" in text


def run_folder(path, epochs):
    """Leave what a training of so many epochs of the two planned ones leaves."""
    path.mkdir(parents=True)
    recipe = recipes.load("network1").replace({"epochs": 2})
    (path / "recipe.toml").write_text(recipe.to_toml())
    records = [{"kind": "run", "backend": "numpy", "environment": MACHINE}]
    for epoch in range(1, epochs + 1):
        steps = [
            {"kind": "step", "step": 2 * epoch + i, "epoch": epoch, "loss": 1.0 / epoch,
             "accuracy": 0.5, "grad_norm": 1.0, "lr": 0.1}
            for i in (-1, 0)
        ]  # fmt: skip
        records += steps
        records.append(
            {"kind": "epoch", "epoch": epoch, "step": 2 * epoch, "train_loss": 1.0,
             "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.25 * epoch,
             "seconds": 1.0, "evaluation_seconds": 0.5}
        )  # fmt: skip
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")


def test_accuracies_are_drawn_over_times_but_those_of_trials(tmp_path):
    results = Results(tmp_path / "results.json")
    picture = tmp_path / "results" / TIMES
    record(results, "network2", planned_epochs=2, epochs=2)
    draw_times(results, picture)
    assert not picture.exists()
    assert TIMES not in page(results, tmp_path / "results")
    record(results)
    draw_times(results, picture)
    assert picture.stat().st_size > 0
    assert f"results/{TIMES}" in page(results, tmp_path / "results")


def test_each_recipe_is_named_and_both_backends_are_joined():
    many = [
        Timed("network1", "numpy", "mnist", 0.5, 0.966, "2 threads"),
        Timed("network1", "torch", "mnist", 2.0, 0.967, "1 thread"),
        Timed("network1-cosine", "numpy", "mnist", 0.5, 0.968, "2 threads"),
        Timed("network3", "numpy", "cifar10", 18.0, 0.77, "2 threads"),
        Timed("folder-224", "numpy", "folder:a", 9.0, 1.0, "unknown threads"),
        Timed("folder-224", "torch", "folder:a", 9.0, 1.0, "Abacus 3000"),
    ]
    digits, colours, never_wrong = accuracy_against_time(many).axes
    assert [axes.get_title("left") for axes in (digits, colours, never_wrong)] == [
        "mnist",
        "cifar10",
        "folder:a",
    ]
    names = {text.get_text(): text for text in digits.texts}
    assert names.keys() == {"network1", "network1-cosine"}
    # The worse of two that lie together has its name beside it, the better one above.
    assert names["network1"].get_va() == "center"
    assert names["network1-cosine"].get_va() == "bottom"
    fills = {
        label.get_text(): (handle.get_fillstyle(), handle.get_markerfacecolor())
        for legend in never_wrong.figure.legends
        for label, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    places = ["unknown threads", "Abacus 3000", "2 threads", "1 thread"]
    assert len({fills[place] for place in places}) == 4
    x, y = digits.lines[0].get_data()
    assert (list(x), [round(wrong, 9) for wrong in y]) == ([0.5, 2.0], [3.4, 3.3])
    low, high = digits.get_ylim()
    assert low > high, "what is wrong lies upside down"


def test_finished_runs_that_others_made_are_collected(tmp_path):
    runs = tmp_path / "runs"
    run_folder(runs / "network1-numpy-0", epochs=2)
    run_folder(runs / "network1-torch-0", epochs=2)
    run_folder(runs / "network1-numpy-1", epochs=1)
    results = Results(tmp_path / "results.json")
    record(results, backend="torch", test_accuracy=0.9)
    assert [job.name for job in results.collect(runs)] == ["network1-numpy-0"]
    assert results.by_name["network1-numpy-0"].test_accuracy == 0.5
    assert results.by_name["network1-torch-0"].test_accuracy == 0.9
    assert Results(results.path).by_name.keys() == results.by_name.keys()
    assert results.collect(runs) == results.collect(tmp_path / "none") == []


def test_a_run_by_the_recipe_as_it_is_replaces_one_by_another(tmp_path):
    runs = tmp_path / "runs"
    run_folder(runs / "network1-numpy-0", epochs=2)
    results = Results(tmp_path / "results.json")
    record(results, fingerprint="that of old")
    assert "97.00%, a trial of other settings |" in page(results, tmp_path)
    assert results.collect(runs) == [], "a trial does not"
    recipe = recipes.load("network1")
    (runs / "network1-numpy-0" / "recipe.toml").write_text(recipe.to_toml())
    metrics = runs / "network1-numpy-0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch": 2', '"epoch": 20'))
    assert [job.name for job in results.collect(runs)] == ["network1-numpy-0"]
    assert results.by_name["network1-numpy-0"].test_accuracy == 0.5
    assert "a trial" not in page(results, tmp_path)


def test_curves_are_kept_thinned_and_drawn_when_the_runs_are_gone(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "results"
    kept.mkdir()
    run_folder(runs / "network1-numpy-0", epochs=2)
    results = Results(tmp_path / "results.json")
    results.collect(runs)
    assert keep_curves(results, "network1", runs, kept)
    curve = kept / "network1-numpy-0.jsonl"
    assert read_metrics(curve) == thinned(read_metrics(runs / "network1-numpy-0"))
    assert not keep_curves(results, "network1", runs, kept), "nothing is new"
    record(results, backend="torch")
    # Runs that are gone, or replaced by others, leave what was kept of them alone.
    before = curve.read_bytes()
    assert not keep_curves(results, "network1", tmp_path / "none", kept)
    (runs / "network1-torch-0").mkdir()
    metrics = runs / "network1-numpy-0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('y": 0.5,', 'y": 0.6,'))
    assert not keep_curves(results, "network1", runs, kept)
    assert curve.read_bytes() == before
    picture = kept / "network1.png"
    draw_curves(results, "network1", kept, picture)
    assert picture.stat().st_size > 0
    assert "Without a curve, as none was kept: `network1-torch-0`." in page(
        results, kept
    )
    assert "Without a curve" not in page(results, tmp_path / "none")


def test_thinned_steps_are_means_at_the_middle_of_what_they_stand_for():
    steps = [
        {"kind": "step", "step": i, "epoch": 1 + (i > 4), "loss": i, "accuracy": 1 / i}
        for i in range(1, 8)
    ]
    others = [{"kind": "run", "backend": "numpy"}, {"kind": "epoch", "epoch": 1}]
    found = thinned([others[0], *steps[:4], others[1], *steps[4:]], count=3)
    assert found == [
        *others,
        {"kind": "step", "step": 2, "epoch": 1, "loss": 2.0, "accuracy": 0.61111},
        {"kind": "step", "step": 5, "epoch": 2, "loss": 5.0, "accuracy": 0.20556},
        {"kind": "step", "step": 7, "epoch": 2, "loss": 7.0, "accuracy": 0.14286},
    ]
    assert thinned(others) == others
    assert len(thinned(steps, count=200)) == 7


def test_a_budget_of_nothing_writes_the_page_of_what_is_there(tmp_path):
    for name in ("network1-numpy-2", "network1-torch-0"):
        run_folder(tmp_path / "runs" / name, epochs=2)
    done = reproduce(tmp_path, "--budget", "0")
    assert done.returncode == 0, done.stderr
    assert "network1-torch-0: found\n  2/2 epochs, test 50.00%" in done.stdout
    assert done.stdout.endswith("the budget of 0 minutes is spent\n")
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "50.00%, a trial of 2 epochs" in text
    picture = tmp_path / "results" / "network1.png"
    picture.unlink()
    assert reproduce(tmp_path, "--budget", "0").returncode == 0
    assert picture.stat().st_size > 0, "a picture that is gone is drawn again"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "network1-numpy-2",
        "network1-torch-0",
    ]
    assert {path.stem for path in picture.parent.glob("*.jsonl")} == {
        "network1-numpy-2",
        "network1-torch-0",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--device", "meta", "--backend", "numpy"), "device is of backend 'torch'"),
    ],
)
def test_a_device_is_tried_before_anything_is_run(flags, said, tmp_path):
    done = reproduce(tmp_path, *flags)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_error_of_a_difference_is_welchs():
    difference, error = difference_of_means([1.0, 2.0, 3.0], [5.0, 5.5])
    assert difference == pytest.approx(-3.25)
    # Variances 1 of three and 1/8 of two.
    assert error == pytest.approx(math.sqrt(1 / 3 + 1 / 16))


def reproduce(tmp_path, *flags, program="scripts/reproduce.py"):
    return subprocess.run(
        [
            *(sys.executable, program, "--only", "mnist-sincos"),
            *("--data", "mnist-subset", "--epochs", "2", "--threads", "1"),
            *("--runs", str(tmp_path / "runs")),
            *("--results", str(tmp_path / "results.json"), *flags),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_was_run_by_another_recipe_is_neither_taken_nor_continued(tmp_path):
    runs = tmp_path / "runs"
    run_folder(runs / "mnist-sincos-numpy-0", epochs=1)
    before = (runs / "mnist-sincos-numpy-0" / "metrics.jsonl").read_bytes()
    results = Results(tmp_path / "results.json")
    few = {"data": "mnist-subset", "epochs": 2, "planned_epochs": 2}
    record(results, "mnist-sincos", backend="torch", **few)
    done = reproduce(tmp_path, "--backend", "numpy")
    assert done.returncode == 1, done
    assert "mnist-sincos-numpy-0 holds a run of other settings; move it" in done.stdout
    assert (runs / "mnist-sincos-numpy-0" / "metrics.jsonl").read_bytes() == before
    done = reproduce(tmp_path, "--backend", "torch")
    assert done.returncode == 0
    assert done.stdout.endswith("give other --results and other --runs\n")
    more = reproduce(tmp_path, "--backend", "torch", "--epochs", "3", "--budget", "0")
    assert more.stdout.endswith("the budget of 0 minutes is spent\n")
    wrong = reproduce(tmp_path, "--results", str(tmp_path / "results"))
    assert wrong.returncode == 2
    assert "--results must end in .json" in wrong.stderr


def test_a_training_that_is_killed_is_said_to_be(tmp_path):
    """As for want of memory: what it had printed last is no reason."""
    (tmp_path / "scripts").mkdir()
    program = shutil.copy(ROOT / "scripts" / "reproduce.py", tmp_path / "scripts")
    (tmp_path / "scripts" / "train.py").write_text(
        "import os\nprint('epoch 3/20', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = reproduce(tmp_path, "--backend", "numpy", program=program)
    assert done.returncode == 1, done
    assert done.stdout.endswith("  failed: train.py was ended by SIGKILL\n")


@pytest.mark.slow
def test_reproduction_stops_at_its_budget_and_goes_on(tmp_path):
    cut = reproduce(tmp_path, "--backend", "numpy", "--budget", "0.03")
    assert cut.returncode == 0, cut.stderr
    whole = reproduce(tmp_path, "--device", "cpu:0")
    assert whole.returncode == 0, whole.stderr
    (metrics,) = tmp_path.glob("runs/*-torch-0/metrics.jsonl")
    first = metrics.read_text("utf-8").splitlines()[0]
    assert json.loads(first)["options"] == {"device": "cpu:0"}
    runs = json.loads((tmp_path / "results.json").read_text("utf-8"))["runs"]
    assert {(r["backend"], r["epochs"], r["steps"]) for r in runs.values()} == {
        ("numpy", 2, 400),
        ("torch", 2, 400),
    }
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "![Loss and accuracy of mnist-sincos](results/mnist-sincos.png)" in text
    assert 0 < (tmp_path / "results" / "mnist-sincos.png").stat().st_size < 150_000
    again = reproduce(tmp_path)
    assert again.returncode == 0
    assert "has all of these" in again.stdout
    alone = reproduce(tmp_path, "--only", "folder-224")
    assert (alone.returncode, "add --folder PATH" in alone.stderr) == (2, True)
    assert "did you mean 'network1'" in reproduce(tmp_path, "--only", "netwrok1").stderr


def test_ctrl_c_lets_the_training_save_itself(tmp_path):
    """A terminal sends it to the whole group, the training and what asks it to stop."""
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [
            *(sys.executable, "scripts/reproduce.py", "--only", "network2"),
            *("--backend", "numpy", "--data", "mnist-subset", "--runs", str(runs)),
            *("--results", str(tmp_path / "results.json")),
        ],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = runs / "network2-numpy-0" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") > 2
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "stopped before its first epoch was finished" in output
    log = (runs / "network2-numpy-0.log").read_text("utf-8")
    assert "--resume continues it" in log
    assert [path.name for path in metrics.parent.glob("*.safetensors")] == [
        "last.safetensors"
    ]
