"""The process in which one backend runs."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from vit_numpy.config import ViTConfig

MIB = 1 << 20

# A round of steps has at least so many, however long they take.
_FEWEST_STEPS = 3


def serve(
    connection: Connection,
    backend: str,
    what: str,
    fields: dict[str, Any],
    size: int,
    threads: int,
    processes: int | None,
) -> None:
    """Build what is timed, then time what is asked for until None is.

    Sends `('ready', names)` or `('failed', reason)`; for each `(name, seconds)` it
    receives, `('times', [seconds of each step])`, or the peak of memory in MiB for
    ('', 0).
    """
    try:
        calls, peak = _prepare(
            backend, what, ViTConfig.from_dict(fields), size, threads, processes
        )
    except Exception as error:  # whatever a library raises is its row's result
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        connection.send(("failed", reason[:300]))
        return
    connection.send(("ready", list(calls)))
    while (message := connection.recv()) is not None:
        name, seconds = message
        if name:
            connection.send(("times", time_calls(calls[name], seconds)))
        else:
            connection.send(("peak", peak()))


def serve_matmul(connection: Connection, backend: str, threads: int) -> None:
    """Send the rate of matrix products, and the environment that it was measured in."""
    from parity.bench.subjects import matmul_rate
    from parity.environment import environment

    _use_threads(backend, threads)
    rate = matmul_rate(backend)
    connection.send((rate, environment() if backend == "numpy" else None))


def time_calls(call: Callable[[], object], seconds: float) -> list[float]:
    """Return how long each call took, for about `seconds` and three calls at least."""
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < _FEWEST_STEPS or perf_counter() < end:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return times


def _prepare(
    backend: str,
    what: str,
    config: ViTConfig,
    size: int,
    threads: int,
    processes: int | None,
) -> tuple[dict[str, Callable[[], object]], Callable[[], float | None]]:
    from parity.bench.subjects import build, load, parameter_count
    from vit_numpy.allocator import keep_freed_memory

    keep_freed_memory()
    _use_threads(backend, threads)
    load(backend)
    before = _memory("VmRSS")
    calls = build(backend, what, config, size, processes)
    # Forked, they begin with all that this process has: what they add is counted.
    workers = {
        child.pid: _memory("VmRSS", child.pid)
        for child in multiprocessing.active_children()
    }
    # Optimizers make their arrays in construction or in the first step, so all but
    # the parameters is counted: gradients, moments, activations.
    parameters = 4 * parameter_count(config)
    _forget_peak()
    for call in calls.values():
        for _ in range(_FEWEST_STEPS):
            call()

    def peak() -> float | None:
        after = _memory("VmHWM")
        if before is None or after is None:
            return None
        added = after - before - parameters
        for pid, begun in workers.items():
            added += (_memory("VmHWM", pid) or 0) - (begun or 0)
        return added / MIB

    return calls, peak


def _use_threads(backend: str, threads: int) -> None:
    """Limit the process to `threads` cores, and the backend to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])
    if backend in ("numpy", "jax"):
        from vit_numpy.parallel import set_num_threads

        set_num_threads(threads)
        return
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)


def _memory(field: str, process: int | str | None = "self") -> int | None:
    """Return a line of a process's status in bytes, or None where there is none."""
    status = Path(f"/proc/{process}/status")
    if not sys.platform.startswith("linux") or not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    """Let VmHWM start from what is in use now, where the system allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
