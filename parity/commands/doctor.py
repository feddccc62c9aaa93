"""`parity doctor`: why ported weights give other outputs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.cli import AGREE, MISMATCH
from parity.commands.compare import (
    add_image_arguments,
    load_array,
    open_images,
    open_networks,
)
from parity.program import check_target

if TYPE_CHECKING:
    from parity.diverge import Network
    from parity.doctor import Diagnosis

_SECONDS = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("a", metavar="A", help="the port: a checkpoint of this project")
    parser.add_argument(
        "b",
        metavar="B",
        nargs="?",
        help="the original: a checkpoint, or module:attribute for any torch module or "
        "function from images to logits",
    )
    add_image_arguments(parser)
    parser.add_argument(
        "--outputs",
        type=Path,
        metavar="FILE.npy",
        help="what the original returned for --images, in place of B",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="S",
        help=f"how long to search (default {_SECONDS:g})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Search, print, and return the exit status."""
    check_target("--json", args.json)
    if (args.b is None) == (args.outputs is None):
        raise ValueError("give the original, B, or what it returned, --outputs; one")
    if args.outputs is not None and args.images is None:
        raise ValueError("--outputs needs --images, which the original was given")
    from parity.doctor import diagnose

    port, *original = open_networks([args.a, *([args.b] if args.b else [])], [])
    if port.config is None:
        raise ValueError(
            f"{args.a} must be a network of this project, which the changes are made "
            "to; give a checkpoint"
        )
    if original:
        images, what = open_images(args.images, args.count, *original, port)
        outputs = _outputs(original[0], images)
    else:
        images, outputs = recorded(args.images, args.outputs, args.count)
        what = f"{len(images)} images of {args.images}"
    found = diagnose(
        port.config,
        port.parameters(),
        images,
        outputs,
        preprocessing=port.preprocessing,
        seconds=args.seconds,
    )
    if args.json is not None:
        from parity.files import write_json

        write_json(args.json, found.to_dict() | {"images_from": what})
    print(report(found, args.a, args.b or str(args.outputs), what))
    return AGREE if found.before.agrees else MISMATCH


def recorded(images: Path, outputs: Path, count: int) -> tuple[Any, Any]:
    """Read images and what the original made of them."""
    x, y = load_array("--images", images), load_array("--outputs", outputs)
    if len(x) != len(y) or y.ndim != 2:
        raise ValueError(
            "--outputs must hold logits (B, K) for the B images of --images, got shape "
            f"{y.shape} for images of shape {x.shape}"
        )
    return x[:count], y[:count]


def _outputs(original: Network, images: Any) -> Any:
    """Run the original in float64, where the smallest change can be seen."""

    def run(images: Any) -> Any:
        trace = original.to("float64").trace(images, lambda y: y, lambda event: False)
        return trace.forward["logits"]

    try:
        return run(images)
    except (TypeError, ValueError):
        # A function may hold weights of float32, which nothing here can convert.
        if original.parameters():
            raise
        return run(images.astype("float32"))


def report(found: Diagnosis, port: str, original: str, what: str) -> str:
    """Return what was tried, and what was found."""
    lines = [f"port      {port}", f"original  {original}", f"          {what}", ""]
    if found.before.agrees:
        return "\n".join([*lines, found.conclusion])
    if math.isfinite(found.before.distance):
        lines.append(f"off by {found.before.distance:.1e} of the outputs' size")
    else:
        lines.append("its positions are of another grid than that of the images")
    lines.append(f"tried {found.tried:,} combinations of changes")
    if not found.complete and not found.found:
        lines[-1] += "; time ran out (--seconds)"
    lines += ["", found.conclusion]
    for explanation in found.found[:1]:
        lines += ["", "in the port:"]
        lines += [f"  {c.fix}  [{c.name}]" for c in explanation.changes]
    if not found.found:
        lines += ["", "the closest:"]
        lines += [
            f"  {e.distance:.1e}  {', '.join(e.names) or 'as it is'}"
            for e in found.closest
        ]
    return "\n".join(lines)
