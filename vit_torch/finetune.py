"""Starting from a trained model: another head, image size, frozen layers."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_torch.config import ViTConfig, check_choice, check_int
from vit_torch.model import VisionTransformer

MODES = (
    "bicubic",
    "bicubic-antialias",
    "bicubic-corners",
    "bilinear",
    "bilinear-antialias",
    "bilinear-corners",
)

# What a model may be given anew; everything else is what its weights were trained for.
ADAPTABLE = (
    "image_size",
    "num_classes",
    "pos_drop",
    "attn_drop",
    "proj_drop",
    "act_drop",
    "mlp_drop",
    "drop_path",
)


@torch.no_grad()
def adapt(
    model: VisionTransformer,
    config: ViTConfig,
    mode: str = "bicubic",
    new_head: bool = True,
) -> VisionTransformer:
    """Return a model of another head, image size or dropout, with a model's weights.

    Parameters
    ----------
    model : VisionTransformer
        Left as it is.
    config : ViTConfig
        The model's own but for classes, image size and dropout.
    mode : str, default 'bicubic'
        How learned positions get to another grid: see `resize_positions`.
    new_head : bool, default True
        Whether the head starts from zero; it must where the classes are others.

    Returns
    -------
    VisionTransformer
        Of the model's dtype.

    Raises
    ------
    TypeError, ValueError
        If `config` differs in anything else, or a weight does not fit the new size.
    """
    own = model.config
    for field in dataclasses.fields(config):
        was, wanted = getattr(own, field.name), getattr(config, field.name)
        if field.name not in ADAPTABLE and was != wanted:
            raise ValueError(
                f"a trained model keeps its {field.name}={was!r}, got {wanted!r}; "
                f"to be changed are {', '.join(ADAPTABLE)}"
            )
    weights = model.state_dict()
    adapted = VisionTransformer(config).to(model.patch_embed.proj.weight)
    state = adapted.state_dict()
    if own.pos_embed == "learned":
        weights["pos_embed"] = resize_positions(
            weights["pos_embed"],
            own.grid,
            config.grid,
            own.num_prefix_tokens if own.pos_prefix else 0,
            mode,
        )
    heads = ("head.", "head_dist.") if new_head else ()
    for name, array in state.items():
        if name.startswith(heads):
            array.zero_()
            continue
        if name not in weights or weights[name].shape != array.shape:
            got = (
                "none" if name not in weights else f"shape {tuple(weights[name].shape)}"
            )
            raise ValueError(
                f"{name} must have shape {tuple(array.shape)} in the new model, "
                f"got {got}; "
                "keep image_size and num_classes, or take a new head"
            )
        array.copy_(weights[name])
    return adapted


def frozen_layers(config: ViTConfig, blocks: int) -> tuple[str, ...]:
    """Return what `param_groups` leaves out to freeze the embedding and first blocks.

    Parameters
    ----------
    config : ViTConfig
    blocks : int
        From the first on. 0 freezes nothing; the embedding is frozen with any block.
        More than there are freezes the last norm and poolings too, and leaves the
        heads: a linear probe.

    Raises
    ------
    TypeError, ValueError
        If `blocks` is no int, or below 0.
    """
    check_int("blocks", blocks, 0)
    if not blocks:
        return ()
    names = ["patch_embed"]
    tokens = (
        ("cls_token", config.class_token),
        ("dist_token", config.distillation_token),
        ("reg_token", config.num_registers),
        ("pos_embed", config.pos_embed == "learned"),
    )
    names += [name for name, there in tokens if there]
    names += [f"blocks.{i}" for i in range(min(blocks, config.depth))]
    if blocks > config.depth:
        after = (
            ("norm", config.final_norm == "before"),
            ("attn_pool", config.pool == "map"),
            ("fc_norm", config.final_norm == "after"),
            ("pre_logits", config.pre_logits is not None),
        )
        names += [name for name, there in after if there]
    return tuple(names)


def resize_positions(
    table: Tensor,
    old_grid: Sequence[int],
    new_grid: Sequence[int],
    prefix: int = 0,
    mode: str = "bicubic",
) -> Tensor:
    """Return a table of positions for another grid of patches, interpolated.

    The twin of the one in `vit_numpy.finetune`, by torch's own interpolation.

    Parameters
    ----------
    table : Tensor of shape (1, prefix + N, D)
    old_grid, new_grid : (int, int)
        Rows and columns of patches.
    prefix : int, default 0
        Positions in front that belong to no patch; they are kept.
    mode : str, default 'bicubic'
        'bicubic' (as Hugging Face does), 'bicubic-antialias' (timm), 'bicubic-corners'
        (torchvision), 'bilinear' (timm, for Google's files), 'bilinear-antialias', or
        'bilinear-corners' (Google). Pixels are areas; with 'corners' they are points,
        and the outermost stay where they are.

    Returns
    -------
    Tensor of shape (1, prefix + N', D)
        Of the table's dtype; computed in float64. The table itself for the same grid.

    Raises
    ------
    TypeError, ValueError
        If the mode is unknown, or the table does not have the grid's length.

    References
    ----------
    Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing".
    """
    check_choice("mode", mode, MODES)
    rows, columns = old_grid
    if table.shape[1] != prefix + rows * columns:
        raise ValueError(
            f"table must hold {prefix} + {rows}·{columns} positions, "
            f"got {table.shape[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    kind, _, way = mode.partition("-")
    grid = table[:, prefix:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).double()
    resized = F.interpolate(
        grid,
        (new_grid[0], new_grid[1]),
        mode=kind,
        align_corners=way == "corners",
        antialias=way == "antialias",
    )
    resized = resized.flatten(2).mT.to(table.dtype)
    return torch.cat([table[:, :prefix], resized], dim=1)
