"""Changes of how weights are stored: packed, transposed, reshaped or flipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from parity.doctor.setup import Change, Setup, ends_with, on_weights
from vit_numpy.config import ViTConfig


def qkv(config: ViTConfig) -> Iterator[Change]:
    """Yield the orders and packings of the fused weights of attention."""
    letters = "qkv"
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            rows = ", ".join(letters[order.index(i)] for i in range(3))
            yield Change(
                f"qkv-order:{rows.replace(', ', '')}",
                f"the rows of attn.qkv stand in the order {rows}",
                "reorder the three thirds of attn.qkv to q, k, v",
                on_weights("attn.qkv.", _thirds(order)),
            )
    sizes = (3, config.num_heads, config.dim // config.num_heads)
    names = ("qkv", "heads", "features")
    counts = ("3", "num_heads", "head_dim")
    for axes in itertools.permutations(range(3)):
        if axes != (0, 1, 2) and _reorders(sizes, axes):
            packing = ", ".join(names[axis] for axis in axes)
            held = ", ".join(counts[axis] for axis in axes)
            yield Change(
                f"qkv-packing:{packing.replace(', ', '-')}",
                f"the rows of attn.qkv are packed as ({packing})",
                f"w.reshape({held}, -1) and bring the axes to (qkv, heads, features)",
                _by_heads("attn.qkv.", _packed(axes)),
            )
    if min(sizes) > 1:
        yield Change(
            "head-merge:features-heads",
            "the columns of attn.proj are packed as (features, heads)",
            "w.reshape(-1, head_dim, num_heads).swapaxes(1, 2)",
            _by_heads("attn.proj.weight", _merged),
        )


def matrices(base: Setup) -> Iterator[Change]:
    """Yield the matrices that may be transposed, or reshaped to what they should be."""
    config = base.config
    transposed = "transpose it: weight is (out, in)"
    kinds = ["attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "head.weight"]
    kinds += ["pre_logits.weight", "attn_pool.q.weight", "attn_pool.proj.weight"]
    square = []
    for kind in kinds:
        found = [w for n, w in base.weights.items() if ends_with(n, kind)]
        if not found:
            continue
        rows, columns = found[0].shape
        if rows == columns > 1:
            square.append(kind)
            yield Change(
                f"transposed-{kind.removesuffix('.weight')}:transposed",
                f"{kind} is stored transposed",
                transposed,
                on_weights(kind, lambda w: w.mT),
            )
        elif min(rows, columns) > 1:
            yield Change(
                f"transposed-{kind.removesuffix('.weight')}:reshaped",
                f"{kind} was reshaped to its shape where it must be transposed",
                f"w.reshape({columns}, {rows}).T",
                on_weights(kind, _reshaped),
            )
    yield Change(
        "transposed-attn.qkv:transposed",
        "each of q, k and v in attn.qkv is stored transposed",
        "transpose each third of attn.qkv.weight by itself",
        on_weights("attn.qkv.weight", _each_transposed),
    )
    yield Change(
        "transposed-attn.qkv:reshaped",
        "attn.qkv.weight was reshaped to its shape where it must be transposed",
        f"w.reshape({config.dim}, {3 * config.dim}).T",
        on_weights("attn.qkv.weight", _reshaped),
    )
    if square:

        def all_square(setup: Setup) -> Setup:
            for kind in square:
                setup = on_weights(kind, lambda w: w.mT)(setup)
            return on_weights("attn.qkv.weight", _each_transposed)(setup)

        yield Change(
            "transposed-all:transposed",
            "every square matrix, q, k and v among them, is stored transposed",
            "transpose all of them: weight is (out, in)",
            all_square,
        )


def patches(config: ViTConfig) -> Iterator[Change]:
    """Yield the orders of a patch's features."""
    sizes = (config.in_chans, config.patch_size, config.patch_size)
    names = ("channel", "row", "column")
    for axes in itertools.permutations(range(3)):
        if axes != (0, 1, 2) and _reorders(sizes, axes):
            held = tuple(sizes[axis] for axis in axes)
            order = ", ".join(names[axis] for axis in axes)
            yield Change(
                f"patch-order:{order.replace(', ', '-')}",
                f"a patch's features are in the order ({order})",
                f"w.reshape{(-1, *held)} and bring the axes to "
                "(dim, channel, row, column)",
                on_weights("patch_embed.proj.weight", _features(held, axes)),
            )
    if config.patch_size > 1:
        yield Change(
            "patch-flip:flipped",
            "its patch embedding is a convolution with the kernel flipped",
            "flip both axes: w[:, :, ::-1, ::-1]",
            on_weights("patch_embed.proj.weight", lambda w: w.flip((2, 3))),
        )


# --- how they are made ----------------------------------------------------------------


def _thirds(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.cat([w.chunk(3)[i] for i in order])


def _reorders(sizes: Sequence[int], axes: Sequence[int]) -> bool:
    """Tell whether the axes change places in more than name: those of size 1 do not."""
    kept = [axis for axis in axes if sizes[axis] > 1]
    return kept != sorted(kept)


def _by_heads(
    ending: str, function: Callable[[Tensor, int], Tensor]
) -> Callable[[Setup], Setup]:
    """Change weights by the number of heads, which another change may have set."""

    def apply(setup: Setup) -> Setup:
        heads = setup.config.num_heads
        return on_weights(ending, lambda w: function(w, heads))(setup)

    return apply


def _packed(axes: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
    """Bring rows that are packed in some order to (qkv, heads, features)."""
    back = [axes.index(i) for i in range(3)]

    def unpack(w: Tensor, heads: int) -> Tensor:
        sizes = (3, heads, len(w) // 3 // heads)
        apart = w.reshape(*(sizes[axis] for axis in axes), *w.shape[1:])
        return apart.permute(*back, *range(3, apart.ndim)).reshape(w.shape)

    return unpack


def _merged(w: Tensor, heads: int) -> Tensor:
    return w.reshape(len(w), -1, heads).mT.reshape(w.shape)


def _features(held: Sequence[int], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    back = [1 + axes.index(i) for i in range(3)]
    return lambda w: w.reshape(len(w), *held).permute(0, *back)


def _reshaped(w: Tensor) -> Tensor:
    return w.reshape(w.shape[1], w.shape[0]).mT


def _each_transposed(w: Tensor) -> Tensor:
    return torch.cat([part.mT for part in w.chunk(3)])
