"""Records become scalars at their steps; a missing library is named."""

import sys
from types import SimpleNamespace

import pytest

from parity.tensorboard import TensorBoardLog

RECORDS = [
    {"kind": "run", "backend": "numpy"},
    {"kind": "step", "step": 1, "epoch": 1, "loss": 2.5, "accuracy": 0.1, "lr": 0.01},
    {"kind": "epoch", "step": 1, "epoch": 1, "test_loss": 2.0, "test_accuracy": 0.25},
]


def test_records_are_logged_at_their_steps(monkeypatch, tmp_path):
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(
        sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer)
    )
    with TensorBoardLog(tmp_path / "logs") as log:
        for record in RECORDS:
            log.write(record)
    assert written == [
        str(tmp_path / "logs"),
        ("train/loss", 2.5, 1),
        ("train/accuracy", 0.1, 1),
        ("train/lr", 0.01, 1),
        ("test/loss", 2.0, 1),
        ("test/accuracy", 0.25, 1),
        "closed",
    ]


def test_missing_library_is_named(monkeypatch, tmp_path):
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'vit-parity\[tensorboard\]'"
    ):
        TensorBoardLog(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
