"""Training runs: a recipe, a backend, and the folder that a run leaves behind.

Nothing here imports torch unless the torch backend is asked for.
"""

from parity.training.backend import BACKENDS, Backend
from parity.training.evaluation import evaluate, predict
from parity.training.folder import RECIPE_FILE, RunFolder
from parity.training.loop import Epoch, Step, train
from parity.training.setup import (
    build_model,
    build_trainer,
    check_fit,
    check_images,
    check_processes,
    fitted,
    open_data,
    open_stream,
    refitted,
    split_data,
    warmup_advice,
)
from parity.training.stopping import StopSignals, TrainingStopped, exit_status

__all__ = [
    "BACKENDS",
    "RECIPE_FILE",
    "Backend",
    "Epoch",
    "RunFolder",
    "Step",
    "StopSignals",
    "TrainingStopped",
    "build_model",
    "build_trainer",
    "check_fit",
    "check_images",
    "check_processes",
    "evaluate",
    "exit_status",
    "fitted",
    "open_data",
    "open_stream",
    "predict",
    "refitted",
    "split_data",
    "train",
    "warmup_advice",
]
