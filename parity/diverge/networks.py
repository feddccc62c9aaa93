"""The networks that are compared: of either twin, or anybody's, with a map of names."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity.diverge.trace import (
    LOGITS,
    Arrays,
    Cotangent,
    Trace,
    Wanted,
    event_of,
    input_of,
    trace_numpy,
    trace_torch,
    watched_layers,
    watching_torch,
)
from parity.masks import TorchMasks
from parity.names import unknown_name
from parity.training import BACKENDS
from parity.transfer import copy_weights, weights

Names = Mapping[str, Mapping[str, str]]
TABLES = ("intermediates", "parameters")

# What a pattern of names leaves open.
_PLACE = re.compile(r"\{i\}|\*")


class Network(Protocol):
    """One of the sides of a comparison.

    Attributes
    ----------
    label : str
        What to call it.
    config : dict or None
        The fields of its `ViTConfig`, if it is a network of this project.
    preprocessing : dict or None
        `mean` and `std` that its file names.
    """

    label: str
    config: dict[str, Any] | None
    preprocessing: dict[str, Any] | None

    def parameters(self) -> Arrays:
        """Return a copy of the parameters, under this project's names."""
        ...

    def to(self, dtype: str) -> Network:
        """Return this network if it computes in `dtype`, or else a copy that does."""
        ...

    def trace(
        self,
        images: NDArray[Any],
        cotangent: Cotangent,
        wanted: Wanted,
        masks: Any = None,
    ) -> Trace:
        """Run forward and backward, and record the events that are wanted."""
        ...

    def twin(self) -> TorchNetwork | None:
        """Return a copy as PyTorch computes it, to take error bounds from."""
        ...


class NumpyNetwork:
    """A `vit_numpy.VisionTransformer`; see `Network`."""

    def __init__(
        self,
        model: Any,
        label: str = "vit_numpy",
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.label = label
        self.config: dict[str, Any] | None = model.config.to_dict()
        self.preprocessing = preprocessing

    def parameters(self) -> Arrays:
        """Return a copy of the parameters, under this project's names."""
        return weights(self.model)

    def to(self, dtype: str) -> NumpyNetwork:
        """Return this network if it computes in `dtype`, or else a copy that does."""
        if self.model.patch_embed.proj.weight.dtype == dtype:
            return self
        model = copy.deepcopy(self.model).to(dtype)
        return NumpyNetwork(model, self.label, self.preprocessing)

    def trace(
        self,
        images: NDArray[Any],
        cotangent: Cotangent,
        wanted: Wanted,
        masks: Any = None,
    ) -> Trace:
        """Run forward and backward, and record the events that are wanted."""
        return trace_numpy(self.model, images, cotangent, wanted, masks)

    def twin(self) -> TorchNetwork:
        """Return the network of `vit_torch` with these weights."""
        return _rebuilt(self.model.config.to_dict(), self.model, self.label)


def _rebuilt(config: Mapping[str, Any], source: Any, label: str) -> TorchNetwork:
    """Return a new network of `vit_torch` with the weights of another."""
    package = import_module("vit_torch")
    model = package.VisionTransformer(package.ViTConfig.from_dict(config))
    dtype = str(source.patch_embed.proj.weight.dtype).removeprefix("torch.")
    copy_weights(source, model.to(getattr(torch, dtype)))
    return TorchNetwork(model, label)


class TorchNetwork:
    """A torch module, or any function from images to logits; see `Network`.

    Parameters
    ----------
    model : torch.nn.Module or callable
    label : str
    preprocessing : dict, optional
    names : mapping, optional
        Tables `intermediates` and `parameters`: this project's name on the left, the
        module's own on the right (see `read_names`). Not needed for `vit_torch`, nor
        where the names are the same.
    """

    def __init__(
        self,
        model: Any,
        label: str = "torch",
        preprocessing: dict[str, Any] | None = None,
        names: Names | None = None,
    ) -> None:
        self.label = label
        self.preprocessing = preprocessing
        self.names = names
        self.model = model.eval() if isinstance(model, nn.Module) else _Called(model)
        config = getattr(model, "config", None)
        self.ours = type(model).__module__.startswith("vit_torch.")
        self.config = config.to_dict() if self.ours and config is not None else None
        self.events = self._events()
        self.own_parameters = self._named_parameters()

    def _events(self) -> dict[str, tuple[str, bool]]:
        if self.ours:
            layers = watched_layers(self.model)
            return {input_of(n): (n, True) for n in layers} | {
                event_of(n): (n, False) for n in layers
            }
        paths = [name for name, _ in self.model.named_modules() if name]
        events: dict[str, tuple[str, bool]] = {}
        for path in paths:
            if name := self._translated("intermediates", path):
                events |= {input_of(name): (path, True), name: (path, False)}
            if self.names and (
                name := self._translated("intermediates", f"{path}:input")
            ):
                events[name] = path, True
        for pattern, own in (self.names or {}).get("intermediates", {}).items():
            found = (_match(own, p + s) for p in paths for s in (":input", ""))
            if all(match is None for match in found):
                raise ValueError(
                    f"names: no layer of {self.label} is called {own!r}, which "
                    f"{pattern!r} stands for; it has {', '.join(paths[:5])}, …"
                )
        return events

    def _named_parameters(self) -> dict[str, str]:
        """Return the module's own name of each parameter."""
        return {
            name: own
            for own, _ in self.model.named_parameters()
            if (name := self._translated("parameters", own))
        }

    def _translated(self, table: str, own: str) -> str | None:
        if self.names is None:
            return own
        for pattern, theirs in self.names.get(table, {}).items():
            if (found := _match(theirs, own)) is not None:
                return _filled(pattern, found)
        return None

    def parameters(self) -> Arrays:
        """Return a copy of the parameters, under this project's names."""
        own = dict(self.model.named_parameters())
        return {
            name: np.array(own[path].detach().cpu().numpy())
            for name, path in self.own_parameters.items()
        }

    def to(self, dtype: str) -> TorchNetwork:
        """Return this network if it computes in `dtype`, or else a copy that does."""
        wanted = getattr(torch, dtype)
        if all(p.dtype == wanted for p in self.model.parameters()):
            return self
        model = copy.deepcopy(self.model).to(wanted)
        given = model.function if isinstance(model, _Called) else model
        return TorchNetwork(given, self.label, self.preprocessing, self.names)

    def trace(
        self,
        images: NDArray[Any],
        cotangent: Cotangent,
        wanted: Wanted,
        masks: Any = None,
    ) -> Trace:
        """Run forward and backward, and record the events that are wanted."""
        options = self._options(masks)
        own = dict(self.model.named_parameters())

        def run(x: Tensor) -> Tensor:
            try:
                return _logits(self.model(x, **options))
            except RuntimeError as error:
                raise ValueError(
                    f"{self.label} cannot be run on images of shape "
                    f"{tuple(x.shape)}: {error}; give it others with --images"
                ) from error

        return trace_torch(
            run,
            self.model,
            self.events,
            torch.from_numpy(np.ascontiguousarray(images)),
            cotangent,
            wanted,
            {name: own[path] for name, path in self.own_parameters.items()},
        )

    def function(
        self, wanted: list[str], masks: Any = None
    ) -> Callable[..., dict[str, Tensor]]:
        """Return the network as a function that `parity.bounds` can judge by.

        It takes `images`, parameters as ``'param:' + name`` and, for every event, zeros
        of its shape as ``'probe:' + event``: they are added to it, so that their
        gradient is the event's. It returns the events and the logits.
        """
        options = self._options(masks)
        buffers = dict(self.model.named_buffers())
        fixed = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name not in self.own_parameters.values()
        }
        events = {name: self.events[name] for name in wanted}

        def function(images: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
            outputs: dict[str, Tensor] = {}

            def visit(event: str, x: Tensor) -> Tensor:
                outputs[event] = x + inputs[f"probe:{event}"]
                return outputs[event]

            state = {
                own: inputs[f"param:{name}"]
                for name, own in self.own_parameters.items()
            }
            for name, value in (buffers | fixed).items():
                floating = value.is_floating_point()
                state[name] = value.detach().to(images.dtype) if floating else value
            with watching_torch(self.model, events, visit):
                out = torch.func.functional_call(self.model, state, (images,), options)
            return outputs | {LOGITS: _logits(out)}

        return function

    def twin(self) -> TorchNetwork | None:
        """Return a copy, or None for a function that is no module.

        Of this project's network a new one is built from its configuration, so that
        what was changed in this one by hand is not taken for the truth.
        """
        if isinstance(self.model, _Called):
            return None
        if not self.ours or self.config is None:
            return TorchNetwork(copy.deepcopy(self.model), self.label, names=self.names)
        return _rebuilt(self.config, self.model, self.label)

    def _options(self, masks: Any) -> dict[str, Any]:
        """Return what `forward` is given beside the images."""
        self.model.train(masks is not None)
        return {} if masks is None else {"masks": TorchMasks(masks)}


class _Called(nn.Module):
    """Any function from images to logits."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> (B, K)."""
        return self.function(images)


def as_network(
    thing: Any, label: str | None = None, names: Names | None = None
) -> Network:
    """Return a model of either twin, a torch module or a function as a `Network`.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if hasattr(thing, "trace") and hasattr(thing, "twin"):
        given: Network = thing
        return given
    kind = type(thing).__name__
    if type(thing).__module__.startswith("vit_numpy."):
        return NumpyNetwork(thing, label or "vit_numpy")
    if type(thing).__module__.startswith("vit_torch."):
        return TorchNetwork(thing, label or "vit_torch")
    if callable(thing):
        return TorchNetwork(thing, label or kind, names=names)
    raise TypeError(
        "a network must be a VisionTransformer, a torch module or a function from "
        f"images to logits, got {kind}"
    )


def open_network(spec: str, names: Names | None = None) -> Network:
    """Open what a command line names.

    Parameters
    ----------
    spec : str
        A checkpoint, opened by the backend that wrote it; ``numpy:`` or ``torch:`` and
        a checkpoint; or ``module:attribute``, a module, a function from images to
        logits, or one without arguments that makes either. The current folder is
        looked in for it.
    names : mapping, optional
        For ``module:attribute``: see `TorchNetwork`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such thing.
    """
    prefix, colon, rest = spec.partition(":")
    if prefix in BACKENDS and colon:
        return _open_checkpoint(spec, prefix, Path(rest))
    if not colon or Path(spec).exists():
        return _open_checkpoint(spec, None, Path(spec))
    return as_network(_imported(prefix, rest), spec, names)


def _open_checkpoint(label: str, backend: str | None, path: Path) -> Network:
    from parity.weights.files import read

    header = read(path).header
    backend = backend or header.get("backend", "numpy")
    package = import_module(f"vit_{backend if backend in BACKENDS else 'numpy'}")
    model = package.from_pretrained(path)
    preprocessing = header.get("preprocessing")
    if package.__name__ == "vit_numpy":
        return NumpyNetwork(model, label, preprocessing)
    return TorchNetwork(model, label, preprocessing)


def _imported(module: str, attribute: str) -> Any:
    """Return a model from a module of the user's."""
    sys.path.insert(0, "")
    try:
        thing: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ValueError(
            f"there is no file and no module {module!r}; give a checkpoint, or "
            "module:attribute"
        ) from None
    except Exception as error:
        raise ValueError(
            f"importing {module} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove("")
    for part in attribute.split("."):
        if not hasattr(thing, part):
            known = [n for n in vars(thing) if not n.startswith("_")]
            raise unknown_name(f"attribute of {module}", part, known)
        thing = getattr(thing, part)
    is_model = isinstance(thing, nn.Module) or hasattr(thing, "named_modules")
    if isinstance(thing, type) or (not is_model and not _takes_images(thing)):
        thing = thing()
    return thing


def _takes_images(function: Any) -> bool:
    """Tell a function of the images from one that makes a model."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return any(
        p.default is p.empty and p.kind not in kinds
        for p in inspect.signature(function).parameters.values()
    )


def read_names(path: Path) -> dict[str, dict[str, str]]:
    """Read a map of names, TOML or JSON.

    Two tables, `intermediates` and `parameters`, from this project's names to those of
    the other module. ``{i}`` stands for a number and ``*`` for the rest, the same on
    both sides; an intermediate is what the layer returns, or with ``:input`` behind its
    name what it is given::

        [intermediates]
        embedding = "encoder.dropout"
        "blocks.{i}" = "encoder.layers.encoder_layer_{i}"

        [parameters]
        "blocks.{i}.norm1.*" = "encoder.layers.encoder_layer_{i}.ln_1.*"

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not of this form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a TOML or JSON file")
    text = path.read_text("utf-8")
    try:
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(tables, dict):
        raise ValueError(f"{path} must hold the tables {' and '.join(TABLES)}")
    for key, table in tables.items():
        if key not in TABLES:
            raise unknown_name(f"table of {path}", key, TABLES)
        if not isinstance(table, dict) or not all(
            isinstance(value, str) for value in table.values()
        ):
            raise ValueError(f"{path}: [{key}] must hold a name for each name")
        for ours, theirs in table.items():
            if _PLACE.findall(ours) != _PLACE.findall(theirs):
                raise ValueError(
                    f"{path}: {{i}} and * must be the same on both sides of "
                    f"{ours!r} = {theirs!r}"
                )
    found: dict[str, dict[str, str]] = tables
    return found


def _match(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what ``{i}`` and ``*`` of a pattern stand for in a name, or None."""
    regex = re.escape(pattern).replace(r"\{i\}", r"(\d+)").replace(r"\*", "(.+)")
    found = re.fullmatch(regex, name)
    return None if found is None else found.groups()


def _filled(pattern: str, values: tuple[str, ...]) -> str:
    """Put what was matched into the places of another pattern, in order."""
    places = iter(values)
    return _PLACE.sub(lambda _: next(places), pattern)


def _logits(out: Any) -> Tensor:
    """Return the logits of what a module returned."""
    if isinstance(out, Tensor):
        return out
    if hasattr(out, "logits"):
        logits: Tensor = out.logits
        return logits
    first: Tensor = out[0]
    return first
