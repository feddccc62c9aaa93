"""Running changed ports, and measuring how far they are from the original."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from parity.bounds import FACTOR, NoRuleError, reference
from parity.diverge.scale import coarse_scale, largest, unit_roundoff
from parity.doctor.explanation import Explanation
from parity.doctor.setup import Change, Setup
from parity.training import Backend
from vit_numpy.config import ViTConfig

# Outputs that are further than this from the original's are not worth a bound.
_NEAR = 1e-2

# Explanations that agree but are so many times further than the best are not listed.
_AS_GOOD = 100.0

# Beyond so many parameters, or so many coarse bounds, the coarse bound must do.
_LARGE = 3_000_000
_FAR = 1000.0

# Ports of more multiplications a run are looked at on fewer images, of which there are
# so many logits at least, and in float32; what comes this near is measured in full.
_COSTLY = 1e8
_LOGITS = 64
_PROMISING = 1e-3


class Search:
    """Runs changed ports, and measures how far they are from the original."""

    def __init__(self, base: Setup, outputs: NDArray[Any], deadline: float) -> None:
        self.base = base
        self.outputs = outputs
        self.deadline = deadline
        self.wide = torch.from_numpy(outputs.astype(np.float64))
        self.looked = _to_look_at(base, self.wide.shape[-1])
        self.known: dict[tuple[str, ...], Explanation] = {}
        self.models: dict[tuple[Any, ...], nn.Module] = {}
        self.torch = Backend.load("torch")
        self.tried = 0
        self.complete = True
        self.refusal = ""

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() > self.deadline

    def run(self, changes: tuple[Change, ...]) -> Explanation:
        """Measure the port with these changes; infinitely far if they make no sense."""
        names = tuple(change.name for change in changes)
        if names not in self.known:
            self.tried += 1
            distance = self._distance(changes, self.looked)
            if distance < _PROMISING and self.looked is not self.base:
                distance = self._distance(changes, self.base)
            self.known[names] = Explanation(changes, distance)
        return self.known[names]

    def _distance(self, changes: Sequence[Change], port: Setup) -> float:
        wide = self.wide[: len(port.images)]
        try:
            setup = _changed(port, changes)
            with torch.no_grad():
                found = self.function(setup)(setup.images, **setup.weights)
        except (ValueError, RuntimeError) as error:
            self.refusal = str(error).splitlines()[0]
            return math.inf
        if found.shape != wide.shape:
            self.refusal = (
                f"its outputs have shape {tuple(found.shape)}, "
                f"those given {tuple(wide.shape)}"
            )
            return math.inf
        size = float((wide - wide.mean()).norm()) or 1.0
        distance = float((found - wide).norm()) / size
        if not math.isfinite(distance):
            self.refusal = "its outputs, or those given, are not finite"
            return math.inf
        return distance

    def function(self, setup: Setup) -> Callable[..., Tensor]:
        """Return the changed port as a function of images and weights."""
        key = (setup.config, tuple(name for name, _ in setup.patches))
        if key not in self.models:
            model = self._build(setup.config)
            for _, patch in setup.patches:
                patch(model)
            self.models[key] = model.requires_grad_(False)
        model = self.models[key]
        own = {n: tuple(p.shape) for n, p in model.named_parameters()}
        given = {n: tuple(w.shape) for n, w in setup.weights.items()}
        if own != given:
            name = next(n for n in own | given if own.get(n) != given.get(n))
            raise ValueError(
                f"{name} must have shape {own.get(name)}, got {given.get(name)}"
            )
        buffers = dict(model.named_buffers())

        def function(images: Tensor, **weights: Tensor) -> Tensor:
            state = weights | {n: b.to(images.dtype) for n, b in buffers.items()}
            out: Tensor = functional_call(model, state, (images,))
            for change in setup.outputs:
                out = change(out)
            return out

        return function

    def _build(self, config: ViTConfig) -> Any:
        own = self.torch.module("config").ViTConfig.from_dict(config.to_dict())
        build = self.torch.module("model").VisionTransformer
        # Every parameter is given at the call: only what computes a buffer needs room.
        with torch.device("meta"):
            model = build(own)
        if any(buffer.is_meta for buffer in model.buffers()):
            model = build(own)
        return model.double().eval()

    def judged(self, explanations: Sequence[Explanation]) -> list[Explanation]:
        """Give those that are near enough the share of the error bound they use."""
        done: list[Explanation] = []
        for e in explanations:
            best = next((d.distance for d in done if d.agrees), math.inf)
            near = e.distance < _NEAR and e.distance <= _AS_GOOD * best
            done.append(replace(e, share=self._share(e.changes)) if near else e)
        return done

    def _share(self, changes: tuple[Change, ...]) -> float:
        """Return the largest share of the bound, within which the outputs must be.

        Far from it, and for a large network, the bound is coarse: the largest
        difference of its outputs in float32 from those in float64 stands for each
        element's own.
        """
        setup = _changed(self.base, changes)
        function = self.function(setup)
        inputs = {"images": setup.images, **setup.weights}
        with torch.no_grad():
            wide = function(**inputs).numpy()
            narrow = function(**{n: x.float() for n, x in inputs.items()}).numpy()
        dtype = self.outputs.dtype.name
        scale = coarse_scale([narrow], wide, unit_roundoff(dtype))
        coarse = largest(self.outputs, wide, 2 * FACTOR * scale)
        large = sum(w.numel() for w in setup.weights.values()) > _LARGE
        if large or coarse > _FAR:
            return coarse
        try:
            found = reference(
                function, inputs, dtype=getattr(torch, dtype), differentiate=False
            )
        except NoRuleError:
            # A changed model may use an operator that the bounds do not know.
            return coarse
        return float(found.share("out", self.outputs).max())


def _changed(port: Setup, changes: Sequence[Change]) -> Setup:
    """Return a port with changes, in the order of the table."""
    for change in changes:
        port = change.apply(port)
    return port


def _to_look_at(port: Setup, classes: int) -> Setup:
    """Return a port that runs quickly, as near to this one as that allows."""
    tokens = port.config.num_patches + port.config.num_prefix_tokens
    parameters = sum(w.numel() for w in port.weights.values())
    if parameters * tokens * len(port.images) <= _COSTLY:
        return port
    images = port.images[: -(-_LOGITS // classes)]
    weights = {name: w.float() for name, w in port.weights.items()}
    return replace(port, weights=weights, images=images.float())
