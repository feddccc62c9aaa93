"""Folding over threads: order, context, errors, nesting."""

import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vit_numpy import allocator, parallel
from vit_numpy.module import no_grad, saved


@pytest.fixture(params=[1, 2, 5])
def threads(request, monkeypatch):
    monkeypatch.setattr(parallel, "_num_threads", request.param)
    return request.param


def test_results_are_combined_in_order(threads):
    def slow_first(i):
        time.sleep(0.002 * (6 - i))
        return str(i)

    assert parallel.fold(slow_first, range(7), lambda a, b: f"({a}{b})") == (
        "((((((01)2)3)4)5)6)"
    )
    assert parallel.parallel_map(slow_first, range(7)) == list("0123456")
    assert parallel.parallel_map(slow_first, []) == []


def test_threads_inherit_the_callers_context(threads):
    def kept(_):
        time.sleep(0.002)
        return saved((1,))

    with no_grad():
        assert parallel.parallel_map(kept, range(6)) == [None] * 6
    assert parallel.parallel_map(kept, range(6)) == [(1,)] * 6


def test_several_threads_do_run(monkeypatch):
    monkeypatch.setattr(parallel, "_num_threads", 3)
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(parallel.parallel_map(lambda _: meeting.wait(), range(3))) == [
        0,
        1,
        2,
    ]


def test_an_error_stops_the_work_and_is_raised(threads):
    done = []

    def fail(i):
        if i == 3:
            raise KeyError("third")
        time.sleep(0.001)
        done.append(i)

    with pytest.raises(KeyError, match="third"):
        parallel.parallel_map(fail, range(100))
    assert len(done) < 50


def test_folds_may_be_nested(threads):
    def inner(i):
        return sum(parallel.parallel_map(lambda j: i * j, range(5)))

    assert parallel.parallel_map(inner, range(5)) == [10 * i for i in range(5)]


def test_split_covers_everything_evenly():
    assert parallel.split(10, 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_number_of_threads_is_checked(bad):
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        parallel.set_num_threads(bad)


def test_blas_runs_on_one_thread_inside():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    np.ones((2, 2)) @ np.ones((2, 2))
    with parallel.one_blas_thread():
        blas = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
        assert {p["num_threads"] for p in blas} == {1}


def test_blocks_of_several_threads_leave_blas_as_it_was(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(parallel, "_num_threads", 2)

    def blas():
        found = threadpoolctl.threadpool_info()
        return {p["num_threads"] for p in found if p["user_api"] == "blas"}

    everything = parallel.all_blas_threads()
    one, other = parallel.one_blas_thread(), parallel.one_blas_thread()
    with (
        threadpoolctl.threadpool_limits(3, "blas"),
        ThreadPoolExecutor(1) as first,
        ThreadPoolExecutor(1) as second,
    ):
        seen = []
        for thread, step, *error in (
            (first, everything.__enter__),
            (first, one.__enter__),
            (second, other.__enter__),
            (first, one.__exit__, None, None, None),
            (second, other.__exit__, None, None, None),
            (first, everything.__exit__, None, None, None),
        ):
            thread.submit(step, *error).result()
            seen.append(blas())
    assert seen == [{2}, {1}, {1}, {1}, {2}, {3}]


def test_keep_freed_memory_says_whether_it_did():
    is_glibc = platform.libc_ver()[0] == "glibc"
    assert allocator.keep_freed_memory() is is_glibc
