"""Results of the recipes: which runs there are to make, and what came of them.

Runs lie in a folder each, as `parity.training` leaves them; results are collected in
one JSON file, a record a run, and set in a page for people to read.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from parity import recipes
from parity.files import write_json, write_text
from parity.plots import (
    Timed,
    accuracy_against_time,
    compare_runs,
    read_metrics,
    save,
)
from parity.training import BACKENDS, RECIPE_FILE

PUBLISHED_SECONDS = {"network1": 278, "network2": 5354, "network3": 23187}
"""What a NumPy implementation of the same three networks took, by its author."""

PUBLISHED_SPEEDUP = {"network1": 5, "network2": 10, "network3": 10}
"""How many times faster than that training in NumPy is meant to be on two cores."""

TIMES = "accuracy.png"
"""The picture of accuracies over times, beside those of the recipes."""

_SEEDS = {"network1": 3, "network1-cosine": 3, "mnist-compact": 3}

# What shows most for its time comes first: small networks in both backends, then the
# larger ones in NumPy, then these in torch.
_SMALL = (
    "mnist-sincos",
    "network1",
    "network1-cosine",
    "mnist-compact",
    "network2",
    "network2-cosine",
)
_LARGE = (
    "mnist-strong",
    "fashion-strong",
    "network3",
    "network3-cosine",
    "cifar10-strong",
    "mnist-flat",
)
_FOLDER = "folder-224"
_RECIPES = (*_SMALL, *_LARGE, _FOLDER)


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes
    ----------
    recipe, backend : str
    seed : int
    """

    recipe: str
    backend: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run, of its folder and of its result."""
        return f"{self.recipe}-{self.backend}-{self.seed}"


def plan(folder: bool = False) -> list[Job]:
    """Return all runs in the order to make them.

    Parameters
    ----------
    folder : bool
        Whether there is a folder of pictures for the recipe that takes one.
    """
    small = [
        Job(recipe, backend, seed)
        for recipe in _SMALL
        for seed in range(_SEEDS.get(recipe, 1))
        for backend in BACKENDS
    ]
    large = (*_LARGE, _FOLDER) if folder else _LARGE
    return small + [Job(recipe, b, 0) for b in BACKENDS for recipe in large]


@dataclass(frozen=True)
class Result:
    """What came of a run, finished or not.

    Attributes
    ----------
    recipe, backend : str
    seed : int
    data : str
    epochs, planned_epochs : int
        Finished, and those that were to be.
    fingerprint : str
        That of the recipe it was trained by, which may have changed since.
    steps : int
    test_accuracy, test_loss : float
        After the last finished epoch; not of the best one.
    seconds, evaluation_seconds : float
        Of all epochs together: of the steps with their batches, and of the scoring.
        Each is the median epoch's, times their number, so that a machine which slept
        or was busy for a while does not count.
    environment : dict
        Versions and machine, where the run began.
    error : str
        Why it failed; empty if it did not.
    """

    recipe: str
    backend: str
    seed: int
    data: str
    epochs: int
    planned_epochs: int
    fingerprint: str
    steps: int
    test_accuracy: float
    test_loss: float
    seconds: float
    evaluation_seconds: float
    environment: dict[str, Any]
    error: str = ""

    @property
    def job(self) -> Job:
        """The run that it is of."""
        return Job(self.recipe, self.backend, self.seed)

    @property
    def finished(self) -> bool:
        """Whether every epoch of the recipe was trained."""
        return self.epochs == self.planned_epochs

    @property
    def trial(self) -> str:
        """How the run differs from its recipe, as a trial; empty if it does not."""
        recipe = recipes.load(self.recipe)
        alike = recipe.replace({"data": self.data, "epochs": self.planned_epochs})
        trial = []
        if self.planned_epochs != recipe.epochs:
            trial.append(f"{self.planned_epochs} epochs")
        # Which folder of pictures it is, is the user's to say.
        if self.data != recipe.data and self.recipe != _FOLDER:
            trial.append(f"on {self.data}")
        if self.fingerprint != alike.fingerprint():
            trial.append("other settings")
        return f"a trial of {', '.join(trial)}" if trial else ""

    @property
    def accelerator(self) -> str | None:
        """What computed its steps, if that was not the CPU."""
        name = self.environment.get("accelerator")
        return name if isinstance(name, str) else None

    @property
    def threads(self) -> int | None:
        """How many threads its steps were made on; None where none is recorded."""
        threads = self.environment.get(f"{self.backend}_threads")
        return threads if isinstance(threads, int) else None

    @classmethod
    def read(cls, job: Job, path: Path) -> Self | None:
        """Return the result of the run in a folder; None before its first epoch."""
        try:
            records = read_metrics(path)
        except FileNotFoundError:
            return None
        epochs = [record for record in records if record.get("kind") == "epoch"]
        if not epochs:
            return None
        last = epochs[-1]
        recipe = recipes.load(path / RECIPE_FILE)
        return cls(
            job.recipe,
            job.backend,
            job.seed,
            data=recipe.data,
            epochs=last["epoch"],
            planned_epochs=recipe.epochs,
            fingerprint=recipe.fingerprint(),
            steps=last["step"],
            test_accuracy=last["test_accuracy"],
            test_loss=last["test_loss"],
            seconds=_typical_total(epochs, "seconds"),
            evaluation_seconds=_typical_total(epochs, "evaluation_seconds"),
            environment=records[0]["environment"],
        )


def _typical_total(epochs: Sequence[Mapping[str, Any]], key: str) -> float:
    typical: float = statistics.median(epoch[key] for epoch in epochs)
    return typical * len(epochs)


class Results:
    """The results of many runs, in a file that is rewritten with each.

    Parameters
    ----------
    path : Path
        A JSON file; need not exist.

    Attributes
    ----------
    by_name : dict of str to Result
        By the name of the job.
    failed : dict of str to str
        Errors of those that have no result, as they failed before their first epoch.

    Raises
    ------
    ValueError
        If it is none of these files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_name: dict[str, Result] = {}
        self.failed: dict[str, str] = {}
        if path.exists():
            try:
                held = json.loads(path.read_text("utf-8"))
                runs, self.failed = held["runs"], dict(held.get("failed", {}))
                self.by_name = {name: Result(**run) for name, run in runs.items()}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} holds no results ({error}); move it out of the way"
                ) from None

    def record(self, job: Job, result: Result | None, error: str = "") -> None:
        """Keep the result of a run, or its error, and write the file at once."""
        self.failed.pop(job.name, None)
        if result is not None:
            self.by_name[job.name] = replace(result, error=error)
        elif error:
            self.failed[job.name] = error
        runs = {name: asdict(run) for name, run in sorted(self.by_name.items())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        failed = {"failed": self.failed} if self.failed else {}
        write_json(self.path, {"runs": runs} | failed)

    def collect(self, runs: Path) -> list[Job]:
        """Keep the finished runs of a folder that are not among the results yet.

        So a folder that several processes have filled, each with results of its own,
        gives one file of results in the end. Runs of the whole recipe, as it is now,
        replace those of anything else.

        Parameters
        ----------
        runs : Path
            Holds a folder a run, by the name of its job; need not exist.

        Returns
        -------
        list of Job
            Those whose results are new.
        """
        new = []
        for job in plan(folder=True):
            known = self.by_name.get(job.name)
            if known is not None and not known.finished:
                known = None
            if known is not None and not known.trial:
                continue
            result = Result.read(job, runs / job.name)
            if result is None or not result.finished:
                continue
            if known is None or not result.trial:
                self.record(job, result)
                new.append(job)
        return new

    def of(
        self, recipe: str, backend: str | None = None, finished: bool = True
    ) -> list[Result]:
        """Return the results of a recipe, of one backend or both, by seed."""
        return [
            result
            for _, result in sorted(self.by_name.items())
            if result.recipe == recipe
            and backend in (None, result.backend)
            and (result.finished or not finished)
        ]


def keep_curves(results: Results, recipe: str, runs: Path, kept: Path) -> bool:
    """Keep the curves of a recipe's finished runs, thinned, a file a run.

    They stay when the runs are gone, and can be laid beside those of other runs.

    Returns
    -------
    bool
        Whether any was not kept before.
    """
    new = False
    for r in results.of(recipe):
        run = runs / r.job.name
        # Another run may be in its folder by now.
        if Result.read(r.job, run) != replace(r, error=""):
            continue
        lines = [json.dumps(record) for record in thinned(read_metrics(run))]
        text = "\n".join(lines) + "\n"
        path = _kept(r, kept)
        if not path.exists() or path.read_text("utf-8") != text:
            write_text(path, text)
            new = True
    return new


def thinned(
    records: Sequence[Mapping[str, Any]], count: int = 200
) -> list[dict[str, Any]]:
    """Return the records of a run with means of neighbouring steps in their place.

    Parameters
    ----------
    records : sequence of dict
        As `read_metrics` returns them.
    count : int, default 200
        Steps that are left, at most.
    """
    steps = [record for record in records if record.get("kind") == "step"]
    size = math.ceil(len(steps) / count)
    means = []
    for start in range(0, len(steps), size or 1):
        part = steps[start : start + size]
        middle = part[len(part) // 2]
        mean = {"kind": "step", "step": middle["step"], "epoch": middle["epoch"]}
        for key in ("loss", "accuracy"):
            mean[key] = float(f"{statistics.fmean(step[key] for step in part):.5g}")
        means.append(mean)
    return [*(dict(r) for r in records if r.get("kind") != "step"), *means]


def _kept(result: Result, kept: Path) -> Path:
    return kept / f"{result.job.name}.jsonl"


def draw_curves(results: Results, recipe: str, kept: Path, path: Path) -> None:
    """Draw the finished runs of a recipe over each other, in a small picture.

    Results whose curves were not kept have none in it.
    """
    metrics, packages = {}, {}
    for r in results.of(recipe):
        if _kept(r, kept).exists():
            metrics[r.job.name] = read_metrics(_kept(r, kept))
            packages[r.job.name] = "NumPy" if r.backend == "numpy" else "PyTorch"
    if metrics:
        title = f"{recipe} on {results.of(recipe)[0].data}: loss and accuracy"
        save(compare_runs(metrics, groups=packages, title=title), path, dpi=110)


def draw_times(results: Results, path: Path) -> None:
    """Draw what whole runs of the recipes reached against the time they took."""
    timed = []
    for recipe in _RECIPES:
        for backend in BACKENDS:
            found = [r for r in results.of(recipe, backend) if not r.trial]
            if found:
                accuracy, minutes = _means(found)
                data, where = found[0].data, _where(found)
                timed.append(Timed(recipe, backend, data, minutes, accuracy, where))
    if timed:
        save(accuracy_against_time(timed), path, dpi=110)


def _means(results: Sequence[Result]) -> tuple[float, float]:
    """Return the accuracy and the minutes of training of several seeds."""
    return (
        statistics.mean(r.test_accuracy for r in results),
        statistics.mean(r.seconds for r in results) / 60,
    )


def page(results: Results, folder: Path) -> str:
    """Return the results as a page of Markdown.

    Parameters
    ----------
    results : Results
    folder : Path
        Holds the pictures and curves; the page is to lie beside it.
    """
    parts = [
        "# Results",
        "Recipes run unchanged in both backends, on whole data sets, by "
        "`python scripts/reproduce.py`, which also wrote this page and says below what "
        "is not finished. Accuracies are of "
        "the test images after the last epoch, never of the best one. Times are of "
        "training, with making the batches and without the evaluation after each "
        "epoch: the median epoch's, times their number. Those of different numbers of "
        "threads, or of different machines, are not to be compared.",
        _table(
            ("recipe", "target", "NumPy", "PyTorch", "NumPy, min", "PyTorch, min"),
            [_summary(results, name) for name in _RECIPES if results.of(name)],
        ),
        *_same(results),
        *_speed(results),
        *_against_time(results, folder),
        *_unfinished(results),
        *_machines(results),
        *_pictures(results, folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(results: Results, name: str) -> list[str]:
    target = recipes.load(name).target
    row = [f"`{name}`", "–" if target is None else f"≥ {target:.1%}"]
    times = []
    for backend in BACKENDS:
        found = results.of(name, backend)
        if not found:
            row.append("not run yet")
            times.append("–")
            continue
        accuracy, minutes = _means(found)
        seeds = f" (mean of {len(found)} seeds)" if len(found) > 1 else ""
        trial = next((r.trial for r in found if r.trial), "")
        verdict = f", {trial}" if trial else ""
        if target is not None and not trial:
            verdict = ", met" if accuracy >= target else ", **missed**"
        row.append(f"{accuracy:.2%}{seeds}{verdict}")
        times.append(f"{minutes:.1f} ({_where(found)})")
    return row + times


def _where(results: Sequence[Result]) -> str:
    """Say which accelerators, or how many threads, some results were made on."""
    places = sorted({r.accelerator for r in results if r.accelerator})
    counts = sorted({r.threads or 0 for r in results if not r.accelerator})
    if counts:
        numbers = " or ".join(str(count or "unknown") for count in counts)
        places.append(f"{numbers} thread{'s' * (counts != [1])}")
    return " or ".join(places)


def _same(results: Results) -> Iterator[str]:
    """Yield how the means of both backends compare, where there are several seeds."""
    rows = []
    for name in _SEEDS:
        accuracies = {
            backend: [r.test_accuracy for r in results.of(name, backend)]
            for backend in BACKENDS
        }
        if min(map(len, accuracies.values())) < 2:
            continue
        difference, error = difference_of_means(*accuracies.values())
        verdict = "yes" if abs(difference) <= 2 * error else "**no**"
        shown = [" ".join(f"{a:.2%}" for a in each) for each in accuracies.values()]
        rows.append(
            [f"`{name}`", *shown, f"{difference:+.2%}", f"{2 * error:.2%}", verdict]
        )
    if rows:
        yield "## Do both backends train alike?"
        yield (
            "A seed gives both backends the same batches, but weights and dropout "
            "masks of their own. Their means should differ by no more than twice the "
            "standard error of that difference, which chance alone exceeds in one of "
            "five to nine comparisons of three seeds each. (From the same weights and "
            "masks they go together step by step: `parity curves`.)"
        )
        head = ("recipe", "NumPy", "PyTorch", "difference", "2 s.e.", "within")
        yield _table(head, rows)


def difference_of_means(
    one: Sequence[float], other: Sequence[float]
) -> tuple[float, float]:
    """Return the difference of two means, and its standard error (Welch's)."""
    difference = statistics.mean(one) - statistics.mean(other)
    error = math.sqrt(
        statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    )
    return difference, error


def _speed(results: Results) -> Iterator[str]:
    """Yield the times in NumPy beside published ones."""
    rows = []
    for name, published in PUBLISHED_SECONDS.items():
        found = [r for r in results.of(name, "numpy") if not r.trial]
        if found:
            seconds = statistics.mean(r.seconds + r.evaluation_seconds for r in found)
            wanted = PUBLISHED_SPEEDUP[name]
            verdict = "met" if published / seconds >= wanted else "**missed**"
            rows.append(
                [
                    f"`{name}`",
                    f"{published:,} s",
                    f"{seconds:,.0f} s ({_where(found)})",
                    f"{published / seconds:.1f}",
                    f"≥ {wanted}, {verdict}",
                ]
            )
    if rows:
        yield "## How long NumPy takes"
        yield (
            "Against the times that the author of these three networks published for a "
            "NumPy implementation, on another machine. Evaluation is counted here."
        )
        yield _table(("recipe", "published", "here", "times faster", "target"), rows)


def _against_time(results: Results, folder: Path) -> Iterator[str]:
    """Yield the picture of accuracies over times, where there is one."""
    if any(r.finished and not r.trial for r in results.by_name.values()):
        yield "## Accuracy against training time"
        yield f"![Test accuracy against training time]({folder.name}/{TIMES})"


def _unfinished(results: Results) -> Iterator[str]:
    """Yield what was not run to its end, and why."""
    rows = []
    for job in plan(folder=True):
        result = results.by_name.get(job.name)
        if result is not None and result.finished:
            continue
        state = "not begun"
        if job.recipe == _FOLDER:
            state = "not begun: it takes pictures of your own (`--folder`)"
        if job.name in results.failed:
            state = f"failed: {results.failed[job.name]}"
        if result is not None:
            state = (
                f"{result.epochs} of {result.planned_epochs} epochs, "
                f"{result.test_accuracy:.2%} so far"
            )
            if result.error:
                state += f"; failed: {result.error}"
        rows.append([f"`{job.recipe}`", job.backend, str(job.seed), state])
    if rows:
        yield "## Not finished"
        yield _table(("recipe", "backend", "seed", "state"), rows)


def _machines(results: Results) -> Iterator[str]:
    """Yield what the runs were made on, each machine, versions and threads once."""
    made: dict[str, list[str]] = {}
    for name, result in sorted(results.by_name.items()):
        machine = f"{_machine(result.environment)}; {_where([result])}"
        made.setdefault(machine, []).append(name)
    if made:
        yield "## Machine and versions"
        lines = []
        for machine, names in made.items():
            which = "" if len(made) == 1 else f" ({', '.join(names)})"
            lines.append(f"- {machine}{which}")
        yield "\n".join(lines)


def _machine(environment: Mapping[str, Any]) -> str:
    packages = ", ".join(
        f"{name} {version}"
        for name, version in environment["packages"].items()
        if version and name in ("numpy", "torch")
    )
    blas = {
        f"{pool['library']} {pool['version']} ({pool['kernel']})"
        for pool in environment["blas"] or ()
    }
    return (
        f"{environment['cpu']}, {environment['cores']} cores; "
        f"Python {environment['python']}, {packages}"
        + "".join(f"; {library}" for library in sorted(blas))
    )


def _pictures(results: Results, folder: Path) -> Iterator[str]:
    shown = [name for name in _RECIPES if results.of(name)]
    if shown:
        yield "## Curves"
        yield (
            "Training is scored as it goes: with dropout, augmented images and "
            "smoothed labels where the recipe has them. Testing has none of these, and "
            "so may have the lower loss."
        )
        for name in shown:
            yield f"### {name}"
            yield f"![Loss and accuracy of {name}]({folder.name}/{name}.png)"
            finished = results.of(name)
            missing = [r for r in finished if not _kept(r, folder).exists()]
            if 0 < len(missing) < len(finished):
                names = ", ".join(f"`{r.job.name}`" for r in missing)
                yield f"Without a curve, as none was kept: {names}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
