"""Augmentation of the batches that both backends see, by NumPy and by Pillow."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parity.data.draws import check_seed
from parity.data.pixels import (
    PIXEL_TRANSFORMS,
    ColorJitter,
    PixelTransform,
    RandAugment,
    apply_operations,
)
from vit_numpy.augment import Mix, apply
from vit_numpy.draws import TRANSFORMS, CutMix, Mixing, MixUp, Transform, draw

AnyTransform: TypeAlias = Transform | PixelTransform | Mixing

# What a recipe can name; the fields of each are its parameters.
AUGMENTATIONS: dict[str, type[Any]] = TRANSFORMS | PIXEL_TRANSFORMS


class Augmentation:
    """A sequence of random transforms of any kind.

    Parameters
    ----------
    transforms : sequence of transforms
        Of `vit_numpy.draws` and `parity.data.pixels`, applied in this order. Those that
        mix images come last, as they work on normalised images.
    num_classes : int
        Width K of the soft targets that mixing makes of labels.
    seed : int, default 0
        0 to 2**64 - 1.

    Attributes
    ----------
    mixes : bool
        Whether labels become soft targets.

    Raises
    ------
    ValueError
        If a transform of single images follows one that mixes.

    Notes
    -----
    Everything is keyed by (seed, epoch, index of the image, transform and its place),
    so an image is changed in the same way whatever the batch it is in; only its partner
    in mixing is the image before it in the batch.
    """

    def __init__(
        self, transforms: Sequence[AnyTransform], num_classes: int, seed: int = 0
    ) -> None:
        self.seed = check_seed(seed)
        mixing: list[Mixing] = []
        self._single: list[Transform | PixelTransform] = []
        for transform in transforms:
            if isinstance(transform, MixUp | CutMix):
                mixing.append(transform)
            elif mixing:
                raise ValueError(
                    f"{type(transform).__name__} must come before "
                    f"{type(mixing[-1]).__name__}, which mixes finished images; "
                    "put mixup and cutmix last"
                )
            else:
                self._single.append(transform)
        self.mixes = bool(mixing)
        self._mix = Mix(mixing, num_classes, self.seed)

    def change(
        self, images: npt.NDArray[np.uint8], epoch: int, indices: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """Change uint8 images (B, C, H, W) one by one; the shape stays."""
        height, width = images.shape[2:]
        for place, transform in enumerate(self._single):
            drawn = draw(transform, self.seed, epoch, indices, height, width, place)
            if isinstance(transform, ColorJitter | RandAugment):
                images = apply_operations(images, drawn)
            else:
                images = apply(transform, images, drawn)
        return images

    def mix(
        self,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        epoch: int,
        indices: Sequence[int],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mix normalised images and labels: (B, C, H, W), (B,) -> images, (B, K)."""
        return self._mix(images, labels, epoch, indices)
