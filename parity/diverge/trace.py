"""What flows through a network, recorded at its layers, forward and backward.

A layer is watched from outside: nothing in a model has to be prepared for it. What is
recorded are *events*: ``blocks.0.attn`` is what that layer returned, ``blocks.0.attn
(input)`` what it was given, and the gradient of an event is that of the same tensor.
Inputs are told apart from the outputs that they are, so that the gradient of a layer's
input is what its own backward returned, without what flows past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
Wanted = Callable[[str], bool]
Visit = Callable[[str, Any], Any]
Cotangent = Callable[[NDArray[Any]], NDArray[Any]]

IMAGES, LOGITS, EMBEDDING = "images", "logits", "embedding"
_INPUT = " (input)"


@dataclass
class Trace:
    """What was recorded in one forward and backward.

    Attributes
    ----------
    order : list of str
        All events in the order of the forward, those that were not wanted too; the
        first is 'images', the last 'logits'.
    forward, backward : dict of ndarray
        Values and gradients of the events that were wanted; 'images' and 'logits' are
        always among them.
    parameters : dict of ndarray
        Gradients of the parameters.
    """

    order: list[str] = field(default_factory=list)
    forward: Arrays = field(default_factory=dict)
    backward: Arrays = field(default_factory=dict)
    parameters: Arrays = field(default_factory=dict)


def input_of(name: str) -> str:
    """Return the name of the event that is the input of a layer."""
    return name + _INPUT


def layer_of(event: str) -> str:
    """Return the layer that an event belongs to; the whole network is ''."""
    name = event.removesuffix(_INPUT)
    if name == EMBEDDING:
        return "pos_drop"
    return "" if name in (IMAGES, LOGITS) else name


def event_of(layer: str) -> str:
    """Return the name of the event that is the output of a layer."""
    return EMBEDDING if layer == "pos_drop" else layer


def is_input(event: str) -> bool:
    """Tell whether an event is the input of a layer, and not an output."""
    return event == IMAGES or event.endswith(_INPUT)


def watched_layers(model: Any) -> list[str]:
    """Return the layers of a network of either twin that are worth watching.

    Dropout of attention weights is none of them: the twins apply it at other places of
    the same formula. The identity, which stands for a layer that is left out, is none
    either, nor is a list of layers.
    """
    return [
        name
        for name, module in model.named_modules()
        if (
            name
            and not name.endswith("attn_drop")
            and type(module).__name__ not in ("Identity", "ModuleList")
        )
        or name == "pre_logits"
    ]


def trace_numpy(
    model: Any,
    images: NDArray[Any],
    cotangent: Cotangent,
    wanted: Wanted,
    masks: Any = None,
) -> Trace:
    """Run a network of `vit_numpy` forward and backward, and record it.

    `cotangent` is given the logits, and returns the gradient to go back from.
    """
    trace = Trace([IMAGES])
    layers = set(watched_layers(model))
    with _watching_numpy(model, layers, trace, wanted):
        logits, cache = model.forward(images, masks)
        trace.order.append(LOGITS)
        dlogits = cotangent(logits)
        dimages, trace.parameters = model.backward(dlogits, cache)
    trace.forward |= {IMAGES: images, LOGITS: logits}
    trace.backward |= {IMAGES: dimages, LOGITS: dlogits}
    return trace


@contextmanager
def _watching_numpy(
    model: Any, layers: set[str], trace: Trace, wanted: Wanted
) -> Iterator[None]:
    """Stand between every layer of a NumPy network and its callers."""
    watched = [(n, m) for n, m in model.named_modules() if n in layers]
    before = [dict(vars(module)) for _, module in watched]
    try:
        for name, module in watched:
            _watch_numpy(name, module, trace, wanted)
        yield
    finally:
        # A layer may have had a forward of its own before, not its class's.
        for (_, module), own in zip(watched, before, strict=True):
            for method in ("forward", "backward"):
                vars(module).pop(method, None)
                if method in own:
                    setattr(module, method, own[method])


def _watch_numpy(name: str, module: Any, trace: Trace, wanted: Wanted) -> None:
    forward, backward = module.forward, module.backward
    given, returned = input_of(name), event_of(name)

    def keep(where: Arrays, event: str, array: NDArray[Any]) -> None:
        # A copy, as the caller may go on to work in place.
        if wanted(event):
            where[event] = array.copy()

    def watched_forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        trace.order.append(given)
        keep(trace.forward, given, x)
        y, cache = forward(x, *args, **kwargs)
        trace.order.append(returned)
        keep(trace.forward, returned, y)
        return y, cache

    def watched_backward(dy: Any, *args: Any, **kwargs: Any) -> Any:
        keep(trace.backward, returned, dy)
        dx, grads = backward(dy, *args, **kwargs)
        keep(trace.backward, given, dx)
        return dx, grads

    module.forward, module.backward = watched_forward, watched_backward


@contextmanager
def watching_torch(
    module: torch.nn.Module, events: Mapping[str, tuple[str, bool]], visit: Visit
) -> Iterator[None]:
    """Have `visit(event, tensor)` called at layers of a torch module, in order.

    Parameters
    ----------
    module : torch.nn.Module
    events : mapping of str to (str, bool)
        Path of the submodule of each event, and whether it is its input.
    visit : callable
        What it returns takes the place of the tensor.
    """
    handles = []
    modules = dict(module.named_modules())

    def before(event: str) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...]) -> Any:
            if args and isinstance(args[0], Tensor):
                return (visit(event, args[0]), *args[1:])
            return None

        return hook

    def after(event: str) -> Callable[..., Any]:
        def hook(_: Any, args: Any, out: Any) -> Any:
            if isinstance(out, Tensor):
                return visit(event, out)
            # Attention of other libraries returns its weights too.
            if type(out) in (tuple, list) and isinstance(out[0], Tensor):
                return type(out)((visit(event, out[0]), *out[1:]))
            return None

        return hook

    try:
        for event, (path, of_input) in events.items():
            if of_input:
                handle = modules[path].register_forward_pre_hook(before(event))
            else:
                handle = modules[path].register_forward_hook(after(event))
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_torch(
    run: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    events: Mapping[str, tuple[str, bool]],
    images: Tensor,
    cotangent: Cotangent,
    wanted: Wanted,
    parameters: Mapping[str, Tensor],
) -> Trace:
    """Run a torch network forward and backward, and record it.

    `run` is given the images and calls the module; `parameters` are those whose
    gradients are wanted, by the name that they are to have.
    """
    trace = Trace([IMAGES])
    seen: dict[str, Tensor] = {}

    def visit(event: str, x: Tensor) -> Tensor:
        trace.order.append(event)
        if not wanted(event) or not x.is_floating_point():
            return x
        # A copy of its own, so that its gradient is that of this use alone, and what
        # works in place further on does not reach it.
        x = x.clone()
        seen[event] = x
        return x.clone()

    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), watching_torch(module, events, visit):
        logits = run(images)
    trace.order.append(LOGITS)
    dlogits = cotangent(_numpy(logits))
    leaves = {IMAGES: images, **seen}
    asked = [*leaves.values(), *parameters.values()]
    grads = _gradients(logits, asked, torch.from_numpy(dlogits))
    arrays = [None if grad is None else _numpy(grad) for grad in grads]
    found = dict(zip(leaves, arrays[: len(leaves)], strict=True))
    trace.backward = {n: a for n, a in found.items() if a is not None}
    trace.backward[LOGITS] = dlogits
    found = dict(zip(parameters, arrays[len(leaves) :], strict=True))
    trace.parameters = {n: a for n, a in found.items() if a is not None}
    trace.forward = {n: _numpy(x) for n, x in seen.items()}
    trace.forward |= {IMAGES: _numpy(images), LOGITS: _numpy(logits)}
    return trace


def _gradients(
    logits: Tensor, leaves: list[Tensor], dlogits: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the leaves; None where there is none."""
    if not logits.requires_grad:
        return (None,) * len(leaves)
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad(
        logits, asked, dlogits.to(logits), allow_unused=True, materialize_grads=False
    )
    by_id = {id(leaf): grad for leaf, grad in zip(asked, found, strict=True)}
    return tuple(by_id.get(id(leaf)) for leaf in leaves)


def _numpy(x: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x.detach().cpu().numpy()
    # Tensors that share memory would change with each other.
    return np.array(array)
