"""Judging changes of the source, each in a process of its own.

Workers are forked from a process that has torch and every reference in memory, and
nothing of `vit_numpy`: a child imports the changed package from memory, runs the checks
until one fails, and says which.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity.checks import CHECKS, CandidateError, judge_pair
from parity.mutants.cases import Lines, Prepared
from parity.mutants.tree import PACKAGE, Tree, forget
from parity.pair import Pair
from parity.runs import one_thread

# A case takes some hundredths of a second; a change that makes it take so much longer
# hangs. Processor time, so that a busy machine kills nothing by itself; the limit by
# the clock is for what only waits.
_CPU_SECONDS = 2.0
_WALL_SECONDS = 600.0
# What a child may allocate beyond what it was born with.
_MEMORY = 1 << 30

TIME, MEMORY, CRASH, RAISED = "time", "memory", "crash", "raised"


@dataclass(frozen=True)
class Change:
    """A file of the package with other contents.

    Attributes
    ----------
    file : str
    make : callable
        Returns its new syntax tree or text; called in the child.
    lines : frozenset of int
        Those of which a case must run one to see the change; if there are none, every
        case that runs anything of the file sees it.
    local : bool, default False
        Whether it is inside a function, where checks of signatures do not see it.
    """

    file: str
    make: Callable[[], ast.Module | str]
    lines: frozenset[int] = frozenset()
    local: bool = False

    def seen_by(self, lines: Lines) -> bool:
        """Tell whether what runs these lines runs what is changed."""
        if self.lines:
            return any((self.file, line) in lines for line in self.lines)
        return any(file == self.file for file, _ in lines)


@dataclass(frozen=True)
class Verdict:
    """What became of a change.

    Attributes
    ----------
    killed_by : str or None
        The check that failed, or 'time', 'memory', 'crash' or 'raised' (outside the
        checks); None if all passed.
    where : str
        Pair, dtype and tensor of the failure.
    cases : int
        How many cases run what is changed.
    seconds : float
    """

    killed_by: str | None
    where: str
    cases: int
    seconds: float


def judge_changes(
    changes: Sequence[Change],
    tree: Tree,
    pairs: Sequence[Pair],
    prepared: Sequence[Prepared],
    *,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Verdict]:
    """Judge every change; verdicts come in their order.

    Parameters
    ----------
    changes : sequence of Change
    tree : Tree
    pairs : sequence of Pair
    prepared : sequence of Prepared
        The cases of these pairs.
    workers : int, default 1
        Processes at a time; their number changes no verdict.
    progress : callable, optional
        Called with the number of changes that were judged since.

    Raises
    ------
    RuntimeError
        If a module that takes part holds on to something of the package, of which a
        child would then run the original.
    """
    _forget_package()
    by_name = {pair.name: pair for pair in pairs}
    ordered = sorted(prepared, key=lambda p: p.seconds)
    verdicts: dict[int, Verdict] = {}
    waiting = list(reversed(range(len(changes))))
    running: dict[int, _Child] = {}
    gc.collect()
    # What is there now is shared with the children; collecting it would copy it.
    gc.freeze()
    try:
        with one_thread():
            while len(verdicts) < len(changes):
                while len(running) < workers and waiting:
                    number = waiting.pop()
                    child = _start(changes[number], number, tree, by_name, ordered)
                    running[child.pipe] = child
                for pipe in select.select(list(running), [], [])[0]:
                    child = running[pipe]
                    if not child.read():
                        del running[pipe]
                        verdicts[child.number] = child.verdict()
                        progress(1)
    finally:
        gc.unfreeze()
        for child in running.values():
            child.end()
    return [verdicts[number] for number in range(len(changes))]


def _forget_package() -> None:
    """Remove the package from this process, which is about to fork."""
    forget()
    for name, module in list(sys.modules.items()):
        # Data sets draw their augmentations with it; no check runs them.
        if not name.startswith("parity.") or name.startswith("parity.data."):
            continue
        for attribute, value in vars(module).items():
            owner = getattr(value, "__module__", None) or getattr(value, "__name__", "")
            if str(owner).partition(".")[0] == PACKAGE:
                raise RuntimeError(
                    f"{name} must import {PACKAGE} inside its functions for mutants "
                    f"to be judged by it, but holds {attribute}"
                )


class _Child:
    """A process that judges one change, seen from its parent."""

    def __init__(self, pid: int, pipe: int, number: int, cases: int) -> None:
        self.pid = pid
        self.pipe = pipe
        self.number = number
        self._cases = cases
        self._started = time.perf_counter()
        self._said = b""

    def read(self) -> bool:
        """Take what was said since; False if that was all."""
        part = os.read(self.pipe, 65536)
        self._said += part
        return bool(part)

    def verdict(self) -> Verdict:
        """Wait for the end, and say what came of it."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self._started
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            timed_out = number in (signal.SIGPROF, signal.SIGALRM)
            by, where = TIME if timed_out else CRASH, signal.Signals(number).name
        elif status or not self._said:
            by, where = CRASH, f"exit status {os.waitstatus_to_exitcode(status)}"
        else:
            by, where = json.loads(self._said)
        return Verdict(by, where, self._cases, seconds)

    def end(self) -> None:
        """Kill it: the parent was interrupted."""
        os.close(self.pipe)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _start(
    change: Change,
    number: int,
    tree: Tree,
    pairs: dict[str, Pair],
    prepared: Sequence[Prepared],
) -> _Child:
    seen = [p for p in prepared if change.seen_by(p.lines)]
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sending)
        return _Child(pid, receiving, number, len(seen))
    # The child: whatever happens, it must not return into the parent's program.
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(receiving)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        _limit_memory()
        try:
            said: tuple[str | None, str] = _judge(change, tree, pairs, seen)
        except MemoryError as error:
            said = MEMORY, str(error)
        except BaseException as error:
            said = RAISED, f"{type(error).__name__}: {error}"
        os.write(sending, json.dumps(said).encode()[:65536])
        os._exit(0)
    finally:
        os._exit(1)


def _judge(
    change: Change, tree: Tree, pairs: dict[str, Pair], seen: Sequence[Prepared]
) -> tuple[str | None, str]:
    _limit_time(_CPU_SECONDS)
    tree.replace(change.file, change.make())
    tree.install()
    module = f"{PACKAGE}.{change.file.removesuffix('.py').replace('/', '.')}:"
    own = {name for name, p in pairs.items() if p.candidate.startswith(module)}
    # Of each pair the case with the most tensors, which shows most of its parameters.
    most = sorted(seen, key=lambda p: len(p.reference.quantities))
    examples = {p.pair: p for p in most}
    return next(_failures(change, pairs, own, examples, seen), (None, ""))


def _failures(
    change: Change,
    pairs: dict[str, Pair],
    own: set[str],
    examples: dict[str, Prepared],
    seen: Sequence[Prepared],
) -> Iterator[tuple[str, str]]:
    """Yield failures, the cheapest and likeliest ones first."""
    if not change.local:
        for name in own & examples.keys():
            yield from _pair_failures(pairs[name], examples[name])
    for prepared in sorted(seen, key=lambda p: p.pair not in own):
        _limit_time(_CPU_SECONDS + 4 * prepared.seconds)
        yield from _case_failures(pairs[prepared.pair], prepared)
    for name in examples:
        _limit_time(_CPU_SECONDS)
        yield from _pair_failures(pairs[name], examples[name])


def _case_failures(pair: Pair, prepared: Prepared) -> Iterator[tuple[str, str]]:
    trial = prepared.trial(pair)
    for check in CHECKS:
        try:
            for finding in check.run(trial):
                if finding.failed:
                    yield check.name, f"{pair.name} {prepared.dtype} {finding.tensor}"
        except CandidateError as error:
            memory = isinstance(error.__cause__, MemoryError)
            where = f"{pair.name} {prepared.dtype}: {error}"
            yield MEMORY if memory else check.name, where


def _pair_failures(pair: Pair, prepared: Prepared) -> Iterator[tuple[str, str]]:
    for finding in judge_pair(pair, prepared.case):
        if finding.failed:
            yield finding.check, f"{pair.name} {finding.tensor}"


def _limit_time(cpu_seconds: float) -> None:
    """End this process after so much more processor time, or if it just sleeps."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, _WALL_SECONDS + cpu_seconds)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
