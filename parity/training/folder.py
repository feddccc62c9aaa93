"""The folder that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.environment import environment
from parity.files import write_text
from parity.recipes import Recipe
from parity.recipes import load as load_recipe
from parity.training.backend import Backend

RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"
CURVES_FILE = "curves.png"


class RunFolder:
    """The folder of a run: recipe, metrics, checkpoint.

    ``recipe.toml`` is the recipe as it was run, ``metrics.jsonl`` a line a step and
    epoch, ``last.safetensors`` the training state where it was saved last, and
    ``best.safetensors`` the weights of the epoch that did best on the validation
    images; without any, on the test images, so that its score there flatters it.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The file with the training state."""
        return self.path / CHECKPOINT_FILE

    @property
    def best(self) -> Path:
        """The file with the weights of the best epoch."""
        return self.path / BEST_FILE

    @property
    def curves(self) -> Path:
        """The picture of the training curves."""
        return self.path / CURVES_FILE

    @property
    def metrics(self) -> Path:
        """The file with a record a line."""
        return self.path / METRICS_FILE

    def create(self, recipe: Recipe, backend: Backend, *, overwrite: bool) -> None:
        """Make the folder for a new run, and write the recipe into it.

        Raises
        ------
        FileExistsError
            If it holds anything and may not be overwritten.
        """
        if self.path.is_file():
            raise FileExistsError(f"{self.path} is a file; choose a folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} is not empty; choose another folder, "
                    "--resume the run in it, or --overwrite it"
                )
            for path in (self.checkpoint, self.best, self.curves, self.metrics):
                path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        text = recipe.resolved().to_toml()
        (self.path / RECIPE_FILE).write_text(text, encoding="utf-8")
        run = {
            "kind": "run",
            "backend": backend.name,
            "options": backend.options,
            "environment": environment(),
        }
        self.metrics.write_text(json.dumps(run) + "\n", encoding="utf-8")

    def reopen(self) -> Recipe:
        """Return the recipe of the run that the folder holds, to continue it.

        Raises
        ------
        FileNotFoundError
            If it holds none.
        """
        path = self.path / RECIPE_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} holds no run to resume: {RECIPE_FILE} is not there"
            )
        return load_recipe(path)

    def check_backend(self, backend: Backend) -> None:
        """Raise unless the run in the folder was made by this backend and options."""
        with self.metrics.open(encoding="utf-8") as file:
            run = json.loads(file.readline())
        before = {"backend": run["backend"], **run.get("options", {})}
        now = {"backend": backend.name, **backend.options}
        for key in before | now:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.path} was run with {key}={before.get(key)!r}, "
                    f"got {now.get(key)!r}; resume it with the same"
                )

    def last_good(self, step: int) -> str:
        """Say which checkpoint is the last good one; it is of that step."""
        if not self.checkpoint.exists():
            return "no checkpoint was written before it"
        return f"the last good checkpoint is {self.checkpoint}, of step {step}"

    @contextmanager
    def open_metrics(
        self, epochs: int, steps: int
    ) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield a function that appends a record, after those up to a checkpoint.

        Records of later steps are dropped: they are made again.
        """
        kept = [
            line
            for line in self.metrics.read_text("utf-8").splitlines()
            if _is_before(line, epochs, steps)
        ]
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        with self.metrics.open("a", encoding="utf-8") as file:

            def write(record: dict[str, Any]) -> None:
                file.write(json.dumps(record) + "\n")
                file.flush()

            yield write


def _is_before(line: str, epochs: int, steps: int) -> bool:
    """Tell whether a line of metrics is whole, and of no later epoch or step."""
    try:
        record = json.loads(line)
    except ValueError:
        # The process ended in the middle of the line.
        return False
    if record["kind"] == "epoch":
        return bool(record["epoch"] <= epochs)
    return bool(record.get("step", 0) <= steps)
