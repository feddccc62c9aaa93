"""What commands and programs share: exit statuses, checks of options, quiet endings."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

OUT_OF_MEMORY = "out of memory; take smaller batches, or a smaller network"

# What a shell reports for a program that a closed pipe has ended.
PIPE_CLOSED = 141


class Parser(argparse.ArgumentParser):
    """An argument parser that answers bad usage with one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with status 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main_of(
    run: Callable[[argparse.Namespace], int],
    parse: Callable[[], argparse.Namespace],
) -> int:
    """Run a program and return its exit status.

    That is 0, or 1 for a run that failed, 2 for bad input, 130 for Ctrl-C. Whatever a
    user can cause is answered with one line on standard error.
    """
    return with_output(lambda: _answer(run, parse))


def _answer(
    run: Callable[[argparse.Namespace], int],
    parse: Callable[[], argparse.Namespace],
) -> int:
    name = _program()
    try:
        return run(parse())
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        raise
    except (
        FloatingPointError,
        ModuleNotFoundError,
        OSError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        failed = isinstance(error, FloatingPointError | ChildProcessError)
        return FAILED if failed else BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{name}: {OUT_OF_MEMORY}", file=sys.stderr)
        return FAILED


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory is short; torch has no class of error for the CPU's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate" in str(error)
    )


def _program() -> str:
    return sys.argv[0].rpartition("/")[2]


def _interrupted() -> int:
    print(f"{_program()}: interrupted", file=sys.stderr)
    return INTERRUPTED


def answer_interrupts() -> None:
    """From now on let Ctrl-C end the program with one line, wherever it strikes.

    Programs call this before their other imports, which take longer than many a user
    waits; `main_of` comes too late for them.
    """
    sys.excepthook = _report


def _report(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error that nothing has caught: Ctrl-C without where it struck."""
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(_interrupted())
    sys.__excepthook__(kind, error, trace)


def with_output(run: Callable[[], int]) -> int:
    """Call `run` with a standard output that no user's terminal or pipe can break.

    Signs that the output's encoding lacks are shown as question marks, and a reader
    that has seen enough, as `head` has, ends the program without a word.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            return run()
        finally:
            # Without a standard output there is nothing to flush.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def check_target(option: str, path: Path | None) -> None:
    """Raise unless a file can be written at `path`, before work is spent on it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} must be a file, got the folder {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{option} must be in a folder that exists, got {path}; make it first"
        )


def check_picture(option: str, path: Path | None) -> None:
    """Raise unless a picture can be written at `path`, before work is spent on it."""
    check_target(option, path)
    if path is None:
        return
    # Here, as it imports NumPy, in which Ctrl-C would not be answered yet.
    from parity.plots import check_matplotlib

    check_matplotlib()
    bases = import_module("matplotlib.backend_bases")
    kinds = bases.FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(
            f"{option} must be a picture, as {path.with_suffix('.png').name}, "
            f"got {path}; known: {', '.join(sorted(kinds))}"
        )


def make_folder(option: str, path: Path) -> None:
    """Make a folder, with those above it, if it is not there; raise if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{option} must be a folder, got {path}, a file") from None


def at_least(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers that are not below `least`, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text!r}"
            )
        return int(text)

    return number


def minutes(text: str) -> float:
    """Read a time above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be a number of minutes above 0, got {text!r}"
        )
    return value


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    return at_least(1)(text)


def summary_of(doc: str | None) -> str | None:
    """Return the first line of a docstring, if `python -OO` has not stripped it."""
    return doc and doc.splitlines()[0]
