"""Say why ported weights give other outputs than the original.

The outputs of the original are known; those of the port are not the same. `diagnose`
changes the port in every way in which ports are known to differ, one change at a time
and then several together, and says with which its outputs become the original's.

Outputs agree where they are within the error bound that `parity.bounds` computes for
the changed network, so an explanation is one to the last digit: a change that only
brings the outputs nearer is reported as such, and never as the cause.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from parity.bounds import FACTOR, NoRuleError, reference
from parity.diverge.scale import coarse_scale, largest, unit_roundoff
from parity.training import Backend
from vit_numpy.config import ViTConfig

Weights = dict[str, Tensor]
Patch = Callable[[Any], None]

# Changes that the search puts together, and how many of the best it goes on from.
MOST_CHANGES = 3
_BEAM = 12
_JUDGED = 6

# As near as single precision comes: what is to be judged now, not to be looked for.
_EQUAL = 1e-6

# Outputs that are further than this from the original's are not worth a bound.
_NEAR = 1e-2

# Explanations that agree but are so many times further than the best are not listed.
_AS_GOOD = 100.0

# Beyond so many parameters, or so many coarse bounds, the coarse bound must do.
_LARGE = 3_000_000
_FAR = 1000.0

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setup:
    """All that the outputs depend on: what a change changes.

    Attributes
    ----------
    config : ViTConfig
    weights : dict of Tensor
    images : Tensor of shape (B, C, H, W)
    patches : tuple of (str, callable)
        Changes of the built model that no configuration names.
    outputs : tuple of callable
        What is done to the logits.
    """

    config: ViTConfig
    weights: Weights
    images: Tensor
    patches: tuple[tuple[str, Patch], ...] = ()
    outputs: tuple[Callable[[Tensor], Tensor], ...] = ()


@dataclass(frozen=True)
class Change:
    """One way in which the port may differ from the original.

    Attributes
    ----------
    name : str
        Stable, with hyphens; the part before the first colon is its kind, of which a
        port has at most one.
    says : str
        What the original does, and the port does not.
    fix : str
        What to change in the port.
    apply : callable
        From a setup to the changed one; raises ValueError where that makes no sense.
    """

    name: str
    says: str
    fix: str
    apply: Callable[[Setup], Setup]

    @property
    def kind(self) -> str:
        """The aspect of the network that it changes."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Explanation:
    """Some changes, and how near they bring the outputs.

    Attributes
    ----------
    changes : tuple of Change
    distance : float
        Norm of the outputs' difference relative to the norm of the original's, about
        their mean.
    share : float
        Of the error bound, for the worst element; agrees where it is at most 1.
        Infinite where it was not computed.
    """

    changes: tuple[Change, ...]
    distance: float
    share: float = math.inf

    @property
    def agrees(self) -> bool:
        """Whether the outputs are the original's, within rounding."""
        return self.share <= 1

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the changes."""
        return tuple(change.name for change in self.changes)


@dataclass
class Diagnosis:
    """What was tried, and what explains the difference; made by `diagnose`.

    Attributes
    ----------
    before : Explanation
        The port as it is.
    found : list of Explanation
        Those with the fewest changes that make the outputs agree, best first. Several
        stand here if the outputs cannot tell them apart.
    closest : list of Explanation
        The best ones that do not.
    tried : int
        How many combinations of changes were run.
    complete : bool
        Whether all pairs were tried, or time ran out.
    seconds : float
    """

    before: Explanation
    found: list[Explanation] = field(default_factory=list)
    closest: list[Explanation] = field(default_factory=list)
    tried: int = 0
    complete: bool = True
    seconds: float = 0.0

    @property
    def conclusion(self) -> str:
        """What it comes to, in words."""
        if self.before.agrees:
            return "the outputs agree as they are: there is nothing to repair"
        if self.found:
            first = self.found[0].changes
            text = "the outputs agree if " + ", and ".join(c.says for c in first)
            if len(self.found) > 1:
                others = "; or if ".join(
                    ", and ".join(c.says for c in e.changes) for e in self.found[1:4]
                )
                text += f" (these outputs cannot tell that from: {others})"
            return text
        best = self.closest[0] if self.closest else self.before
        text = (
            f"none of {self.tried:,} combinations of known changes makes the outputs "
            f"agree; they are off by {self.before.distance:.1e} of their size"
        )
        if best.distance < 0.5 * self.before.distance:
            how = ", and ".join(c.says for c in best.changes)
            text += f", and by {best.distance:.1e} if {how}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""

        def told(e: Explanation) -> dict[str, Any]:
            return {
                "changes": [
                    {"name": c.name, "says": c.says, "fix": c.fix} for c in e.changes
                ],
                "distance": e.distance if math.isfinite(e.distance) else None,
                "share_of_bound": e.share if math.isfinite(e.share) else None,
                "agrees": e.agrees,
            }

        return {
            "before": told(self.before),
            "found": [told(e) for e in self.found],
            "closest": [told(e) for e in self.closest],
            "tried": self.tried,
            "complete": self.complete,
            "seconds": self.seconds,
            "conclusion": self.conclusion,
        }


def diagnose(
    config: Any,
    weights: dict[str, NDArray[Any]],
    images: NDArray[Any],
    outputs: NDArray[Any],
    *,
    preprocessing: dict[str, Any] | None = None,
    seconds: float = 15.0,
) -> Diagnosis:
    """Find what makes a port's outputs those of the original.

    Parameters
    ----------
    config : ViTConfig or dict
        Of the port.
    weights : dict of ndarray
        Of the port, under this project's names.
    images : ndarray of shape (B, C, H, W), or (B, H, W, C)
        What the original was given; uint8, or floating.
    outputs : ndarray of shape (B, K)
        What it returned. Their dtype is that which it computed in.
    preprocessing : dict, optional
        `mean` and `std` that the port's file names.
    seconds : float
        How long to search; what takes longer is left out, and said to be.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If the shapes cannot belong together.
    """
    started = time.perf_counter()
    fields = config if isinstance(config, dict) else config.to_dict()
    base = _setup(ViTConfig.from_dict(fields), weights, images)
    outputs = np.asarray(outputs)
    if outputs.dtype not in (np.float32, np.float64):
        outputs = outputs.astype(np.float32)
    search = _Search(base, outputs, started + seconds)
    mismatched = _position_length(base) is not None
    before = Explanation((), math.inf) if mismatched else search.run(())
    if not mismatched and not math.isfinite(before.distance):
        raise ValueError(
            f"the port cannot be run on these images and outputs: {search.refusal}"
        )
    found = search.judged([before])[0]
    result = Diagnosis(found)
    if not found.agrees:
        changes = list(
            _changes(base, preprocessing, np.issubdtype(images.dtype, np.integer))
        )
        _explore(search, changes, result)
    result.tried = search.tried
    result.complete = search.complete
    result.seconds = time.perf_counter() - started
    return result


def _explore(search: _Search, changes: Sequence[Change], result: Diagnosis) -> None:
    """Try single changes, then more together; leave what is found in the result."""
    level = [search.run((change,)) for change in changes]
    best: list[Explanation] = []
    for count in range(1, MOST_CHANGES + 1):
        level = _nearest(level)
        judged = search.judged(level[:_JUDGED])
        result.found = [e for e in judged if e.agrees]
        best = _nearest([*best, *(e for e in judged if not e.agrees)])[:3]
        result.closest = best
        if result.found or count == MOST_CHANGES or search.late:
            return
        # First on from those that came nearest; for pairs then all others, as one of
        # two right changes may bring the outputs no nearer by itself.
        starts = [e for e in level if math.isfinite(e.distance)]
        if count > 1:
            starts = starts[:_BEAM]
        level = list(_extended(search, starts, changes))


def _extended(
    search: _Search, starts: Sequence[Explanation], changes: Sequence[Change]
) -> Iterator[Explanation]:
    """Yield each start with one more change, of a kind that it does not have yet."""
    place = {change.name: i for i, change in enumerate(changes)}
    done: set[tuple[str, ...]] = set()
    for start in starts:
        kinds = {change.kind for change in start.changes}
        for change in changes:
            if change.kind in kinds:
                continue
            # The order of the table is that in which they are to be applied.
            both = sorted((*start.changes, change), key=lambda c: place[c.name])
            together = tuple(both)
            key = tuple(c.name for c in together)
            if key in done:
                continue
            done.add(key)
            if search.late:
                search.complete = False
                return
            explained = search.run(together)
            yield explained
            if explained.distance < _EQUAL:
                return


def _nearest(explanations: Sequence[Explanation]) -> list[Explanation]:
    return sorted(explanations, key=lambda e: (e.distance, len(e.changes)))


class _Search:
    """Runs changed ports, and measures how far they are from the original."""

    def __init__(self, base: Setup, outputs: NDArray[Any], deadline: float) -> None:
        self.base = base
        self.outputs = outputs
        self.deadline = deadline
        self.wide = torch.from_numpy(outputs.astype(np.float64))
        spread = self.wide - self.wide.mean()
        self.size = float(spread.norm()) or 1.0
        self.models: dict[tuple[Any, ...], nn.Module] = {}
        self.torch = Backend.load("torch")
        self.tried = 0
        self.complete = True
        self.refusal = ""

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() > self.deadline

    def setup(self, changes: Sequence[Change]) -> Setup:
        """Return the port with these changes, in the order of the table."""
        setup = self.base
        for change in changes:
            setup = change.apply(setup)
        return setup

    def run(self, changes: tuple[Change, ...]) -> Explanation:
        """Measure the port with these changes; infinitely far if they make no sense."""
        self.tried += 1
        try:
            setup = self.setup(changes)
            with torch.no_grad():
                found = self.function(setup)(setup.images, **setup.weights)
        except (ValueError, RuntimeError) as error:
            self.refusal = str(error).splitlines()[0]
            return Explanation(changes, math.inf)
        if found.shape != self.wide.shape:
            self.refusal = (
                f"its outputs have shape {tuple(found.shape)}, "
                f"those given {tuple(self.wide.shape)}"
            )
            return Explanation(changes, math.inf)
        distance = float((found - self.wide).norm()) / self.size
        return Explanation(changes, distance if math.isfinite(distance) else math.inf)

    def function(self, setup: Setup) -> Callable[..., Tensor]:
        """Return the changed port as a function of images and weights."""
        key = (setup.config, tuple(name for name, _ in setup.patches))
        if key not in self.models:
            model = self._build(setup.config)
            for _, patch in setup.patches:
                patch(model)
            self.models[key] = model.requires_grad_(False)
        model = self.models[key]
        own = {n: tuple(p.shape) for n, p in model.named_parameters()}
        given = {n: tuple(w.shape) for n, w in setup.weights.items()}
        if own != given:
            name = next(n for n in own | given if own.get(n) != given.get(n))
            raise ValueError(
                f"{name} must have shape {own.get(name)}, got {given.get(name)}"
            )
        buffers = dict(model.named_buffers())

        def function(images: Tensor, **weights: Tensor) -> Tensor:
            state = weights | {n: b.to(images.dtype) for n, b in buffers.items()}
            out: Tensor = functional_call(model, state, (images,))
            for change in setup.outputs:
                out = change(out)
            return out

        return function

    def _build(self, config: ViTConfig) -> Any:
        kind = self.torch.module("config").ViTConfig
        build = self.torch.module("model").VisionTransformer
        return build(kind.from_dict(config.to_dict())).double().eval()

    def judged(self, explanations: Sequence[Explanation]) -> list[Explanation]:
        """Give those that are near enough the share of the error bound they use."""
        done: list[Explanation] = []
        for e in explanations:
            best = next((d.distance for d in done if d.agrees), math.inf)
            near = e.distance < _NEAR and e.distance <= _AS_GOOD * best
            done.append(replace(e, share=self._share(e.changes)) if near else e)
        return done

    def _share(self, changes: tuple[Change, ...]) -> float:
        """Return the largest share of the bound, within which the outputs must be.

        Far from it, and for a large network, the bound is coarse: the largest
        difference of its outputs in float32 from those in float64 stands for each
        element's own.
        """
        setup = self.setup(changes)
        function = self.function(setup)
        inputs = {"images": setup.images, **setup.weights}
        with torch.no_grad():
            wide = function(**inputs).numpy()
            narrow = function(**{n: x.float() for n, x in inputs.items()}).numpy()
        dtype = self.outputs.dtype.name
        scale = coarse_scale([narrow], wide, unit_roundoff(dtype))
        coarse = largest(self.outputs, wide, 2 * FACTOR * scale)
        large = sum(w.numel() for w in setup.weights.values()) > _LARGE
        if large or coarse > _FAR:
            return coarse
        try:
            found = reference(
                function, inputs, dtype=getattr(torch, dtype), differentiate=False
            )
        except NoRuleError:
            # A changed model may use an operator that the bounds do not know.
            return coarse
        return float(found.share("out", self.outputs).max())


def _setup(
    config: ViTConfig, weights: dict[str, NDArray[Any]], images: NDArray[Any]
) -> Setup:
    """Return the port as it is: float64, and images as its user would give them."""
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {images.shape}")
    if images.shape[1] != config.in_chans and images.shape[3] == config.in_chans:
        images = np.moveaxis(images, 3, 1)
    if images.shape[1] != config.in_chans:
        raise ValueError(
            f"images must have {config.in_chans} channels, got shape {images.shape}"
        )
    x = torch.from_numpy(np.array(images, np.float64))
    if np.issubdtype(images.dtype, np.integer):
        x = x / 255
    size = (int(images.shape[2]), int(images.shape[3]))
    if size != config.image_hw:
        config = ViTConfig.from_dict(config.to_dict() | {"image_size": size})
    return Setup(
        config,
        {n: torch.from_numpy(np.array(w, np.float64)) for n, w in weights.items()},
        x,
    )


# --- the changes ---------------------------------------------------------------------


def _changes(
    base: Setup, preprocessing: dict[str, Any] | None, integers: bool
) -> Iterator[Change]:
    """Yield every known way in which a port like this one may be wrong."""
    yield from _resizes(base)
    yield from _preprocessings(base, preprocessing, integers)
    yield from _numerics(base.config)
    yield from _qkv(base.config)
    yield from _matrices(base)
    yield from _patches(base.config)
    yield from _positions(base)
    yield from _structure(base)
    yield from _outputs()


def _numerics(config: ViTConfig) -> Iterator[Change]:
    for eps in (1e-5, 1e-6, 1e-12, 1e-8, 1e-3):
        if eps != config.norm_eps:
            yield Change(
                f"norm-eps:{eps:g}",
                f"its LayerNorm has eps {eps:g} (the port {config.norm_eps:g})",
                f"set norm_eps={eps:g}",
                _with_config(norm_eps=eps),
            )
    forms = {
        "gelu": "the exact GELU, with erf",
        "gelu_tanh": "GELU by tanh",
        "relu": "ReLU",
    }
    for act, words in forms.items():
        if act != config.act:
            yield Change(
                f"activation:{act}",
                f"its activation is {words} (the port has {forms[config.act]})",
                f"set act='{act}'",
                _with_config(act=act),
            )
    for name, words, kind in (
        ("quick-gelu", "x · sigmoid(1.702 x), as CLIP's", _QuickGELU),
        ("silu", "x · sigmoid(x)", nn.SiLU),
    ):
        yield Change(
            f"activation:{name}",
            f"its activation is {words} (the port has {forms[config.act]})",
            "the configuration has no such activation: use one that the weights were "
            "trained with",
            _patched(f"activation:{name}", _activations(kind)),
        )
    for heads in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32):
        if config.dim % heads == 0 and heads != config.num_heads:
            if config.qk_norm:
                continue
            yield Change(
                f"num-heads:{heads}",
                f"it has {heads} heads (the port {config.num_heads})",
                f"set num_heads={heads}",
                _with_config(num_heads=heads),
            )
    head_dim = config.dim // config.num_heads
    for name, factor, words in (
        ("none", head_dim**0.5, "does not scale the attention logits"),
        ("dim", (head_dim / config.dim) ** 0.5, "scales them by 1/√dim"),
    ):
        if config.num_heads > 1 or name == "none":
            yield Change(
                f"attention-scale:{name}",
                f"it {words} (the port by 1/√head_dim)",
                f"multiply the rows of q in attn.qkv by {factor:.6g}, biases included",
                _with_queries_times(factor),
            )


def _qkv(config: ViTConfig) -> Iterator[Change]:
    letters = "qkv"
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            rows = ", ".join(letters[order.index(i)] for i in range(3))
            yield Change(
                f"qkv-order:{rows.replace(', ', '')}",
                f"the rows of attn.qkv stand in the order {rows}",
                "reorder the three thirds of attn.qkv to q, k, v",
                _on_weights("attn.qkv.", _thirds(order)),
            )
    sizes = (3, config.num_heads, config.dim // config.num_heads)
    names = ("qkv", "heads", "features")
    for axes in itertools.permutations(range(3)):
        held = tuple(sizes[axis] for axis in axes)
        if axes != (0, 1, 2) and _reorders(sizes, axes):
            packing = ", ".join(names[axis] for axis in axes)
            yield Change(
                f"qkv-packing:{packing.replace(', ', '-')}",
                f"the rows of attn.qkv are packed as ({packing})",
                f"w.reshape{(*held, -1)} and bring the axes to (qkv, heads, features)",
                _on_weights("attn.qkv.", _packed(held, axes)),
            )
    inner = (config.dim // config.num_heads, config.num_heads)
    if min(inner) > 1:
        yield Change(
            "head-merge:features-heads",
            "the columns of attn.proj are packed as (features, heads)",
            f"w.reshape(-1, {inner[0]}, {inner[1]}).swapaxes(1, 2)",
            _on_weights("attn.proj.weight", _merged(inner)),
        )


def _matrices(base: Setup) -> Iterator[Change]:
    config = base.config
    transposed = "transpose it: weight is (out, in)"
    kinds = ["attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "head.weight"]
    kinds += ["pre_logits.weight", "attn_pool.q.weight", "attn_pool.proj.weight"]
    square = []
    for kind in kinds:
        found = [w for n, w in base.weights.items() if _ends(n, kind)]
        if not found:
            continue
        rows, columns = found[0].shape
        if rows == columns > 1:
            square.append(kind)
            yield Change(
                f"transposed-{kind.removesuffix('.weight')}:transposed",
                f"{kind} is stored transposed",
                transposed,
                _on_weights(kind, lambda w: w.mT),
            )
        elif min(rows, columns) > 1:
            yield Change(
                f"transposed-{kind.removesuffix('.weight')}:reshaped",
                f"{kind} was reshaped to its shape where it must be transposed",
                f"w.reshape({columns}, {rows}).T",
                _on_weights(kind, _reshaped),
            )
    yield Change(
        "transposed-attn.qkv:transposed",
        "each of q, k and v in attn.qkv is stored transposed",
        "transpose each third of attn.qkv.weight by itself",
        _on_weights("attn.qkv.weight", _each_transposed),
    )
    yield Change(
        "transposed-attn.qkv:reshaped",
        "attn.qkv.weight was reshaped to its shape where it must be transposed",
        f"w.reshape({config.dim}, {3 * config.dim}).T",
        _on_weights("attn.qkv.weight", _reshaped),
    )
    if square:

        def all_square(setup: Setup) -> Setup:
            for kind in square:
                setup = _on_weights(kind, lambda w: w.mT)(setup)
            return _on_weights("attn.qkv.weight", _each_transposed)(setup)

        yield Change(
            "transposed-all:transposed",
            "every square matrix, q, k and v among them, is stored transposed",
            "transpose all of them: weight is (out, in)",
            all_square,
        )


def _patches(config: ViTConfig) -> Iterator[Change]:
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
                _on_weights("patch_embed.proj.weight", _features(held, axes)),
            )
    if config.patch_size > 1:
        yield Change(
            "patch-flip:flipped",
            "its patch embedding is a convolution with the kernel flipped",
            "flip both axes: w[:, :, ::-1, ::-1]",
            _on_weights("patch_embed.proj.weight", lambda w: w.flip((2, 3))),
        )


def _positions(base: Setup) -> Iterator[Change]:
    config = base.config
    table = base.weights.get("pos_embed")
    prefix = config.num_prefix_tokens if config.pos_prefix else 0
    rows, columns = config.grid
    if table is not None and _position_length(base) is None:
        if prefix:
            yield Change(
                "class-position:last",
                "the class token stands behind the patches, and so does its position",
                "move the last position to the front of pos_embed",
                _on_weights("pos_embed", lambda w: w.roll(prefix, 1)),
            )
            yield Change(
                "class-position:zero",
                "the class token gets no position, or has it in the token already",
                "set the class token's position in pos_embed to zero",
                _on_weights("pos_embed", _zeroed(prefix)),
            )
        if min(rows, columns) > 1:
            yield Change(
                "patch-grid:transposed",
                "the positions stand column after column",
                f"reshape pos_embed to ({columns}, {rows}) positions and swap the axes",
                _on_weights("pos_embed", _grid_transposed(prefix, columns, rows)),
            )
        yield Change(
            "positions:none",
            "it adds no positions",
            "set pos_embed='none', or zero the table",
            _on_weights("pos_embed", torch.zeros_like),
        )
    for kind, words in (
        ("sincos1d", "one-dimensional sines and cosines"),
        ("sincos2d", "two-dimensional sines and cosines"),
    ):
        if config.pos_embed != kind:
            yield Change(
                f"positions:{kind}",
                f"its positions are {words}",
                f"set pos_embed='{kind}'",
                _fixed_positions(kind),
            )


RESIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "bicubic-antialias": (
        "bicubic with antialias, as timm",
        dict(mode="bicubic", antialias=True, align_corners=False),
    ),
    "bicubic": (
        "bicubic, half-pixel, as Hugging Face",
        dict(mode="bicubic", align_corners=False),
    ),
    "bicubic-corners": (
        "bicubic with align_corners, as torchvision",
        dict(mode="bicubic", align_corners=True),
    ),
    "bilinear": (
        "bilinear, half-pixel, as timm from npz files",
        dict(mode="bilinear", align_corners=False),
    ),
    "bilinear-corners": (
        "bilinear with align_corners, as Google's scipy zoom",
        dict(mode="bilinear", align_corners=True),
    ),
    "bilinear-antialias": (
        "bilinear with antialias",
        dict(mode="bilinear", antialias=True, align_corners=False),
    ),
    "nearest": ("to the nearest position", dict(mode="nearest")),
}


def _resizes(base: Setup) -> Iterator[Change]:
    """Yield the ways to bring the positions of another grid to that of the images."""
    side = _position_length(base)
    if side is None:
        return
    for name, (words, options) in RESIZES.items():
        yield Change(
            f"position-resize:{name}",
            f"it resizes its {side}×{side} positions {words}",
            f"resize pos_embed by torch.nn.functional.interpolate with {options}",
            _on_weights("pos_embed", _resized(base.config, side, options)),
        )


def _position_length(base: Setup) -> int | None:
    """Return the side of the table's grid if it is square and not the images'."""
    table = base.weights.get("pos_embed")
    if table is None or base.config.pos_embed != "learned":
        return None
    prefix = base.config.num_prefix_tokens if base.config.pos_prefix else 0
    patches = table.shape[1] - prefix
    side = math.isqrt(max(patches, 0))
    if patches == base.config.num_patches or side * side != patches:
        return None
    return side


def _structure(base: Setup) -> Iterator[Change]:
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
            _with_config(pool="mean"),
        )
    if config.pool == "mean" and config.class_token:
        yield Change(
            "pool:token",
            "it takes the class token (the port averages the patch tokens)",
            "set pool='token'",
            _with_config(pool="token"),
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
            _patched("pre-logits:linear", _without_tanh),
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
        _patched("norm-placement:post", _post_norm),
    )
    yield Change(
        "norm-swapped:swapped",
        "norm1 and norm2 are exchanged",
        "exchange norm1 and norm2 of every block",
        _norms_swapped,
    )
    if config.layer_scale is not None:
        yield Change(
            "layer-scale:swapped",
            "ls1 and ls2 are exchanged",
            "exchange ls1.gamma and ls2.gamma of every block",
            _renamed({".ls1.": ".ls2.", ".ls2.": ".ls1."}),
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


def _preprocessings(
    base: Setup, preprocessing: dict[str, Any] | None, integers: bool
) -> Iterator[Change]:
    channels = base.config.in_chans
    scales: list[tuple[str, str, str, Callable[[Tensor], Tensor]]] = [
        (
            "times-255",
            "takes pixels from 0 to 255",
            "multiply by 255",
            lambda x: x * 255,
        ),
    ]
    if not integers:
        scales.append(
            (
                "by-255",
                "divides pixels by 255",
                "divide the images by 255",
                lambda x: x / 255,
            )
        )
    for name, words, fix, function in scales:
        yield Change(f"pixel-scale:{name}", f"it {words}", fix, _on_images(function))
    named = {"half": ((0.5,) * channels, (0.5,) * channels)}
    if channels == 3:
        named["imagenet"] = IMAGENET
    if channels == 1:
        named["mnist"] = ((0.1307,), (0.3081,))
    if preprocessing is not None:
        named["file"] = (tuple(preprocessing["mean"]), tuple(preprocessing["std"]))
    for name, (mean, std) in named.items():
        if len(mean) != channels:
            continue
        m, s = (
            torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std)
        )
        numbers = f"mean {_short(mean)} and std {_short(std)}"
        yield Change(
            f"normalisation:{name}",
            f"it normalises its images by {numbers}",
            f"subtract the mean and divide by the std: {numbers}",
            _on_images(partial(_normalised, mean=m, std=s)),
        )
        yield Change(
            f"normalisation:{name}-undone",
            f"it takes images that are not normalised by {numbers}",
            "do not normalise the images, or normalise them only once",
            _on_images(partial(_denormalised, mean=m, std=s)),
        )
    if channels > 1:
        yield Change(
            "channel-order:reversed",
            "its channels are in reverse order (BGR)",
            "reverse the channels of the images, or of patch_embed.proj.weight",
            _on_images(lambda x: x.flip(1)),
        )
    if base.config.image_hw[0] == base.config.image_hw[1]:
        yield Change(
            "image-axes:transposed",
            "rows and columns of its images are exchanged",
            "swap the last two axes of the images",
            _on_images(lambda x: x.mT),
        )
    if channels > 1:
        yield Change(
            "image-axes:hwc",
            "its images were reshaped from (H, W, C) to (C, H, W), not transposed",
            "transpose the images: x.transpose(0, 3, 1, 2)",
            _on_images(
                lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1]).permute(
                    0, 3, 1, 2
                )
            ),
        )


def _outputs() -> Iterator[Change]:
    yield Change(
        "outputs:softmax",
        "its outputs are probabilities",
        "compare softmax of the logits",
        _on_outputs(lambda y: y.softmax(-1)),
    )
    yield Change(
        "outputs:log-softmax",
        "its outputs are logarithms of probabilities",
        "compare log_softmax of the logits",
        _on_outputs(lambda y: y.log_softmax(-1)),
    )


# --- how they are made ---------------------------------------------------------------


def _with_config(**fields: Any) -> Callable[[Setup], Setup]:
    def apply(setup: Setup) -> Setup:
        config = ViTConfig.from_dict(setup.config.to_dict() | fields)
        return replace(setup, config=config)

    return apply


def _on_weights(
    ending: str, function: Callable[[Tensor], Tensor]
) -> Callable[[Setup], Setup]:
    """Change every weight of that name, or with that ending; 'qkv.' is both its own."""

    def apply(setup: Setup) -> Setup:
        weights = {
            n: function(w) if _ends(n, ending) else w for n, w in setup.weights.items()
        }
        return replace(setup, weights=weights)

    return apply


def _ends(name: str, ending: str) -> bool:
    if ending.endswith("."):
        return f".{ending}" in f".{name}"
    return f".{name}".endswith(f".{ending}")


def _on_images(function: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, images=function(setup.images))


def _normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean) / std


def _denormalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return x * std + mean


def _on_outputs(function: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, outputs=(*setup.outputs, function))


def _patched(name: str, patch: Patch) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, patches=(*setup.patches, (name, patch)))


def _with_queries_times(factor: float) -> Callable[[Setup], Setup]:
    def scaled(w: Tensor) -> Tensor:
        third = len(w) // 3
        return torch.cat([w[:third] * factor, w[third:]])

    return _on_weights("attn.qkv.", scaled)


def _thirds(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.cat([w.chunk(3)[i] for i in order])


def _reorders(sizes: Sequence[int], axes: Sequence[int]) -> bool:
    """Tell whether the axes change places in more than name: those of size 1 do not."""
    kept = [axis for axis in axes if sizes[axis] > 1]
    return kept != sorted(kept)


def _packed(held: Sequence[int], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Bring rows that are packed in some order to (qkv, heads, features)."""
    back = [axes.index(i) for i in range(3)]

    def unpack(w: Tensor) -> Tensor:
        rest = w.shape[1:]
        apart = w.reshape(*held, *rest)
        return apart.permute(*back, *range(3, apart.ndim)).reshape(w.shape)

    return unpack


def _merged(inner: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda w: w.reshape(len(w), *inner).mT.reshape(w.shape)


def _features(held: Sequence[int], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    back = [1 + axes.index(i) for i in range(3)]
    return lambda w: w.reshape(len(w), *held).permute(0, *back)


def _reshaped(w: Tensor) -> Tensor:
    return w.reshape(w.shape[1], w.shape[0]).mT


def _each_transposed(w: Tensor) -> Tensor:
    return torch.cat([part.mT for part in w.chunk(3)])


def _zeroed(prefix: int) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.cat([torch.zeros_like(w[:, :prefix]), w[:, prefix:]], 1)


def _grid_transposed(
    prefix: int, columns: int, rows: int
) -> Callable[[Tensor], Tensor]:
    def transpose(w: Tensor) -> Tensor:
        grid = w[:, prefix:].reshape(1, columns, rows, -1).transpose(1, 2)
        return torch.cat([w[:, :prefix], grid.reshape(1, rows * columns, -1)], 1)

    return transpose


def _fixed_positions(kind: str) -> Callable[[Setup], Setup]:
    def apply(setup: Setup) -> Setup:
        weights = {n: w for n, w in setup.weights.items() if n != "pos_embed"}
        return _with_config(pos_embed=kind)(replace(setup, weights=weights))

    return apply


def _resized(
    config: ViTConfig, side: int, options: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    def resize(table: Tensor) -> Tensor:
        prefix = table.shape[1] - side * side
        grid = table[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=config.grid, **options)
        grid = grid.flatten(2).mT
        return torch.cat([table[:, :prefix], grid], 1)

    return resize


def _renamed(parts: dict[str, str]) -> Callable[[Setup], Setup]:
    def rename(name: str) -> str:
        for old, new in parts.items():
            if old in f".{name}":
                return f".{name}".replace(old, new)[1:]
        return name

    def apply(setup: Setup) -> Setup:
        weights = {rename(name): w for name, w in setup.weights.items()}
        return replace(setup, weights={n: weights[n] for n in sorted(weights)})

    return apply


def _norms_swapped(setup: Setup) -> Setup:
    return _renamed({".norm1.": ".norm2.", ".norm2.": ".norm1."})(setup)


def _norm_moved(place: str) -> Callable[[Setup], Setup]:
    old, new = ("norm", "fc_norm") if place == "after" else ("fc_norm", "norm")

    def apply(setup: Setup) -> Setup:
        weights = {
            f"{new}.{n.removeprefix(f'{old}.')}" if n.startswith(f"{old}.") else n: w
            for n, w in setup.weights.items()
        }
        return _with_config(final_norm=place)(replace(setup, weights=weights))

    return apply


def _norm_dropped(setup: Setup) -> Setup:
    weights = {
        n: w
        for n, w in setup.weights.items()
        if not n.startswith(("norm.", "fc_norm."))
    }
    return _with_config(final_norm="none")(replace(setup, weights=weights))


def _mean_of_all(setup: Setup) -> Setup:
    def patch(model: Any) -> None:
        model.pool = Backend.load("torch").module("layers.heads").MeanPool(0)

    return _patched("pool:mean-all", patch)(_with_config(pool="mean")(setup))


def _without_pre_logits(setup: Setup) -> Setup:
    weights = {
        n: w for n, w in setup.weights.items() if not n.startswith("pre_logits.")
    }
    return _with_config(pre_logits=None)(replace(setup, weights=weights))


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


class _QuickGELU(nn.Module):
    """GELU as CLIP approximates it."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return x * torch.sigmoid(1.702 * x)


def _activations(kind: Callable[[], nn.Module]) -> Patch:
    def patch(model: Any) -> None:
        for module in list(model.modules()):
            if hasattr(module, "fc1"):
                module.act = kind()

    return patch


def _without_tanh(model: Any) -> None:
    layer = model.pre_logits
    model.pre_logits = nn.Linear(layer.in_features, layer.out_features).double()


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


def _short(values: Sequence[float]) -> str:
    numbers = sorted(set(values))
    if len(numbers) == 1:
        return f"{numbers[0]:.4g}"
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
