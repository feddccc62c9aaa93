"""Running pairs over drawn cases, and what comes of it.

The same arguments give the same cases and the same results, whether a command or a
test asks, in one process or in several.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy

from parity.checks import VISIBLE, Errors, Finding, Trial, judge, judge_pair
from parity.pair import Pair, refuse_same_names
from parity.strategies import Case, cases, drawn_by_seed_alone
from parity.workers import in_processes

if TYPE_CHECKING:
    from parity.causes import Explanation

EXAMPLES = 42
"""Cases a pair and dtype by default, spread evenly over the regimes."""

# A tensor of which no case shows this much is not checked: a run that finds so fails,
# if it has this many cases. Few may all be of the kind that shows little.
_SEEN = 0.9
_CASES_TO_SEE = 20

TWICE = 2.0
"""Errors so many times PyTorch's are pointed out, with the reason if one is listed."""

# Shrinking stops after so many seconds, with the smallest failure found by then.
_SHRINKING_SECONDS = 15.0


@dataclass
class Accuracy:
    """How large the errors of both sides are over all cases; see `checks.Errors`.

    Attributes
    ----------
    cases : int
    candidate, torch : float
        Root mean squares over the cases, of which each counts the same.
    candidate_max, torch_max : float
        The largest of any case.
    """

    cases: int = 0
    candidate: float = 0.0
    torch: float = 0.0
    candidate_max: float = 0.0
    torch_max: float = 0.0

    def add(self, errors: Errors) -> None:
        """Count a case."""
        self.cases += 1
        for side in ("candidate", "torch"):
            before, new = getattr(self, side), getattr(errors, side)
            mean = before**2 + (new**2 - before**2) / self.cases
            setattr(self, side, math.sqrt(mean))
            largest = f"{side}_max"
            setattr(
                self, largest, max(getattr(self, largest), getattr(errors, largest))
            )

    @property
    def ratio(self) -> float:
        """The candidate's root mean square error in units of PyTorch's."""
        return _ratio(self.candidate, self.torch)

    @property
    def max_ratio(self) -> float:
        """The candidate's largest error in units of PyTorch's largest."""
        return _ratio(self.candidate_max, self.torch_max)


def _ratio(candidate: float, torch: float) -> float:
    if torch:
        return candidate / torch
    return math.inf if candidate else 1.0


@dataclass
class Record:
    """All findings of a run about one tensor by one check.

    Attributes
    ----------
    comparisons : int
        How many there were.
    share : float
        The largest share of the bound.
    sensitivities : list of float
        A finding's each, where it has one.
    seen : float
        The largest part of the tensor that a case showed.
    accuracy : Accuracy, optional
        Of both sides, in float32.
    """

    check: str
    tensor: str
    comparisons: int = 0
    share: float = 0.0
    sensitivities: list[float] = field(default_factory=list)
    seen: float | None = None
    accuracy: Accuracy | None = None

    def add(self, finding: Finding) -> None:
        """Count a finding."""
        self.comparisons += 1
        self.share = max(self.share, finding.share)
        if finding.sensitivity is not None and math.isfinite(finding.sensitivity):
            self.sensitivities.append(finding.sensitivity)
        if finding.seen is not None:
            self.seen = max(self.seen or 0.0, finding.seen)
        if finding.errors is not None:
            self.accuracy = self.accuracy or Accuracy()
            self.accuracy.add(finding.errors)

    @property
    def sensitivity(self) -> float | None:
        """The median over cases of the smallest relative error that is flagged."""
        return statistics.median(self.sensitivities) if self.sensitivities else None


@dataclass(frozen=True)
class Failure:
    """A finding that is a mismatch, with the smallest case that shows it.

    Attributes
    ----------
    pair, dtype : str
    case : Case
    finding : Finding
    run : (int, int), optional
        Examples and seed of the run, where no single case shows the failure.
    """

    pair: str
    dtype: str
    case: Case
    finding: Finding
    run: tuple[int, int] | None = None


@dataclass
class PairResult:
    """What a run says about one pair in one dtype.

    Attributes
    ----------
    pair, dtype : str
    examples : int
        Cases judged.
    ambiguous : int
        Cases drawn again, because a branch hung on rounding.
    records : dict of (str, str) to Record
        By check and tensor.
    shares : dict of str to list of float
        By regime, the share of the bound that each tensor of each case used.
    less_accurate : dict of str to str or None
        Tensors whose error in float32 is more than twice PyTorch's, with the reason
        that the pair lists.
    failures : list of Failure
    seconds : float
    explanation : Explanation, optional
        The likely cause, once `parity.causes.explain_result` has found it.
    table : str, optional
        Where the pair was read from, if it is not one of ours.
    """

    pair: str
    dtype: str
    examples: int = 0
    ambiguous: int = 0
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    less_accurate: dict[str, str | None] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    explanation: Explanation | None = None
    table: str | None = None

    def add(self, findings: Sequence[Finding], regime: str | None = None) -> None:
        """Count the findings of a case of a regime, or of none."""
        for finding in findings:
            key = (finding.check, finding.tensor)
            self.records.setdefault(key, Record(*key)).add(finding)
            if regime is not None and finding.seen is not None:
                self.shares.setdefault(regime, []).append(finding.share)

    @property
    def comparisons(self) -> int:
        """How many findings there are."""
        return sum(record.comparisons for record in self.records.values())

    @property
    def tensors(self) -> int:
        """How many tensors were compared with the reference."""
        return sum(record.seen is not None for record in self.records.values())

    @property
    def sensitivity(self) -> float | None:
        """The sensitivity of the tensor that has the worst one.

        The smallest relative error in one element that is flagged: the smallest over
        the elements of a tensor, the median over cases, the largest over tensors. Those
        that are zero in truth and listed as such have none.
        """
        known = [r.sensitivity for r in self.records.values() if r.seen]
        return max((s for s in known if s is not None), default=None)

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """The errors of both sides by tensor, where there are cases enough to tell."""
        return {
            record.tensor: record.accuracy
            for record in self.records.values()
            if record.accuracy is not None and record.accuracy.cases >= _CASES_TO_SEE
        }

    @property
    def error_ratio(self) -> float | None:
        """The candidate's float32 error in units of PyTorch's, for the worst tensor."""
        ratios = [accuracy.ratio for accuracy in self.accuracies.values()]
        return max(ratios, default=None)

    def share(self, *checks: str) -> float | None:
        """Return the largest share of the bound in these checks, or in all."""
        shares = [
            record.share
            for record in self.records.values()
            if not checks or record.check in checks
        ]
        return max(shares, default=None)


def run_pair(
    pair: Pair,
    dtype: str,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    shrink: bool = True,
    progress: Callable[[int], object] = lambda count: None,
    observe: Callable[[Trial], object] = lambda trial: None,
) -> PairResult:
    """Check one pair in one dtype on drawn cases.

    Parameters
    ----------
    pair : Pair
    dtype : {'float64', 'float32'}
    examples : int, default 42
        Cases, spread evenly over the regimes, at least two each: the first is always
        the smallest one.
    seed : int, default 0
        Of the drawing; the same seed draws the same cases in both dtypes.
    shrink : bool, default True
        Whether to make a failing case smaller before it is reported.
    progress : callable, optional
        Called with the number of cases that were judged since.
    observe : callable, optional
        Called with every trial that was judged, in turn.

    Returns
    -------
    PairResult
        Drawing stops at the first regime that fails.

    Raises
    ------
    ValueError
        If a branch hangs on rounding in every case that is drawn.
    """
    result = PairResult(pair.name, dtype)
    started = time.perf_counter()
    last: Case | None = None
    with one_thread():
        for number, regime in enumerate(pair.regimes):
            share = examples // len(pair.regimes) + (
                number < examples % len(pair.regimes)
            )
            explored = _Exploration(
                pair, dtype, result, progress, observe, shrink=shrink
            )
            failing = explored.run(
                cases(pair.draw, regime),
                max(share, 2),
                seed * len(pair.regimes) + number,
            )
            last = explored.last or last
            if failing:
                case, findings = failing
                result.failures += [
                    Failure(pair.name, dtype, case, f) for f in findings if f.failed
                ]
                break
        result.less_accurate = {
            tensor: pair.why_less_accurate(tensor)
            for tensor, accuracy in result.accuracies.items()
            if accuracy.ratio > TWICE
        }
        if last is not None:
            findings = judge_pair(pair, last)
            seen = [] if result.failures else list(_visible(result))
            result.add(findings + seen)
            result.failures += [
                Failure(pair.name, dtype, last, f) for f in findings if f.failed
            ]
            result.failures += [
                Failure(pair.name, dtype, last, f, (examples, seed))
                for f in seen
                if f.failed
            ]
    result.seconds = time.perf_counter() - started
    return result


def run_case(pair: Pair, dtype: str, case: Case) -> PairResult:
    """Check one pair on one case, as a reproduction does.

    Raises
    ------
    ValueError
        If the case lacks what the pair needs.
    """
    result = PairResult(pair.name, dtype, examples=1)
    started = time.perf_counter()
    with one_thread():
        trial = Trial(pair, case, dtype)
        try:
            _ = trial.problem
        except (ArithmeticError, AttributeError, LookupError) as error:
            raise ValueError(
                f"a case must fit the pair {pair.name!r}, got {case.to_json()}: "
                f"{type(error).__name__} {error}; take one from a failure report"
            ) from error
        if trial.ambiguous:
            result.ambiguous = 1
        findings = judge(trial) + judge_pair(pair, case)
    result.add(findings, case.regime)
    result.failures = [Failure(pair.name, dtype, case, f) for f in findings if f.failed]
    result.seconds = time.perf_counter() - started
    return result


def run_pairs(
    pairs: Sequence[Pair],
    dtypes: Sequence[str] = ("float64", "float32"),
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> list[PairResult]:
    """Check several pairs; results come in the order of pairs, then dtypes.

    Parameters
    ----------
    pairs : sequence of Pair
        With more than one worker they are sent to other processes, so the functions in
        them must be importable.
    dtypes : sequence of {'float64', 'float32'}
    examples, seed
        As for `run_pair`.
    workers : int, default 1
        Processes; their number changes no result.
    progress : callable, optional
        Called with the number of cases that were judged since.

    Raises
    ------
    ChildProcessError
        If a worker is killed, as when the system needs memory.
    ValueError
        If there is nothing to check (`checked_in`), a pair cannot be sent to a worker,
        or its reference has an operator without a rounding rule
        (`bounds.NoRuleError`).
    """
    tasks = [(pair, dtype, examples, seed) for pair, dtype in checked_in(pairs, dtypes)]
    if workers == 1 or len(tasks) == 1:
        return [
            run_pair(pair, dtype, examples=examples, seed=seed, progress=progress)
            for pair, dtype, examples, seed in tasks
        ]
    for pair in pairs:
        _check_portable(pair)
    results: dict[tuple[str, str], PairResult] = {}
    # The largest pairs stand last in the table; started first they do not trail.
    for result in in_processes(_task, tasks[::-1], workers):
        results[result.pair, result.dtype] = result
        progress(examples)
    return [results[pair.name, dtype] for pair, dtype, _, _ in tasks]


def checked_in(pairs: Sequence[Pair], dtypes: Sequence[str]) -> list[tuple[Pair, str]]:
    """Return every pair with each of these dtypes that it is checked in.

    Raises
    ------
    ValueError
        If there is none, or if two pairs have one name, as results go by it.
    """
    refuse_same_names(pairs)
    found = [(p, dtype) for p in pairs for dtype in dtypes if dtype in p.dtypes]
    if not found:
        names = ", ".join(pair.name for pair in pairs) or "no pair"
        known = dict.fromkeys(dtype for pair in pairs for dtype in pair.dtypes)
        raise ValueError(
            f"dtype must be one that a pair is checked in, got {', '.join(dtypes)} for "
            f"{names}; choose {' or '.join(known) or 'pairs'}"
        )
    return found


def _check_portable(pair: Pair) -> None:
    """Raise unless the pair can be sent to another process."""
    try:
        ForkingPickler.dumps(pair)
    except Exception as error:
        # Each object that a pair holds may refuse in its own way.
        raise ValueError(
            f"pair {pair.name!r} must be importable to be checked by several "
            f"processes ({error}); define its functions by def at the top of a module, "
            "or check with --workers 1"
        ) from None


def _task(task: tuple[Pair, str, int, int]) -> PairResult:
    pair, dtype, examples, seed = task
    return run_pair(pair, dtype, examples=examples, seed=seed)


class _Mismatch(Exception):
    """Tells Hypothesis that a case fails."""


class _Exploration:
    """Draws cases of one regime, and shrinks the first that fails."""

    def __init__(
        self,
        pair: Pair,
        dtype: str,
        result: PairResult,
        progress: Callable[[int], object],
        observe: Callable[[Trial], object],
        *,
        shrink: bool,
    ) -> None:
        self.pair = pair
        self.dtype = dtype
        self.result = result
        self.progress = progress
        self.observe = observe
        self.shrink = shrink
        self.last: Case | None = None
        self.tensors = 0
        self.undecided: dict[str, None] = {}
        self.failing: tuple[Case, list[Finding]] | None = None
        self.deadline = math.inf
        self.known: dict[str, list[Finding]] = {}

    def run(
        self, strategy: SearchStrategy[Case], examples: int, seed: int
    ) -> tuple[Case, list[Finding]] | None:
        """Return the smallest failing case with its findings, or None."""
        phases = (Phase.generate, Phase.shrink) if self.shrink else (Phase.generate,)

        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            phases=phases,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def explore(case: Case) -> None:
            self._judge(case)

        try:
            with drawn_by_seed_alone():
                explore()
        except _Mismatch:
            return self.failing
        except Unsatisfiable:
            raise ValueError(
                f"pair {self.pair.name!r} must have cases in which rounding decides no "
                f"branch, got {', '.join(self.undecided)} on a kink or a tie in all; "
                "draw other shapes or numbers"
            ) from None
        return None

    def _judge(self, case: Case) -> None:
        key = f"{case.seed} {case.to_json()}"
        if key not in self.known:
            if time.monotonic() > self.deadline:
                return
            trial = Trial(self.pair, case, self.dtype)
            if trial.ambiguous:
                self.result.ambiguous += self.failing is None
                operators = trial.reference.ambiguous_operators
                self.undecided.update(dict.fromkeys(operators))
                hypothesis.reject()
            self.known[key] = judge(trial)
            if self.failing is None:
                # What is checked of the pair as such: the case with the most tensors.
                if len(trial.reference.names) >= self.tensors:
                    self.last, self.tensors = case, len(trial.reference.names)
                self.result.examples += 1
                self.result.add(self.known[key], case.regime)
                self.observe(trial)
                self.progress(1)
        findings = self.known[key]
        if any(finding.failed for finding in findings):
            if self.failing is None:
                self.deadline = time.monotonic() + _SHRINKING_SECONDS
            self.failing = case, findings
            raise _Mismatch


def _visible(result: PairResult) -> Iterator[Finding]:
    """Fail for every tensor that no case showed."""
    for record in list(result.records.values()):
        if record.seen is None or record.comparisons < _CASES_TO_SEE:
            continue
        blind = record.seen < _SEEN
        yield Finding(
            VISIBLE,
            record.tensor,
            math.inf if blind else 0.0,
            f"at most {record.seen:.0%} of {record.tensor} stood above its bound in "
            "any case, so a wrong value would pass; draw other cases, or list it as "
            "blind with the reason"
            if blind
            else "",
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch and BLAS to one thread: the tensors are small, and cores are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _one_blas_thread():
            yield
    finally:
        torch.set_num_threads(before)


def _one_blas_thread() -> Any:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, "blas")
