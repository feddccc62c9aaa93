"""Learning-rate schedules: what the base rate is multiplied by at each step.

This file is the same, byte for byte, in `vit_numpy` and `vit_torch`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from .config import check_between, check_choice, check_factor, check_int

DECAYS = ("constant", "step", "cosine", "linear")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear warm-up, and then one of four ways down.

    Parameters
    ----------
    warmup : int, default 0
        Steps of warm-up W.
    decay : {'constant', 'step', 'cosine', 'linear'}, default 'constant'
    total : int, optional
        Steps N of the whole training, warm-up included: where 'cosine' and 'linear'
        reach their floor, and stay. Required for these two, unused by the others.
    drops : sequence of int, default ()
        For 'step': the steps, increasing, from which on the rate is multiplied by
        `drop_factor` (once more at each). "÷ 10 after epoch e" is a drop at step
        e · (steps per epoch).
    drop_factor : float in (0, 1], default 0.1
    floor : float in [0, 1], default 0
        The factor at the end of 'cosine' and 'linear'.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind, and for one that breaks a rule above.

    Notes
    -----
    Steps count from 0, and the factor of step i is used by the (i+1)-th update::

        warm-up   i < W             (i + 1) / W        never 0: the first update counts
        step                        drop_factor ^ (number of drops <= i)
        cosine    t = (i - W)/(N - W)  floor + (1 - floor) (1 + cos πt) / 2
        linear                      1 - (1 - floor) t

    References
    ----------
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2 (warm-up);
    Loshchilov, Hutter 2017, "SGDR", equation 5 (cosine).
    """

    warmup: int = 0
    decay: str = "constant"
    total: int | None = None
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_int("warmup", self.warmup, 0)
        check_choice("decay", self.decay, DECAYS)
        check_factor("drop_factor", self.drop_factor)
        check_between("floor", self.floor, 0, 1)
        if not isinstance(self.drops, list | tuple):
            raise TypeError(
                f"drops must be a sequence of steps, got drops={self.drops!r}"
            )
        for drop in self.drops:
            check_int("drops", drop, 1)
        object.__setattr__(self, "drops", tuple(self.drops))
        if any(a >= b for a, b in pairwise(self.drops)):
            raise ValueError(f"drops must increase, got drops={self.drops}")
        if bool(self.drops) != (self.decay == "step"):
            raise ValueError(
                "drops are the steps of decay='step', "
                f"got decay={self.decay!r}, drops={self.drops}"
            )
        if self.total is not None:
            check_int("total", self.total, 1)
        if self.decay in ("cosine", "linear"):
            if self.total is None:
                raise ValueError(
                    f"decay={self.decay!r} needs total, the number of steps it lasts"
                )
            if self.total <= self.warmup:
                raise ValueError(
                    "total must exceed warmup, "
                    f"got total={self.total}, warmup={self.warmup}; "
                    "warm up for fewer steps or train for more"
                )

    def factor(self, step: int) -> float:
        """Return the factor of the base rate at `step`, which counts from 0."""
        check_int("step", step, 0)
        warm = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        if self.decay == "step":
            return warm * self.drop_factor ** sum(drop <= step for drop in self.drops)
        if self.total is None or self.decay == "constant":
            return warm
        t = min(max((step - self.warmup) / (self.total - self.warmup), 0.0), 1.0)
        if self.decay == "cosine":
            return warm * (
                self.floor + (1 - self.floor) * (1 + math.cos(math.pi * t)) / 2
            )
        return warm * (1 - (1 - self.floor) * t)
