"""Optimizers that update parameters in place: SGD, Adam, AdamW.

Each is torch's own, under this project's signature and with named state.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from vit_torch.config import check_factor, check_number, check_positive, unknown


class ParamGroup(TypedDict):
    """Parameters that share a weight decay and a share of the learning rate."""

    names: list[str]
    params: list[Tensor]
    weight_decay: float
    lr_scale: NotRequired[float]


Params = Iterable[tuple[str, Tensor]] | Sequence[ParamGroup]


def decays(name: str, param: Tensor) -> bool:
    """Tell whether weight decay applies: to matrices and convolutions only.

    Biases, norms, layer scales, tokens and position tables are left alone.
    """
    return param.ndim >= 2 and name.rpartition(".")[2] == "weight"


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 embeds, i + 1 is block i, depth + 1 the rest.

    Tokens and positions belong to the embedding; the last norm, poolings and heads are
    the rest.
    """
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) + 1
    embeds = ("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token")
    return 0 if first in embeds else depth + 1


def param_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> list[ParamGroup]:
    """Return the model's parameters in groups that are updated alike.

    Parameters
    ----------
    model : nn.Module
    weight_decay : float
        Of matrices and convolutions; biases, norms, tokens and positions have 0.
    layer_decay : float in (0, 1], default 1
        What the learning rate of a layer is multiplied by for each layer that lies
        above it (`layer_of`): the head's is whole, the embedding's the smallest.
    frozen : sequence of str, default ()
        Parameters that are left out, and so not trained: their names, or those of
        modules that hold them, as 'blocks.0'.

    Returns
    -------
    list of ParamGroup
        What the optimizers take as `params`: with weight decay first, and from the
        embedding upwards. An empty group is left out.

    Raises
    ------
    TypeError, ValueError
        If a number breaks a rule above; if a frozen name is none of the model's, or
        nothing is left to train.

    References
    ----------
    Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", appendix
    (layer-wise decay).
    """
    check_weight_decay(weight_decay)
    check_factor("layer_decay", layer_decay)
    named = dict(model.named_parameters())
    for name in frozen:
        if not any(lies_in(param, name) for param in named):
            raise ValueError(unknown("parameter or module", name, named))
    depth = sum(name.endswith(".norm1.weight") for name in named)
    groups: dict[tuple[bool, float], ParamGroup] = {}
    for name, param in named.items():
        if any(lies_in(name, part) for part in frozen):
            continue
        decayed = decays(name, param)
        lr_scale = layer_decay ** (depth + 1 - layer_of(name, depth))
        group = groups.setdefault(
            (not decayed, lr_scale),
            {
                "names": [],
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": lr_scale,
            },
        )
        group["names"].append(name)
        group["params"].append(param)
    if not groups:
        raise ValueError("frozen must leave a parameter to train, got all of them")
    return [groups[key] for key in sorted(groups)]


def lies_in(name: str, module: str) -> bool:
    """Tell whether `name` is the parameter `module`, or one in the module."""
    return name == module or name.startswith(f"{module}.")


class _Named(torch.optim.Optimizer):
    """What the optimizers share: named parameters, and state saved by their names."""

    state_names: tuple[str, ...] = ()

    @property
    def lr(self) -> float:
        """The learning rate of the next step; a schedule sets it."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        check_lr(lr)
        self._lr = lr
        for group in self.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    @property
    def steps(self) -> int:
        """The number of updates made."""
        return getattr(self, "_steps", 0)

    def step(self) -> None:
        """Update every parameter from its `grad`."""
        for name, param in self._named():
            if param.grad is None:
                raise ValueError(
                    f"no gradient for {name!r}; run the backward pass first"
                )
        self._steps = self.steps + 1
        super().step()

    def _named(self) -> list[tuple[str, Tensor]]:
        """Return every parameter with its name."""
        return [
            pair
            for group in self.param_groups
            for pair in zip(group["names"], group["params"], strict=True)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state by name: `step`, and `exp_avg.head.weight` and its like.

        The arrays are the optimizer's own, not copies. The learning rate, the betas and
        the weight decay belong to the configuration and are not among them.
        """
        state = {"step": torch.tensor(self.steps, dtype=torch.float64)}
        for name, param in self._named():
            for key in self.state_names:
                kept = self.state[param].get(key)
                value = torch.zeros_like(param) if kept is None else kept
                state[f"{key}.{name}"] = value.detach()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the state: the next step is that of the optimizer saved.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape differs, or the step is no count;
            nothing is changed then.
        """
        check_state(
            "optimizer state",
            {name: tuple(value.shape) for name, value in self.state_dict().items()},
            {name: tuple(value.shape) for name, value in state.items()},
        )
        check_step("optimizer state", state["step"])
        self._steps = int(state["step"])
        self.state.clear()
        if not self._steps:
            return
        for group in self.param_groups:
            # torch's fused kernels read the step where the parameters are.
            fused = group.get("fused")
            for name, param in zip(group["names"], group["params"], strict=True):
                if "exp_avg" in self.state_names:
                    device = param.device if fused else "cpu"
                    self.state[param]["step"] = torch.tensor(
                        float(self._steps), dtype=torch.float32, device=device
                    )
                for key in self.state_names:
                    value = torch.empty_like(param).copy_(state[f"{key}.{name}"])
                    self.state[param][key] = value


class SGD(_Named, torch.optim.SGD):
    """Stochastic gradient descent, with momentum and weight decay.

    The twin of the one in `vit_numpy.optim`, which has the equations.

    Parameters
    ----------
    params : iterable of (str, Tensor), or sequence of groups
        `model.named_parameters()`, or what `param_groups` returns; updated in place.
    lr : float, at least 0
        Learning rate.
    momentum : float in [0, 1), default 0
    nesterov : bool, default False
        Look ahead along the momentum; needs momentum above 0.
    weight_decay : float, at least 0, default 0
        Of parameters that come in no group.
    fused : bool, optional
        torch's fused kernel; torch only.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above; in `step`, for a gradient that is
        missing.

    References
    ----------
    Sutskever et al. 2013, "On the importance of initialization and momentum".
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        fused: bool | None = None,
    ) -> None:
        check_momentum(momentum, nesterov)
        check_lr(lr)
        check_weight_decay(weight_decay)
        self.state_names = ("momentum_buffer",) if momentum else ()
        super().__init__(
            _as_groups(params, weight_decay),
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=fused,
        )
        self.lr = lr


class Adam(_Named, torch.optim.Adam):
    """Adam; weight decay is an L2 penalty, and so passes through the moments.

    The twin of the one in `vit_numpy.optim`, which has the equations.

    Parameters
    ----------
    params : iterable of (str, Tensor), or sequence of groups
        `model.named_parameters()`, or what `param_groups` returns; updated in place.
    lr : float, at least 0, default 1e-3
        Learning rate.
    betas : (float, float) in [0, 1), default (0.9, 0.999)
        Decay of the running means of the gradient and of its square.
    eps : float, above 0, default 1e-8
        Added to the root of the second moment.
    weight_decay : float, at least 0, default 0
        Of parameters that come in no group.
    fused : bool, optional
        torch's fused kernel; torch only.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    References
    ----------
    Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        fused: bool | None = None,
    ) -> None:
        check_betas(betas)
        check_positive("eps", eps)
        check_lr(lr)
        check_weight_decay(weight_decay)
        super().__init__(
            _as_groups(params, weight_decay),
            lr=lr,
            betas=(betas[0], betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
        )
        self.lr = lr


class AdamW(_Named, torch.optim.AdamW):
    """Adam with decoupled weight decay: parameters shrink, moments do not see it.

    The twin of the one in `vit_numpy.optim`, which has the equations.

    Parameters
    ----------
    params, lr, betas, eps, fused
        As `Adam`.
    weight_decay : float, at least 0, default 0.01
        Of parameters that come in no group.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    References
    ----------
    Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        fused: bool | None = None,
    ) -> None:
        check_betas(betas)
        check_positive("eps", eps)
        check_lr(lr)
        check_weight_decay(weight_decay)
        super().__init__(
            _as_groups(params, weight_decay),
            lr=lr,
            betas=(betas[0], betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
        )
        self.lr = lr


@torch.no_grad()
def grad_norm(grads: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients taken as one vector.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not grads:
        raise ValueError("grads must hold at least one gradient, got none")
    return nn.utils.get_total_norm(grads.values())


@torch.no_grad()
def clip_grad_norm(grads: dict[str, Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their common norm is at most `max_norm`.

    Parameters
    ----------
    grads : dict of Tensor
        Multiplied by min(1, max_norm / (norm + 1e-6)).
    max_norm : float, above 0

    Returns
    -------
    Tensor
        The norm before: a scalar of the gradients' dtype.

    Raises
    ------
    TypeError, ValueError
        If `max_norm` is no number, or not above 0; if there are no gradients.

    References
    ----------
    Pascanu et al. 2013, "On the difficulty of training recurrent neural networks",
    algorithm 1.
    """
    check_positive("max_norm", max_norm)
    norm = grad_norm(grads)
    # Always multiplied, by 1 at most: to ask first would wait for an accelerator.
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for grad in grads.values():
        grad *= factor
    return norm


def check_lr(lr: float) -> None:
    """Raise unless `lr` is a number of at least 0."""
    check_number("lr", lr)
    if lr < 0:
        raise ValueError(f"lr must be at least 0, got lr={lr}")


def check_weight_decay(weight_decay: float) -> None:
    """Raise unless `weight_decay` is a number of at least 0."""
    check_number("weight_decay", weight_decay)
    if weight_decay < 0:
        raise ValueError(
            f"weight_decay must be at least 0, got weight_decay={weight_decay}"
        )


def check_momentum(momentum: float, nesterov: bool) -> None:
    """Raise unless `momentum` is in [0, 1), and above 0 for Nesterov's."""
    check_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got momentum={momentum}")
    if nesterov and not momentum:
        raise ValueError(
            "nesterov=True needs momentum above 0, got momentum=0; 0.9 is usual"
        )


def check_betas(betas: tuple[float, float]) -> None:
    """Raise unless `betas` are two numbers in [0, 1)."""
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got betas={betas!r}")
    for beta in betas:
        check_number("betas", beta)
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be in [0, 1), got betas={tuple(betas)}")


def check_state(
    kind: str, own: Mapping[str, tuple[int, ...]], state: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise unless `state` has the names and shapes of `own`."""
    for name in own:
        if name not in state:
            raise ValueError(f"{kind} has no {name!r}; it holds {len(state)} arrays")
    for name, shape in state.items():
        if name not in own:
            raise ValueError(unknown(f"name in the {kind}", name, own))
        if shape != own[name]:
            raise ValueError(f"{name} must have shape {own[name]}, got shape {shape}")


def check_step(kind: str, step: Tensor) -> None:
    """Raise unless a saved number of steps is a whole number of at least 0."""
    value = float(step)
    if value < 0 or not value.is_integer():
        raise ValueError(
            f"step in the {kind} must be a whole number of at least 0, got {value:g}"
        )


def _check_pairs(pairs: Sequence[Any]) -> None:
    """Raise unless each is the name of a parameter, and the parameter."""
    for pair in pairs:
        if not (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], Tensor)
        ):
            raise TypeError(
                "params must be (name, parameter) pairs, as model.named_parameters() "
                f"gives, or groups, as param_groups gives, got {type(pair).__name__}"
            )


def _as_groups(params: Params, weight_decay: float) -> list[ParamGroup]:
    """Return `params` as groups; raise for what is neither, none, or named twice."""
    given: list[Any] = list(params) if isinstance(params, Iterable) else [params]
    if given and all(isinstance(group, dict) for group in given):
        for group in given:
            for key in ("names", "params", "weight_decay"):
                if key not in group:
                    raise ValueError(
                        "a group must hold names, params and weight_decay, "
                        f"got no {key}; make groups with param_groups"
                    )
        # Copies: an optimizer writes its settings into its groups.
        groups: list[Any] = [dict(group) for group in given]
    else:
        _check_pairs(given)
        names, arrays = [name for name, _ in given], [param for _, param in given]
        groups = [{"names": names, "params": arrays, "weight_decay": weight_decay}]
    seen = [name for group in groups for name in group["names"]]
    if not seen:
        raise ValueError("params must hold at least one parameter, got none")
    for group in groups:
        if len(group["names"]) != len(group["params"]):
            raise ValueError(
                "a group must have a name for each parameter, "
                f"got {len(group['names'])} names, {len(group['params'])} parameters"
            )
        check_weight_decay(group["weight_decay"])
        check_positive("lr_scale", group.get("lr_scale", 1.0))
    if len(set(seen)) < len(seen):
        twice = next(name for name in seen if seen.count(name) > 1)
        raise ValueError(f"params must name each parameter once, got {twice!r} twice")
    return groups
