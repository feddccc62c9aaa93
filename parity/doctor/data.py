"""Changes of what goes in and what comes out: preprocessing, and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parity.doctor.setup import Change, Setup, on_images, on_outputs

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessings(
    base: Setup, preprocessing: dict[str, Any] | None, integers: bool
) -> Iterator[Change]:
    """Yield the ways in which images may have to be prepared."""
    channels = base.config.in_chans
    scales: list[tuple[str, str, str, Callable[[Tensor], Tensor]]] = [
        (
            "times-255",
            "takes pixels from 0 to 255",
            "multiply by 255",
            lambda x: x * 255,
        ),
    ]
    if not integers:
        scales.append(
            (
                "by-255",
                "divides pixels by 255",
                "divide the images by 255",
                lambda x: x / 255,
            )
        )
    for name, words, fix, function in scales:
        yield Change(f"pixel-scale:{name}", f"it {words}", fix, on_images(function))
    named = {"half": ((0.5,) * channels, (0.5,) * channels)}
    if channels == 3:
        named["imagenet"] = IMAGENET
    if channels == 1:
        named["mnist"] = ((0.1307,), (0.3081,))
    if preprocessing is not None:
        named["file"] = (tuple(preprocessing["mean"]), tuple(preprocessing["std"]))
    for name, (mean, std) in named.items():
        if len(mean) != channels:
            continue
        m, s = (
            torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std)
        )
        numbers = f"mean {_short(mean)} and std {_short(std)}"
        yield Change(
            f"normalisation:{name}",
            f"it normalises its images by {numbers}",
            f"subtract the mean and divide by the std: {numbers}",
            on_images(partial(_normalised, mean=m, std=s)),
        )
        yield Change(
            f"normalisation:{name}-undone",
            f"it takes images that are not normalised by {numbers}",
            "do not normalise the images, or normalise them only once",
            on_images(partial(_denormalised, mean=m, std=s)),
        )
    if channels > 1:
        yield Change(
            "channel-order:reversed",
            "its channels are in reverse order (BGR)",
            "reverse the channels of the images, or of patch_embed.proj.weight",
            on_images(lambda x: x.flip(1)),
        )
    if base.config.image_hw[0] == base.config.image_hw[1]:
        yield Change(
            "image-axes:transposed",
            "rows and columns of its images are exchanged",
            "swap the last two axes of the images",
            on_images(lambda x: x.mT),
        )
    if channels > 1:
        yield Change(
            "image-axes:hwc",
            "its images were reshaped from (H, W, C) to (C, H, W), not transposed",
            "transpose the images: x.transpose(0, 3, 1, 2)",
            on_images(
                lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1]).permute(
                    0, 3, 1, 2
                )
            ),
        )


def outputs() -> Iterator[Change]:
    """Yield what may have been done to the logits."""
    yield Change(
        "outputs:softmax",
        "its outputs are probabilities",
        "compare softmax of the logits",
        on_outputs(lambda y: y.softmax(-1)),
    )
    yield Change(
        "outputs:log-softmax",
        "its outputs are logarithms of probabilities",
        "compare log_softmax of the logits",
        on_outputs(lambda y: y.log_softmax(-1)),
    )


def _normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean.to(x.dtype)) / std.to(x.dtype)


def _denormalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return x * std.to(x.dtype) + mean.to(x.dtype)


def _short(values: Sequence[float]) -> str:
    numbers = sorted(set(values))
    if len(numbers) == 1:
        return f"{numbers[0]:.4g}"
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
