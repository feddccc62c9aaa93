"""Logs for TensorBoard: the metrics of a run, as it goes or afterwards.

Needs tensorboardX, or PyTorch together with tensorboard; the extra `tensorboard`
brings what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# What each kind of record says, by TensorBoard's tag.
_TAGS = {
    "step": {
        "loss": "train/loss",
        "accuracy": "train/accuracy",
        "grad_norm": "train/grad_norm",
        "lr": "train/lr",
    },
    "epoch": {
        "test_loss": "test/loss",
        "test_accuracy": "test/accuracy",
        "validation_loss": "validation/loss",
        "validation_accuracy": "validation/accuracy",
        "seconds": "time/epoch_seconds",
    },
}

# tensorboardX first: it works without torch, as a run in NumPy does.
_WRITERS = ("tensorboardX", "torch.utils.tensorboard")


class TensorBoardLog:
    """Writes the records of a run where ``tensorboard --logdir`` finds them.

    Parameters
    ----------
    folder : Path
        Made if it is not there.

    Raises
    ------
    ModuleNotFoundError
        If nothing that writes such logs is installed.

    Examples
    --------
    ::

        with TensorBoardLog(Path("runs/network1-numpy/tensorboard")) as log:
            for record in read_metrics(Path("runs/network1-numpy")):
                log.write(record)
    """

    def __init__(self, folder: Path) -> None:
        self._writer = _open(folder)

    def write(self, record: Mapping[str, Any]) -> None:
        """Log a record of ``metrics.jsonl``; what has no number for a plot is left."""
        for key, tag in _TAGS.get(record.get("kind", ""), {}).items():
            if record.get(key) is not None:
                self._writer.add_scalar(tag, float(record[key]), int(record["step"]))

    def close(self) -> None:
        """Flush everything to disk."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(folder: Path) -> Any:
    for name in _WRITERS:
        try:
            writer = import_module(name).SummaryWriter
        except ImportError:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        return writer(str(folder))
    raise ModuleNotFoundError(
        "TensorBoard logs need tensorboardX, which is not installed; "
        "pip install 'vit-parity[tensorboard]'",
        name="tensorboardX",
    )
