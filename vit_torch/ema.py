"""An exponential moving average of a model's parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vit_torch.config import check_rate
from vit_torch.optim import check_state, check_step


class EMA:
    """Averages parameters over the steps of a training; the average often tests better.

    The twin of `vit_numpy.ema`, which has the equation.

    Parameters
    ----------
    model : nn.Module
        Where the average starts from.
    decay : float in [0, 1), default 0.999
        What the average keeps of itself at each update, once there were many.

    Attributes
    ----------
    steps : int
        Updates made so far.
    average : dict of Tensor
        By the names of the parameters.

    Raises
    ------
    TypeError, ValueError
        If `decay` is no number in [0, 1).

    References
    ----------
    Polyak, Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the
    warm-up of d is that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        check_rate("decay", decay)
        self.model = model
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {
            name: param.detach().clone() for name, param in model.named_parameters()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        self.steps += 1
        share = 1 - min(self.decay, (self.steps + 1) / (self.steps + 10))
        for name, param in self.model.named_parameters():
            self.average[name].lerp_(param, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average inside of a ``with`` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, param in self.model.named_parameters():
            kept = param.clone()
            param.copy_(self.average[name])
            self.average[name] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """Return `step` and the average by name: the arrays themselves, not copies."""
        return {"step": torch.tensor(self.steps, dtype=torch.float64), **self.average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved average: the next update is that of the one saved.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape differs, or the step is no count;
            nothing is changed then.
        """
        check_state(
            "average",
            {name: tuple(array.shape) for name, array in self.state_dict().items()},
            {name: tuple(array.shape) for name, array in state.items()},
        )
        check_step("average", state["step"])
        self.steps = int(state["step"])
        for name, array in self.average.items():
            array.copy_(state[name])
