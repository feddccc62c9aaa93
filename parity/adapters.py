"""How the two sides of a pair are run: one function a kind of thing.

Each takes a pair and a case and returns the `Problem`: the numbers, the candidate as
``inputs -> outputs, vjp`` and the reference as a function of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from inspect import signature
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.bounds import register_decomposition
from parity.bounds.vmapped import gradients, watch
from parity.masks import TorchMasks
from parity.pair import Arrays, Candidate, Pair, Problem, Vjp, construct, load
from parity.strategies import Array, Case, generator, numbers, parameter


def _norms(
    tensors: Sequence[Tensor], ord: float = 2, dtype: torch.dtype | None = None
) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, ord) for tensor in tensors]


# What `torch.nn.utils.get_total_norm` calls, and with it our `clip_grad_norm`.
register_decomposition("_foreach_norm", _norms)


def module_problem(pair: Pair, case: Case) -> Problem:
    """Compare two modules: ``config`` holds the constructor's arguments, ``x`` goes in.

    With ``masked`` in the configuration both get the same dropout masks.
    """
    config = dict(case.config)
    masked = config.pop("masked", False)
    module = construct(pair.load_candidate(), config)
    twin = construct(pair.load_reference(), config).train(masked)
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
        inference=module_inference(module, **numpy_options),
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
            dy = cotangents["out"]
            dx, gradients = module.backward(dy, cache)
            _check_apart(gradients)
            accepted = signature(module.backward).parameters
            if "input_grad" in accepted:
                _check_without_input(module, dy, cache, gradients)
            if "first_layer" in accepted:
                _check_sparing(module, x, options, dy, cache, gradients)
            result: Arrays = {"x": dx} | gradients
            return result

        return {"out": out}, vjp

    return candidate


def _check_without_input(
    module: Any, dy: Array, cache: Any, gradients: Mapping[str, Array]
) -> None:
    """Raise unless a backward that spares the input's gradient gives the others."""
    dx, alone = module.backward(dy, cache, input_grad=False)
    if dx is not None:
        raise ValueError("backward with input_grad=False must return None first")
    _check_same(alone, gradients, "with input_grad=False")


def _check_sparing(
    module: Any,
    x: Array,
    options: Mapping[str, Any],
    dy: Array,
    cache: Any,
    gradients: Mapping[str, Array],
) -> None:
    """Raise unless what spares a model memory and time changes no gradient.

    Blocks are recomputed, gradients handed over, and layers below the first that is
    trained left out.
    """
    layer_of = load("vit_numpy.optim:layer_of")
    depth = len(module.blocks)
    module.recompute = True
    _, small = module.forward(x, **options)
    module.recompute = False
    inputs_alone = load("vit_numpy.model:RecomputedCache")
    for blocks, expected in ((cache.c_blocks, False), (small.c_blocks, True)):
        if any(isinstance(block, inputs_alone) != expected for block in blocks):
            raise ValueError("a cache must hold blocks' inputs alone iff it is told to")
    for first in range(1, depth + 2):
        handed: Arrays = {}
        dx, kept = module.backward(dy, small, first_layer=first, sink=handed.update)
        if dx is not None or kept:
            raise ValueError(f"backward from layer {first} into a sink must keep none")
        trained = {n: g for n, g in gradients.items() if layer_of(n, depth) >= first}
        _check_same(handed, trained, f"recomputed and from layer {first} on")


def _check_same(
    got: Mapping[str, Array], expected: Mapping[str, Array], how: str
) -> None:
    if got.keys() != expected.keys():
        raise ValueError(
            f"backward {how} must give the gradients of {', '.join(expected)}, "
            f"got {', '.join(got)}"
        )
    for name, gradient in expected.items():
        if not np.array_equal(got[name], gradient, equal_nan=True):
            raise ValueError(f"backward {how} gives another gradient of {name}")


def _check_apart(gradients: Mapping[str, Array]) -> None:
    """Raise if two gradients share memory: clipping, which is in place, would tell."""
    for (name, one), (other, another) in combinations(gradients.items(), 2):
        if np.shares_memory(one, another):
            raise ValueError(
                f"the gradients of {name} and {other} must not share memory"
            )


def module_inference(module: Any, **options: Any) -> Callable[[Arrays], Arrays]:
    """Run a module of `vit_numpy` without caches; its parameters are bound already."""

    def inference(inputs: Arrays) -> Arrays:
        with load("vit_numpy.module:no_grad")():
            out, cache = module.forward(inputs["x"], **options)
        return {"out": out} if cache is None else {"out": out, "cache": out}

    return inference


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


def intermediates_problem(pair: Pair, case: Case) -> Problem:
    """Compare what two models show of themselves, forward and backward.

    Their named intermediates, the gradients of these, and the attention weights; for
    odd seeds with blocks that are recomputed.
    """
    model = construct(pair.load_candidate(), case.config)
    model.recompute = bool(case.seed % 2)
    twin = _Shown(construct(pair.load_reference(), case.config).eval())
    parameters = parameters_of(model, case.seed)
    classes = case.config["config"]["num_classes"]
    upstream = generator(case.seed, "upstream").standard_normal(
        (case.shapes["x"][0], classes)
    )

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        x, dlogits = inputs["x"], inputs["upstream"]
        model.to(x.dtype)
        bind(model, {name: inputs[name] for name in parameters})
        shown = dict(model.intermediates(x))
        _, cache = model.forward(x)
        backward: Arrays = {}
        model.backward(dlogits, cache, consume=True, record=backward)
        shown |= {f"gradient of {name}": dy for name, dy in backward.items()}
        for i, weights in enumerate(model.attention_weights(x)):
            shown[f"attention_weights {i}"] = weights
        return shown, lambda cotangents: {}

    def function(
        x: Tensor, upstream: Tensor, **parameters: Tensor
    ) -> dict[str, Tensor]:
        state = {f"model.{name}": value for name, value in parameters.items()}
        state |= {name: b.to(x.dtype) for name, b in twin.named_buffers()}
        shown: dict[str, Tensor] = torch.func.functional_call(
            twin, state, (x, upstream)
        )
        return shown

    return Problem(
        inputs={"x": numbers(case, "x"), "upstream": upstream} | parameters,
        candidate=candidate,
        function=function,
        parameters=frozenset(parameters),
        differentiate=False,
    )


class _Shown(torch.nn.Module):
    """A model of `vit_torch` as a function to what it shows of itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            shown: dict[str, Tensor] = self.model.intermediates(watch(x))
            found = gradients(shown["logits"], list(shown.values()), upstream)
        result = {name: value.detach() for name, value in shown.items()}
        result |= {
            f"gradient of {name}": gradient
            for name, gradient in zip(shown, found, strict=True)
        }
        for i, weights in enumerate(self.model.attention_weights(x)):
            result[f"attention_weights {i}"] = weights
        return result


def loss_problem(pair: Pair, case: Case) -> Problem:
    """Compare two losses: ``targets`` in the configuration says of which kind.

    With ``elsewhere`` so many images of the batch are not among the outputs.
    """
    config = dict(case.config)
    kind, elsewhere = config.pop("targets"), config.pop("elsewhere", 0)
    loss = construct(pair.load_candidate(), config)
    twin = construct(pair.load_reference(), config)
    outputs = numbers(case, "x")
    batch_size = len(outputs) + elsewhere if elsewhere else None
    rng = generator(case.seed, "targets")
    targets: Array
    if kind == "labels":
        targets = rng.integers(0, outputs.shape[1], len(outputs))
    elif kind == "soft":
        targets = rng.dirichlet(np.ones(outputs.shape[1]), len(outputs))
        # They need not sum to 1, and where they do a factor goes unseen.
        targets *= rng.uniform(0.5, 1.5, (len(outputs), 1))
    else:
        targets = numbers(replace(case, seed=case.seed + 1), "x")

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        arguments = (inputs["x"], inputs["targets"], batch_size)
        value, cache = loss.forward(*arguments)
        called = loss(*arguments)
        return {"out": value, "called": called}, lambda u: {"x": loss.backward(cache)}

    def function(x: Tensor, targets: Tensor) -> dict[str, Tensor]:
        value: Tensor = twin(x, targets, batch_size)
        return {"out": value, "called": value.detach()}

    return Problem(
        inputs={"x": outputs, "targets": targets},
        candidate=candidate,
        function=function,
        differentiate=frozenset({"x"}),
        cotangents={"out": np.array(1.0), "called": np.array(0.0)},
    )


def optimizer_problem(pair: Pair, case: Case) -> Problem:
    """Compare the parameters and the state of two optimizers after some steps.

    ``steps`` in the configuration is their number; the learning rate changes at each,
    as a schedule changes it. If it says ``grouped``, only ``weight`` decays, and the
    others have a share of the learning rate; else all are alike.
    """
    config = dict(case.config)
    steps, grouped = config.pop("steps"), config.pop("grouped", True)
    decay = config.pop("weight_decay") if grouped else config["weight_decay"]
    names = tuple(case.shapes)
    inputs: Arrays = {
        name: parameter(case.seed, name, case.shapes[name]) for name in names
    }
    for step in range(steps):
        for name in names:
            drawn = numbers(replace(case, seed=case.seed + 1 + step), name)
            inputs[f"gradient{step}.{name}"] = drawn

    def groups(parameters: dict[str, Any]) -> Any:
        if not grouped:
            return iter(parameters.items())
        return [
            {
                "names": [name],
                "params": [value],
                "weight_decay": decay if name == "weight" else 0.0,
                "lr_scale": 1.0 if name == "weight" else 0.25,
            }
            for name, value in parameters.items()
        ]

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        parameters = {name: inputs[name].copy() for name in names}
        optimizer = pair.load_candidate()(groups(parameters), **config)
        rate = optimizer.lr
        for step in range(steps):
            optimizer.lr = rate / (1 + step)
            optimizer.step({name: inputs[f"gradient{step}.{name}"] for name in names})
        state = optimizer.state_dict()
        counted = state.pop("step")
        # Not compared: a number in float64 whatever the parameters are.
        if counted.dtype != np.float64 or counted != steps:
            raise ValueError(
                f"state must hold float64 {steps} as its step, got {counted!r}"
            )
        return parameters | state, lambda cotangents: {}

    def function(**inputs: Tensor) -> dict[str, Tensor]:
        parameters = {name: inputs[name].clone() for name in names}
        optimizer = pair.load_reference()(groups(parameters), **config)
        rate = optimizer.lr
        for step in range(steps):
            optimizer.lr = rate / (1 + step)
            for name in names:
                parameters[name].grad = inputs[f"gradient{step}.{name}"]
            optimizer.step()
        state: dict[str, Tensor] = optimizer.state_dict()
        del state["step"]
        return parameters | state

    return Problem(inputs, candidate, function, differentiate=False)


def groups_problem(pair: Pair, case: Case) -> Problem:
    """Compare two optimizers on a network, its parameters grouped by their names.

    The NumPy side has them in one flat buffer if the configuration says ``flat``, in
    memory that processes share where the seed is odd, and saves its state and goes on
    from it after every step if it says ``resumed``.
    """
    config = dict(case.config)
    kind, arguments = config.pop("network")
    steps, flat, resumed = (config.pop(name) for name in ("steps", "flat", "resumed"))
    options = ("weight_decay", "layer_decay", "frozen")
    grouping = {name: config.pop(name) for name in options if name in config}
    placed = {"shared": True} if case.seed % 2 else {}
    module = construct(load(f"vit_numpy.{kind}"), arguments)
    twin = construct(load(f"vit_torch.{kind}"), arguments)
    parameters = parameters_of(module, case.seed)
    inputs = dict(parameters)
    for step in range(steps):
        for name, value in parameters.items():
            rng = generator(case.seed + 1 + step, name)
            inputs[f"gradient{step}.{name}"] = rng.standard_normal(value.shape)

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        optim = import_module("vit_numpy.optim")
        dtype = next(iter(inputs.values())).dtype
        module.to(dtype)
        bind(module, {name: inputs[name].copy() for name in parameters})
        buffer = optim.flatten_parameters(module, **placed) if flat else None
        is_shared = import_module("vit_numpy.workers").is_shared
        if buffer is not None and is_shared(buffer) != bool(placed):
            raise ValueError(f"shared memory must be used if {placed} says so alone")
        groups = optim.param_groups(module, **grouping)
        expected = import_module("vit_torch.optim").param_groups(twin, **grouping)
        for ours, theirs in zip(groups, expected, strict=True):
            if ours["names"] != theirs["names"]:
                raise ValueError(
                    f"a group must be of {theirs['names']}, got {ours['names']}"
                )
        trained = [name for group in groups for name in group["names"]]
        optimizer = pair.load_candidate()(groups, **config)
        for step in range(steps):
            optimizer.step({n: inputs[f"gradient{step}.{n}"] for n in trained})
            if resumed:
                state = {n: a.copy() for n, a in optimizer.state_dict().items()}
                optimizer = pair.load_candidate()(groups, **config)
                optimizer.load_state_dict(state)
        outputs = module.state_dict()
        if buffer is not None:
            outputs["buffer"] = buffer
        return outputs, lambda cotangents: {}

    def function(**inputs: Tensor) -> dict[str, Tensor]:
        optim = import_module("vit_torch.optim")
        tensors = {name: inputs[name].clone() for name in parameters}
        groups = [
            group | {"params": [tensors[name] for name in group["names"]]}
            for group in optim.param_groups(twin, **grouping)
        ]
        optimizer = pair.load_reference()(groups, **config)
        for step in range(steps):
            for name, tensor in tensors.items():
                tensor.grad = inputs[f"gradient{step}.{name}"]
            optimizer.step()
        if not flat:
            return tensors
        # In the buffer the matrices and kernels, which decay, come first.
        first = [n for n in tensors if n.endswith(".weight") and parameters[n].ndim > 1]
        order = first + [name for name in tensors if name not in first]
        return tensors | {"buffer": torch.cat([tensors[n].reshape(-1) for n in order])}

    return Problem(inputs, candidate, function, differentiate=False)


def clip_problem(pair: Pair, case: Case) -> Problem:
    """Compare two clippings of gradients, which they scale in place."""
    names = tuple(case.shapes)

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        gradients = {name: inputs[name].copy() for name in names}
        norm = pair.load_candidate()(gradients, **case.config)
        return gradients | {"norm": norm}, lambda cotangents: {}

    def function(**inputs: Tensor) -> dict[str, Tensor]:
        gradients = {name: inputs[name].clone() for name in names}
        norm = pair.load_reference()(gradients, **case.config)
        return gradients | {"norm": norm}

    inputs = {name: numbers(case, name) for name in names}
    return Problem(inputs, candidate, function, differentiate=False)


def function_problem(pair: Pair, case: Case) -> Problem:
    """Compare two functions of one array; PyTorch's gets the configuration too.

    The candidate's backward is the function ``<its name>_backward(dy, y)`` beside it,
    or it returns its derivative as well; else only outputs are compared. With ``sign``
    in the configuration all numbers have that sign.
    """
    config = dict(case.config)
    x = numbers(case, "x")
    if sign := config.pop("sign", 0):
        x = sign * np.abs(x)
    forward = pair.load_candidate()
    backward = load(f"{pair.candidate}_backward", None)
    twin = pair.load_reference()

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        y = forward(inputs["x"])
        if isinstance(y, tuple):
            out, derivative = y
            return {"out": out}, lambda u: {"x": u["out"] * derivative}
        return {"out": y}, lambda u: {"x": backward(u["out"], y)}

    def function(x: Tensor) -> Tensor:
        out: Tensor = twin(x, **config)
        return out

    return Problem(
        {"x": x},
        candidate,
        function,
        differentiate=backward is not None or isinstance(forward(x), tuple),
    )


def scores_problem(pair: Pair, case: Case) -> Problem:
    """Compare the weights of queries and keys; ``shift`` moves the logits of a row."""
    k = numbers(case, "x")
    q = numbers(replace(case, seed=case.seed + 1), "x")
    k[..., 0] = 1
    q[..., 0, 0] = case.config["shift"]

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        log2_e = load("vit_numpy.functional:LOG2_E")
        e, total = pair.load_candidate()(inputs["q"] * log2_e, inputs["k"])
        return {"out": e / total}, lambda cotangents: {}

    def function(q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -1)

    return Problem({"q": q, "k": k}, candidate, function, differentiate=False)


def table_problem(pair: Pair, case: Case) -> Problem:
    """Compare two functions that compute a table from whole numbers, in float64."""

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        return {"out": pair.load_candidate()(**case.config)}, lambda cotangents: {}

    def function() -> Tensor:
        table: Tensor = pair.load_reference()(**case.config)
        return table

    return Problem({}, candidate, function, differentiate=False, batched=False)


def schedule_problem(pair: Pair, case: Case) -> Problem:
    """Compare a schedule's factors with the textbook formula, for all steps at once."""
    schedule = pair.load_candidate()(**case.config)
    formula = pair.load_reference()

    def candidate(inputs: Arrays) -> tuple[Arrays, Vjp]:
        factors = [schedule.factor(int(step)) for step in inputs["step"]]
        return {"out": np.array(factors)}, lambda cotangents: {}

    def function(step: Tensor) -> Tensor:
        factors: Tensor = formula(step, **case.config)
        return factors

    steps: Array = np.arange(case.shapes["step"][0])
    return Problem(
        {"step": steps}, candidate, function, differentiate=False, batched=False
    )


def schedule_formula(
    step: Tensor,
    warmup: int = 0,
    decay: str = "constant",
    total: int | None = None,
    drops: Sequence[int] = (),
    drop_factor: float = 0.1,
    floor: float = 0.0,
) -> Tensor:
    """Return the factor of the learning rate at each of the steps, which are integers.

    Written without a look at ``schedule.py``, whose two copies are the same file.
    """
    one = torch.ones(step.shape, dtype=torch.float64)
    factor = torch.where(step < warmup, (step + 1) * one / max(warmup, 1), one)
    if decay == "step":
        passed = (step[:, None] >= torch.tensor(list(drops))).sum(1)
        return factor * torch.pow(drop_factor * one, passed)
    if decay == "constant" or total is None:
        return factor
    inside = torch.clamp(step, warmup, total) - warmup
    elapsed = inside * one / (total - warmup)
    if decay == "linear":
        return factor * (floor * elapsed + (1 - elapsed))
    return factor * (floor + (1 - floor) * torch.cos(elapsed * (math.pi / 2)).square())
