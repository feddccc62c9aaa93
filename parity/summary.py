"""What a network is made of: a row a layer, with shapes, parameters and operations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vit_numpy.config import ViTConfig, check_int
from vit_numpy.model import VisionTransformer


@dataclass(frozen=True)
class LayerRow:
    """A layer, or layers that are alike in every block.

    Attributes
    ----------
    name : str
        As in `state_dict`; ``blocks.*`` stands for every block.
    kind : str
        What the layer is.
    times : int
        How often the network has it.
    output : tuple of int
        Shape of what it returns.
    parameters, flops : int
        Of one of them; operations of a forward pass of the batch.
    """

    name: str
    kind: str
    times: int
    output: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """The layers of a network in the order in which data passes them.

    Attributes
    ----------
    config : ViTConfig
    batch_size : int
    rows : tuple of LayerRow
    """

    config: ViTConfig
    batch_size: int
    rows: tuple[LayerRow, ...]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(row.times * row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """Operations of a forward pass of the batch."""
        return sum(row.times * row.flops for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "config": self.config.to_dict(),
            "batch_size": self.batch_size,
            "parameters": self.parameters,
            "flops": self.flops,
            "layers": [asdict(row) for row in self.rows],
        }

    def text(self) -> str:
        """Return a table for a terminal."""
        head = ["layer", "", "output", "parameters", "", "FLOPs", ""]
        table = [head]
        for row in self.rows:
            parameters, flops = row.times * row.parameters, row.times * row.flops
            table.append(
                [
                    row.name + (f" ×{row.times}" if row.times > 1 else ""),
                    row.kind,
                    "×".join(map(str, row.output)),
                    f"{parameters:,}" if parameters else "",
                    _share(parameters, self.parameters),
                    _short(flops) if flops else "",
                    _share(flops, self.flops),
                ]
            )
        table.append(
            ["total", "", "", f"{self.parameters:,}", "", _short(self.flops), ""]
        )
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "─" * max(map(len, lines))
        lines[1:1] = [rule]
        lines[-1:-1] = [rule]
        images = "one image" if self.batch_size == 1 else f"{self.batch_size} images"
        kibibytes = 4 * self.parameters / 2**10
        memory = (
            f"{kibibytes:,.1f} KiB"
            if kibibytes < 1000
            else f"{kibibytes / 2**10:,.1f} MiB"
        )
        lines += [
            "",
            f"Parameters take {memory} in float32. FLOPs are those of a "
            f"forward pass of {images}:",
            "two for each term of a matrix product; norms, activations and softmax "
            "are not counted.",
        ]
        return "\n".join(lines)


def summarise(config: ViTConfig, batch_size: int = 1) -> Summary:
    """List the layers of the network that a configuration describes.

    Parameters
    ----------
    config : ViTConfig
    batch_size : int, default 1

    Returns
    -------
    Summary

    Raises
    ------
    TypeError, ValueError
        If `config` is no ViTConfig, or `batch_size` no int of at least 1.

    Notes
    -----
    Parameters are counted in the model itself, not derived. Operations are counted as
    by `torch.utils.flop_counter`: 2mnk for a product of (m, k) and (k, n).
    """
    check_int("batch_size", batch_size, 1)
    model = VisionTransformer(config)
    sizes = {name: array.size for name, array in model.named_parameters()}
    rows = []
    for name, kind, times, output, flops in _layers(config, batch_size):
        # Longer names stand for themselves: `attn` has not what `attn.qkv` has.
        first = name.replace("*", "0")
        own = [n for n in sizes if n == first or n.rpartition(".")[0] == first]
        if first == _TOKENS:
            own = [n for n in sizes if "." not in n]
        elif kind in ("MLP", "PatchEmbed"):
            own = [n for n in sizes if n.startswith(f"{first}.")]
        count = sum(sizes[n] for n in own)
        rows.append(LayerRow(name, kind, times, output, count, flops))
    return Summary(config, batch_size, tuple(rows))


_TOKENS = "tokens and positions"
_Layer = tuple[str, str, int, tuple[int, ...], int]


def _layers(config: ViTConfig, batch: int) -> list[_Layer]:
    """Return name, kind, times, output shape and operations of each layer."""
    tokens, dim, hidden = config.num_tokens, config.dim, config.mlp_dim
    patches, heads = config.num_patches, config.num_heads
    sequence = (batch, tokens, dim)

    def product(*sizes: int) -> int:
        return 2 * batch * math.prod(sizes)

    pixels = config.in_chans * config.patch_size**2
    layers: list[_Layer] = [
        (
            "patch_embed",
            "PatchEmbed",
            1,
            (batch, patches, dim),
            product(patches, pixels, dim),
        ),
        (_TOKENS, "parameters", 1, sequence, 0),
    ]
    weights = (batch, heads, tokens, tokens)
    block: list[tuple[str, str, tuple[int, ...], int]] = [
        ("norm1", "LayerNorm", sequence, 0),
        ("attn.qkv", "Linear", (batch, tokens, 3 * dim), product(tokens, dim, 3 * dim)),
    ]
    if config.qk_norm:
        head = (batch, heads, tokens, dim // heads)
        block += [(f"attn.{n}_norm", "LayerNorm", head, 0) for n in "qk"]
    block += [
        ("attn", "query · key", weights, product(tokens, tokens, dim)),
        ("attn", "weights · values", sequence, product(tokens, tokens, dim)),
        ("attn.proj", "Linear", sequence, product(tokens, dim, dim)),
    ]
    scale = config.layer_scale is not None
    if scale:
        block.append(("ls1", "LayerScale", sequence, 0))
    block += [
        ("norm2", "LayerNorm", sequence, 0),
        ("mlp.fc1", "Linear", (batch, tokens, hidden), product(tokens, dim, hidden)),
        ("mlp.fc2", "Linear", sequence, product(tokens, hidden, dim)),
    ]
    if scale:
        block.append(("ls2", "LayerScale", sequence, 0))
    layers += [
        (f"blocks.*.{name}", kind, config.depth, output, flops)
        for name, kind, output, flops in block
    ]
    if config.final_norm == "before":
        layers.append(("norm", "LayerNorm", 1, sequence, 0))
    return layers + _after_blocks(config, batch)


def _after_blocks(config: ViTConfig, batch: int) -> list[_Layer]:
    """Return the layers from pooling on."""
    dim, patches = config.dim, config.num_patches
    pooled = 2 if config.distillation_token else 1
    features = config.num_tokens * dim if config.pool == "flatten" else dim

    def shape(width: int) -> tuple[int, ...]:
        return (batch, pooled, width) if pooled == 2 else (batch, width)

    layers: list[_Layer] = []
    if config.pool == "map":
        query, one = (batch, config.num_heads, 1, patches), (batch, 1, dim)
        square, rows = 2 * batch * dim * dim, 2 * batch * patches * dim
        layers += [
            ("attn_pool", "latent", 1, one, 0),
            ("attn_pool.q", "Linear", 1, one, square),
            ("attn_pool.kv", "Linear", 1, (batch, patches, 2 * dim), 2 * dim * rows),
            ("pool", "query · key", 1, query, rows),
            ("pool", "weights · values", 1, one, rows),
            ("attn_pool.proj", "Linear", 1, one, square),
            ("attn_pool.norm", "LayerNorm", 1, one, 0),
            ("attn_pool.mlp", "MLP", 1, one, 4 * batch * dim * config.mlp_dim),
        ]
    kind = {"token": "TokenPool", "mean": "MeanPool", "flatten": "Flatten"}
    layers.append(("pool", kind.get(config.pool, "first row"), 1, shape(features), 0))
    if config.final_norm == "after":
        layers.append(("fc_norm", "LayerNorm", 1, shape(features), 0))
    if config.pre_logits is not None:
        flops = 2 * batch * pooled * features * config.pre_logits
        features = config.pre_logits
        layers.append(("pre_logits", "Linear, tanh", 1, shape(features), flops))
    if config.num_classes:
        classes = config.num_classes
        names = ["head", "head_dist"][:pooled]
        flops = 2 * batch * features * classes
        layers += [(name, "Linear", 1, (batch, classes), flops) for name in names]
    return layers


def _short(number: int) -> str:
    """Return a number with three digits and its unit: 4.23 M."""
    for power, unit in ((12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{unit}"
    return str(number)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""
