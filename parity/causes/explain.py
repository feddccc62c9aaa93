"""From a failing trial to its explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from parity.causes.catalogue import CAUSES
from parity.causes.explanation import Explanation, Named
from parity.causes.investigation import Investigation, is_random
from parity.checks import CHECKS, Finding, Trial, judge
from parity.pair import Pair
from parity.runs import PairResult, one_thread


def explain_result(pair: Pair, result: PairResult) -> Explanation | None:
    """Explain what a run of a pair found; None if no case shows it.

    Parameters
    ----------
    pair : Pair
    result : PairResult
        Of `parity.runs.run_pair`.
    """
    judged = {check.name for check in CHECKS}
    for failure in result.failures:
        if failure.finding.check in judged:
            trial = Trial(pair, failure.case, result.dtype)
            return explain(trial, judge(trial))
    return None


def explain(trial: Trial, findings: Sequence[Finding]) -> Explanation:
    """Say what is wrong with the candidate of a failing trial.

    Parameters
    ----------
    trial : Trial
        A case that fails.
    findings : sequence of Finding
        What the checks say about it.

    Returns
    -------
    Explanation
    """
    failed = [finding for finding in findings if finding.failed]
    raised = [f.detail for f in failed if " raised " in f.detail and not f.tensor]
    if raised:
        return Explanation(facts=(raised[0],))
    own = _by_check(trial, failed)
    numeric = {f.check for f in failed} & {"forward", "dx", "d_params"}
    if own.causes and not numeric and trial.dtype == "float32":
        # The formula was compared in float64; there is nothing to add.
        return own
    with torch.random.fork_rng(devices=[]), one_thread():
        found = Investigation(trial).explain()
    if not own.causes or (found.causes and not found.possible):
        return found
    if not numeric or own.cause == "aliasing":
        return own
    if found.causes or own.cause not in _KEPT:
        return found
    # What an earlier call left behind does not show in the first.
    unexplained = ", ".join(sorted(numeric))
    return replace(
        own, reservation=f"{unexplained} failed too, which it may not explain"
    )


# --- checks that are their own explanation --------------------------------------------

_KEPT = ("stale-cache", "random-backward", "cache-kept")
_OWN = {
    "dtype": "dtype-promotion",
    "unmutated": "aliasing",
    "independent": "stale-cache",
    "strided": "strides-ignored",
}


def _by_check(trial: Trial, failed: Sequence[Finding]) -> Explanation:
    checks = {finding.check for finding in failed}
    facts = tuple(dict.fromkeys(f"{f.tensor}: {f.detail}" for f in failed[:3]))
    for check, name in _OWN.items():
        if check in checks:
            return Explanation((Named(CAUSES[name]),), facts=facts)
    if any(f.tensor == "cache" for f in failed):
        return Explanation((Named(CAUSES["cache-kept"]),), facts=facts)
    repeated = [f.detail for f in failed if f.check == "repeatable"]
    if repeated and all("keep nothing" in detail for detail in repeated):
        return Explanation((Named(CAUSES["cache-kept"]),), facts=facts)
    if any(detail.startswith("a later ") for detail in repeated):
        return Explanation((Named(CAUSES["aliasing"]),), facts=facts)
    if repeated:
        name = "random-backward" if is_random(trial) else "stale-cache"
        return Explanation((Named(CAUSES[name]),), facts=facts)
    return Explanation(facts=facts)
