"""An exponential moving average of a model's parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from vit_numpy.config import check_rate
from vit_numpy.module import Array, Module
from vit_numpy.optim import check_state, check_step


class EMA:
    """Averages parameters over the steps of a training; the average often tests better.

    Parameters
    ----------
    model : Module
        Where the average starts from.
    decay : float in [0, 1), default 0.999
        What the average keeps of itself at each update, once there were many.

    Attributes
    ----------
    steps : int
        Updates made so far.
    average : dict of ndarray
        By the names of the parameters.

    Raises
    ------
    TypeError, ValueError
        If `decay` is no number in [0, 1).

    Notes
    -----
    Update t, counted from 1, moves the average a towards the parameters p::

        a ← a + (1 - d)(p - a)        d = min(decay, (t + 1) / (t + 10))

    The smaller d of the first updates lets the average forget where it started.

    References
    ----------
    Polyak, Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the
    warm-up of d is that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: Module, decay: float = 0.999) -> None:
        check_rate("decay", decay)
        self.model = model
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Array] = {
            name: param.copy() for name, param in model.named_parameters()
        }

    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        self.steps += 1
        share = 1 - min(self.decay, (self.steps + 1) / (self.steps + 10))
        for name, param in self.model.named_parameters():
            average = self.average[name]
            change = param - average
            change *= share
            average += change

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average inside of a ``with`` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, param in self.model.named_parameters():
            kept = param.copy()
            param[...] = self.average[name]
            self.average[name] = kept

    def state_dict(self) -> dict[str, Array]:
        """Return `step` and the average by name: the arrays themselves, not copies."""
        return {"step": np.array(self.steps, np.float64), **self.average}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy a saved average: the next update is that of the one saved.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape differs, or the step is no count;
            nothing is changed then.
        """
        check_state(
            "average",
            {name: array.shape for name, array in self.state_dict().items()},
            {name: np.shape(array) for name, array in state.items()},
        )
        check_step("average", state["step"])
        self.steps = int(state["step"])
        for name, array in self.average.items():
            array[...] = state[name]
