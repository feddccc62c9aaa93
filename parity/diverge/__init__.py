"""Find where two networks, or two runs, part.

`compare` walks two networks layer by layer, forward and then backward, and names the
first layer and tensor that rounding cannot explain. `first_divergence` does the same in
time: first the step, then the layer, then the tensor.
"""

from parity.diverge.compare import NetworkComparison, Place, Row, compare, locate
from parity.diverge.networks import (
    Network,
    NumpyNetwork,
    TorchNetwork,
    as_network,
    open_network,
    read_names,
)
from parity.diverge.steps import Run, StepDivergence, first_divergence

__all__ = [
    "Network",
    "NetworkComparison",
    "NumpyNetwork",
    "Place",
    "Row",
    "Run",
    "StepDivergence",
    "TorchNetwork",
    "as_network",
    "compare",
    "first_divergence",
    "locate",
    "open_network",
    "read_names",
]
