"""A trained network, opened from its file in either backend, to be shown pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from parity.data import Dataset, load, normalise
from parity.pictures import BACKGROUNDS, STYLES
from parity.training import BACKENDS, Backend, check_images
from vit_numpy.checkpoint import HEADER

# The digits are white strokes on black, the clothes bright shapes on black.
_STYLES = {"mnist": "digit", "mnist-subset": "digit", "fashion-mnist": "object"}

# A person may give a whole folder of photographs.
_BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A network with its weights, and what its file says about it.

    Attributes
    ----------
    path : Path
    backend : Backend
    model : VisionTransformer
        Of `vit_numpy` or `vit_torch`; the latter in evaluation mode.
    header : dict
        That of the file; empty for a file of another library.
    """

    path: Path
    backend: Backend
    model: Any
    header: dict[str, Any]

    @classmethod
    def open(cls, path: Path, backend: Backend) -> Self:
        """Open any file that the backend's `from_pretrained` opens.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it holds no network.
        """
        model = backend.module("checkpoint").from_pretrained(path)
        if backend.name == "torch":
            model.eval()
        return cls(path, backend, model, read_header(path))

    @property
    def config(self) -> Any:
        """The network's `ViTConfig`."""
        return self.model.config

    @property
    def data(self) -> str | None:
        """The data set that it was trained on, where the file names it."""
        name = self.header.get("metadata", {}).get("data")
        return name if isinstance(name, str) else None

    @property
    def style(self) -> str:
        """How pictures are made like those that it was trained on.

        One of `parity.pictures.STYLES`.
        """
        return _STYLES.get(self.data or "", "photo")

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the numbers from 0 where the file has none."""
        return self._named() or tuple(str(k) for k in range(self.config.num_classes))

    def _named(self) -> tuple[str, ...] | None:
        """Return the K names that the file has, if it has any."""
        names = self.header.get("metadata", {}).get("class_names")
        if not isinstance(names, list) or len(names) != self.config.num_classes:
            return None
        return tuple(str(name) for name in names)

    def check_classes(self, dataset: Dataset) -> None:
        """Raise if the file has names of classes, and the data set has others.

        Raises
        ------
        ValueError
        """
        names = self._named() or dataset.class_names
        for own, other in zip(names, dataset.class_names, strict=True):
            if own != other:
                raise ValueError(
                    f"{self.path} knows the class {own!r} where {dataset.name} has "
                    f"{other!r}; choose data of the same classes"
                )

    def normalisation(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> dict[str, Sequence[float]]:
        """Return `mean` and `std` to normalise images by, as `parity.data` takes them.

        Parameters
        ----------
        mean, std : sequence of float, optional
            A value a channel, of values in [0, 1], in place of the file's.

        Raises
        ------
        ValueError
            If neither the file nor the caller says what to normalise by.
        """
        known = self.header.get("preprocessing") or {}
        given = {"mean": mean, "std": std}
        chosen = known | {k: v for k, v in given.items() if v is not None}
        if missing := [name for name in given if name not in chosen]:
            raise ValueError(
                f"{self.path} does not say by which {' and '.join(missing)} images "
                f"are normalised; add {' '.join(f'--{name}' for name in missing)}, "
                "a number a channel"
            )
        return {name: chosen[name] for name in given}

    def open_data(self, name: str | None = None) -> Dataset:
        """Open a data set by name, or that which the network was trained on.

        Raises
        ------
        DataNotFoundError, FileNotFoundError, ValueError
            If neither the caller nor the file names one; if it is unknown or not there,
            or its images are not such as the network takes.
        """
        name = name or self.data
        if name is None:
            raise ValueError(f"{self.path} names no data set; add --data NAME")
        config = self.config
        dataset = load(name, image_size=config.image_hw, channels=config.in_chans)
        check_images(dataset, config)
        return dataset

    def inputs(
        self,
        images: NDArray[np.uint8],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Any:
        """Return images (B, C, H, W) as the network takes them, in its backend.

        Parameters
        ----------
        images : ndarray of shape (B, C, H, W), uint8
        mean, std : sequence of float, optional
            As `normalisation` takes them.

        Raises
        ------
        ValueError
            If neither the file nor the caller says what to normalise by.
        """
        pixels = normalise(images, **self.normalisation(mean, std))
        return self.backend.array(pixels, self.backend.dtype(self.model))

    def logits(self, inputs: Any) -> NDArray[Any]:
        """(B, C, H, W) -> (B, K), without dropout.

        Raises
        ------
        ValueError
            If the network has no head.
        """
        if not self.config.num_classes:
            raise ValueError(
                f"{self.path} holds a network without a head, which names no class; "
                "give one with num_classes above 0"
            )
        run = self.backend.module("train").evaluate
        return self.backend.numpy(run(self.model, inputs, _BATCH))

    def attention_weights(self, inputs: Any) -> list[NDArray[Any]]:
        """(B, C, H, W) -> (B, h, T, T) for each block; rows sum to 1."""
        return [
            self.backend.numpy(weights)
            for weights in self.model.attention_weights(inputs)
        ]


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add how a network is opened and shown pictures.

    They are `--backend`; `--style` and `--background`, of `parity.pictures.prepare`;
    `--mean` and `--std`.
    """
    parser.add_argument(
        "--backend", choices=BACKENDS, default="numpy", help="default: %(default)s"
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        help="find a digit or an object on its background, or take the whole photo "
        "(default: as in the data that the network was trained on)",
    )
    parser.add_argument(
        "--background",
        choices=BACKGROUNDS,
        default="auto",
        help="of a digit or an object (default: what the picture's border shows)",
    )
    add_normalisation_options(parser)


def add_normalisation_options(parser: argparse.ArgumentParser) -> None:
    """Add `--mean` and `--std`, of `Classifier.normalisation`."""
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs="+",
            metavar="X",
            help="to normalise by, a number a channel (default: the checkpoint's)",
        )


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file of this project's format, {} for any other file."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(HEADER)
    except SafetensorError:
        return {}
    header = json.loads(text) if text else {}
    return header if isinstance(header, dict) else {}
