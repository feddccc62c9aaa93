"""Losses: cross entropy from logits, and the mean squared error."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_torch.config import check_int, check_rate


class CrossEntropy(nn.Module):
    """Cross entropy between softmax(logits) and labels, averaged over the batch.

    The twin of `vit_numpy.loss`, which derives the gradient.

    Parameters
    ----------
    label_smoothing : float in [0, 1), default 0
        Share s of the target spread evenly over all classes (Szegedy et al. 2016).

    Raises
    ------
    TypeError, ValueError
        For a smoothing outside [0, 1); in `forward`, for logits that are not float32 or
        float64, as under autocast, for an empty batch, for labels out of range, and for
        targets of another shape or dtype than stated there.

    References
    ----------
    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_rate("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(
        self, logits: Tensor, targets: Tensor, batch_size: int | None = None
    ) -> Tensor:
        """(B, K), labels (B,) or soft targets (B, K) -> scalar of the logits' dtype.

        `batch_size` is the number of images that the sum is divided by, where `logits`
        are only a part of the batch; default B.
        """
        batch_size = check_batch(logits, batch_size)
        check_targets(logits, targets)
        loss = F.cross_entropy(
            logits,
            targets.long() if targets.ndim == 1 else targets,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return loss / batch_size


class MeanSquaredError(nn.Module):
    """Squared difference, averaged over every element.

    The twin of `vit_numpy.loss`, which derives the gradient.

    Raises
    ------
    TypeError, ValueError
        In `forward`, for outputs that are not float32 or float64, for an empty batch,
        and for targets of another shape or dtype than the outputs.
    """

    def forward(
        self, outputs: Tensor, targets: Tensor, batch_size: int | None = None
    ) -> Tensor:
        """(B, K), (B, K) -> scalar; `batch_size` as in `CrossEntropy.forward`."""
        batch_size = check_batch(outputs, batch_size, "outputs")
        check_soft(outputs, targets, "outputs")
        total = batch_size * outputs.shape[1]
        return F.mse_loss(outputs, targets, reduction="sum") / total


def check_batch(logits: Tensor, batch_size: int | None, name: str = "logits") -> int:
    """Return the number of images to divide by; raise for a bad batch."""
    check_array(name, logits)
    # In half precision the sum over a batch would lose most of its digits, or overflow.
    if logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64, got {dtype_name(logits)}; "
            "convert it to one of them"
        )
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(
            f"{name} must have shape (batch, classes) and hold at least one image, "
            f"got shape {tuple(logits.shape)}"
        )
    if batch_size is None:
        return len(logits)
    check_int("batch_size", batch_size, len(logits))
    return batch_size


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raise unless `targets` are labels (B,) below K, or soft targets (B, K)."""
    check_array("targets", targets)
    if targets.ndim != 1:
        return check_soft(logits, targets, "logits")
    return check_labels(targets, *logits.shape)


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Raise unless `labels` are integers (B,) below K."""
    check_array("labels", labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {dtype_name(labels)}; cast them")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels must have shape ({batch},), got shape {tuple(labels.shape)}; "
            "give one for each image"
        )
    # torch compares no unsigned integers of more than 8 bits.
    values = labels.long()
    wrong = labels[(values < 0) | (values >= classes)]
    if len(wrong):
        raise ValueError(
            f"labels must be in [0, {classes}), got {wrong[0].item()}; "
            "num_classes must exceed the largest label"
        )


def check_soft(outputs: Tensor, targets: Tensor, name: str) -> None:
    """Raise unless `targets` have the outputs' shape and dtype."""
    check_array("targets", targets)
    if targets.shape != outputs.shape:
        shape = tuple(outputs.shape)
        labels = f"({shape[0]},) or " if name == "logits" else ""
        raise ValueError(
            f"targets must have shape {labels}{shape}, got shape {tuple(targets.shape)}"
        )
    if targets.dtype != outputs.dtype:
        raise TypeError(
            f"targets of shape {tuple(targets.shape)} must have the dtype of the "
            f"{name}, {dtype_name(outputs)}, got {dtype_name(targets)}; cast them"
        )


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype as NumPy writes it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def check_array(name: str, array: object) -> None:
    """Raise unless `array` is of this backend's kind."""
    if not isinstance(array, Tensor):
        raise TypeError(
            f"{name} must be a NumPy array for vit_numpy and a tensor for vit_torch, "
            f"got {type(array).__name__}"
        )
