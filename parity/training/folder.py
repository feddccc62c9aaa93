"""The folder that a run leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.environment import environment
from parity.files import clear_leftovers, write_text
from parity.names import is_utf8
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
        self._is_held = False

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
        BlockingIOError
            If another process trains in it.
        """
        with self.held():
            self.check_free(overwrite=overwrite)
            for path in (self.checkpoint, self.best, self.curves, self.metrics):
                path.unlink(missing_ok=True)
            self.write_recipe(recipe)
            run = {
                "kind": "run",
                "backend": backend.name,
                "options": backend.options,
                "environment": environment() | {"accelerator": backend.accelerator},
            }
            self.metrics.write_text(json.dumps(run) + "\n", encoding="utf-8")

    def check_free(self, *, overwrite: bool) -> None:
        """Raise if the folder holds anything, and may not be overwritten.

        Raises
        ------
        FileExistsError
        """
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise FileExistsError(
                f"{self.path} is not empty; choose another folder, "
                "--resume the run in it, or --overwrite it"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other processes from training in it meanwhile.

        The system lets the folder go when this process ends, however that comes, and
        those that it has forked: no lock is left behind. A call within another's block
        does nothing more.

        Raises
        ------
        BlockingIOError
            If another process trains in it.
        FileExistsError
            If there is a file of this name.
        ValueError
            If the path is not UTF-8, as the file's headers and pictures are.
        """
        if self._is_held:
            yield
            return
        if not is_utf8(str(self.path)):
            raise ValueError(f"{str(self.path)!a} is no path in UTF-8; choose another")
        if self.path.is_file():
            raise FileExistsError(f"{self.path} is a file; choose a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        self._is_held = True
        try:
            if not _lock(descriptor):
                raise BlockingIOError(
                    f"another process is training in {self.path}; "
                    "wait until it has ended, or choose another folder"
                )
            yield
        finally:
            self._is_held = False
            os.close(descriptor)

    def clear_leftovers(self) -> None:
        """Delete what a process that was killed while saving has left here."""
        for name in (
            RECIPE_FILE,
            METRICS_FILE,
            CHECKPOINT_FILE,
            BEST_FILE,
            CURVES_FILE,
        ):
            clear_leftovers(self.path / name)

    def check_source(self, recipe: Recipe) -> None:
        """Raise if a new run here would delete the file that it starts from.

        Raises
        ------
        ValueError
        """
        if recipe.finetune is None:
            return
        source = Path(recipe.finetune.source).resolve()
        if source in (self.checkpoint.resolve(), self.best.resolve()):
            raise ValueError(
                f"{self.path} holds {source.name}, which the run is to start from; "
                "choose another folder for the run"
            )

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe, with its whole network spelled out."""
        write_text(self.path / RECIPE_FILE, recipe.resolved().to_toml())

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
        run = self._begun_by()
        before = {"backend": run["backend"], **run.get("options", {})}
        now = {"backend": backend.name, **backend.options}
        for key in before | now:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.path} was run with {key}={before.get(key)!r}, "
                    f"got {now.get(key)!r}; resume it with the same"
                )

    def _begun_by(self) -> dict[str, Any]:
        """Return the first record of the metrics, which says what made the run."""
        if self.metrics.is_file():
            with self.metrics.open(encoding="utf-8", errors="replace") as file:
                run = _record(file.readline())
            if run is not None and "backend" in run:
                return run
        raise ValueError(
            f"{self.metrics} does not begin with what made the run, which is needed to "
            "resume it; --overwrite the run, or bring the file back"
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
            for line in self.metrics.read_text("utf-8", errors="replace").splitlines()
            if _is_before(line, epochs, steps)
        ]
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        with self.metrics.open("a", encoding="utf-8") as file:

            def write(record: dict[str, Any]) -> None:
                try:
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                except OSError as error:
                    raise OSError(
                        f"{self.metrics} cannot be written ({error.strerror}); "
                        "make room for it, then --resume"
                    ) from None

            yield write


def _lock(descriptor: int) -> bool:
    """Lock an open folder; tell whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks, as some across a network.
        return True
    return True


def _is_before(line: str, epochs: int, steps: int) -> bool:
    """Tell whether a line of metrics is whole, and of no later epoch or step."""
    record = _record(line)
    if record is None:
        return False
    if record["kind"] == "epoch":
        return bool(record.get("epoch", 0) <= epochs)
    return bool(record.get("step", 0) <= steps)


def _record(line: str) -> dict[str, Any] | None:
    """Return what a line of metrics holds; None if a process ended while writing it."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None
