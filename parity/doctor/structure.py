"""Changes of what the network consists of: norms, pooling, blocks and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.doctor.setup import Change, Setup, patched, renamed, with_config
from parity.training import Backend


def structure(base: Setup) -> Iterator[Change]:
    """Yield other norms, poolings, blocks and heads."""
    config = base.config
    for place in ("before", "after"):
        if place != config.final_norm != "none" and config.pool != "token":
            yield Change(
                f"final-norm:{place}",
                f"its last norm stands {place} pooling",
                f"set final_norm='{place}'"
                + (" (norm.* is then fc_norm.*)" if place == "after" else ""),
                _norm_moved(place),
            )
    if config.final_norm != "none":
        yield Change(
            "final-norm:none",
            "it has no last norm",
            "set final_norm='none'",
            _norm_dropped,
        )
    if config.pool == "token" and not config.distillation_token:
        yield Change(
            "pool:mean",
            "it averages the patch tokens (the port takes the class token)",
            "set pool='mean'",
            with_config(pool="mean"),
        )
    if config.pool == "mean" and config.class_token:
        yield Change(
            "pool:token",
            "it takes the class token (the port averages the patch tokens)",
            "set pool='token'",
            with_config(pool="token"),
        )
    if config.pool in ("mean", "token") and config.num_prefix_tokens:
        yield Change(
            "pool:mean-all",
            "it averages all tokens, the class token too",
            "average over all tokens: pool='mean' leaves the prefix out",
            _mean_of_all,
        )
    if config.pre_logits is not None:
        yield Change(
            "pre-logits:linear",
            "its pre-logits layer has no tanh",
            "multiply head.weight by pre_logits.weight, and set pre_logits=None",
            patched("pre-logits:linear", _without_tanh),
        )
        if config.pre_logits == config.dim and config.pool != "flatten":
            yield Change(
                "pre-logits:none",
                "it has no pre-logits layer",
                "set pre_logits=None",
                _without_pre_logits,
            )
    yield Change(
        "norm-placement:post",
        "its blocks normalise after each sum, not before each layer",
        "post-norm blocks are no Vision Transformer of this project: port another one",
        patched("norm-placement:post", _post_norm),
    )
    yield Change(
        "norm-swapped:swapped",
        "norm1 and norm2 are exchanged",
        "exchange norm1 and norm2 of every block",
        renamed({".norm1.": ".norm2.", ".norm2.": ".norm1."}),
    )
    if config.layer_scale is not None:
        yield Change(
            "layer-scale:swapped",
            "ls1 and ls2 are exchanged",
            "exchange ls1.gamma and ls2.gamma of every block",
            renamed({".ls1.": ".ls2.", ".ls2.": ".ls1."}),
        )
    if config.depth > 1:
        yield Change(
            "block-order:reversed",
            "its blocks stand in the reverse order",
            "reverse the numbers of the blocks",
            _reversed_blocks,
        )
        if config.depth > 10:
            yield Change(
                "block-order:sorted-as-text",
                "its blocks were read in the order 0, 1, 10, 11, 2, …",
                "sort the blocks by number, not by text",
                _blocks_by_text,
            )
    if config.distillation_token:
        yield Change(
            "distillation:class-head",
            "it returns the class head's logits alone",
            "use head alone, without the mean of both heads",
            _class_head_alone,
        )


# --- how they are made ----------------------------------------------------------------


def _norm_moved(place: str) -> Callable[[Setup], Setup]:
    old, new = ("norm", "fc_norm") if place == "after" else ("fc_norm", "norm")

    def apply(setup: Setup) -> Setup:
        weights = {
            f"{new}.{n.removeprefix(f'{old}.')}" if n.startswith(f"{old}.") else n: w
            for n, w in setup.weights.items()
        }
        return with_config(final_norm=place)(replace(setup, weights=weights))

    return apply


def _norm_dropped(setup: Setup) -> Setup:
    weights = {
        n: w
        for n, w in setup.weights.items()
        if not n.startswith(("norm.", "fc_norm."))
    }
    return with_config(final_norm="none")(replace(setup, weights=weights))


def _mean_of_all(setup: Setup) -> Setup:
    def patch(model: Any) -> None:
        model.pool = Backend.load("torch").module("layers.heads").MeanPool(0)

    return patched("pool:mean-all", patch)(with_config(pool="mean")(setup))


def _without_pre_logits(setup: Setup) -> Setup:
    weights = {
        n: w for n, w in setup.weights.items() if not n.startswith("pre_logits.")
    }
    return with_config(pre_logits=None)(replace(setup, weights=weights))


def _without_tanh(model: Any) -> None:
    layer = model.pre_logits
    model.pre_logits = nn.Linear(layer.in_features, layer.out_features).double()


def _in_blocks(order: Sequence[int]) -> Callable[[Setup], Setup]:
    """Give the weights of block i to block order[i]."""

    def renumbered(name: str) -> str:
        if not name.startswith("blocks."):
            return name
        _, number, rest = name.split(".", 2)
        return f"blocks.{order[int(number)]}.{rest}"

    return lambda setup: replace(
        setup, weights={renumbered(n): w for n, w in setup.weights.items()}
    )


def _reversed_blocks(setup: Setup) -> Setup:
    return _in_blocks(range(setup.config.depth)[::-1])(setup)


def _blocks_by_text(setup: Setup) -> Setup:
    order = sorted(range(setup.config.depth), key=str)
    return _in_blocks(order)(setup)


def _class_head_alone(setup: Setup) -> Setup:
    """Double the one head and silence the other: the mean is then the first's."""
    weights = dict(setup.weights)
    for name, w in setup.weights.items():
        if name.startswith("head."):
            weights[name] = 2 * w
        elif name.startswith("head_dist."):
            weights[name] = torch.zeros_like(w)
    return replace(setup, weights=weights)


class _PostNorm(nn.Module):
    """A block that normalises after each sum; takes the place of `Block`'s forward."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2

    def forward(self, x: Tensor, masks: Any = None, record: Any = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.norm1(x + self.ls1(self.attn(x)))
        x = self.norm2(x + self.ls2(self.mlp(x)))
        return x


def _post_norm(model: Any) -> None:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = _PostNorm(block)
