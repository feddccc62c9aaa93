"""`parity inspect`: what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from parity.cli import AGREE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("file", type=Path, help="a checkpoint of any known family")
    parser.add_argument("--json", action="store_true", help="print it all as JSON")


def run(args: argparse.Namespace) -> int:
    """Describe the file."""
    from parity import weights

    description = weights.inspect(args.file)
    print(
        json.dumps(description, indent=1, allow_nan=False)
        if args.json
        else _text(description)
    )
    return AGREE


def _text(description: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{n} {name}" for name, n in description["dtypes"].items())
    lines = [
        f"{description['path']}: {description['family']}, "
        f"{description['tensors']} tensors ({dtypes}), "
        f"{description['parameters']:,} parameters"
    ]
    # What stands as a table below is not repeated in a line.
    apart = ("path", "family", "tensors", "parameters", "dtypes", "config", "shapes")
    for key, value in description.items():
        if key not in apart:
            lines.append(f"  {key:14} {_flat(value)}")
    if description["config"] is None:
        lines.append("  configuration  none; `parity convert --config` adds one")
    else:
        lines.append(f"  configuration  {_flat(description['config'])}")
    width = max(len(name) for name in description["shapes"])
    for name, shape in description["shapes"].items():
        lines.append(f"  {name:{width}}  {tuple(shape)}")
    return "\n".join(lines)


def _flat(value: Any) -> str:
    """Return a header's entry on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return str(value)
