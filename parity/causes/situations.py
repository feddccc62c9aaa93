"""Variants of what a pair's configuration says, rather than of an operator.

Each is a function of a trial that returns a reference: built with another option, read
at another step, clipped otherwise, or with other rates of drop path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from parity.checks import Trial

Function = Callable[..., Any]
Situation = tuple[str, str, Function]
"""Cause, detail, and the reference that has it."""


def situations(trial: Trial) -> Iterator[Situation]:
    """Yield every variant of this kind that applies to a trial."""
    config = trial.case.config
    for detail, other in _other_options(config):
        yield "configuration", detail, partial(_rebuilt, _with(trial, other))
    if trial.case.shapes.keys() == {"step"}:
        for cause, detail, read in _SCHEDULES:
            yield cause, detail, partial(read, trial)
    if "max_norm" in config:
        for detail, clip in _CLIPPINGS.items():
            yield "clipping", detail, partial(_clipped, trial, clip)
    inner = config.get("config")
    if isinstance(inner, Mapping) and inner.get("drop_path"):
        for detail, rates in _RATES.items():
            yield "drop-path-rates", detail, partial(_with_rates, trial, rates)


# --- options --------------------------------------------------------------------------


def _with(trial: Trial, config: Mapping[str, Any]) -> Trial:
    return Trial(trial.pair, replace(trial.case, config=dict(config)), trial.dtype)


def _rebuilt(trial: Trial, **inputs: Tensor) -> Any:
    return trial.problem.function(**inputs)


def _other_options(
    config: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield configurations with one option changed, and which."""
    for key, value in config.items():
        if isinstance(value, bool):
            yield f"{key} inverted", {**config, key: not value}
        elif isinstance(value, int) and value > 0:
            yield f"{key} one lower", {**config, key: value - 1}
            yield f"{key} one higher", {**config, key: value + 1}
        elif isinstance(value, float):
            yield f"{key} ignored", {**config, key: 0.0}
            for factor in (10.0, 0.1, 2.0, 0.5):
                yield f"{key} times {factor:g}", {**config, key: value * factor}
        elif isinstance(value, Mapping):
            for detail, inner in _other_options(value):
                yield detail, {**config, key: inner}
        elif isinstance(value, list | tuple) and value:
            yield f"{key} reversed", {**config, key: [*reversed(value)]}
            if all(isinstance(v, int) for v in value):
                yield f"{key} one later", {**config, key: [v + 1 for v in value]}


# --- schedules ------------------------------------------------------------------------


def _at_step(trial: Trial, shift: int, step: Tensor) -> Any:
    return trial.problem.function(step=(step + shift).clamp_min(0))


def _zero_start(trial: Trial, step: Tensor) -> Any:
    factor = trial.problem.function(step=step)
    return torch.where(step < _warmup(trial), factor * step / (step + 1), factor)


def _late_start(trial: Trial, step: Tensor) -> Any:
    return torch.where(step == 0, 0.0, trial.problem.function(step=step))


def _whole_length(trial: Trial, step: Tensor) -> Any:
    """Decay over all steps, the warm-up's too."""
    if not _warmup(trial):
        return trial.problem.function(step=step)
    other = _with(trial, {**trial.case.config, "warmup": 0})
    factor = trial.problem.function(step=step)
    decayed = other.problem.function(step=step)
    return torch.where(step < _warmup(trial), factor, decayed)


def _warmup(trial: Trial) -> int:
    """Return the steps of warm-up, of which a case of the defaults says nothing."""
    return int(trial.case.config.get("warmup", 0))


def _late(trial: Trial, step: Tensor) -> Any:
    return _at_step(trial, 1, step)


def _early(trial: Trial, step: Tensor) -> Any:
    return _at_step(trial, -1, step)


_SCHEDULES: tuple[Situation, ...] = (
    ("schedule-off-by-one", "the next step's", _late),
    ("schedule-off-by-one", "the step's before", _early),
    ("schedule-zero-start", "step / warmup", _zero_start),
    ("schedule-zero-start", "zero at step 0 alone", _late_start),
    ("configuration", "decay counted from the start, not the warm-up", _whole_length),
)


# --- clipping -------------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    return (x * x).sum().sqrt()


def _clipped(
    trial: Trial, clip: Callable[[Tensor, Tensor, float], Tensor], **gradients: Tensor
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = dict(trial.problem.function(**gradients))
    together = torch.stack([_norm(g) for g in gradients.values()])
    for name, gradient in gradients.items():
        limit = trial.case.config["max_norm"]
        outputs[name] = clip(gradient, _norm(together), limit)
    return outputs


_CLIPPINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "each gradient by its own norm": (
        lambda g, norm, limit: g * (limit / (_norm(g) + 1e-6)).clamp(max=1.0)
    ),
    "not at all": lambda g, norm, limit: g * 1,
    "each element, not the norm": lambda g, norm, limit: g.clamp(-limit, limit),
    "scaled to the limit even from below": (
        lambda g, norm, limit: g * limit / (norm + 1e-6)
    ),
    "without 1e-6 beside the norm": (
        lambda g, norm, limit: g * (limit / norm).clamp(max=1.0)
    ),
    "by the square of the norm": (
        lambda g, norm, limit: g * (limit / (norm * norm + 1e-6)).clamp(max=1.0)
    ),
}


# --- drop path ------------------------------------------------------------------------

_RATES: dict[str, Callable[[Any], tuple[float, ...]]] = {
    "the same in all blocks": lambda c: (c.drop_path,) * c.depth,
    "falling, not rising": lambda c: tuple(
        c.drop_path * (1 - i / max(c.depth - 1, 1)) for i in range(c.depth)
    ),
    "rising from the first block on": lambda c: tuple(
        c.drop_path * (i + 1) / c.depth for i in range(c.depth)
    ),
    "not reaching the given rate": lambda c: tuple(
        c.drop_path * i / c.depth for i in range(c.depth)
    ),
}


def _with_rates(
    trial: Trial, rates: Callable[[Any], tuple[float, ...]], **inputs: Tensor
) -> Any:
    """Run the reference built with other rates of drop path."""
    owner = import_module("vit_torch.config").ViTConfig
    original = owner.drop_path_rates
    owner.drop_path_rates = property(rates)
    try:
        problem = _with(trial, trial.case.config).problem
    finally:
        owner.drop_path_rates = original
    return problem.function(**inputs)
