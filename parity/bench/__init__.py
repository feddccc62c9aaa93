"""Side-by-side timing: the same network, batch and dtype in one backend after another.

Each backend runs in a process of its own, and the processes take turns, round after
round, so that whatever else the machine does meets all of them alike. Ratios are taken
within a round.
"""

from parity.bench.runs import (
    Bench,
    Row,
    Workload,
    growth_workloads,
    measure,
    network_workloads,
)

__all__ = [
    "Bench",
    "Row",
    "Workload",
    "growth_workloads",
    "measure",
    "network_workloads",
]
