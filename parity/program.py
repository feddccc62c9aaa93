"""What the programs in `scripts` share: one line for an error, and exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main_of(
    run: Callable[[argparse.Namespace], int],
    parse: Callable[[], argparse.Namespace],
) -> int:
    """Run a program and return its exit status.

    That is 0, or 1 for a run that failed, 2 for bad input, 130 for Ctrl-C. Whatever a
    user can cause is answered with one line on standard error.
    """
    name = sys.argv[0].rpartition("/")[2]
    try:
        return run(parse())
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (
        FloatingPointError,
        ModuleNotFoundError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED if isinstance(error, FloatingPointError) else BAD_INPUT


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least 1, got {text!r}"
        )
    return int(text)
