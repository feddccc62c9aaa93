"""The configuration of a Vision Transformer, and the published sizes by name.

This file is the same, byte for byte, in `vit_numpy` and `vit_torch`.
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
PATCH_EMBEDDINGS = ("conv", "linear")
POSITIONS = ("learned", "sincos1d", "sincos2d", "none")
POOLINGS = ("token", "mean", "map", "flatten")
FINAL_NORMS = ("before", "after", "none")

# Far above any network that is trained: what exceeds it is a slip, which is better told
# here than by an allocator.
LARGEST = 2**24

LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """What a `VisionTransformer` is made of; every combination that passes is built.

    No size, count or number of tokens may exceed 2²⁴ = 16777216.

    Parameters
    ----------
    image_size : int or (int, int), default 224
        Height and width in pixels; kept as a pair.
    patch_size : int, default 16
        Side P of the square patches; must divide both sides of the image.
    in_chans : int, default 3
        Channels C of the images.
    num_classes : int, default 1000
        Logits K; 0 builds no head, and the model returns the pooled features.
    dim, depth, num_heads, mlp_dim : int, default 768, 12, 12, 3072
        Width D, number of blocks, heads h (must divide D), hidden width M of the MLP.
    act : {'gelu', 'gelu_tanh', 'relu'}, default 'gelu'
        Activation of the MLP; 'gelu' is the exact form with erf.
    norm_eps : float, default 1e-6
        Added to the variance in every LayerNorm (`torch.nn.LayerNorm` has 1e-5).
    patch_embed : {'conv', 'linear'}, default 'conv'
        Embed patches by a strided convolution or by a product with flattened patches.
        The parameters are the same.
    patch_bias, qkv_bias : bool, default True
        Whether the patch embedding and the q, k, v projection have a bias.
    qk_norm : bool, default False
        Normalise each head's queries and keys (Dehghani et al. 2023, section 2).
    layer_scale : float, optional
        Initial value of LayerScale on both branches of a block, within float32's range;
        None builds none.
    class_token : bool, default True
    num_registers : int, default 0
        Register tokens R (Darcet et al. 2023).
    distillation_token : bool, default False
        A second token with a head of its own (Touvron et al. 2021); needs
        ``class_token`` and ``pool='token'``.
    pos_embed : {'learned', 'sincos1d', 'sincos2d', 'none'}, default 'learned'
    pos_prefix : bool, default True
        Whether class, distillation and register tokens have positions too.
    pool : {'token', 'mean', 'map', 'flatten'}, default 'token'
        The class token; the mean over patch tokens; multi-head attention pooling
        (Zhai et al. 2022); or all tokens flattened into one vector of T·D.
    final_norm : {'before', 'after', 'none'}, default 'before'
        Whether the last LayerNorm stands before or after pooling.
    pre_logits : int, optional
        Width of a tanh layer between pooling and head (Dosovitskiy et al. 2021).
    pos_drop, attn_drop, proj_drop, act_drop, mlp_drop : float in [0, 1), default 0
        Dropout after the positions, on attention weights, after the attention's
        projection, after the MLP's activation, and after the MLP's second layer.
    drop_path : float in [0, 1), default 0
        Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind, and for one that breaks a rule above.

    References
    ----------
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", table 1.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    act: str = "gelu"
    norm_eps: float = 1e-6
    patch_embed: str = "conv"
    patch_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    class_token: bool = True
    num_registers: int = 0
    distillation_token: bool = False
    pos_embed: str = "learned"
    pos_prefix: bool = True
    pool: str = "token"
    final_norm: str = "before"
    pre_logits: int | None = None
    pos_drop: float = 0.0
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    act_drop: float = 0.0
    mlp_drop: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        size = self.image_size
        if isinstance(size, list | tuple):
            if len(size) != 2:
                raise ValueError(
                    "image_size must be one number or (height, width), "
                    f"got image_size={size!r}"
                )
            height, width = size
        else:
            height = width = size
        check_int("image_size", height, 1, LARGEST)
        check_int("image_size", width, 1, LARGEST)
        object.__setattr__(self, "image_size", (height, width))
        for name, least in (
            ("patch_size", 1),
            ("in_chans", 1),
            ("num_classes", 0),
            ("dim", 1),
            ("depth", 1),
            ("num_heads", 1),
            ("mlp_dim", 1),
            ("num_registers", 0),
        ):
            check_int(name, getattr(self, name), least, LARGEST)
        if self.pre_logits is not None:
            check_int("pre_logits", self.pre_logits, 1, LARGEST)
        for name in (
            "patch_bias",
            "qkv_bias",
            "qk_norm",
            "class_token",
            "distillation_token",
            "pos_prefix",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        check_positive("norm_eps", self.norm_eps)
        if self.layer_scale is not None:
            check_float32("layer_scale", self.layer_scale)
        for name in (
            "pos_drop",
            "attn_drop",
            "proj_drop",
            "act_drop",
            "mlp_drop",
            "drop_path",
        ):
            check_rate(name, getattr(self, name))
        for name, choices in (
            ("act", ACTIVATIONS),
            ("patch_embed", PATCH_EMBEDDINGS),
            ("pos_embed", POSITIONS),
            ("pool", POOLINGS),
            ("final_norm", FINAL_NORMS),
        ):
            check_choice(name, getattr(self, name), choices)
        self._check_rules()

    def _check_rules(self) -> None:
        """Check what one field demands of another."""
        height, width = self.image_hw
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                "image_size must be divisible by patch_size, "
                f"got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.num_tokens > LARGEST:
            raise ValueError(
                f"a network must have at most {LARGEST} tokens, got {self.num_tokens} "
                f"from image_size={self.image_size}, patch_size={self.patch_size}, "
                f"num_registers={self.num_registers}; "
                "use smaller images, larger patches or fewer registers"
            )
        if self.dim % self.num_heads:
            raise ValueError(
                "dim must be divisible by num_heads, "
                f"got dim={self.dim}, num_heads={self.num_heads}"
            )
        if self.pool == "token" and not self.class_token:
            raise ValueError(
                "pool='token' needs class_token=True; use pool='mean' without one"
            )
        if self.distillation_token and not (self.class_token and self.pool == "token"):
            raise ValueError(
                "distillation_token=True needs class_token=True and pool='token', "
                f"got class_token={self.class_token}, pool={self.pool!r}"
            )
        if self.pool == "flatten" and self.final_norm == "after":
            raise ValueError(
                "final_norm='after' needs one pooled vector of width dim; "
                "with pool='flatten' use final_norm='before' or 'none'"
            )
        if self.pos_embed == "sincos1d" and self.dim % 2:
            raise ValueError(
                f"pos_embed='sincos1d' needs an even dim, got dim={self.dim}"
            )
        # A quarter of dim holds the frequencies, spread over dim/4 - 1 steps.
        if self.pos_embed == "sincos2d" and (self.dim % 4 or self.dim < 8):
            raise ValueError(
                "pos_embed='sincos2d' needs dim divisible by 4 and at least 8, "
                f"got dim={self.dim}"
            )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """N = H·W / P²."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens, which stand before the patches."""
        return self.class_token + self.distillation_token + self.num_registers

    @property
    def num_tokens(self) -> int:
        """T = N + prefix tokens."""
        return self.num_patches + self.num_prefix_tokens

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Drop-path rate of each block: from 0 at the first to `drop_path` at the last.

        References
        ----------
        Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3.
        """
        last = max(self.depth - 1, 1)
        return tuple(self.drop_path * i / last for i in range(self.depth))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON can hold them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"image_size": list(self.image_hw)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ViTConfig":
        """Build a configuration from `to_dict`'s fields; those left out have defaults.

        Raises
        ------
        ValueError
            For a key that is no field; the nearest field is named.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise ValueError(unknown("configuration key", key, known))
        return cls(**fields)


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise unless `value` is an int, and no bool, from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {name}={value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {name}={value}")


def check_number(name: str, value: Any) -> None:
    """Raise unless `value` is a finite real number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {name}={value!r}")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be finite, got {name}={value}")


def check_float32(name: str, value: Any) -> None:
    """Raise unless `value` is a number that float32 can hold, as new parameters are."""
    check_number(name, value)
    if not -LARGEST_FLOAT32 <= value <= LARGEST_FLOAT32:
        raise ValueError(
            f"{name} must be at most {LARGEST_FLOAT32:.4g} in size, as float32 holds, "
            f"got {name}={value}"
        )


def check_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a finite number above 0."""
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {name}={value}")


def check_factor(name: str, value: Any) -> None:
    """Raise unless `value` is a number in (0, 1]."""
    check_number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {name}={value}")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raise unless `value` is a number from `low` to `high`."""
    check_number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {name}={value}")


def check_rate(name: str, value: Any) -> None:
    """Raise unless `value` is a probability that leaves something: in [0, 1)."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {name}={value}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {name}={value!r}")
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(unknown(name, value, choices))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the nearest known one, else all."""
    known = list(known)
    nearest = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


# Dim, depth, heads: Ti and S of Touvron et al. 2021 (DeiT), table 1; B, L and H of
# Dosovitskiy et al. 2021, table 1. The MLP is four times as wide throughout.
_SIZES = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}
_PATCH_SIZES = (8, 14, 16, 32)

# Small networks for 28×28 greyscale digits and 32×32 colour pictures.
_SMALL: dict[str, Any] = dict(
    num_classes=10, norm_eps=1e-5, patch_bias=False, act_drop=0.1
)
_DIGITS: dict[str, Any] = _SMALL | dict(
    image_size=28, in_chans=1, act="relu", final_norm="none"
)

PRESETS: dict[str, ViTConfig] = {
    "network1": ViTConfig(
        patch_size=7, dim=9, num_heads=3, depth=3, mlp_dim=32, **_DIGITS
    ),
    "network2": ViTConfig(
        patch_size=4, dim=32, num_heads=4, depth=3, mlp_dim=64, **_DIGITS
    ),
    "network3": ViTConfig(
        image_size=32,
        patch_size=4,
        dim=64,
        num_heads=8,
        depth=4,
        mlp_dim=128,
        act="gelu_tanh",
        **_SMALL,
    ),
} | {
    f"{size}{patch}": ViTConfig(
        patch_size=patch, dim=dim, depth=depth, num_heads=heads, mlp_dim=4 * dim
    )
    for size, (dim, depth, heads) in _SIZES.items()
    for patch in _PATCH_SIZES
}


def preset(name: str, **overrides: Any) -> ViTConfig:
    """Return the named configuration, with some fields replaced.

    Raises
    ------
    TypeError, ValueError
        For a name that is no string; for an unknown name or field, whose nearest is
        named; for a field that `ViTConfig` refuses.
    """
    check_choice("preset", name, PRESETS)
    return ViTConfig.from_dict(PRESETS[name].to_dict() | overrides)
