"""Differentiating inside a function that is run under `torch.vmap`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack


def watch(tensor: Tensor) -> Tensor:
    """Return ``tensor.requires_grad_()``, also under vmap."""
    if not functorch.is_batchedtensor(tensor):
        return tensor.requires_grad_()
    with temporarily_pop_interpreter_stack():
        _plain(tensor).requires_grad_()
    return tensor


def gradients(
    output: Tensor, tensors: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """Return ``torch.autograd.grad(output, tensors, cotangent)``, also under vmap.

    PyTorch refuses that call inside `torch.vmap`, whose tensors have no graph of their
    own. Those that they wrap do, with the copies along one more axis; and as the copies
    are independent, their gradients come out apart along it.

    Parameters
    ----------
    output : Tensor
    tensors : sequence of Tensor
        What `output` was computed from, with `torch.enable_grad`, from what is
        watched (`watch`).
    cotangent : Tensor
        Of the shape of `output`.

    Returns
    -------
    list of Tensor
        Zeros for what `output` does not depend on.
    """
    if not functorch.is_batchedtensor(output):
        return list(
            torch.autograd.grad(output, tensors, cotangent, materialize_grads=True)
        )
    level = functorch.maybe_get_level(output)
    axis = functorch.maybe_get_bdim(output)
    plain = [_plain(tensor) for tensor in tensors]
    upstream = _plain(cotangent)
    if functorch.is_batchedtensor(cotangent):
        upstream = upstream.movedim(functorch.maybe_get_bdim(cotangent), axis)
    else:
        upstream = upstream.unsqueeze(axis).expand_as(_plain(output))
    with temporarily_pop_interpreter_stack():
        found = torch.autograd.grad(
            _plain(output), plain, upstream, materialize_grads=True
        )
    return [
        functorch._add_batch_dim(gradient, functorch.maybe_get_bdim(tensor), level)
        if functorch.is_batchedtensor(tensor)
        else gradient
        for tensor, gradient in zip(tensors, found, strict=True)
    ]


def _plain(tensor: Tensor) -> Tensor:
    """Return the tensor that vmap's wraps, or the tensor itself."""
    if functorch.is_batchedtensor(tensor):
        unwrapped: Tensor = functorch.get_unwrapped(tensor)
        return unwrapped
    return tensor
