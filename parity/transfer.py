"""Weights from one twin to the other: a copy, as both have the same names and layouts.

>>> copy_weights(vit_numpy_model, vit_torch_model)
>>> copy_weights(vit_torch_model, vit_numpy_model)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def weights(model: Any) -> dict[str, NDArray[Any]]:
    """Return a copy of the parameters of a module of either backend, by name.

    Names are in the order of the model. Buffers are left out, as neither backend
    saves what it can compute.
    """
    return {name: _array(value) for name, value in model.state_dict().items()}


def copy_weights(source: Any, target: Any) -> None:
    """Copy every parameter of `source` into `target`, in the dtype of `target`.

    Parameters
    ----------
    source, target : vit_numpy.module.Module or torch.nn.Module
        Two modules of the same configuration, in any combination of backends.

    Raises
    ------
    ValueError
        If a name is missing or unknown or a shape differs; `target` is unchanged then.
    """
    state = weights(source)
    own = weights(target)
    if missing := own.keys() - state.keys():
        raise ValueError(
            f"the source has no {min(missing)!r} ({len(missing)} missing in all); "
            "build both models from the same configuration"
        )
    if unexpected := state.keys() - own.keys():
        raise ValueError(
            f"the target has no {min(unexpected)!r} ({len(unexpected)} unexpected in "
            "all); build both models from the same configuration"
        )
    for name, array in state.items():
        if array.shape != own[name].shape:
            raise ValueError(
                f"{name} must have shape {own[name].shape}, got shape {array.shape}; "
                "build both models from the same configuration"
            )
    if hasattr(target, "named_children"):
        import torch

        target.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    else:
        target.load_state_dict(state)


def _array(value: Any) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        value = value.detach().cpu().numpy()
    return np.array(value)
