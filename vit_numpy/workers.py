"""Processes that work beside this one, over memory that they share with it.

Threads in one process take turns at the interpreter's lock: the smaller the arrays, the
more of the time. Forked processes have an interpreter each. What is large lies in
memory that all of them map (parameters, a batch, gradients); what is small goes through
a pipe. PyTorch has threads of its own that need no interpreter, so that `vit_torch` has
no such thing.
"""

from __future__ import annotations

import atexit
import contextvars
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vit_numpy import parallel
from vit_numpy.module import Array, Module

if TYPE_CHECKING:
    # A system that cannot fork, as Windows, has no such classes.
    from multiprocessing.context import ForkContext, ForkProcess

# Commands use processes up to so many parameters: beyond, products take nearly all of
# the time, threads are about as fast, and a gradient more for each process shows.
_MOST_PARAMETERS = 1 << 21
_MOST_PROCESSES = 8

# Seconds that a worker has to end in, before it is made to.
_GRACE = 5.0

# Sent to a terminal's whole group, and answered by the process that has the workers.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Arrays of a batch start at multiples of a cache line.
_ALIGNMENT = 64

Work = Callable[[Any, list[NDArray[Any]], Callable[[str, Array], object]], Any]


def can_fork() -> bool:
    """Tell whether this process can have workers: it can fork, and is no daemon."""
    return (
        "fork" in multiprocessing.get_all_start_methods()
        and not multiprocessing.current_process().daemon
    )


def usual_processes(model: Module) -> int:
    """Return with how many processes a program had best train the model.

    That is 1, and so threads, where they are as good or the system cannot fork safely:
    for a large model, on macOS, and in a process that runs other threads. Elsewhere it
    is a power of two, no larger than the number of threads or 8.
    """
    size = sum(param.size for _, param in model.named_parameters())
    if size > _MOST_PARAMETERS or not can_fork() or sys.platform == "darwin":
        return 1
    parallel.end_threads()
    if threading.active_count() > 1:
        return 1
    return 1 << min(parallel.get_num_threads(), _MOST_PROCESSES).bit_length() - 1


def shared_empty(size: int, dtype: DTypeLike) -> Array:
    """Return a flat array in memory that processes forked later share."""
    nbytes = size * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype, size)


def is_shared(array: Array) -> bool:
    """Tell whether the array, or what it is a view of, is from `shared_empty`."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


class Unchanged:
    """Notices that a model is no longer the one that worker processes have.

    They have its parameters in common with this process, but a copy of all the rest.

    Parameters
    ----------
    model : Module
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._seen = [
            (name, vars(module), _snapshot(module))
            for name, module in model.named_modules()
        ]

    def check(self, model: Module) -> None:
        """Raise if it is another model, or one with other settings or arrays.

        Raises
        ------
        RuntimeError
        """
        changed = None if model is self._model else "the model"
        for name, now, before in () if changed else self._seen:
            try:
                same = now == before
            except ValueError:
                # Arrays are compared only where they are not the same one.
                same = False
            if not same:
                changed = name or "the model"
                break
        if changed:
            raise RuntimeError(
                f"{changed} has changed since the trainer's processes were made, which "
                "have it as it was; close() the trainer, and make another if need be"
            )


def _snapshot(module: Module) -> dict[str, Any]:
    """Return a module's attributes, which later changes of the module leave alone."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(module).items()
    }


class _Board:
    """Memory that grows: arrays put into it are seen by processes forked before."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("vit_numpy")
        else:
            self.file, path = tempfile.mkstemp()
            os.unlink(path)
        self._memory: mmap.mmap | None = None

    def put(self, arrays: Sequence[NDArray[Any]]) -> list[tuple[str, Any, int]]:
        """Copy arrays in, over those before; return where `get` finds them."""
        places = []
        end = 0
        for array in arrays:
            places.append((array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None or end > len(self._memory):
            # Twice what is needed, so that batches that grow rarely map it anew.
            os.ftruncate(self.file, max(2 * end, mmap.PAGESIZE))
        for array, view in zip(arrays, self.get(places), strict=True):
            np.copyto(view, array)
        return places

    def get(self, places: Sequence[tuple[str, Any, int]]) -> list[NDArray[Any]]:
        """Return views of the arrays that were put there."""
        arrays: list[NDArray[Any]] = []
        for dtype, shape, start in places:
            size = int(np.prod(shape))
            end = start + size * np.dtype(dtype).itemsize
            if self._memory is None or end > len(self._memory):
                self._memory = mmap.mmap(self.file, 0)
            arrays.append(
                np.frombuffer(self._memory, dtype, size, start).reshape(shape)
            )
        return arrays


class Output(NamedTuple):
    """Named arrays in shared memory: side by side in `flat`, and as views of it."""

    flat: Array
    views: dict[str, Array]

    def hand_on(self, name: str, array: Array) -> None:
        """Copy an array to its place."""
        np.copyto(self.views[name], array)


class Workers:
    """Forked processes, each of which does a part of every task.

    Parameters
    ----------
    work : callable
        work(task, arrays, hand_on) -> result, run in the workers. It gives named arrays
        of the shapes below to hand_on(name, array), which copies them to its output.
    shapes : mapping of str to tuple of int
    dtype : dtype
        Of those arrays.
    count : int, at least 1
        Number of processes, beside this one.

    Attributes
    ----------
    outputs : list of Output
        What each process has handed on: this one first, which has `hand_on` of its own,
        then the workers, once `finish` has returned. The next task overwrites it.
    closed : bool

    Raises
    ------
    ValueError
        If this process cannot fork.

    Notes
    -----
    A process is forked as it is: what `work` uses is shared if it is in memory from
    `shared_empty`, else copied as it is now. Fork before other threads start, as
    Python 3.12 and later warn: a lock that a thread holds at that moment stays locked
    in the worker. vit_numpy's own threads are ended here, and start again when needed.

    Workers take no notice of Ctrl-C and of a termination, which this process answers.
    They end when the object is closed or let go, and when this process ends, however
    that comes.
    """

    def __init__(
        self,
        work: Work,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: DTypeLike,
        count: int,
    ) -> None:
        if not can_fork():
            raise ValueError(
                f"processes={count + 1} needs a process that can fork, and this one "
                "cannot; leave processes at 1 to train with threads"
            )
        parallel.end_threads()
        context = multiprocessing.get_context("fork")
        self.outputs = [_output(shapes, dtype) for _ in range(1 + count)]
        self._board = _Board()
        self._connections: list[Connection] = []
        self._processes: list[ForkProcess] = []
        self._waiting = 0
        self._end = weakref.finalize(
            self,
            _end,
            os.getpid(),
            self._processes,
            self._connections,
            self._board.file,
        )
        # Before multiprocessing's own hook, which would wait for the workers.
        atexit.register(self._end)
        # They inherit the signals as blocked, and so have not a moment in which they
        # would answer one; this process gets it afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            for output in self.outputs[1:]:
                self._add(context, work, output)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _add(self, context: ForkContext, work: Work, output: Output) -> None:
        """Fork a worker."""
        connection, other = context.Pipe()
        self._connections.append(connection)
        process = context.Process(
            target=_serve,
            args=(other, list(self._connections), work, self._board, output.hand_on),
            daemon=True,
        )
        process.start()
        self._processes.append(process)
        other.close()

    @property
    def closed(self) -> bool:
        """Whether the workers have ended."""
        return not self._end.alive

    def start(self, tasks: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> None:
        """Give the first workers a task each, and all of them the arrays.

        Raises
        ------
        ChildProcessError
            If one of them has died; all of them are ended then.
        Exception
            What pickling a task raised; nothing is sent then.
        """
        # Left over where this process failed at its own part.
        self._receive()
        places = self._board.put(arrays)
        messages = [ForkingPickler.dumps((task, places)) for task in tasks]
        try:
            for i, message in enumerate(messages):
                self._guarded(i, partial(self._connections[i].send_bytes, message))
                self._waiting += 1
        except BaseException:
            # Interrupted, it leaves a part of a message in a pipe.
            self.close()
            raise

    def finish(self) -> list[Any]:
        """Return the results of the tasks, in their order.

        Raises
        ------
        ChildProcessError
            If a worker has died; all of them are ended then.
        Exception
            What `work` raised in the first worker in which it did.
        """
        results = []
        for done, value in self._receive():
            if not done:
                raise value
            results.append(value)
        return results

    def _receive(self) -> list[tuple[bool, Any]]:
        """Return what the workers that have a task answer, once all have."""
        waiting, self._waiting = self._waiting, 0
        try:
            return [self._guarded(i, self._connections[i].recv) for i in range(waiting)]
        except BaseException:
            # Interrupted, it leaves an answer in a pipe, or a part of one.
            self.close()
            raise

    def _guarded(self, worker: int, call: Callable[[], Any]) -> Any:
        """Use a worker's pipe; end all workers where this one has died."""
        try:
            return call()
        except (EOFError, ConnectionError):
            process = self._processes[worker]
            process.join(_GRACE)
            code = process.exitcode
            self.close()
            raise ChildProcessError(
                f"a worker process {_ending(code)}; the step was not made"
            ) from None

    def close(self) -> None:
        """End the workers, and wait until they have."""
        self._end()
        atexit.unregister(self._end)


def _output(shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike) -> Output:
    """Return arrays of these shapes in shared memory."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    flat = shared_empty(sum(sizes.values()), dtype)
    views = {}
    start = 0
    for name, size in sizes.items():
        views[name] = flat[start : start + size].reshape(shapes[name])
        start += size
    return Output(flat, views)


def _serve(
    connection: Connection,
    parents: Sequence[Connection],
    work: Work,
    board: _Board,
    hand_on: Callable[[str, Array], object],
) -> None:
    """Do tasks until told to end, or until the parent has gone."""
    # Held open here, they would hide from the other workers that the parent has gone.
    for other in parents:
        other.close()
    parallel.set_num_threads(1)
    with suppress(EOFError, OSError), parallel.one_blas_thread():
        while message := connection.recv_bytes():
            try:
                task, places = ForkingPickler.loads(message)
                # What was set where the fork was made, as by no_grad, is not set here.
                context = contextvars.Context()
                result = context.run(work, task, board.get(places), hand_on)
                answer = ForkingPickler.dumps((True, result))
            except Exception as error:
                answer = ForkingPickler.dumps((False, sendable(error)))
            connection.send_bytes(answer)


def sendable(error: Exception) -> Exception:
    """Return the error, or one that tells of it where it cannot be sent to a process.

    An error is pickled as its class and `args`, from which a constructor with other
    parameters does not make it again.
    """
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        # Whatever the classes of the error, and of what it holds, may raise.
        return RuntimeError(f"{type(error).__name__} in a worker: {error}")
    return error


def _ending(code: int | None) -> str:
    """Say how a process ended, by its exit code."""
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with status {code}"
    # A real-time signal has a number and no name.
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    return f"was ended by {name}" + (
        ", as where memory is short" if name == "SIGKILL" else ""
    )


def _end(
    owner: int,
    processes: list[ForkProcess],
    connections: list[Connection],
    file: int,
) -> None:
    """Tell workers to end, wait for them, and kill those that do not."""
    # A process that was forked meanwhile has copies of all this, which are not its own.
    if os.getpid() != owner:
        return
    os.close(file)
    for connection in connections:
        with suppress(OSError):  # it may have ended already
            connection.send_bytes(b"")
        connection.close()
    for process in processes:
        process.join(_GRACE)
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()
