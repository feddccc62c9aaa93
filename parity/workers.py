"""Tasks shared out to processes, any of which may be killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    method: Literal["spawn", "fork"] = "spawn",
) -> Iterator[Result]:
    """Yield results as they are done; the tasks are begun in their order.

    Parameters
    ----------
    function : callable
        Importable, as are the tasks.
    tasks : sequence
        At least one.
    workers : int
        Processes at a time. They leave Ctrl-C to this one.
    method : {'spawn', 'fork'}, default 'spawn'
        How they are started: a process that has threads cannot be forked safely.

    Raises
    ------
    ChildProcessError
        If one of them ends before its task is done, as when the system needs memory.
    Exception
        What a task raised first; a RuntimeError that tells of it where it cannot be
        sent from one process to another.
    """
    before = multiprocessing.active_children()
    futures: list[Future[Result]] = []
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)), multiprocessing.get_context(method)
    )
    try:
        with interrupts_held_back():
            futures = [executor.submit(_run, function, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process ended before its task was done; if the system killed it "
            f"for want of memory, fewer than {workers} workers need less"
        ) from None
    finally:
        # After an error, or if nobody wants the rest, what still runs is in vain.
        if not all(future.done() for future in futures):
            for child in multiprocessing.active_children():
                if child not in before:
                    child.terminate()
        executor.shutdown()


def _run(function: Callable[[Task], Result], task: Task) -> Result:
    """Do a task in a worker; an error that could not be sent would end all workers."""
    try:
        return function(task)
    except Exception as error:
        # Here, as processes that judge mutants must not hold on to the package.
        from vit_numpy.workers import sendable

        raise sendable(error) from error.__cause__


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Start processes that leave Ctrl-C to this one, which gets it afterwards.

    They inherit the signal as blocked, and so have not a moment in which they would
    print a traceback of their own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It unblocks the signal when it is started, in the middle of a pool.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
