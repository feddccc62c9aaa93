"""Variants of what goes in: weights in another layout, tensors in another order.

The reference itself stays as it is; it is given the changed tensor, and its gradient
flows back through the change. So a wrong layout is found in forward and backward alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayoutVariant:
    """Inputs that are read in another layout.

    Attributes
    ----------
    cause, detail : str
    changes : mapping of str to callable
        By name of the input.
    """

    cause: str
    detail: str
    changes: Mapping[str, Change]


def layouts(
    inputs: Mapping[str, Tensor], parameters: Iterable[str], heads: Iterable[int]
) -> Iterator[LayoutVariant]:
    """Yield the layouts that these inputs could be mistaken for."""
    # In the order of the inputs: that of a set differs from run to run.
    known = set(parameters)
    parameters = [name for name in inputs if name in known]
    for name in parameters:
        x = inputs[name]
        if x.ndim == 2:
            yield from _matrix(name, x)
        elif x.ndim == 4:
            yield from _kernel(name, x)
    yield from _every_matrix({name: inputs[name] for name in parameters})
    yield from _packings(inputs, known, sorted(heads))
    for name, x in inputs.items():
        if name not in known and x.is_floating_point() and x.ndim > 1:
            yield from _transposed_input(name, x)


def _matrix(name: str, x: Tensor) -> Iterator[LayoutVariant]:
    rows, columns = x.shape
    if rows == columns > 1:
        yield LayoutVariant("weight-transposed", name, {name: lambda w: w.mT})
    elif min(rows, columns) > 1:
        yield LayoutVariant(
            "weight-transposed",
            f"{name} read as {columns} x {rows}",
            {name: lambda w: w.reshape(columns, rows).mT},
        )


def _every_matrix(parameters: Mapping[str, Tensor]) -> Iterator[LayoutVariant]:
    matrices = {name: w for name, w in parameters.items() if w.ndim == 2}
    if len(matrices) > 1:
        read = {name: _read_transposed(w) for name, w in matrices.items()}
        yield LayoutVariant("weight-transposed", "every matrix", read)


def _read_transposed(w: Tensor) -> Change:
    rows, columns = w.shape
    return lambda x: x.reshape(columns, rows).mT


def _kernel(name: str, x: Tensor) -> Iterator[LayoutVariant]:
    out, chans, height, width = x.shape

    def order(*axes: int) -> Change:
        """Read the flattened kernel as if its axes were in another order."""
        shape = [(chans, height, width)[a] for a in axes]
        back = [axes.index(a) + 1 for a in range(3)]
        return lambda w: w.reshape(out, *shape).permute(0, *back)

    def written(*axes: int) -> Change:
        """Multiply by features that are flattened with their axes in another order."""
        return lambda w: w.permute(0, *(a + 1 for a in axes)).reshape(w.shape)

    for axes, said in (
        ((1, 2, 0), "(row, column, channel)"),
        ((2, 1, 0), "(column, row, channel)"),
        ((0, 2, 1), "(channel, column, row)"),
        ((1, 0, 2), "(row, channel, column)"),
    ):
        detail = f"flattened as {said}"
        yield LayoutVariant("patch-order", f"a patch {detail}", {name: order(*axes)})
        yield LayoutVariant("patch-order", f"{name} {detail}", {name: written(*axes)})
    sizes = {"out": out, "in": chans, "height": height, "width": width}
    for names in (
        ("height", "width", "in", "out"),
        ("in", "height", "width", "out"),
        ("in", "out", "height", "width"),
        ("out", "height", "width", "in"),
    ):

        def stored(w: Tensor, _names: tuple[str, ...] = names) -> Tensor:
            turned = w.reshape([sizes[n] for n in _names])
            return turned.permute([_names.index(n) for n in sizes])

        yield LayoutVariant(
            "conv-layout", f"{name} stored as ({', '.join(names)})", {name: stored}
        )
    yield LayoutVariant(
        "conv-layout", f"{name} flipped", {name: lambda w: w.flip(2, 3)}
    )
    if height == width > 1:
        yield LayoutVariant(
            "conv-layout", f"{name}, rows and columns exchanged", {name: lambda w: w.mT}
        )
    if chans > 1:
        yield LayoutVariant("channel-order", name, {name: lambda w: w.flip(1)})


def _packings(
    inputs: Mapping[str, Tensor], parameters: set[str], heads: list[int]
) -> Iterator[LayoutVariant]:
    """Yield the orders in which the rows of fused projections may be taken."""
    weights = [
        name
        for name in inputs
        if name in parameters and "weight" in name and inputs[name].ndim == 2
    ]
    # Where some are called so, another whose shape fits is no fused projection.
    fused_by_name = [n for n in weights if re.search(r"(qkv|kv|in_proj)", n)]
    groups: dict[int, list[list[str]]] = {}
    for weight in fused_by_name or weights:
        bias = weight.replace("weight", "bias")
        rows, columns = inputs[weight].shape
        fused = rows // columns if rows % columns == 0 else 0
        if fused in (2, 3):
            names = [weight] + ([bias] if bias in inputs else [])
            groups.setdefault(fused, []).append(names)
    for fused, members in groups.items():
        every = [name for names in members for name in names]
        for scope in [every, *(members if len(members) > 1 else [])]:
            where = "" if scope is every else f", of {scope[0]}"
            rows = inputs[scope[0]].shape[0]
            if any(inputs[name].shape[0] != rows for name in scope):
                continue
            for cause, detail, index in _orders(fused, rows, heads):
                if torch.equal(index, torch.arange(rows)):
                    continue
                changes: dict[str, Change] = {name: _taking(index) for name in scope}
                yield LayoutVariant(cause, detail + where, changes)


def _taking(index: Tensor) -> Change:
    return lambda w: w[index]


def _orders(
    fused: int, rows: int, heads: list[int]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield row orders: row i of what is used is row index[i] of the weight."""
    width = rows // fused
    grid = torch.arange(rows).reshape(fused, width)
    letters = ("q", "k", "v") if fused == 3 else ("k", "v")
    swaps = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1))
    for order in swaps if fused == 3 else ((1, 0),):
        said = ", ".join(letters[i] for i in order)
        yield "qkv-swapped", f"taken as {said}", grid[list(order)].flatten()
    known = [n for n in heads if width % n == 0]
    for h in known or _divisors(width):
        d = width // h
        split = "" if known else f" with {h} heads"
        names = (str(fused), "heads", "features")
        sizes = (fused, h, d)
        for axes in ((1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 2, 1)):
            said = ", ".join(names[a] for a in axes)
            packed = torch.arange(rows).reshape([sizes[a] for a in axes])
            index = packed.permute([axes.index(a) for a in range(3)]).flatten()
            yield "qkv-packing", f"taken as ({said}){split}", index
    half = torch.arange(rows).reshape(width, fused).mT.flatten()
    yield "qkv-packing", f"interleaved, (features, {fused})", half


def _divisors(n: int) -> list[int]:
    return [h for h in range(2, min(n, 17)) if n % h == 0]


def _transposed_input(name: str, x: Tensor) -> Iterator[LayoutVariant]:
    if x.shape[-1] == x.shape[-2] > 1:
        yield LayoutVariant(
            "input-transposed", f"{name}, its last two axes", {name: lambda v: v.mT}
        )
    if x.ndim == 4 and x.shape[1] > 1:
        yield LayoutVariant("channel-order", f"of {name}", {name: lambda v: v.flip(1)})
    if x.ndim == 3 and math.prod(x.shape[:2]) > 1:
        yield LayoutVariant(
            "input-transposed",
            f"{name} read as (tokens, batch, width)",
            {name: lambda v: v.reshape(v.shape[1], v.shape[0], -1).transpose(0, 1)},
        )
