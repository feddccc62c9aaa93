"""Rounds of turns: workers are started, timed one after another, and summed up."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from parity.bench.worker import serve, serve_matmul
from parity.flops import forward_flops, training_flops
from vit_numpy.config import PRESETS, ViTConfig, check_int, preset, unknown

# Backend: the package that it needs.
BACKENDS = {
    "numpy": "numpy",
    "torch": "torch",
    "torch-compile": "torch",
    "timm": "timm",
    "timm-compile": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "jax": "jax",
}
WHATS = ("train", "infer", "layers")

# The networks that are compared by default, with the images in a training batch.
NETWORKS = {
    "network1": 100,
    "network2": 100,
    "network3": 50,
    "ti16": 8,
    "s16": 4,
    "b16": 2,
}
_OTHER_BATCH = 2
INFERENCE_BATCHES = (1, 64)

# Seconds that a process has to end in.
_GRACE = 10

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Workload:
    """A network, what it does, and on how many images and threads.

    Attributes
    ----------
    axis, value : str and int
        What a growth run varies, and how far; empty and 0 elsewhere.
    """

    network: str
    config: ViTConfig
    what: str
    batch: int
    threads: int
    axis: str = ""
    value: int = 0

    @property
    def dropout(self) -> bool:
        """Whether anything is dropped in it."""
        config = self.config
        rates = (
            config.pos_drop,
            config.attn_drop,
            config.proj_drop,
            config.act_drop,
            config.mlp_drop,
            config.drop_path,
        )
        return self.what == "train" and any(rates)

    @property
    def flops(self) -> int:
        """Operations of a step, in matrix products."""
        count = forward_flops if self.what == "infer" else training_flops
        return count(self.config, self.batch)


@dataclass
class Row:
    """What was measured of one backend on one workload.

    Attributes
    ----------
    layer : str
        Of a layer's row: its name; else empty.
    median_ms, min_ms : float or None
        Over the steps of all rounds; None if it failed.
    spread : float or None
        The middle half of the steps, as a share of the median.
    ratio_to_torch_eager : float or None
        The median over the rounds of the ratio of the two medians within a round.
    peak_mib : float or None
        Largest memory above that after import, less the parameters: gradients, the
        optimizer's state, activations, and what else the backend takes.
    share_of_peak : float or None
        Of the machine's rate of matrix products.
    error : str
        Why there are no figures, or empty.
    """

    network: str
    backend: str
    what: str
    batch: int
    dropout: bool
    threads: int
    coretype: str
    layer: str = ""
    axis: str = ""
    value: int = 0
    median_ms: float | None = None
    min_ms: float | None = None
    spread: float | None = None
    images_per_s: float | None = None
    ratio_to_torch_eager: float | None = None
    peak_mib: float | None = None
    share_of_peak: float | None = None
    error: str = ""


@dataclass
class Bench:
    """All rows, and what they were measured on."""

    rows: list[Row] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    matmul_gflops: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "environment": self.environment,
            "matmul_gflops": self.matmul_gflops,
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        try:
            rows = [Row(**row) for row in fields["rows"]]
            return cls(rows, fields["environment"], fields["matmul_gflops"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no measurements ({error!r})") from None


def network_workloads(
    networks: Sequence[str],
    what: str,
    threads: int,
    batch: int | None = None,
    dropout: str = "both",
) -> list[Workload]:
    """Return what to measure of the named presets.

    Parameters
    ----------
    networks : sequence of str
    what : {'train', 'infer', 'layers'}
    threads : int
        Layers are always measured on one.
    batch : int, optional
        Images in a batch; by default `NETWORKS`' for training, 1 and 64 for inference.
    dropout : {'on', 'off', 'both'}, default 'both'
        Which variants of a network that drops anything are trained.

    Raises
    ------
    ValueError
        For an unknown preset.
    """
    check_int("threads", threads, 1)
    workloads = []
    for name in networks:
        if name not in PRESETS:
            raise ValueError(unknown("network", name, PRESETS))
        usual = NETWORKS.get(name, _OTHER_BATCH)
        batches: tuple[int, ...] = (batch or usual,)
        if what == "infer" and not batch:
            batches = INFERENCE_BATCHES
        config = preset(name)
        if what == "layers":
            workloads.append(Workload(name, config, what, batches[0], 1))
            continue
        for size in batches:
            workload = Workload(name, config, what, size, threads)
            if dropout != "off" or not workload.dropout:
                workloads.append(workload)
            if dropout != "on" and workload.dropout:
                config = preset(name, act_drop=0.0)
                workloads.append(Workload(name, config, what, size, threads))
    return workloads


def growth_workloads(threads: int) -> list[Workload]:
    """Return training steps that grow along one axis each from a common middle."""
    check_int("threads", threads, 1)
    middle: dict[str, Any] = dict(
        image_size=64, patch_size=8, dim=192, depth=4, num_heads=3, mlp_dim=768
    )
    batch = 8
    points: list[tuple[str, int, dict[str, Any], int, int]] = []
    for value in (1, 2, 4, 8, 16, 32, 64):
        points.append(("batch", value, {}, value, threads))
    for side in (16, 32, 64, 128, 192):
        tokens = (side // 8) ** 2 + 1
        points.append(("tokens", tokens, {"image_size": side}, batch, threads))
    for dim in (24, 48, 96, 192, 384, 768):
        wide = {"dim": dim, "num_heads": max(dim // 64, 1), "mlp_dim": 4 * dim}
        points.append(("width", dim, wide, batch, threads))
    for depth in (1, 2, 4, 8, 16):
        points.append(("depth", depth, {"depth": depth}, batch, threads))
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= _cores()]
    for count in counts:
        points.append(("threads", count, {}, batch, count))
    return [
        Workload(
            f"{axis}={value}",
            ViTConfig(**middle | fields),
            "train",
            size,
            count,
            axis,
            value,
        )
        for axis, value, fields, size, count in points
    ]


def measure(
    workloads: Sequence[Workload],
    backends: Sequence[str] | None = None,
    rounds: int = 5,
    seconds: float = 1.0,
    coretype: str = "",
    build_limit: float = 300.0,
    progress: Callable[[str], object] = lambda line: None,
    processes: int | None = None,
) -> Bench:
    """Measure every backend on every workload.

    Parameters
    ----------
    workloads : sequence of Workload
    backends : sequence of str, optional
        Of `BACKENDS`; by default those that are installed.
    rounds : int, default 5
        Turns that each backend has.
    seconds : float, default 1
        Length of a turn; it has three steps at least.
    coretype : str, default ''
        The kernel that OpenBLAS is told to use; by default it chooses.
    build_limit : float, default 300
        Seconds after which a backend that is not ready, as in compilation, is given up.
    progress : callable, optional
        Told what is being measured.
    processes : int, optional
        Processes that share a training step of vit_numpy; by default as many as pay
        with the workload's threads, 1 for threads alone.

    Raises
    ------
    ValueError
        For an unknown backend, or one that is not installed.
    """
    check_int("rounds", rounds, 1)
    names = _installed(backends)
    bench = Bench()
    rates: dict[int, float] = {}
    for threads in dict.fromkeys(workload.threads for workload in workloads):
        rates[threads] = 0.0
        for backend in ("numpy", "torch"):
            if not _importable(backend):
                continue
            progress(f"matrix products, {backend}, {_threads(threads)}")
            rate, environment = _matmul(backend, threads, coretype)
            rates[threads] = max(rates[threads], rate)
            key = f"{backend}, {_threads(threads)}"
            bench.matmul_gflops[key] = round(rate / 1e9, 1)
            if environment is not None:
                bench.environment = environment
    for workload in workloads:
        chosen = [n for n in names if workload.what != "layers" or n in BACKENDS_BOTH]
        progress(
            f"{workload.network}, {workload.what}, batch {workload.batch}"
            f"{', dropout' if workload.dropout else ''}"
        )
        bench.rows += _measure_one(
            workload,
            chosen,
            rounds,
            seconds,
            coretype,
            build_limit,
            rates[workload.threads],
            processes,
        )
    return bench


BACKENDS_BOTH = ("numpy", "torch")


def _measure_one(
    workload: Workload,
    backends: Sequence[str],
    rounds: int,
    seconds: float,
    coretype: str,
    build_limit: float,
    rate: float,
    processes: int | None,
) -> list[Row]:
    """Measure one workload; a row for each backend, or for each of its layers."""
    arguments = (
        workload.what,
        workload.config.to_dict(),
        workload.batch,
        workload.threads,
        processes,
    )
    workers: dict[str, _Worker] = {}
    try:
        for backend in backends:
            workers[backend] = _Worker(
                serve,
                (backend, *arguments),
                workload.threads,
                coretype,
            )
            workers[backend].start(build_limit)
        able = {name: worker for name, worker in workers.items() if not worker.error}
        calls = next(iter(able.values())).calls if able else [""]
        # The shorter calls of layers need less time for as many repetitions.
        turn = seconds if len(calls) == 1 else seconds / len(calls)
        times: dict[tuple[str, str], list[list[float]]] = {
            (name, call): [] for name in able for call in calls
        }
        for _ in range(rounds):
            for call in calls:
                for name, worker in able.items():
                    times[name, call].append(worker.ask((call, turn)))
        peaks = {name: worker.ask(("", 0)) for name, worker in able.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    rows = []
    for call in calls:
        for backend in backends:
            row = Row(
                workload.network,
                backend,
                workload.what,
                workload.batch,
                workload.dropout,
                workload.threads,
                coretype or "native",
                call if workload.what == "layers" else "",
                workload.axis,
                workload.value,
            )
            if backend in able:
                _fill(row, times[backend, call], times.get(("torch", call)))
                if workload.what != "layers":
                    row.peak_mib = _rounded(peaks[backend], 1)
                    _fill_rates(row, workload, rate)
            else:
                row.error = workers[backend].error
            rows.append(row)
    return rows


def _fill(
    row: Row, rounds: list[list[float]], torch_rounds: list[list[float]] | None
) -> None:
    """Set the figures that follow from the times alone."""
    steps = sorted(1e3 * time for times in rounds for time in times)
    middle = statistics.median(steps)
    first, _, third = statistics.quantiles(steps, n=4)
    row.median_ms = _rounded(middle, 4)
    row.min_ms = _rounded(steps[0], 4)
    row.spread = _rounded((third - first) / middle, 3)
    if torch_rounds is not None:
        ratios = [
            statistics.median(own) / statistics.median(other)
            for own, other in zip(rounds, torch_rounds, strict=True)
        ]
        row.ratio_to_torch_eager = _rounded(statistics.median(ratios), 3)


def _fill_rates(row: Row, workload: Workload, rate: float) -> None:
    """Set the figures that need the size of the work as well."""
    if row.median_ms is not None:
        seconds = row.median_ms / 1e3
        row.images_per_s = _rounded(workload.batch / seconds, 1)
        if rate:
            row.share_of_peak = _rounded(workload.flops / seconds / rate, 3)


class _Worker:
    """A process, and the pipe to it."""

    def __init__(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        threads: int,
        coretype: str,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        # No daemon, which could have no processes of its own.
        self.process = context.Process(target=target, args=(other, *arguments))
        with _variables(threads, coretype):
            self.process.start()
        other.close()
        self.error = ""
        self.calls: list[str] = []

    def start(self, limit: float) -> None:
        """Wait until it is ready; `error` says why it never will be."""
        if not self.connection.poll(limit):
            self.error = f"not ready after {limit:g} s"
            self.process.kill()
            return
        try:
            word, value = self.connection.recv()
        except EOFError:
            self.error = "the process ended"
            return
        if word == "failed":
            self.error = value
        else:
            self.calls = value

    def ask(self, message: Any) -> Any:
        """Send a message and return the value that it is answered with."""
        self.connection.send(message)
        return self.connection.recv()[1]

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        if not self.error:
            with suppress(OSError):  # it may have ended already
                self.connection.send(None)
            self.process.join(_GRACE)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _matmul(
    backend: str, threads: int, coretype: str
) -> tuple[float, dict[str, Any] | None]:
    """Return the rate of matrix products, and NumPy's environment."""
    worker = _Worker(serve_matmul, (backend, threads), threads, coretype)
    try:
        rate, environment = worker.connection.recv()
        return rate, environment
    finally:
        worker.stop()


@contextmanager
def _variables(threads: int, coretype: str) -> Iterator[None]:
    """Set what libraries read from the environment as they are loaded."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    os.environ.pop("OPENBLAS_CORETYPE", None)
    if coretype:
        os.environ["OPENBLAS_CORETYPE"] = coretype
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _installed(backends: Sequence[str] | None) -> list[str]:
    """Return the backends to run, torch's right after NumPy's."""
    for name in backends or ():
        if name not in BACKENDS:
            raise ValueError(unknown("backend", name, BACKENDS))
        if not _importable(BACKENDS[name]):
            raise ValueError(
                f"backend {name!r} needs {BACKENDS[name]}, which is not installed; "
                f"pip install {BACKENDS[name]}"
            )
    return [
        name
        for name, package in BACKENDS.items()
        if (name in backends if backends else _importable(package))
    ]


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
