"""Losses: cross entropy from logits, and the mean squared error."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import check_int, check_rate
from vit_numpy.module import Array, check_dtype, saved


class Loss(Protocol):
    """What `vit_numpy.train.Trainer` asks of a loss."""

    def forward(
        self, logits: Array, targets: NDArray[Any], batch_size: int | None = None, /
    ) -> tuple[np.floating[Any], Any]:
        """Return the loss, and the cache for `backward`."""
        ...

    def backward(self, cache: Any) -> Array:
        """Return the gradient of the logits."""
        ...


class CrossEntropyCache(NamedTuple):
    """What `CrossEntropy.backward` needs."""

    log_p: Array
    targets: NDArray[Any]
    batch_size: int


class CrossEntropy:
    """Cross entropy between softmax(logits) and labels, averaged over the batch.

    Parameters
    ----------
    label_smoothing : float in [0, 1), default 0
        Share s of the target spread evenly over all classes (Szegedy et al. 2016).

    Raises
    ------
    TypeError, ValueError
        For a smoothing outside [0, 1); in `forward`, for logits that are not float32 or
        float64, for an empty batch, for labels out of range, and for targets of another
        shape or dtype than stated there.

    Notes
    -----
    With target weights t, after smoothing t ← (1-s) t + s/K, and B images::

        log_p = logits - max - log Σ_k exp(logits_k - max)
        loss  = -1/B Σ_b Σ_k t_k log_p_k
        dlogits_k = 1/B (p_k Σ_j t_j - t_k)
                    a logit raises its own log-probability by 1, and lowers every
                    class's by p_k through the sum, once for each unit of target

    Subtracting the row's maximum leaves the value unchanged and keeps exp from
    overflowing; the logarithm of a softmax would be -inf where p underflows.

    References
    ----------
    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_rate("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(
        self, logits: Array, targets: NDArray[Any], batch_size: int | None = None
    ) -> np.floating[Any]:
        """Return the loss without the cache."""
        return self.forward(logits, targets, batch_size)[0]

    def forward(
        self, logits: Array, targets: NDArray[Any], batch_size: int | None = None
    ) -> tuple[np.floating[Any], CrossEntropyCache | None]:
        """(B, K), labels (B,) or soft targets (B, K) -> scalar of the logits' dtype.

        `batch_size` is the number of images that the sum is divided by, where `logits`
        are only a part of the batch; default B.
        """
        batch_size = check_batch(logits, batch_size)
        check_targets(logits, targets)
        log_p: Array = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        if targets.ndim == 1:
            picked = log_p[np.arange(len(targets)), targets].sum()
        else:
            picked = np.vdot(targets, log_p)
        if s := self.label_smoothing:
            picked = (1 - s) * picked + s / log_p.shape[1] * log_p.sum()
        cache = CrossEntropyCache(log_p, targets, batch_size)
        return -picked / batch_size, saved(cache)

    def backward(self, cache: CrossEntropyCache) -> Array:
        """-> dlogits (B, K)."""
        log_p, targets, batch_size = cache
        s = self.label_smoothing
        dlogits: Array = np.exp(log_p)
        if targets.ndim == 1:
            dlogits[np.arange(len(targets)), targets] -= 1 - s
        else:
            dlogits *= (1 - s) * targets.sum(axis=1, keepdims=True) + s
            dlogits -= (1 - s) * targets
        if s:
            dlogits -= s / log_p.shape[1]
        dlogits /= batch_size
        return dlogits


class MeanSquaredErrorCache(NamedTuple):
    """What `MeanSquaredError.backward` needs."""

    difference: Array
    total: int


class MeanSquaredError:
    """Squared difference, averaged over every element.

    Raises
    ------
    TypeError, ValueError
        In `forward`, for outputs that are not float32 or float64, for an empty batch,
        and for targets of another shape or dtype than the outputs.

    Notes
    -----
    With n the number of elements of the whole batch::

        loss     = 1/n Σ (outputs - targets)²
        doutputs = 2/n (outputs - targets)       the derivative of each square
    """

    def __call__(
        self, outputs: Array, targets: Array, batch_size: int | None = None
    ) -> np.floating[Any]:
        """Return the loss without the cache."""
        return self.forward(outputs, targets, batch_size)[0]

    def forward(
        self, outputs: Array, targets: Array, batch_size: int | None = None
    ) -> tuple[np.floating[Any], MeanSquaredErrorCache | None]:
        """(B, K), (B, K) -> scalar; `batch_size` as in `CrossEntropy.forward`."""
        batch_size = check_batch(outputs, batch_size, "outputs")
        check_soft(outputs, targets, "outputs")
        difference = outputs - targets
        total = batch_size * outputs.shape[1]
        loss = np.vdot(difference, difference) / total
        return loss, saved(MeanSquaredErrorCache(difference, total))

    def backward(self, cache: MeanSquaredErrorCache) -> Array:
        """-> doutputs (B, K)."""
        difference, total = cache
        return difference * (2 / total)


def check_batch(logits: Array, batch_size: int | None, name: str = "logits") -> int:
    """Return the number of images to divide by; raise for a bad batch."""
    check_array(name, logits)
    check_dtype(name, logits.dtype)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(
            f"{name} must have shape (batch, classes) and hold at least one image, "
            f"got shape {logits.shape}"
        )
    if batch_size is None:
        return len(logits)
    check_int("batch_size", batch_size, len(logits))
    return batch_size


def check_targets(logits: Array, targets: NDArray[Any]) -> None:
    """Raise unless `targets` are labels (B,) below K, or soft targets (B, K)."""
    check_array("targets", targets)
    if targets.ndim != 1:
        return check_soft(logits, targets, "logits")
    return check_labels(targets, *logits.shape)


def check_labels(labels: NDArray[Any], batch: int, classes: int) -> None:
    """Raise unless `labels` are integers (B,) below K."""
    check_array("labels", labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype.name}; cast them")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels must have shape ({batch},), got shape {labels.shape}; "
            "give one for each image"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"labels must be in [0, {classes}), got {int(wrong[0])}; "
            "num_classes must exceed the largest label"
        )


def check_soft(outputs: Array, targets: NDArray[Any], name: str) -> None:
    """Raise unless `targets` have the outputs' shape and dtype."""
    check_array("targets", targets)
    if targets.shape != outputs.shape:
        shape = outputs.shape
        labels = f"({shape[0]},) or " if name == "logits" else ""
        raise ValueError(
            f"targets must have shape {labels}{shape}, got shape {targets.shape}"
        )
    if targets.dtype != outputs.dtype:
        raise TypeError(
            f"targets of shape {targets.shape} must have the dtype of the {name}, "
            f"{outputs.dtype.name}, got {targets.dtype.name}; cast them"
        )


def check_array(name: str, array: object) -> None:
    """Raise unless `array` is of this backend's kind."""
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} must be a NumPy array for vit_numpy and a tensor for vit_torch, "
            f"got {type(array).__name__}"
        )
