"""Running a candidate of any kind: NumPy, PyTorch, JAX; function, object or module.

Each function here turns one kind into a `parity.pair.Candidate`, which takes arrays by
name and returns outputs by name with their vjp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.pair import Arrays, Candidate, Vjp
from parity.strategies import laid_out, trap

if TYPE_CHECKING:
    import torch

BACKENDS = ("numpy", "torch", "jax")


@dataclass(frozen=True)
class Signature:
    """Which arrays a candidate takes, and what it calls them.

    Attributes
    ----------
    inputs : tuple of str
        Given by position, in this order.
    parameters : mapping of str to str
        The reference's names, and the candidate's.
    differentiated : frozenset of str
        Inputs and parameters that a gradient is wanted of, by the reference's names.
    """

    inputs: tuple[str, ...]
    parameters: Mapping[str, str]
    differentiated: frozenset[str]

    def named(self, gradients: Any) -> Arrays:
        """Name what a backward returned, in any of the usual forms.

        A dict of gradients; (dx, dict of parameter gradients); a tuple in the order of
        inputs and parameters; or the gradient of the only input.

        Raises
        ------
        ValueError
            If there are more than inputs and parameters.
        """
        own = {theirs: ours for ours, theirs in self.parameters.items()}
        order = [*self.inputs, *self.parameters]
        # Gradients that nobody asked for; names that nobody knows stay, to be told of.
        unwanted = set(order) - self.differentiated
        if isinstance(gradients, Mapping):
            named = {own.get(str(k), str(k)): g for k, g in gradients.items()}
            return {k: np.asarray(g) for k, g in named.items() if k not in unwanted}
        if not isinstance(gradients, tuple | list):
            gradients = (gradients,)
        found: Arrays = {}
        for number, gradient in enumerate(gradients):
            if isinstance(gradient, Mapping):
                found |= self.named(gradient)
            elif gradient is not None:
                if number >= len(order):
                    raise ValueError(
                        "backward must return a gradient each of "
                        f"{', '.join(order)}, got {len(gradients)} gradients; return "
                        "them in that order, or as a dict by name"
                    )
                found[order[number]] = np.asarray(gradient)
        return {k: g for k, g in found.items() if k not in unwanted}


def adapt(
    candidate: Any,
    signature: Signature,
    *,
    backward: Callable[..., Any] | None = None,
    backend: str | None = None,
    device: Any = None,
) -> Candidate:
    """Return any candidate as ``inputs -> outputs, vjp``.

    Raises
    ------
    TypeError
        If its kind is not known.
    """
    backend = backend or _backend(candidate)
    if backend == "torch":
        return _torch(candidate, signature, device)
    if backend == "jax":
        return _jax(candidate, signature)
    if hasattr(candidate, "forward") and hasattr(candidate, "backward"):
        return _object(candidate, signature)
    if callable(candidate):
        return _function(candidate, signature, backward)
    raise TypeError(
        "candidate must be callable or have forward and backward, "
        f"got {type(candidate).__name__}"
    )


def _backend(candidate: Any) -> str:
    """Tell whose a candidate is by where its type, or it, was defined."""
    kinds = [*type(candidate).__mro__]
    if isinstance(candidate, type):
        kinds += candidate.__mro__
    roots = {kind.__module__.partition(".")[0] for kind in kinds}
    roots.add((getattr(candidate, "__module__", None) or "").partition(".")[0])
    if roots & {"torch"}:
        return "torch"
    return "jax" if roots & {"jax", "jaxlib"} else "numpy"


def _outputs(result: Any) -> Arrays:
    if isinstance(result, Mapping):
        return {name: np.asarray(out) for name, out in result.items()}
    if isinstance(result, tuple | list):
        return {f"out{i}": np.asarray(out) for i, out in enumerate(result)}
    return {"out": np.asarray(result)}


def _upstream(cotangents: Arrays) -> Any:
    """Return one cotangent as it is, and several as a tuple."""
    values = tuple(cotangents.values())
    return values[0] if len(values) == 1 else values


def _split(
    inputs: Mapping[str, Any], signature: Signature
) -> tuple[list[Any], dict[str, Any]]:
    return (
        [inputs[name] for name in signature.inputs],
        {theirs: inputs[ours] for ours, theirs in signature.parameters.items()},
    )


def _function(
    function: Callable[..., Any],
    signature: Signature,
    backward: Callable[..., Any] | None,
) -> Candidate:
    """Run a NumPy function, with a backward or with a vjp that it returns."""

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        given, parameters = _split(inputs, signature)
        result = function(*given, **parameters)
        if backward is not None:
            # What forward returns beside its output is the cache.
            if isinstance(result, tuple):
                out, *cache = result
                keep = tuple(cache)
            else:
                out, keep = result, (*given, *parameters.values())
            return _outputs(out), lambda cotangents: signature.named(
                backward(_upstream(cotangents), *keep)
            )
        if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
            out, pullback = result
            return _outputs(out), lambda cotangents: signature.named(
                pullback(_upstream(cotangents))
            )
        backend = _backend(result)
        return _outputs(result), lambda cotangents: _no_backward(backend)

    return candidate


def _no_backward(backend: str) -> Arrays:
    own = "" if backend == "numpy" else f'backend="{backend}", '
    raise TypeError(
        f"the candidate has no backward; give {own}backward=, return (y, vjp), or "
        "compare outputs alone with differentiate=False"
    )


def _object(original: Any, signature: Signature) -> Candidate:
    """Run an object with forward and backward, whether it caches or returns a cache."""

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        # Each forward has an object of its own, for one that caches on itself.
        layer = deepcopy(original)
        given, parameters = _split(inputs, signature)
        for path, array in parameters.items():
            _assign(layer, path, array)
        result = layer.forward(*given)
        # Two results are an output and its cache; one that caches returns an array.
        returned = isinstance(result, tuple) and len(result) == 2
        out, cache = (result[0], result[1:]) if returned else (result, ())

        def vjp(cotangents: Arrays) -> Arrays:
            gradients = layer.backward(_upstream(cotangents), *cache)
            found = signature.named(gradients)
            for ours, theirs in signature.parameters.items():
                if ours in signature.differentiated and ours not in found:
                    gradient = _kept_gradient(layer, theirs)
                    if gradient is not None:
                        found[ours] = np.array(gradient)
            return found

        return _outputs(out), vjp

    return candidate


def _owner(layer: Any, path: str) -> tuple[Any, str]:
    *parts, name = path.split(".")
    for part in parts:
        layer = layer[int(part)] if part.isdecimal() else getattr(layer, part)
    return layer, name


def _assign(layer: Any, path: str, array: Any) -> None:
    owner, name = _owner(layer, path)
    if not hasattr(owner, name):
        raise AttributeError(
            f"{type(owner).__name__} has no attribute {name!r}; map the reference's "
            "name to the candidate's with names={'weight': 'W'}"
        )
    setattr(owner, name, array)


def _kept_gradient(layer: Any, path: str) -> Any:
    """Find a gradient that backward left on the object."""
    owner, name = _owner(layer, path)
    kept = getattr(owner, "grads", None)
    if isinstance(kept, Mapping) and name in kept:
        return kept[name]
    for form in ("d{}", "d_{}", "grad_{}", "{}_grad"):
        if hasattr(owner, form.format(name)):
            return getattr(owner, form.format(name))
    return None


def _torch(function: Any, signature: Signature, device: Any) -> Candidate:
    """Run a module, an autograd.Function or a function of tensors, on any device."""
    import torch

    module = function if isinstance(function, torch.nn.Module) else None
    if module is not None and device is None:
        device = next((p.device for p in module.parameters()), None)
    if isinstance(function, type) and issubclass(function, torch.autograd.Function):
        function = function.apply

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        leaves = {}
        for name, x in inputs.items():
            leaf = _tensor(x, device)
            if module is not None and name in signature.parameters:
                # What torch.compile made asks for parameters, not for tensors.
                leaf = torch.nn.Parameter(leaf)
            leaves[name] = leaf.requires_grad_(name in signature.differentiated)
        given, parameters = _split(leaves, signature)
        with torch.enable_grad():
            if module is not None:
                buffers = copy_buffers(module, leaves.values(), device)
                result = torch.func.functional_call(
                    module, parameters | buffers, tuple(given)
                )
            else:
                result = function(*given, *parameters.values())
        tensors = result if isinstance(result, Mapping) else _sequence(result)
        _show_writes(leaves, inputs)

        def vjp(cotangents: Arrays) -> Arrays:
            upstream = {name: _tensor(dy, device) for name, dy in cotangents.items()}
            wanted = {n: x for n, x in leaves.items() if x.requires_grad}
            dependent = [name for name in cotangents if tensors[name].requires_grad]
            gradients: Sequence[Any] = [None] * len(wanted)
            if dependent:
                gradients = torch.autograd.grad(
                    [tensors[name] for name in dependent],
                    list(wanted.values()),
                    [upstream[name] for name in dependent],
                    retain_graph=True,
                    allow_unused=True,
                )
            _show_writes(leaves, inputs)
            _show_writes(upstream, cotangents)
            return {
                name: np.zeros(x.shape, inputs[name].dtype)
                if gradient is None
                else gradient.detach().cpu().numpy()
                for (name, x), gradient in zip(wanted.items(), gradients, strict=True)
            }

        return {n: out.detach().cpu().numpy() for n, out in tensors.items()}, vjp

    return candidate


def copy_buffers(
    module: torch.nn.Module, beside: Iterable[torch.Tensor], device: Any = None
) -> dict[str, torch.Tensor]:
    """Copy a module's buffers, as a module that is called may write into them.

    Those with a fraction are given the dtype of the tensors that they are used beside.
    """
    dtype = next((x.dtype for x in beside if x.is_floating_point()), None)
    buffers = {}
    for name, buffer in module.named_buffers():
        wanted = buffer.dtype
        if dtype is not None and buffer.is_floating_point():
            wanted = dtype
        elif dtype is not None and buffer.is_complex():
            wanted = dtype.to_complex()
        buffers[name] = buffer.detach().to(device, wanted, copy=True)
    return buffers


def _tensor(x: Any, device: Any) -> Any:
    """Return an array as a tensor with its strides, on the CPU in the same memory."""
    import torch

    x = np.asarray(x)
    if any(stride < 0 for stride in x.strides):
        # No tensor has such strides.
        x = laid_out(x, "gaps")
    shared = torch.from_numpy(x)
    if device is None or torch.device(device).type == "cpu":
        return shared
    reach = 1 + sum(
        (n - 1) * s for n, s in zip(shared.shape, shared.stride(), strict=True)
    )
    wide = torch.full((max(reach, 0),), trap(x.dtype), dtype=shared.dtype)
    there = wide.to(device).as_strided(shared.shape, shared.stride())
    return there.copy_(shared)


def _show_writes(tensors: Mapping[str, Any], arrays: Arrays) -> None:
    """Copy what was written into tensors of another memory to their arrays."""
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            arrays[name][...] = tensor.detach().cpu().numpy()


def _sequence(result: Any) -> dict[str, Any]:
    if isinstance(result, Sequence):
        return {f"out{i}": out for i, out in enumerate(result)}
    return {"out": result}


def _jax(function: Callable[..., Any], signature: Signature) -> Candidate:
    """Run a JAX function with its vjp, jitted or not, in the dtype of its inputs."""
    import jax

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        given, parameters = _split(inputs, signature)
        # By default JAX takes float64 for float32; what the user set stays otherwise.
        wide = any(np.asarray(x).dtype == np.float64 for x in inputs.values())

        def precision() -> AbstractContextManager[Any]:
            return jax.enable_x64(True) if wide else nullcontext()

        with precision():
            out, pullback = jax.vjp(function, *given, *parameters.values())
        outputs = _outputs(out)

        def vjp(cotangents: Arrays) -> Arrays:
            # A pullback refuses any dtype but its output's, which may be the mistake.
            sent = {n: dy.astype(outputs[n].dtype) for n, dy in cotangents.items()}
            named = isinstance(out, Mapping)
            with precision():
                gradients = pullback(sent if named else _upstream(sent))
            return signature.named(gradients)

        return outputs, vjp

    return candidate
