"""What a network makes of the images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Score a model on every image of a part.

    Parameters
    ----------
    model : VisionTransformer
        Of the backend's package.
    backend : Backend
    part : Part
    mean, std : array_like of shape (C,), optional
        To normalise with other values than those of the data's training images.

    Raises
    ------
    FloatingPointError
        If a logit is not finite; the first bad tensor is named.
    """
    logits = predict(model, backend, part, mean=mean, std=std)
    try:
        return score(logits, part.labels, part.class_names)
    except FloatingPointError as error:
        row = np.flatnonzero(~np.isfinite(logits).all(axis=1))[:1]
        stream = _stream(part.take(row), mean, std)
        bad = _first_bad(model, backend, next(stream.epoch(0)).images)
        raise FloatingPointError(f"{error}; the first bad tensor is {bad!r}") from None


def predict(
    model: Any,
    backend: Backend,
    part: Part,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> NDArray[Any]:
    """Return the logits (N, K) of every image of a part, without dropout.

    Parameters
    ----------
    model, backend, part, mean, std
        As `evaluate`.

    Raises
    ------
    ValueError
        If a picture of a folder cannot be decoded.
    """
    dtype = backend.dtype(model)
    run = backend.module("train").evaluate
    stream = _stream(part, mean, std)
    # Whoever scores what is not finite says so, once and by its image.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate(
            [
                backend.numpy(run(model, backend.array(batch.images, dtype)))
                for batch in stream.epoch(0)
            ]
        )


def _stream(part: Part, mean: ArrayLike | None, std: ArrayLike | None) -> BatchStream:
    return BatchStream(part, EVALUATION_BATCH, 0, shuffle=False, mean=mean, std=std)


def _first_bad(model: Any, backend: Backend, images: NDArray[Any]) -> str:
    """Name the first weight or intermediate that is not finite, of images that show it.

    A model of torch is left in evaluation mode.
    """
    if backend.name == "torch":
        model.eval()
    with np.errstate(all="ignore"):
        found = model.intermediates(backend.array(images, backend.dtype(model)))
    return (
        first_not_finite(dict(model.named_parameters()), backend)
        or first_not_finite(found, backend)
        or "logits"
    )


def first_not_finite(tensors: Mapping[str, Any], backend: Backend) -> str | None:
    """Name the first of some tensors that holds an infinity, or what is no number."""
    for name, tensor in tensors.items():
        if not np.isfinite(backend.numpy(tensor)).all():
            return name
    return None
