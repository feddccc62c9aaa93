"""The command `parity`.

Exit status: 0 when all agrees, 1 on a mismatch, 2 for bad usage or bad input, which is
answered with one line, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from parity.program import OUT_OF_MEMORY, Parser, is_out_of_memory, with_output

AGREE, MISMATCH, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Name: (module with add_arguments and run, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "check": (
        "parity.commands.check",
        "compare every layer of vit_numpy with vit_torch, forward and backward",
    ),
    "demo": (
        "parity.commands.demo",
        "leave out a line of attention's backward, in memory, and see what is said",
    ),
    "mutants": (
        "parity.commands.mutants",
        "break vit_numpy on purpose, and count the defects that the checks find",
    ),
    "curves": (
        "parity.commands.curves",
        "train a recipe in both backends, and say whether and where they part",
    ),
    "compare": (
        "parity.commands.compare",
        "name the first layer and tensor at which two networks part",
    ),
    "doctor": (
        "parity.commands.doctor",
        "say why ported weights give other outputs than the original",
    ),
    "bench": (
        "parity.commands.bench",
        "time training, inference and layers side by side in every backend",
    ),
    "convert": (
        "parity.commands.convert",
        "turn a checkpoint of any known family into one of this project's",
    ),
    "inspect": (
        "parity.commands.inspect",
        "say what a checkpoint holds",
    ),
    "data": (
        "parity.commands.data",
        "list the data sets, and fetch those that do not ship",
    ),
    "all": (
        "parity.commands.all",
        "check, move weights both ways, compare curves; write it all to a folder",
    ),
}

# Which extra brings what a command may miss.
_EXTRAS = {
    "torch": "torch",
    "torchvision": "torch",
    "hypothesis": "check",
    "tqdm": "train",
    "PIL": "train",
    "threadpoolctl": "train",
    "matplotlib": "plot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program's name; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return with_output(lambda: _answer(arguments))


def _answer(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else BAD_INPUT
    except KeyboardInterrupt:
        return _interrupted()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        return _refuse(
            f"{missing} is not installed; pip install 'vit-parity[{_EXTRAS[missing]}]'"
        )
    except BrokenPipeError:
        raise
    except (OSError, OverflowError, TypeError, ValueError) as error:
        return _refuse(str(error))
    except Exception as error:
        # Libraries that clean up when interrupted may fail at it, and hide why.
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted()
        if is_out_of_memory(error):
            return _refuse(OUT_OF_MEMORY)
        raise


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="parity",
        description="Prove that two implementations of a Vision Transformer are equal.",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", help="one of those below")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="see parity COMMAND --help"
    )
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        # Imported late, so that Ctrl-C finds this file's answer to it from the start.
        from parity.names import unknown_name

        raise unknown_name("command", name, COMMANDS)
    path, about = COMMANDS[name]
    command = import_module(path)
    subparser = Parser(prog=f"parity {name}", description=about)
    command.add_arguments(subparser)
    status: int = command.run(subparser.parse_args(arguments[1:]))
    return status


def _interrupted() -> int:
    print("parity: interrupted", file=sys.stderr)
    return INTERRUPTED


def _refuse(message: str) -> int:
    print(f"parity: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _version() -> str:
    try:
        return f"vit-parity {version('vit-parity')}"
    except PackageNotFoundError:
        return "vit-parity, not installed"
