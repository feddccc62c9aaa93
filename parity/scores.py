"""How good a classifier is: accuracy, the confusion matrix, and each class's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    Attributes
    ----------
    index : int
        Its row among the images.
    true, predicted : int
        Classes.
    probability, true_probability : float
        What the network gave the predicted class, and the true one.
    """

    index: int
    true: int
    predicted: int
    probability: float
    true_probability: float


@dataclass(frozen=True)
class Scores:
    """The scores of a classifier on N images of K classes.

    Attributes
    ----------
    loss : float
        Mean cross entropy, without label smoothing.
    top1, top5 : float
        Share of the images whose class has the largest logit, or one of the five
        largest; equal logits count in the order of the classes.
    confusion : ndarray of shape (K, K), int64
        Images of the row's class that were predicted as the column's.
    class_names : tuple of str
        K names.
    """

    loss: float
    top1: float
    top5: float
    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]

    def per_class(self) -> list[dict[str, Any]]:
        """Return name, images, precision, recall and F1 of each class.

        Precision is the share of the images predicted as the class that belong to it,
        recall the share of its images that were predicted so, F1 their harmonic mean.
        Precision is None where nothing was predicted as the class, recall where nothing
        belongs to it, F1 where both hold.
        """
        rows = []
        for k, name in enumerate(self.class_names):
            hits = int(self.confusion[k, k])
            images = int(self.confusion[k].sum())
            predicted = int(self.confusion[:, k].sum())
            rows.append(
                {
                    "class": name,
                    "images": images,
                    "precision": hits / predicted if predicted else None,
                    "recall": hits / images if images else None,
                    "f1": 2 * hits / (images + predicted)
                    if images or predicted
                    else None,
                }
            )
        return rows

    def confusions(self) -> list[tuple[int, int, int]]:
        """Return (images, true class, predicted class), the most frequent first.

        Only the wrong ones; equally frequent ones in the order of the classes.
        """
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        found = [(int(wrong[t, p]), int(t), int(p)) for t, p in np.argwhere(wrong)]
        return sorted(found, key=lambda row: (-row[0], row[1], row[2]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "images": int(self.confusion.sum()),
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
        }


def score(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
) -> Scores:
    """Score logits of shape (N, K) against labels of shape (N,).

    Raises
    ------
    FloatingPointError
        If a logit is not finite.
    ValueError
        If the shapes do not fit, or there is no image.
    """
    classes = len(class_names)
    if logits.shape != (len(labels), classes) or not len(labels):
        raise ValueError(
            f"logits must have shape ({len(labels)}, {classes}), a row an image and a "
            f"column a class, and at least one row, got {logits.shape}"
        )
    _check_finite(logits)
    wide = logits.astype(np.float64)
    own = np.take_along_axis(wide, labels[:, None], axis=1)
    earlier = np.arange(classes) < labels[:, None]
    rank = ((wide > own) | ((wide == own) & earlier)).sum(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, wide.argmax(axis=1)), 1)
    top = wide.max(axis=1)
    log_sum = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return Scores(
        loss=float((log_sum - own[:, 0]).mean()),
        top1=float((rank < 1).mean()),
        top5=float((rank < 5).mean()),
        confusion=confusion,
        class_names=class_names,
    )


def probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the softmax of logits (N, K), in float64: rows sum to 1.

    Raises
    ------
    FloatingPointError
        If a logit is not finite.
    """
    _check_finite(logits)
    wide = logits.astype(np.float64)
    e = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return shares


def worst_mistakes(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], count: int
) -> list[Mistake]:
    """Return up to `count` images that were most confidently taken for another class.

    Parameters
    ----------
    logits : ndarray of shape (N, K)
    labels : ndarray of shape (N,)
    count : int

    Returns
    -------
    list of Mistake
        The largest probability of a wrong class first.
    """
    shares = probabilities(logits)
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-shares[wrong, predicted[wrong]], kind="stable")
    return [
        Mistake(
            index=int(i),
            true=int(labels[i]),
            predicted=int(predicted[i]),
            probability=float(shares[i, predicted[i]]),
            true_probability=float(shares[i, labels[i]]),
        )
        for i in wrong[order[:count]]
    ]


def _check_finite(logits: NDArray[np.floating[Any]]) -> None:
    """Raise if the network has computed what cannot be ranked."""
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise FloatingPointError(
            f"logits must be finite, got {logits[row].max()} for image {row}; "
            "the network has diverged, use an earlier checkpoint"
        )
