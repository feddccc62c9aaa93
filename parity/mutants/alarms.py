"""The other half of a detection rate: how often a check fails on correct code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from parity.pair import Pair
from parity.runs import run_pairs

# Cases a pair and dtype in one round; a round has a seed of its own.
_ROUND = 140


def count_false_alarms(
    pairs: Sequence[Pair],
    checks: int,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Check correct code, over all pairs, dtypes and regimes.

    Parameters
    ----------
    pairs : sequence of Pair
    checks : int
        At least so many findings are made; a finding is what one check says about one
        tensor of one case.
    seed : int, default 0
        Of the first round. The cases are others than `parity check` draws by default.
    workers : int, default 1
    progress : callable, optional
        Called with the number of checks since.

    Returns
    -------
    dict
        'checks', 'cases', 'failures', and 'max_bound_used', the largest share of its
        bound that any result came to; None where one has no share, as of a wrong dtype.
    """
    made = cases = failures = round_number = 0
    largest = 0.0
    while made < checks:
        round_number += 1
        results = run_pairs(
            pairs,
            examples=_ROUND,
            seed=seed + 1_000 * round_number,
            workers=workers,
        )
        fresh = sum(result.comparisons for result in results)
        made += fresh
        cases += sum(result.examples for result in results)
        failures += sum(len(result.failures) for result in results)
        shares = [share for r in results if (share := r.share()) is not None]
        largest = max([largest, *shares])
        progress(fresh)
    return {
        "checks": made,
        "cases": cases,
        "failures": failures,
        "max_bound_used": largest if math.isfinite(largest) else None,
    }
