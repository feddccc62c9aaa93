"""Tasks in several processes: their results, their interrupts, and their deaths."""

import multiprocessing
import os
import signal
import time

import pytest

from parity.workers import in_processes


def doubled(number):
    return 2 * number


def blocked(_):
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def killed(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def slow(number):
    time.sleep(60 * number)
    return number


def wrong(number):
    raise ValueError(f"{number} is wrong")


# Later versions of Python warn of what may happen to threads, of which none is used.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_every_task_is_done_once(method):
    assert sorted(in_processes(doubled, range(5), 2, method)) == [0, 2, 4, 6, 8]
    assert multiprocessing.active_children() == []


def test_workers_leave_interrupts_to_their_parent():
    (signals,) = in_processes(blocked, [0], 1)
    assert signal.SIGINT in signals
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_killed_worker_is_an_error_and_not_a_hang():
    started = time.monotonic()
    with pytest.raises(ChildProcessError, match="fewer than 2 workers"):
        list(in_processes(killed, [0, 1, 2], 2))
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


def test_what_a_task_raises_is_raised_and_ends_the_others():
    started = time.monotonic()
    with pytest.raises(ValueError, match="is wrong"):
        list(in_processes(wrong, [1, 2, 3], 2))
    assert time.monotonic() - started < 30


class Odd(Exception):
    """Is made of two values, but pickled with the one message."""

    def __init__(self, name, value):
        super().__init__(f"{name} is {value}")


def odd(number):
    raise Odd("number", number)


def test_an_error_that_cannot_be_made_again_is_told_in_words():
    with pytest.raises(RuntimeError, match=r"^Odd in a worker: number is 3$"):
        list(in_processes(odd, [3], 2))


def test_an_interrupt_ends_the_workers():
    results = in_processes(slow, [0, 1, 1], 2)
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert multiprocessing.active_children() == []
