"""Variants of optimizers and schedules.

Torch's optimizers all update through one function a kind, `torch.optim.adam.adam` and
`torch.optim.sgd.sgd`. A variant puts another in its place while the reference runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass
class _Decaying:
    decay: str = "as given"
    largest_decay: float = 0.0

    def _decay(self, weight_decay: float) -> float:
        """Return the weight decay of a group that was given this one."""
        self.largest_decay = max(self.largest_decay, weight_decay)
        if self.decay == "to all":
            return self.largest_decay
        return 0.0 if self.decay == "none" else weight_decay


@dataclass
class AdamUpdate(_Decaying):
    """Adam's update, AdamW's too, with some things changed.

    Attributes
    ----------
    eps_at : {'root', 'inside', 'early', 'nowhere'}
        Added to the corrected root; to the second moment inside the root; to the root
        before correction; or not at all.
    correct_first, correct_second : bool
        Whether the moments' bias is corrected.
    step_shift : int
        Added to the step counter.
    stuck : bool
        Whether the counter stays at 1.
    swapped : bool
        Whether the betas are exchanged.
    squared, rooted, undamped : bool
        Whether v takes squares, its root is taken, and m takes g without 1 - beta1.
    root_of_both : {'', 'together', 'each', 'before correction'}
        Whether the root of m is taken as well: of m / (v + eps), of each by itself, or
        of m before its bias is corrected.
    decay : {'as given', 'other', 'none', 'without lr', 'after', 'to all'}
        How weights decay; 'other' exchanges coupled and decoupled.
    """

    eps_at: str = "root"
    correct_first: bool = True
    correct_second: bool = True
    step_shift: int = 0
    stuck: bool = False
    swapped: bool = False
    squared: bool = True
    rooted: bool = True
    undamped: bool = False
    root_of_both: str = ""

    def __call__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        lr: float,
        weight_decay: float,
        eps: float,
        decoupled_weight_decay: bool = False,
        **options: Any,
    ) -> None:
        """Update all parameters in place."""
        weight_decay = self._decay(weight_decay)
        decoupled = decoupled_weight_decay != (self.decay == "other")
        if self.swapped:
            beta1, beta2 = beta2, beta1
        shrink = weight_decay if self.decay == "without lr" else lr * weight_decay
        for p, g, m, v, counter in zip(
            params, grads, exp_avgs, exp_avg_sqs, state_steps, strict=True
        ):
            counter += 1
            t = max((1 if self.stuck else int(counter.item())) + self.step_shift, 0)
            if decoupled and self.decay != "after":
                p.mul_(1 - shrink)
            elif not decoupled:
                g = g + weight_decay * p
            m.copy_(beta1 * m + (1 if self.undamped else 1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * (g * g if self.squared else g.abs()))
            first = 1 - beta1**t if self.correct_first else 1.0
            second = 1 - beta2**t if self.correct_second else 1.0
            if first == 0 or second == 0:
                first, second = first or math.inf, second or math.inf
            p.sub_(lr * self._direction(m / first, v / second, first, second, eps))
            if decoupled and self.decay == "after":
                p.mul_(1 - shrink)

    def _direction(
        self, m: Tensor, v: Tensor, first: float, second: float, eps: float
    ) -> Tensor:
        if self.root_of_both:
            rooted = m.abs().sqrt() * m.sign()
            if self.root_of_both == "together":
                return rooted / (v + eps).sqrt()
            late = self.root_of_both == "before correction"
            return rooted / (math.sqrt(first) if late else 1.0) / (v.sqrt() + eps)
        if not self.rooted:
            return m / (v + eps)
        if self.eps_at == "inside":
            return m / (v + eps).sqrt()
        if self.eps_at == "early":
            return m / (v.sqrt() + eps / math.sqrt(second))
        return m / (v.sqrt() + (0.0 if self.eps_at == "nowhere" else eps))


@dataclass
class SGDUpdate(_Decaying):
    """The update of SGD, with some things changed.

    Attributes
    ----------
    momentum : {'as given', 'none', 'damped', 'other', 'with lr'}
        Damped by 1 - momentum; 'other' exchanges Nesterov's and the plain one; 'with
        lr' accumulates steps rather than gradients.
    decay : {'as given', 'none', 'decoupled', 'without lr', 'to all'}
    """

    momentum: str = "as given"

    def __call__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor | None],
        *,
        weight_decay: float,
        momentum: float,
        lr: float,
        nesterov: bool,
        **options: Any,
    ) -> None:
        """Update all parameters in place."""
        weight_decay = self._decay(weight_decay)
        other = nesterov != (self.momentum == "other")
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            if self.decay in ("decoupled", "without lr"):
                p.mul_(1 - weight_decay * (lr if self.decay == "decoupled" else 1.0))
            else:
                g = g + weight_decay * p
            rate = lr
            if momentum:
                b = self._buffer(buffers[i], g, momentum, lr)
                buffers[i] = b
                if self.momentum == "with lr":
                    rate, g = 1.0, lr * g
                if self.momentum != "none":
                    g = g + momentum * b if other else b
            p.sub_(rate * g)

    def _buffer(
        self, buffer: Tensor | None, g: Tensor, momentum: float, lr: float
    ) -> Tensor:
        if self.momentum == "with lr":
            g = lr * g
        if self.momentum == "damped":
            g = (1 - momentum) * g
        return g.clone() if buffer is None else momentum * buffer + g


@dataclass
class Clipping:
    """Gradients that are clipped before any optimizer's update.

    Attributes
    ----------
    limit : float
    kind : {'norm', 'each norm', 'value'}
        What is at most the limit: the norm of all together, of each, or each element.
    """

    limit: float = 1.0
    kind: str = "norm"

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Put clipped copies in the place of the gradients."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        params = [p for p in params if p.grad is not None]
        grads = [p.grad for p in params]
        together = torch.stack([(g * g).sum() for g in grads]).sum().sqrt()
        for p, g in zip(params, grads, strict=True):
            if self.kind == "value":
                p.grad = g.clamp(-self.limit, self.limit)
                continue
            norm = together if self.kind == "norm" else (g * g).sum().sqrt()
            p.grad = g * (self.limit / (norm + 1e-6)).clamp(max=1.0)


Update = AdamUpdate | SGDUpdate | Clipping

UPDATES: tuple[tuple[str, str, Update], ...] = (
    ("adam-eps", "inside the root", AdamUpdate(eps_at="inside")),
    ("adam-eps", "added before bias correction", AdamUpdate(eps_at="early")),
    ("adam-eps", "left out", AdamUpdate(eps_at="nowhere")),
    (
        "adam-bias-correction",
        "of both moments",
        AdamUpdate(correct_first=False, correct_second=False),
    ),
    ("adam-bias-correction", "of the first moment", AdamUpdate(correct_first=False)),
    ("adam-bias-correction", "of the second moment", AdamUpdate(correct_second=False)),
    ("adam-step-count", "stuck at 1", AdamUpdate(stuck=True)),
    ("adam-step-count", "one too low", AdamUpdate(step_shift=-1)),
    ("adam-step-count", "one too high", AdamUpdate(step_shift=1)),
    ("adam-moments", "betas exchanged", AdamUpdate(swapped=True)),
    ("adam-moments", "v without the square", AdamUpdate(squared=False)),
    ("adam-moments", "the root of v not taken", AdamUpdate(rooted=False)),
    *(
        ("adam-moments", "a root over both moments", AdamUpdate(root_of_both=how))
        for how in ("together", "each", "before correction")
    ),
    ("adam-moments", "m takes g without 1 - beta1", AdamUpdate(undamped=True)),
    ("weight-decay-coupling", "", AdamUpdate(decay="other")),
    ("weight-decay-lr", "", AdamUpdate(decay="without lr")),
    ("weight-decay-ignored", "", AdamUpdate(decay="none")),
    ("weight-decay-order", "", AdamUpdate(decay="after")),
    ("weight-decay-groups", "", AdamUpdate(decay="to all")),
    ("momentum", "ignored", SGDUpdate(momentum="none")),
    ("momentum", "damped by 1 - momentum", SGDUpdate(momentum="damped")),
    ("momentum", "Nesterov's and the plain one", SGDUpdate(momentum="other")),
    ("momentum", "the learning rate inside the buffer", SGDUpdate(momentum="with lr")),
    ("weight-decay-coupling", "", SGDUpdate(decay="decoupled")),
    ("weight-decay-lr", "", SGDUpdate(decay="without lr")),
    ("weight-decay-ignored", "", SGDUpdate(decay="none")),
    ("weight-decay-groups", "", SGDUpdate(decay="to all")),
    *(
        ("clipping", f"{said} at most {limit:g}, before the update", Clipping(limit, k))
        for limit in (1.0, 0.5, 5.0, 0.1, 10.0)
        for k, said in (
            ("norm", "the norm of all"),
            ("each norm", "the norm of each"),
            ("value", "each element"),
        )
    ),
)
"""Cause, detail and update."""


@contextmanager
def updating_by(update: Update) -> Iterator[None]:
    """Let torch's optimizers update this way."""
    if isinstance(update, Clipping):
        hook = register_optimizer_step_pre_hook(update)
        try:
            yield
        finally:
            hook.remove()
        return
    kind = "adam" if isinstance(update, AdamUpdate) else "sgd"
    module = _module(kind)
    original = getattr(module, kind)
    setattr(module, kind, replace(update))
    try:
        yield
    finally:
        setattr(module, kind, original)


def applies(update: Update, used: set[str]) -> bool:
    """Tell whether an update can take the place of one that is used."""
    if isinstance(update, Clipping):
        return bool(used)
    return ("adam" if isinstance(update, AdamUpdate) else "sgd") in used


def used_updates(function: Callable[[], object]) -> set[str]:
    """Return which of torch's optimizers a function steps: 'adam', 'sgd'."""
    used: set[str] = set()
    originals = {kind: getattr(_module(kind), kind) for kind in _KINDS}

    def noted(kind: str) -> Callable[..., None]:
        def update(*args: Any, **kwargs: Any) -> None:
            used.add(kind)
            originals[kind](*args, **kwargs)

        return update

    try:
        for kind in _KINDS:
            setattr(_module(kind), kind, noted(kind))
        function()
    finally:
        for kind in _KINDS:
            setattr(_module(kind), kind, originals[kind])
    return used


_KINDS = ("adam", "sgd")


def _module(kind: str) -> ModuleType:
    # As an attribute of torch.optim the module is hidden by a class or removed.
    return import_module(f"torch.optim.{kind}")
