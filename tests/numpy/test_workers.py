"""Worker processes: the same bits as threads, and an end to each of them."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from vit_numpy import parallel, train, workers
from vit_numpy.config import ViTConfig, preset
from vit_numpy.ema import EMA
from vit_numpy.init import init_weights
from vit_numpy.loss import CrossEntropy, MeanSquaredError
from vit_numpy.model import VisionTransformer
from vit_numpy.module import no_grad
from vit_numpy.optim import SGD, AdamW, flatten_parameters, param_groups
from vit_numpy.train import Trainer, evaluate

pytestmark = pytest.mark.skipif(not workers.can_fork(), reason="no fork here")

CONFIG = ViTConfig(
    image_size=8, patch_size=4, in_chans=1, dim=16, depth=2, num_heads=2, mlp_dim=32,
    num_classes=4, pos_drop=0.1, attn_drop=0.1, act_drop=0.1, drop_path=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def four_shards(monkeypatch):
    monkeypatch.setattr(train, "num_shards", lambda config, size: min(4, size))


def make(
    processes, config=CONFIG, dtype=np.float32, average=False, groups=(), **options
):
    model = VisionTransformer(config)
    init_weights(model, 0, "xavier")
    model.to(dtype)
    flatten_parameters(model, shared=True)
    if average:
        options["ema"] = EMA(model, 0.9)
    optimizer = AdamW(param_groups(model, 0.01, *groups), 0.01)
    return Trainer(model, optimizer, processes=processes, **options)


def batch(step, size=16, dtype=np.float32):
    rng = np.random.default_rng(step)
    return rng.normal(size=(size, 1, 8, 8)).astype(dtype), rng.integers(0, 4, size)


def run(trainer, steps=3, size=16, soft=False):
    """Train, and return all that a step tells and changes."""
    dtype = trainer.model.patch_embed.proj.weight.dtype
    seen = []
    for i in range(steps):
        images, labels = batch(i, size, dtype)
        seen.append(
            trainer.step(images, np.eye(4, dtype=dtype)[labels] if soft else labels)
        )
    return seen, trainer.state_dict()


def assert_same(got, expected):
    assert got[0] == expected[0]
    for part, arrays in expected[1].items():
        if isinstance(arrays, dict):
            for name, array in arrays.items():
                np.testing.assert_array_equal(got[1][part][name], array, strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": np.float64},
        {"clip_norm": 0.1},
        {"accumulate": 3},
        {"average": True},
        {"groups": (0.7,)},
        {"groups": (1.0, ("patch_embed", "pos_embed", "cls_token", "blocks.0"))},
        {"size": 3},
        {"size": 2},
        {"size": 1},
        # An object has another address, and so another name, in each process of xdist.
        pytest.param({"loss": MeanSquaredError()}, id="MeanSquaredError"),
        pytest.param({"loss": CrossEntropy(0.1)}, id="CrossEntropy"),
    ],
    ids=str,
)
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_bits_are_those_of_threads(processes, options):
    own = dict(options)
    soft = isinstance(own.get("loss"), MeanSquaredError) or "dtype" in own
    size = own.pop("size", 16)
    expected = run(make(1, **own), size=size, soft=soft)
    with make(processes, **own) as trainer:
        assert_same(run(trainer, size=size, soft=soft), expected)
        if trainer.ema is not None:
            before = evaluate(trainer.model, batch(0)[0])
            with trainer.ema.applied():
                assert (evaluate(trainer.model, batch(0)[0]) != before).any()
            trainer.step(*batch(3))


def test_recomputed_blocks_and_real_networks_give_the_same_bits():
    config = preset("network2", act_drop=0.1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((20, 1, *config.image_hw), np.float32)
    labels = rng.integers(0, config.num_classes, 20)
    results = []
    for processes in (1, 2):
        model = VisionTransformer(config)
        init_weights(model, 0)
        model.recompute = True
        flat = flatten_parameters(model, shared=True)
        optimizer = SGD(param_groups(model, 0.0), 0.1)
        with Trainer(model, optimizer, processes=processes) as trainer:
            result = [trainer.step(images[:size], labels[:size]) for size in (8, 20)]
        results.append((result, flat))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[1][1], results[0][1], strict=True)


def test_a_run_resumes_exactly_and_with_another_seed_and_loss():
    straight = make(1, seed=5)
    run(straight, 2)
    with make(2, seed=9) as trainer:
        trainer.load_state_dict(straight.state_dict())
        for each in (straight, trainer):
            each.loss = CrossEntropy(0.2)
        assert_same(run(trainer), run(straight))


def test_errors_are_those_of_threads_and_leave_the_workers_well():
    images, labels = batch(0)
    bad_pixel = images.copy()
    bad_pixel[15, 0, 0, 0] = np.nan
    last = np.where(np.arange(16) == 15, 4, labels)
    first = np.where(np.arange(16) == 0, 4, labels)
    cases = [
        (bad_pixel, labels, FloatingPointError, "loss is nan at step 1; first in 'emb"),
        (images, last, ValueError, r"labels must be in \[0, 4\), got 4"),
        (images, first, ValueError, r"labels must be in \[0, 4\), got 4"),
        (images.astype(float), labels, TypeError, "images must be float32"),
        (images[:, :, :4], labels, ValueError, "images must have shape"),
        (images.astype(object), labels, TypeError, "images must be float32"),
        (list(images), labels, TypeError, "images must be an array"),
        (images, labels[1:], ValueError, "labels must be as many as images"),
    ]
    expected = run(make(1))
    with make(2) as trainer:
        for wrong_images, wrong_labels, error, text in cases:
            with pytest.raises(error, match=text):
                trainer.step(wrong_images, wrong_labels)
        with pytest.raises(ValueError, match="no_grad"), no_grad():
            trainer.step(images, labels)
        trainer.loss = CrossEntropy()
        trainer.loss.unsendable = lambda: None
        with pytest.raises(Exception, match="pickle"):
            trainer.step(images, labels)
        trainer.loss = CrossEntropy()
        assert_same(run(trainer), expected)
        assert not trainer._workers.closed


def test_a_gradient_that_is_not_finite_is_told_alike():
    told = []
    for processes in (1, 2):
        with make(processes, loss=MeanSquaredError()) as trainer:
            images, labels = batch(0)
            targets = np.eye(4, dtype=np.float32)[labels]
            trainer.step(images, targets)
            trainer.model.head.weight[1, 2] = 1e18
            with pytest.raises(FloatingPointError, match="gradient norm is") as error:
                trainer.step(images, targets)
            told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda t: setattr(t.model.blocks[0].mlp.drop1, "p", 0.5), r"blocks\.0\.mlp"),
        (lambda t: setattr(t.model, "recompute", True), "the model"),
        (lambda t: t.model.blocks.pop(), "the model"),
        (lambda t: t.model.to(np.float64), "the model"),
        (lambda t: setattr(t, "model", VisionTransformer(CONFIG)), "the model"),
    ],
)
def test_a_changed_model_is_refused(change, name):
    with make(2) as trainer:
        trainer.step(*batch(0))
        change(trainer)
        with pytest.raises(RuntimeError, match=f"^{name}.* has changed since"):
            trainer.step(*batch(1))


def test_bits_of_float64_do_not_depend_on_the_threads_of_blas():
    """Which cuts up a sum of more than 10,000 products, as for a norm."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    fields = CONFIG.to_dict() | {"dim": 128, "depth": 1, "mlp_dim": 1024}
    wide = ViTConfig.from_dict(fields)
    runs = []
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads, "blas"):
            for processes in (1, 2):
                options = dict(dtype=np.float64, clip_norm=1e-3)
                with make(processes, wide, **options) as trainer:
                    # Gradients of other layers count for more than the head's then.
                    head = trainer.model.head.weight
                    head += np.random.default_rng(0).normal(size=head.shape)
                    runs.append(run(trainer, size=4))
    for other in runs[1:]:
        assert_same(other, runs[0])


def test_batches_may_grow():
    config = preset("network1", act_drop=0.0)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((64, 1, *config.image_hw), np.float32)
    labels = rng.integers(0, 10, 64)
    losses = []
    for processes in (1, 2):
        with make(processes, config) as trainer:
            losses.append(
                [trainer.step(images[:n], labels[:n]).loss for n in (2, 64, 5, 64)]
            )
    assert losses[0] == losses[1]


def pids(trainer):
    return [process.pid for process in trainer._workers._processes]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_dies_is_told_and_the_step_not_made():
    expected = run(make(1))
    with make(4) as trainer:
        before = {k: v.copy() for k, v in trainer.model.state_dict().items()}
        all_pids = pids(trainer)
        os.kill(all_pids[1], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="ended by SIGKILL, as where mem"):
            trainer.step(*batch(0))
        for name, value in trainer.model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        assert not any(map(is_running, all_pids))
        assert_same(run(trainer), expected)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals")
def test_a_signal_without_a_name_is_told_by_its_number():
    number = signal.SIGRTMIN + 3
    with make(2) as trainer:
        os.kill(pids(trainer)[0], number)
        with pytest.raises(ChildProcessError, match=f"ended by signal {number};"):
            trainer.step(*batch(0))


def test_closing_leaves_nothing_behind_and_threads_go_on():
    expected = run(make(1), 4)
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    trainer = make(4)
    all_pids = pids(trainer)
    assert len(all_pids) == 3
    assert all(map(is_running, all_pids))
    seen, _ = run(trainer, 2)
    trainer.close()
    trainer.close()
    assert not any(map(is_running, all_pids))
    assert multiprocessing.active_children() == []
    seen += [trainer.step(*batch(i)) for i in (2, 3)]
    assert_same((seen, trainer.state_dict()), expected)
    # Without cycles, so that workers end with the last name of the trainer.
    gc.disable()
    try:
        trainer = make(2)
        trainer.step(*batch(0))
        all_pids = pids(trainer)
        del trainer
        assert not any(map(is_running, all_pids))
    finally:
        gc.enable()
    if files:
        assert len(os.listdir("/proc/self/fd")) == files


def test_a_fork_of_the_parent_does_not_end_its_workers():
    with make(2) as trainer:
        child = os.fork()
        if not child:
            trainer.close()
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        assert trainer.step(*batch(0)).step == 1
        assert not trainer._workers.closed


def test_an_interrupt_while_waiting_ends_the_workers(monkeypatch):
    expected = run(make(1))
    with make(2) as trainer:
        all_pids = pids(trainer)

        def interrupted():
            raise KeyboardInterrupt

        (connection,) = trainer._workers._connections
        monkeypatch.setattr(connection, "recv", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            trainer.step(*batch(0))
        assert not any(map(is_running, all_pids))
        assert_same(run(trainer), expected)


def test_a_loss_that_the_workers_have_never_seen_is_told():
    kind = type("Late", (CrossEntropy,), {})
    with make(2) as trainer:
        globals()["Late"] = kind
        kind.__qualname__ = "Late"
        try:
            trainer.loss = kind()
            with pytest.raises(AttributeError, match="Late"):
                trainer.step(*batch(0))
        finally:
            del globals()["Late"]
        trainer.loss = CrossEntropy()
        trainer.step(*batch(0))
        assert not trainer._workers.closed


class Odd(Exception):
    """Is made of two values, but pickled with the one message."""

    def __init__(self, name, value):
        super().__init__(f"{name} is {value}")


class FailsElsewhere(CrossEntropy):
    def __init__(self):
        super().__init__()
        self.owner = os.getpid()

    def forward(self, logits, targets, batch_size=None):
        if os.getpid() != self.owner:
            raise Odd("logit", 3)
        return super().forward(logits, targets, batch_size)


def test_an_error_that_cannot_be_made_again_is_told_in_words():
    with make(2, loss=FailsElsewhere()) as trainer:
        with pytest.raises(RuntimeError, match=r"^Odd in a worker: logit is 3$"):
            trainer.step(*batch(0))
        trainer.loss = CrossEntropy()
        trainer.step(*batch(0))
        assert not trainer._workers.closed


def test_workers_are_born_deaf_to_the_parents_signals():
    """A signal may come between the fork and the worker's first line of Python."""
    ours = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with make(2) as trainer:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == ours
        (pid,) = pids(trainer)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        trainer.step(*batch(0))
        assert not trainer._workers.closed


def test_two_trainers_do_not_keep_each_others_workers():
    with make(2) as one, make(2) as two:
        assert one.step(*batch(0)) == two.step(*batch(0))
        started = time.monotonic()
        one.close()
        assert time.monotonic() - started < workers._GRACE / 2
        two.step(*batch(1))


PROGRAM = """
    import os, signal, sys, time
    import numpy as np
    from vit_numpy import train
    from vit_numpy.config import ViTConfig
    from vit_numpy.model import VisionTransformer
    from vit_numpy.optim import SGD, flatten_parameters, param_groups

    train.num_shards = lambda config, size: 2
    model = VisionTransformer(ViTConfig(
        image_size=8, patch_size=4, in_chans=1, dim=16, depth=1, num_heads=2,
        mlp_dim=32, num_classes=4,
    ))
    flatten_parameters(model, shared=True)
    optimizer = SGD(param_groups(model, 0.0), 0.1)
    trainer = train.Trainer(model, optimizer, processes=2)
    images, labels = np.ones((4, 1, 8, 8), np.float32), np.arange(4)
    trainer.step(images, labels)
    print(trainer._workers._processes[0].pid, flush=True)
"""


def program(rest):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM + rest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gone(pid):
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_running(pid)


@pytest.mark.parametrize("end", ["", "\n    raise SystemExit(3)", "\n    1 / 0"])
def test_workers_end_with_the_interpreter(end):
    process = program(end)
    out, err = process.communicate(timeout=20)
    assert ("ZeroDivisionError" in err) if "/" in end else (err == "")
    assert process.returncode == {"": 0, "\n    raise SystemExit(3)": 3}.get(end, 1)
    assert gone(int(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_the_parents_to_answer(number):
    rest = """
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    while not received:
        trainer.step(images, labels)
    print(trainer.step(images, labels).step > 1, trainer._workers.closed)
    """
    process = program(rest)
    pid = int(process.stdout.readline())
    time.sleep(0.2)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("True False\n", "")
    assert gone(pid)


def test_ctrl_c_in_a_step_ends_as_in_any_program():
    process = program("\n    while True: trainer.step(images, labels)")
    pid = int(process.stdout.readline())
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1
    assert gone(pid)


def test_a_killed_parent_takes_its_workers_along():
    process = program("\n    time.sleep(60)")
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=20)
    assert gone(pid)


def test_what_is_missing_is_said(monkeypatch):
    model = VisionTransformer(CONFIG)
    optimizer = SGD(param_groups(model, 0.0), 0.1)
    with pytest.raises(ValueError, match=r"flatten_parameters\(model, shared=True\)"):
        Trainer(model, optimizer, processes=2)
    with pytest.raises(ValueError, match="processes must be at least 1"):
        Trainer(model, optimizer, processes=0)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="processes=2 needs a process that can fork"):
        make(2)
    assert workers.usual_processes(model) == 1


def test_usual_processes_follow_threads_and_size(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(workers.threading, "active_count", lambda: 1)
    model = VisionTransformer(CONFIG)
    for threads, processes in ((1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (64, 8)):
        monkeypatch.setattr(parallel, "_num_threads", threads)
        assert workers.usual_processes(model) == processes
    assert workers.usual_processes(VisionTransformer(preset("ti16"))) == 1
    monkeypatch.setattr(workers.threading, "active_count", lambda: 2)
    assert workers.usual_processes(model) == 1
