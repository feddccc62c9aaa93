"""Stopping a training from outside, in a way that it can be gone on with."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self


class TrainingStopped(Exception):
    """A training was asked to stop, and has saved where it is."""


class StopSignals:
    """Answers Ctrl-C and a termination by asking the training to stop, in a ``with``.

    The second of them ends the process as it would have without.

    Attributes
    ----------
    received : signal.Signals, optional
        What came.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def exit_status(stop: StopSignals) -> int:
    """Return the status of a process that a signal ended: 128 and its number."""
    return 128 + (stop.received or signal.SIGINT)
