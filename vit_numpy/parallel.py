"""Work spread over threads, with results that do not depend on their number.

NumPy lets go of the interpreter's lock inside its loops and matrix products, so that
threads do run at once. What is computed is cut up by a rule that knows only the
problem; threads then take the pieces as they become free, and results are combined in
the pieces' order.
"""

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar, cast

import numpy as np

from vit_numpy.config import check_int
from vit_numpy.module import Array

Item = TypeVar("Item")
Result = TypeVar("Result")

_ZERO = np.float32(0)


def _available_cores() -> int:
    """Return the cores this process may use, or OMP_NUM_THREADS if that is fewer."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores


_num_threads = _available_cores()
_pools: list[ThreadPoolExecutor] = []


def get_num_threads() -> int:
    """Return the number of threads that training and evaluation work with."""
    return _num_threads


def set_num_threads(threads: int) -> None:
    """Set the number of threads that training and evaluation work with.

    Results are the same bits for any number. The default is the number of cores that
    the process may use, or the environment's OMP_NUM_THREADS if that is fewer.

    Raises
    ------
    TypeError, ValueError
        If `threads` is no int, or is below 1.
    """
    global _num_threads
    check_int("threads", threads, 1)
    _num_threads = threads


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Return the threads beside the caller's; a forked process makes its own."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"vit_numpy-{process}")
    _pools.append(pool)
    return pool


def end_threads() -> None:
    """End the threads that wait for work; the next work starts new ones."""
    _pool.cache_clear()
    while _pools:
        _pools.pop().shutdown()


@cache
def _blas_libraries() -> Sequence[Any]:
    """Return threadpoolctl's handles on the BLAS libraries; none without it."""
    try:
        from threadpoolctl import ThreadpoolController
    except ModuleNotFoundError:
        return ()
    libraries: Sequence[Any] = (
        ThreadpoolController().select(user_api="blas").lib_controllers
    )
    return libraries


# All threads of the process share BLAS's number of threads: what the blocks that they
# are in ask for, and what each library had before the first of them.
_blas_lock = Lock()
_blas_asked: list[int] = []
_blas_before: list[int] = []


@contextmanager
def _blas_threads(threads: int) -> Iterator[None]:
    """Have BLAS use so many threads at most, whatever blocks of others overlap.

    The smallest number that is asked for counts. The first block to be entered keeps
    what it was, and the last to be left restores it.
    """
    with _blas_lock:
        if not _blas_asked:
            _blas_before[:] = [library.num_threads for library in _blas_libraries()]
        _blas_asked.append(threads)
        _set_blas_threads()
    try:
        yield
    finally:
        with _blas_lock:
            _blas_asked.remove(threads)
            _set_blas_threads()


def _set_blas_threads() -> None:
    """Set what is asked for, or else what was before."""
    for library, before in zip(_blas_libraries(), _blas_before, strict=True):
        threads = min(_blas_asked, default=before)
        if library.num_threads != threads:
            # threadpoolctl 3.8 hears only the thread that was first to set a number.
            release = getattr(library, "clear_controlling_thread", None)
            if release:
                release(force=True)
            library.set_num_threads(threads)
            if release:
                release()


def one_blas_thread() -> AbstractContextManager[None]:
    """Return a context in which a matrix product runs on one thread.

    Threads that each started BLAS's own would fight for the cores, and how BLAS cuts up
    a product would depend on them. Without threadpoolctl (the extra ``train``) this
    changes nothing; set OPENBLAS_NUM_THREADS=1 then.
    """
    return _blas_threads(1)


def all_blas_threads() -> AbstractContextManager[None]:
    """Return a context in which a matrix product runs on as many threads as work does.

    On one, where any thread is within `one_blas_thread`. BLAS cuts up rows and columns
    of the result, not the sums, so that this changes no bit. Without threadpoolctl it
    changes nothing at all.
    """
    return _blas_threads(_num_threads)


def fold(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    combine: Callable[[Result, Result], Result],
) -> Result:
    """Return f(items[0]) combined with f(items[1]), …; the calls spread over threads.

    Results are combined in the order of `items`, each as soon as it and all before it
    are there, so that few are held at a time. Context variables, such as `no_grad`'s,
    are the caller's in every thread; a matrix product runs on one thread.

    Raises
    ------
    ValueError
        If `items` is empty. What `function` raises is raised, once every thread rests.
    """
    if not items:
        raise ValueError("items must hold at least one piece of work, got none")
    waiting: dict[int, Result] = {}
    total: Result | None = None
    claimed = done = 0
    lock = Lock()

    def work() -> None:
        nonlocal total, claimed, done
        while True:
            with lock:
                if claimed == len(items):
                    return
                i = claimed
                claimed += 1
            try:
                result = function(items[i])
            except BaseException:
                with lock:
                    claimed = len(items)
                raise
            with lock:
                waiting[i] = result
                while done in waiting:
                    part = waiting.pop(done)
                    total = part if total is None else combine(total, part)
                    done += 1

    helpers = min(_num_threads, len(items)) - 1
    with one_blas_thread():
        if helpers < 1:
            work()
        else:
            pool = _pool(helpers, os.getpid())
            futures = [pool.submit(copy_context().run, work) for _ in range(helpers)]
            try:
                work()
            finally:
                # A helper that has not begun has nothing left to do, and may be queued
                # behind the very thread that waits here, where folds are nested.
                begun = [future for future in futures if not future.cancel()]
                wait(begun)
            for future in begun:
                future.result()
    return cast(Result, total)


class PairwiseSum:
    """Adds up the named arrays of several shards, handed in from several threads.

    Shards are added in pairs, the sums of two pairs to each other, and so on; the last
    of an odd number waits for the next round. As the pairs are fixed, and a + b is
    b + a to the bit, the result does not depend on which shard comes first. A sum is
    made as soon as both its terms are there, by the thread that brings the second, into
    the memory of the first; so of each array few copies exist at a time.

    Parameters
    ----------
    shards : int
        Their number.
    names : iterable of str
        What is added up; other arrays that are handed in are let go.
    hand_on : callable, optional
        Gets each name and sum as it is complete; it is not kept here then.

    Attributes
    ----------
    totals : dict of ndarray
        The sums, complete once every shard has handed in every name.
    squares : dict of floating
        The sums of their squares, taken while they are still in the cache.
    """

    def __init__(
        self,
        shards: int,
        names: Iterable[str],
        hand_on: Callable[[str, Array], object] | None = None,
    ) -> None:
        # In the order of `names`, whichever is complete first.
        self.totals: dict[str, Array] = dict.fromkeys(names, np.empty(0))
        self.squares: dict[str, np.floating[Any]] = dict.fromkeys(self.totals, _ZERO)
        self._shards = shards
        # Not `or self._keep`: an object that holds its own method is freed late.
        self._hand_on = hand_on
        self._waiting: dict[tuple[str, int, int], Array] = {}
        self._lock = Lock()

    def add(self, shard: int, arrays: Mapping[str, Array]) -> None:
        """Take over arrays of a shard; they are added to in place.

        Parameters
        ----------
        shard : int
            Counts from 0.
        arrays : mapping of str to ndarray
            Some of its arrays; the others come in other calls.
        """
        for name, array in arrays.items():
            if name not in self.totals:
                continue
            total = self._climb(shard, name, array)
            if total is None:
                continue
            if self._hand_on is None:
                self._keep(name, total)
            else:
                self._hand_on(name, total)

    def _keep(self, name: str, total: Array) -> None:
        """Keep a sum, and that of its squares."""
        self.totals[name] = total
        self.squares[name] = np.vdot(total, total)

    def _climb(self, place: int, name: str, array: Array) -> Array | None:
        """Add up pairs while the other term is there; return what is the total."""
        width = self._shards
        while width > 1:
            if place ^ 1 < width:
                with self._lock:
                    other = self._waiting.pop((name, width, place ^ 1), None)
                    if other is None:
                        self._waiting[name, width, place] = array
                        return None
                other += array
                array = other
            place, width = place // 2, (width + 1) // 2
        return array


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """Return [function(item) for item in items], the calls spread over threads."""
    if not items:
        return []
    return fold(lambda item: [function(item)], items, operator.iadd)


def share_out(
    function: Callable[[tuple[int, int]], object], length: int, least: int = 4
) -> None:
    """Call `function` on (start, stop) of consecutive parts of `length` items.

    Each thread gets one part, of at least `least` items: with fewer, handing them over
    costs more than the work.
    """
    pieces = min(_num_threads, max(length // least, 1))
    if pieces == 1:
        function((0, length))
    else:
        parallel_map(function, split(length, pieces))


def split(length: int, pieces: int) -> list[tuple[int, int]]:
    """Return (start, stop) of `pieces` consecutive parts, equal to within one."""
    bounds = [length * i // pieces for i in range(pieces + 1)]
    return list(pairwise(bounds))
