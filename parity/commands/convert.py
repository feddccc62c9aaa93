"""`parity convert`: a checkpoint of any known family as one of this project's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from parity.cli import AGREE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("src", type=Path, help="the checkpoint to read")
    parser.add_argument(
        "dst", type=Path, help="the file to write: .safetensors, .pt or .pth"
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="a preset or a .json file with the network's configuration, for weights "
        "that come without one",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from parity import weights

    if args.dst.exists() and not args.overwrite:
        raise ValueError(f"{args.dst} is there already; add --overwrite to replace it")
    fields = None if args.config is None else _config(args.config)
    config, arrays = weights.load(args.src, fields)
    description = weights.inspect(args.src)
    kept = [description.get(key) for key in ("preprocessing", "metadata")]
    weights.save(args.dst, config, arrays, *kept)
    print(
        f"{args.src} ({description['family']}) → {args.dst}: {len(arrays)} tensors, "
        f"{sum(array.size for array in arrays.values()):,} parameters"
    )
    if any(kept) and args.dst.suffix != ".safetensors":
        print("mean, std and the names of classes stay behind: .safetensors keeps them")
    return AGREE


def _config(name: str) -> dict[str, Any]:
    """Return the fields of a preset, or of a JSON file."""
    from vit_numpy.config import ViTConfig, preset

    if not name.endswith(".json"):
        return preset(name).to_dict()
    try:
        fields = json.loads(Path(name).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} must hold an object with the configuration's fields")
    return ViTConfig.from_dict(fields).to_dict()
