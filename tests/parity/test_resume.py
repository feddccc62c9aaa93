"""A run that is stopped anywhere, by anything, comes out as one that never was."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from parity import recipes
from parity.data import from_arrays
from parity.training import (
    Backend,
    Epoch,
    RunFolder,
    Step,
    StopSignals,
    TrainingStopped,
    open_stream,
    train,
)
from vit_numpy.checkpoint import load, write_atomically
from vit_numpy.workers import can_fork

ROOT = Path(__file__).parents[2]
backends = pytest.mark.parametrize("backend", ["numpy", "torch"])


@pytest.fixture
def recipe():
    """Everything that has a state: moments, dropout, an average, augmentation."""
    return recipes.load("network1").replace(
        {
            "epochs": 3,
            "batch_size": 8,
            "ema": 0.9,
            "accumulate": 2,
            "clip_norm": 1.0,
            "model.depth": 1,
            "model.drop_path": 0.1,
            "schedule.warmup_steps": 2,
            "schedule.drop_after": [1],
            "augment": [{"name": "flip"}, {"name": "mixup"}],
        }
    )


@pytest.fixture
def dataset():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % 10
    return from_arrays(images[:40], labels[:40], images[40:], labels[40:])


def run(recipe, backend, dataset, path, **options):
    folder = RunFolder(path)
    if isinstance(backend, str):
        backend = Backend.load(backend)
    if not folder.checkpoint.exists():
        folder.create(recipe, backend, overwrite=True)
    return list(train(recipe, backend, dataset, folder, **options))


def stop_after(steps):
    """Return a function that says to stop when it is asked for the nth time."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def assert_same_run(one, other):
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load(one / name), load(other / name)
        assert a.arrays.keys() == b.arrays.keys()
        assert all(np.array_equal(a.arrays[key], b.arrays[key]) for key in a.arrays)
        assert timeless(a.header) == timeless(b.header)
    assert records_of(one) == records_of(other)


def timeless(record):
    """Leave out how long something took, which is no result."""
    return {
        key: timeless(value) if isinstance(value, dict) else value
        for key, value in record.items()
        if not key.endswith("seconds")
    }


def records_of(path):
    lines = (path / "metrics.jsonl").read_text("utf-8").splitlines()
    return [timeless(json.loads(line)) for line in lines]


@pytest.mark.skipif(not can_fork(), reason="no fork here")
def test_processes_come_out_as_threads(recipe, dataset, tmp_path):
    run(recipe, "numpy", dataset, tmp_path / "threads", processes=1)
    with pytest.raises(TrainingStopped):
        run(recipe, "numpy", dataset, tmp_path / "two", stop=stop_after(7), processes=2)
    assert multiprocessing.active_children() == []
    run(recipe, "numpy", dataset, tmp_path / "two", processes=2)
    assert_same_run(tmp_path / "two", tmp_path / "threads")
    with pytest.raises(ValueError, match="processes is of backend 'numpy' alone"):
        run(recipe, "torch", dataset, tmp_path / "torch", processes=2)


@pytest.mark.skipif(not can_fork(), reason="no fork here")
def test_a_process_that_dies_is_told_with_the_last_checkpoint(
    recipe, dataset, tmp_path
):
    def kill():
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()

    with pytest.raises(
        ChildProcessError, match=r"SIGKILL.*not made; no checkpoint was written"
    ):
        run(recipe, "numpy", dataset, tmp_path / "run", stop=kill, processes=2)


@backends
@pytest.mark.parametrize("stops", [[1], [5], [3, 3, 1, 6]])
def test_a_stop_at_any_step_changes_no_bit(backend, stops, recipe, dataset, tmp_path):
    """5 batches an epoch: in the middle of one, at its end, and several times."""
    run(recipe, backend, dataset, tmp_path / "whole")
    for steps in stops:
        with pytest.raises(TrainingStopped, match="--resume continues it"):
            run(recipe, backend, dataset, tmp_path / "parts", stop=stop_after(steps))
    run(recipe, backend, dataset, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_stop_on_a_gpu_changes_no_bit(fused, cuda, recipe, dataset, tmp_path):
    """Without dropout attention is one fused kernel, which may add in any order."""
    if fused:
        drops = {"model.act_drop": 0.0, "model.drop_path": 0.0}
        recipe = recipe.replace(drops | {"model.dim": 24, "model.patch_size": 2})
    run(recipe, cuda, dataset, tmp_path / "whole")
    for steps in (3, 3, 1, 6):
        with pytest.raises(TrainingStopped):
            run(recipe, cuda, dataset, tmp_path / "parts", stop=stop_after(steps))
    run(recipe, cuda, dataset, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_names_its_gpu_and_opens_in_numpy(cuda, recipe, dataset, tmp_path):
    run(recipe, cuda, dataset, tmp_path)
    first = records_of(tmp_path)[0]
    assert first["options"] == {"device": "cuda"}
    assert first["environment"]["accelerator"] == cuda.accelerator
    images = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
    ours, theirs = (
        backend.module("checkpoint").from_pretrained(tmp_path / "best.safetensors")
        for backend in (Backend.load("numpy"), cuda)
    )
    logits = cuda.numpy(theirs.to("cuda").eval()(cuda.array(images, "float32")))
    assert np.array_equal(ours(images).argmax(1), logits.argmax(1))
    # Logits of a few units, with float32's 6e-8 each through a hundred operations.
    np.testing.assert_allclose(ours(images), logits, rtol=0, atol=1e-5)


@backends
def test_a_death_without_warning_costs_only_unsaved_steps(
    backend, recipe, dataset, tmp_path
):
    run(recipe, backend, dataset, tmp_path / "whole")
    folder = RunFolder(tmp_path / "parts")
    folder.create(recipe, Backend.load(backend), overwrite=False)
    for dies_after in (4, 2, 9):
        records = train(recipe, Backend.load(backend), dataset, folder, save_steps=2)
        for _ in range(dies_after):
            last = next(records)
        records.close()
        saved = load(folder.checkpoint).header["training"]["step"]
        assert last.step - saved <= 2
        # The process may also have died while it wrote a line.
        with folder.metrics.open("a") as file:
            file.write('{"kind": "step", "st')
    run(recipe, backend, dataset, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@backends
def test_a_bad_loss_names_step_tensor_and_checkpoint(
    backend, recipe, dataset, tmp_path, monkeypatch
):
    with pytest.raises(TrainingStopped):
        run(recipe, backend, dataset, tmp_path, stop=stop_after(7))
    folder = RunFolder(tmp_path)
    before = folder.checkpoint.read_bytes()
    array = Backend.array

    def poisoned(self, values, dtype):
        if values.ndim == 4 and len(values) == 8:
            values = values.copy()
            values[0, 0, 3, 3] = np.nan
        return array(self, values, dtype)

    monkeypatch.setattr(Backend, "array", poisoned)
    with pytest.raises(FloatingPointError) as caught:
        run(recipe, backend, dataset, tmp_path)
    message = str(caught.value)
    assert "loss is nan at step 7" in message
    assert "first in 'embedding'" in message
    assert f"the last good checkpoint is {folder.checkpoint}, of step 6" in message
    assert folder.checkpoint.read_bytes() == before


def test_the_best_epoch_is_chosen_by_images_held_out(recipe, dataset, tmp_path):
    held = recipe.replace({"validation": 0.25, "epochs": 4})
    records = run(held, "numpy", dataset, tmp_path)
    epochs = [record for record in records if isinstance(record, Epoch)]
    assert sum(isinstance(record, Step) for record in records) == 4 * 4
    best = max(epochs, key=lambda epoch: (epoch.validation_accuracy, -epoch.epoch))
    assert load(tmp_path / "best.safetensors").header["metadata"]["best"] == {
        "epoch": best.epoch,
        "accuracy": best.validation_accuracy,
        "chosen_by": "validation",
    }


def test_training_stops_when_nothing_gets_better(recipe, dataset, tmp_path):
    # A rate at which nothing is learned: the first epoch stays the best.
    still = recipe.replace(
        {"validation": 0.25, "patience": 2, "epochs": 9, "optimizer.lr": 1e-12}
    )
    records = run(still, "numpy", dataset, tmp_path)
    assert sum(isinstance(record, Epoch) for record in records) == 3
    # Resumed, it has still waited long enough.
    assert run(still, "numpy", dataset, tmp_path) == []
    with pytest.raises(ValueError, match="patience needs images to validate with"):
        recipe.replace({"patience": 2})


def test_a_run_goes_on_only_as_it_was(recipe, dataset, tmp_path):
    run(recipe, "numpy", dataset, tmp_path)
    folder = RunFolder(tmp_path)
    folder.check_backend(Backend.load("numpy"))
    with pytest.raises(ValueError, match="was run with backend='numpy', got 'torch'"):
        folder.check_backend(Backend.load("torch"))
    with pytest.raises(ValueError, match="amp is of backend 'torch' alone"):
        Backend.load("numpy", amp=True)
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        Backend.load("torch", device="abacus")


def test_lines_that_are_no_records_are_dropped(recipe, dataset, tmp_path):
    run(recipe, "numpy", dataset, tmp_path / "whole")
    with pytest.raises(TrainingStopped):
        run(recipe, "numpy", dataset, tmp_path / "parts", stop=stop_after(7))
    with RunFolder(tmp_path / "parts").metrics.open("ab") as file:
        file.write(b"null\n5\n{}\n\0\0\n\xff\xfe\n")
    run(recipe, "numpy", dataset, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("content", [b"", b'{"kind": "r', b"null\n", b"\xff\n", None])
def test_metrics_without_their_beginning_are_refused(
    content, recipe, dataset, tmp_path
):
    backend = Backend.load("numpy")
    folder = RunFolder(tmp_path)
    folder.create(recipe, backend, overwrite=False)
    folder.metrics.unlink()
    if content is not None:
        folder.metrics.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl does not begin with what"):
        folder.check_backend(backend)


def test_a_run_goes_on_only_with_its_data(recipe, dataset, tmp_path):
    with pytest.raises(TrainingStopped):
        run(recipe, "numpy", dataset, tmp_path, stop=stop_after(7))
    images, labels = dataset.train_images.copy(), dataset.train_labels
    images[0] ^= 255
    changed = from_arrays(images, labels, dataset.test_images, dataset.test_labels)
    with pytest.raises(ValueError, match=r"has changed since .* was begun"):
        run(recipe, "numpy", changed, tmp_path)


@backends
def test_scores_that_are_no_numbers_name_step_and_checkpoint(
    backend, recipe, dataset, tmp_path, recwarn
):
    """The last update of an epoch may be what spoils the network."""
    wild = recipe.replace(
        {
            "batch_size": 40,
            "ema": 0.0,
            "clip_norm": 1e30,
            "optimizer": {"name": "sgd", "lr": 1e30},
            "schedule": {},
            "zero_head": False,
        }
    )
    with pytest.raises(FloatingPointError) as caught:
        run(wild, backend, dataset, tmp_path)
    assert str(caught.value).startswith("after step 1: logits must be finite, got nan")
    assert str(caught.value).endswith(
        "; the first bad tensor is 'blocks.0.attn'; no checkpoint was written before it"
    )
    assert not list(recwarn)


class Damaged:
    """Images of which one can be read no more, in a batch at least."""

    def __init__(self, images, bad):
        self.images, self.bad = images, bad
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        found = np.arange(len(self))[rows]
        if self.bad in found and found.size <= 20:
            raise ValueError("the picture is damaged")
        return self.images[rows]


@backends
@pytest.mark.parametrize(("part", "steps"), [("train", 4), ("test", 5)])
def test_a_damaged_picture_costs_no_step(
    backend, part, steps, recipe, dataset, tmp_path
):
    """One of the last batch of an epoch, or one to test with after it."""
    run(recipe, backend, dataset, tmp_path / "whole")
    bad = int(open_stream(recipe, dataset.train).order(0)[-1]) if part == "train" else 3
    images = {f"{part}_images": Damaged(getattr(dataset, f"{part}_images"), bad)}
    folder = RunFolder(tmp_path / "parts")
    with pytest.raises(ValueError, match="the picture is damaged"):
        run(recipe, backend, dataclasses.replace(dataset, **images), folder.path)
    assert load(folder.checkpoint).header["training"]["step"] == steps
    run(recipe, backend, dataset, folder.path)
    assert_same_run(tmp_path / "whole", folder.path)


def killed_while_writing(path):
    """Write a file in a process that is killed half way."""

    def write(part):
        Path(part).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=write_atomically, args=(path, write)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(not can_fork(), reason="no fork here")
def test_a_kill_while_saving_leaves_nothing_for_long(recipe, dataset, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingStopped):
        run(recipe, "numpy", dataset, folder.path, stop=stop_after(7))
    before = folder.checkpoint.read_bytes()
    killed_while_writing(folder.checkpoint)
    killed_while_writing(folder.path / "other.safetensors")
    assert folder.checkpoint.read_bytes() == before
    assert len(list(folder.path.glob(".*"))) == 2
    run(recipe, "numpy", dataset, folder.path)
    (left,) = folder.path.glob(".*")
    assert left.name.startswith(".other.safetensors.")


def trains_and_waits(recipe, dataset, path, begun, end):
    records = train(recipe, Backend("numpy"), dataset, RunFolder(path), processes=1)
    next(records)
    begun.set()
    end.wait()


@pytest.mark.skipif(not can_fork(), reason="no fork here")
def test_only_one_process_trains_in_a_folder(recipe, dataset, tmp_path):
    recipe = recipe.replace({"data": "mnist-subset"})
    folder = RunFolder(tmp_path)
    folder.create(recipe, Backend("numpy"), overwrite=False)
    context = multiprocessing.get_context("spawn")
    begun, end = context.Event(), context.Event()
    other = context.Process(
        target=trains_and_waits, args=(recipe, dataset, tmp_path, begun, end)
    )
    other.start()
    assert begun.wait(60)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    in_use = pytest.raises(BlockingIOError, match="another process is training in")
    with in_use:
        next(train(recipe, Backend("numpy"), dataset, folder))
    with in_use:
        folder.create(recipe, Backend("numpy"), overwrite=True)
    longer = ("--resume", "--epochs", "6", "--out", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "scripts/train.py", "network1", "--backend", "numpy", *longer],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "another process is training in" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    other.kill()
    other.join()
    run(recipe, "numpy", dataset, tmp_path)


def test_signals_ask_once_and_then_act():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def program(out, backend, *flags):
    arguments = ["--data", "mnist-subset", "--epochs", "8", "--batch-size", "400"]
    return [
        *(sys.executable, "scripts/train.py", "network1", "--backend", backend),
        *(*arguments, "--out", str(out), *flags),
    ]


def recorded(out):
    """Return how many lines the run has written."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
@backends
def test_twelve_interruptions_change_no_bit(backend, tmp_path):
    """The program itself, stopped at random steps by Ctrl-C, termination and kill."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(program(whole, backend), cwd=ROOT, check=True, capture_output=True)
    rng = random.Random(7)
    ways = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] * 4
    interrupted = 0
    for way in ways:
        wanted = recorded(parts) + rng.randint(3, 9)
        flags = ["--save-steps", "2", *(["--resume"] if parts.exists() else [])]
        process = subprocess.Popen(
            program(parts, backend, *flags),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None and recorded(parts) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(way)
            interrupted += 1
        process.communicate()
        assert process.returncode in (0, 128 + way, -way)
    assert interrupted == 12
    resume = program(parts, backend, "--resume")
    subprocess.run(resume, cwd=ROOT, check=True, capture_output=True)
    assert_same_run(whole, parts)
