#!/usr/bin/env python3
"""Draw where a network looks: each head of each block, and attention rollout.

python scripts/attention_maps.py runs/network1-numpy/last.safetensors --index 7

Writes attention.png and attention.npz, with the arrays `heads` (depth, heads, rows,
columns), `rollout` (rows, columns) and `image` (C, H, W).
"""

from parity.program import Parser, answer_interrupts, main_of, summary_of

answer_interrupts()

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.attention import head_maps, reader, rollout
from parity.classifier import Classifier, add_picture_options
from parity.pictures import prepare
from parity.plots import check_matplotlib, save
from parity.sheets import attention_sheet
from parity.training import Backend
from vit_numpy.checkpoint import write_atomically


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=summary_of(__doc__))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "picture", type=Path, nargs="?", help="a file, or else --data and --index"
    )
    parser.add_argument(
        "--data", metavar="NAME", help="default: what the network was trained on"
    )
    parser.add_argument(
        "--index", type=int, metavar="I", help="a test image of the data, from 0"
    )
    add_picture_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("attention"),
        metavar="DIR",
        help="default: %(default)s",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if (args.picture is None) == (args.index is None):
        got = "neither" if args.picture is None else "both"
        raise ValueError(f"give the file of a picture or --index I, got {got}")
    check_matplotlib()
    network = Classifier.open(args.checkpoint, Backend.load(args.backend))
    image, name = choose(args, network)
    inputs = network.inputs(image[None], args.mean, args.std)
    weights = network.attention_weights(inputs)
    heads = head_maps(weights, network.config)[0]
    flow = rollout(weights, network.config)[0]
    title = f"{name}: what {reader(network.config)} attends to"
    save(attention_sheet(image, heads, flow, title), args.out / "attention.png")
    write_atomically(
        args.out / "attention.npz",
        partial(np.savez, heads=heads, rollout=flow, image=image),
    )
    print(
        f"{len(heads)} blocks of {heads.shape[1]} heads, in {args.backend} -> "
        f"{args.out / 'attention.png'}, {args.out / 'attention.npz'}"
    )
    return 0


def choose(args: argparse.Namespace, network: Classifier) -> tuple[Any, str]:
    """Return the image (C, H, W), uint8, and its name."""
    if args.picture is not None:
        config = network.config
        style = args.style or network.style
        prepared = prepare(
            args.picture, config.image_hw, config.in_chans, style, args.background
        )
        return prepared.pixels, args.picture.name
    dataset = network.open_data(args.data)
    images = dataset.test_images
    if not 0 <= args.index < len(images):
        raise ValueError(
            f"--index must be 0 to {len(images) - 1}, the test images of "
            f"{dataset.name}, got {args.index}"
        )
    label = dataset.class_names[dataset.test_labels[args.index]]
    return images[args.index : args.index + 1][0], (
        f"“{label}”, test image {args.index} of {dataset.name}"
    )


if __name__ == "__main__":
    sys.exit(main_of(run, parse))
