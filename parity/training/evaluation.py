"""What a network makes of the images of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity.data import BatchStream, Part
from parity.scores import Scores, score
from parity.training.backend import Backend

# Evaluation keeps nothing for a backward pass, so its batches can be large.
EVALUATION_BATCH = 250


def evaluate(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> Scores:
    """Score a model on every image of a part, normalised as the data is by default."""
    logits = predict(model, backend, part, mean=mean, std=std)
    return score(logits, part.labels, part.class_names)


def predict(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> NDArray[Any]:
    """Return the logits (N, K) of every image of a part, without dropout."""
    dtype = backend.numpy(model.patch_embed.proj.weight).dtype.name
    run = backend.module("train").evaluate
    stream = BatchStream(part, EVALUATION_BATCH, 0, shuffle=False, mean=mean, std=std)
    # Whoever scores what is not finite says so, once and by its image.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate(
            [
                backend.numpy(run(model, backend.array(batch.images, dtype)))
                for batch in stream.epoch(0)
            ]
        )
