"""How the two sides of a pair are run: one function a kind of thing.

Each takes a pair and a case and returns the `Problem`: the numbers, the candidate as
``inputs -> outputs, vjp`` and the reference as a function of tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.masks import TorchMasks
from parity.pair import Arrays, Candidate, Pair, Problem, Vjp
from parity.strategies import Case, numbers, parameter


def module_problem(pair: Pair, case: Case) -> Problem:
    """Compare two modules: ``config`` holds the constructor's arguments, ``x`` goes in.

    With ``masked`` in the configuration both get the same dropout masks.
    """
    config = dict(case.config)
    masked = config.pop("masked", False)
    module = pair.load_candidate()(**config)
    twin = pair.load_reference()(**config).train(masked)
    parameters = parameters_of(module, case.seed)
    numpy_options: dict[str, Any] = {}
    torch_options: dict[str, Any] = {}
    if masked:
        from vit_numpy.masks import KeyedMasks

        numpy_options["masks"] = KeyedMasks(case.seed)
        torch_options["masks"] = TorchMasks(numpy_options["masks"])
    return Problem(
        inputs={"x": numbers(case, "x")} | parameters,
        candidate=module_candidate(module, **numpy_options),
        function=module_function(twin, **torch_options),
        parameters=frozenset(parameters),
    )


def parameters_of(module: Any, seed: int) -> Arrays:
    """Return random numbers for every parameter of a module of `vit_numpy`."""
    return {
        name: parameter(seed, name, array.shape)
        for name, array in module.named_parameters()
    }


def module_candidate(module: Any, **options: Any) -> Candidate:
    """Run a module of `vit_numpy`; its parameters are the inputs themselves."""

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        x = inputs["x"]
        module.to(x.dtype)
        bind(module, {name: inputs[name] for name in inputs if name != "x"})
        out, cache = module.forward(x, **options)

        def vjp(cotangents: Arrays) -> Arrays:
            dx, gradients = module.backward(cotangents["out"], cache)
            result: Arrays = {"x": dx} | gradients
            return result

        return {"out": out}, vjp

    return candidate


def bind(module: Any, parameters: Arrays) -> None:
    """Make these arrays, not copies of them, the parameters of a NumPy module."""
    owners = dict(module.named_modules())
    for path, array in parameters.items():
        owner, _, name = path.rpartition(".")
        setattr(owners[owner], name, array)


def module_function(module: torch.nn.Module, **options: Any) -> Any:
    """Return a module as a function of ``x`` and its parameters by name."""
    buffers = dict(module.named_buffers())

    def function(x: Tensor, **parameters: Tensor) -> Tensor:
        state = parameters | {n: b.to(x.dtype) for n, b in buffers.items()}
        out: Tensor = torch.func.functional_call(module, state, (x,), options)
        return out

    return function
