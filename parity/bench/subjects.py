"""What is timed: a step of training, a batch of inference, or a layer, by backend.

Each builder runs in a process of its own and imports its backend there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_numpy.config import ViTConfig

Call = Callable[[], object]

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01


class NotTheSameError(Exception):
    """The library has no such network, or calls another one by its name."""


def batch(config: ViTConfig, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return drawn images (B, C, H, W), and labels (B,)."""
    rng = np.random.default_rng(0)
    shape = (size, config.in_chans, *config.image_hw)
    images = rng.standard_normal(shape, np.float32)
    return images, rng.integers(0, max(config.num_classes, 1), size)


def build(
    backend: str, what: str, config: ViTConfig, size: int, processes: int | None = 1
) -> dict[str, Call]:
    """Return what to call, by name: `'step'`, or the layers' names.

    vit_numpy's training step is shared by so many processes; by None, as many as pay.

    Raises
    ------
    NotTheSameError
        If the backend cannot run this network.
    ModuleNotFoundError
        If it is not installed.
    """
    if what == "layers":
        from parity.bench.layers import numpy_layers, torch_layers

        return (numpy_layers if backend == "numpy" else torch_layers)(config, size)
    if backend == "numpy":
        return {"step": numpy_step(what, config, size, processes)}
    if backend == "jax":
        from parity.bench.jax_twin import jax_step

        return {"step": jax_step(what, config, size)}
    name, _, compiled = backend.partition("-")
    return {"step": torch_step(name, what, config, size, bool(compiled))}


def numpy_step(what: str, config: ViTConfig, size: int, processes: int | None) -> Call:
    """Return a step of vit_numpy: the whole of `Trainer.step`, or `evaluate`."""
    import vit_numpy
    from vit_numpy.optim import flatten_parameters
    from vit_numpy.workers import usual_processes

    model = vit_numpy.VisionTransformer(config)
    vit_numpy.init_weights(model, 0)
    images, labels = batch(config, size)
    if what == "infer":
        return lambda: vit_numpy.evaluate(model, images)
    if processes is None:
        processes = usual_processes(model)
    flatten_parameters(model, shared=processes > 1)
    groups = vit_numpy.param_groups(model, WEIGHT_DECAY)
    optimizer = vit_numpy.AdamW(groups, LEARNING_RATE)
    trainer = vit_numpy.Trainer(model, optimizer, processes=processes)
    return lambda: trainer.step(images, labels)


def torch_step(
    library: str, what: str, config: ViTConfig, size: int, compiled: bool
) -> Call:
    """Return a step of a torch model: a bare loop, with torch's fastest of each part.

    It measures less than vit_numpy's does: no accuracy, and no norm of the gradients.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if library == "torch":
        import vit_torch

        own_config = vit_torch.ViTConfig.from_dict(config.to_dict())
        model: torch.nn.Module = vit_torch.VisionTransformer(own_config)
        vit_torch.init_weights(model, 0)
    else:
        from parity.bench.peers import build_peer

        model = build_peer(library, config)
    own_count = parameter_count(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != own_count:
        raise NotTheSameError(f"it has {count} parameters and not {own_count}")
    numpy_images, numpy_labels = batch(config, size)
    images, labels = torch.from_numpy(numpy_images), torch.from_numpy(numpy_labels)
    model.train(what == "train")
    forward: Callable[..., Any] = torch.compile(model) if compiled else model
    if what == "infer":

        def infer() -> object:
            with torch.inference_mode():
                return logits(forward(images))

        return infer
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(logits(forward(images)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def logits(output: Any) -> Any:
    """Return the logits, which Hugging Face's models wrap."""
    return getattr(output, "logits", output)


def load(backend: str) -> None:
    """Import what the backend needs, so that what it then uses can be told apart."""
    if backend in ("numpy", "jax"):
        import_module("vit_numpy")
    if backend == "jax":
        import_module("jax")
    elif backend != "numpy":
        import_module("vit_torch")
        library = backend.partition("-")[0]
        if library != "torch":
            import_module("vit_torch._torchvision").import_torchvision()
            import_module(library)


def parameter_count(config: ViTConfig) -> int:
    """Return the number of parameters, from the model of vit_numpy."""
    from vit_numpy import VisionTransformer

    model = VisionTransformer(config)
    return sum(math.prod(p.shape) for _, p in model.named_parameters())


def matmul_rate(backend: str, side: int = 2048) -> float:
    """Return the fastest of ten float32 matrix products, in operations a second."""
    from time import perf_counter

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, side, side), np.float32)
    if backend == "numpy":
        out = np.empty_like(a)

        def product() -> object:
            return np.matmul(a, b, out=out)

    else:
        import torch

        x, y = torch.from_numpy(a), torch.from_numpy(b)
        z = torch.empty_like(x)

        def product() -> object:
            return torch.mm(x, y, out=z)

    best = math.inf
    for _ in range(10):
        start = perf_counter()
        product()
        best = min(best, perf_counter() - start)
    return 2 * side**3 / best
