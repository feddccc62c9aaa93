"""Optimizers that update parameters in place: SGD, Adam, AdamW."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from vit_numpy import parallel
from vit_numpy.config import check_factor, check_number, check_positive, unknown
from vit_numpy.module import Array, Grads, Module
from vit_numpy.workers import shared_empty

# Elements updated at a time: a block of the parameters, their gradient, both moments
# and the scratch space stay in a core's second-level cache over all the passes.
BLOCK = 65_536


class ParamGroup(TypedDict):
    """Parameters that share a weight decay and a share of the learning rate."""

    names: list[str]
    params: list[Array]
    weight_decay: float
    lr_scale: NotRequired[float]


Params = Iterable[tuple[str, Array]] | Sequence[ParamGroup]


def decays(name: str, param: Array) -> bool:
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
    model: Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> list[ParamGroup]:
    """Return the model's parameters in groups that are updated alike.

    Parameters
    ----------
    model : Module
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


def flatten_parameters(model: Module, shared: bool = False) -> Array:
    """Move all parameters into one flat buffer, of which they become views.

    An optimizer made afterwards updates the buffer in few long passes rather than
    parameter by parameter. Values, names and shapes stay as they are; `Module.to`
    another dtype makes separate arrays again, so convert first.

    Parameters
    ----------
    model : Module
    shared : bool, default False
        Whether the buffer is in memory that processes forked later share, as those of a
        `Trainer` do.

    Returns
    -------
    ndarray of shape (total,)
        The buffer: parameters with weight decay first, those of `param_groups`'s second
        group behind them.

    Raises
    ------
    TypeError
        If the parameters do not all have one dtype.
    """
    named = list(model.named_parameters())
    dtypes = sorted({param.dtype.name for _, param in named})
    if len(dtypes) != 1:
        raise TypeError(
            f"parameters must have one dtype, got {', '.join(dtypes) or 'none'}; "
            "convert the model with model.to(...)"
        )
    named.sort(key=lambda item: not decays(*item))
    (dtype,) = dtypes
    size = sum(param.size for _, param in named)
    flat = shared_empty(size, dtype) if shared else np.empty(size, dtype)
    owners = dict(model.named_modules())
    start = 0
    for name, param in named:
        view = flat[start : start + param.size].reshape(param.shape)
        view[...] = param
        owner, _, attribute = name.rpartition(".")
        setattr(owners[owner], attribute, view)
        start += param.size
    return flat


class _Piece(NamedTuple):
    """The part start:stop of one parameter's flattened gradient."""

    name: str
    start: int
    stop: int


class _Block(NamedTuple):
    """Up to `BLOCK` neighbouring elements, and where their gradient comes from."""

    values: Array
    state: tuple[Array, ...]
    pieces: list[_Piece]
    weight_decay: float
    lr_scale: float


class Optimizer(ABC):
    """What the optimizers share: named parameters, blocks of them, and saved state.

    Subclasses name the arrays they keep per parameter, and define how a block is
    updated. All check their arguments and gradients as `SGD` says.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, params: Params, lr: float, weight_decay: float) -> None:
        self.lr = lr
        check_weight_decay(weight_decay)
        self.param_groups = _as_groups(params, weight_decay)
        self.steps = 0
        self._params = {
            name: param
            for group in self.param_groups
            for name, param in zip(group["names"], group["params"], strict=True)
        }
        self._state: dict[str, Array] = {}
        self._blocks = [
            block for group in self.param_groups for block in self._cut(group)
        ]

    @property
    def lr(self) -> float:
        """The learning rate of the next step; a schedule sets it."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        check_lr(lr)
        self._lr = lr

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update every parameter from its gradient; `grads` is left as it is."""
        _check_grads(grads, self._params)
        self.steps += 1
        blocks = self._blocks
        largest = max(block.values.size for block in blocks)

        def update(span: tuple[int, int]) -> None:
            scratch: dict[np.dtype[Any], Array] = {}
            for block in blocks[slice(*span)]:
                size, dtype = block.values.size, block.values.dtype
                if dtype not in scratch:
                    scratch[dtype] = np.empty((2, largest), dtype)
                first, second = scratch[dtype][:, :size]
                self._update(block, _gather(grads, block.pieces, first), second)

        parallel.share_out(update, len(blocks))

    @abstractmethod
    def _update(self, block: _Block, grad: Array, scratch: Array) -> None:
        """Update one block; `grad` is read only, `scratch` free to write to."""

    def _cut(self, group: ParamGroup) -> Iterator[_Block]:
        """Yield a group's parameters in blocks, over all that are neighbours."""
        for values, names in _runs(group):
            state = tuple(np.zeros_like(values) for _ in self.state_names)
            pieces: list[_Piece] = []
            begin = end = 0
            for name in names:
                shape, size = self._params[name].shape, self._params[name].size
                for key, array in zip(self.state_names, state, strict=True):
                    self._state[f"{key}.{name}"] = array[end : end + size].reshape(
                        shape
                    )
                taken = 0
                while taken < size:
                    part = min(size - taken, begin + BLOCK - end)
                    pieces.append(_Piece(name, taken, taken + part))
                    taken += part
                    end += part
                    if end - begin == BLOCK or end == values.size:
                        yield _Block(
                            values[begin:end],
                            tuple(array[begin:end] for array in state),
                            pieces,
                            group["weight_decay"],
                            group.get("lr_scale", 1.0),
                        )
                        begin, pieces = end, []

    def state_dict(self) -> dict[str, Array]:
        """Return the state by name: `step`, and `exp_avg.head.weight` and its like.

        The arrays are the optimizer's own, not copies. The learning rate, the betas and
        the weight decay belong to the configuration and are not among them.
        """
        return {"step": np.array(self.steps, np.float64), **self._state}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the state in place: the next step is that of the optimizer saved.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape differs, or the step is no count;
            nothing is changed then.
        """
        own = self.state_dict()
        check_state(
            "optimizer state",
            {name: array.shape for name, array in own.items()},
            {name: np.shape(array) for name, array in state.items()},
        )
        check_step("optimizer state", state["step"])
        self.steps = int(state["step"])
        for name, array in self._state.items():
            array[...] = state[name]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and weight decay.

    Parameters
    ----------
    params : iterable of (str, ndarray), or sequence of groups
        `model.named_parameters()`, or what `param_groups` returns; updated in place.
    lr : float, at least 0
        Learning rate.
    momentum : float in [0, 1), default 0
    nesterov : bool, default False
        Look ahead along the momentum; needs momentum above 0.
    weight_decay : float, at least 0, default 0
        Of parameters that come in no group.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above; in `step`, for a gradient that is
        missing, belongs to no parameter, or differs from it in shape or dtype.

    Notes
    -----
    With gradient g, weight decay λ, momentum µ and learning rate η::

        g ← g + λ p
        b ← µ b + g           (b = 0 before the first step)
        p ← p - η b           nesterov: p - η (g + µ b)

    The weight decay is that of an L2 penalty, as in `torch.optim.SGD`.

    References
    ----------
    Sutskever et al. 2013, "On the importance of initialization and momentum", section 2
    (their velocity is -η b).
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        check_momentum(momentum, nesterov)
        self.momentum = momentum
        self.nesterov = nesterov
        self.state_names = ("momentum_buffer",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def _update(self, block: _Block, grad: Array, scratch: Array) -> None:
        p, a = block.values, scratch
        if block.weight_decay:
            np.multiply(p, block.weight_decay, out=a)
            a += grad
        else:
            a[...] = grad
        if self.momentum:
            (b,) = block.state
            b *= self.momentum
            b += a
            if self.nesterov:
                a += self.momentum * b
            else:
                a[...] = b
        a *= self.lr * block.lr_scale
        p -= a


class Adam(Optimizer):
    """Adam; weight decay is an L2 penalty, and so passes through the moments.

    Parameters
    ----------
    params : iterable of (str, ndarray), or sequence of groups
        `model.named_parameters()`, or what `param_groups` returns; updated in place.
    lr : float, at least 0, default 1e-3
        Learning rate.
    betas : (float, float) in [0, 1), default (0.9, 0.999)
        Decay of the running means of the gradient and of its square.
    eps : float, above 0, default 1e-8
        Added to the root of the second moment.
    weight_decay : float, at least 0, default 0
        Of parameters that come in no group.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    Notes
    -----
    With gradient g, weight decay λ, learning rate η, and t counting from 1::

        g ← g + λ p
        m ← m + (1 - β₁)(g - m)
        v ← β₂ v + (1 - β₂) g²
        p ← p - η/(1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    The powers of β undo the pull of the moments' start at zero.

    References
    ----------
    Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
    """

    state_names = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        check_betas(betas)
        check_positive("eps", eps)
        self.betas = (betas[0], betas[1])
        self.eps = eps
        super().__init__(params, lr, weight_decay)

    def _update(self, block: _Block, grad: Array, scratch: Array) -> None:
        p, a, g = block.values, scratch, grad
        m, v = block.state
        lr = self.lr * block.lr_scale
        beta1, beta2 = self.betas
        if block.weight_decay:
            if self.decoupled:
                p *= 1 - lr * block.weight_decay
            else:
                g = block.weight_decay * p
                g += grad
        np.subtract(g, m, out=a)
        a *= 1 - beta1
        m += a
        np.multiply(g, g, out=a)
        a *= 1 - beta2
        v *= beta2
        v += a
        # Numerator and denominator times √(1 - β₂ᵗ): a pass less.
        root = math.sqrt(1 - beta2**self.steps)
        np.sqrt(v, out=a)
        a += self.eps * root
        np.divide(m, a, out=a)
        a *= lr * root / (1 - beta1**self.steps)
        p -= a


class AdamW(Adam):
    """Adam with decoupled weight decay: parameters shrink, moments do not see it.

    Parameters
    ----------
    params, lr, betas, eps
        As `Adam`.
    weight_decay : float, at least 0, default 0.01
        Of parameters that come in no group.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    Notes
    -----
    As `Adam`, but instead of adding λ p to the gradient::

        p ← (1 - η λ) p       before the rest of the step

    References
    ----------
    Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def grad_norm(grads: Mapping[str, Array]) -> np.floating[Any]:
    """Return the Euclidean norm of all gradients taken as one vector.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not grads:
        raise ValueError("grads must hold at least one gradient, got none")
    # BLAS cuts up long sums in float64: their bits depend on its threads.
    with parallel.one_blas_thread():
        return combined_norm(np.sqrt(np.vdot(grad, grad)) for grad in grads.values())


def combined_norm(norms: Iterable[np.floating[Any]]) -> np.floating[Any]:
    """Return the norm of several vectors taken as one, from the norm of each."""
    each = list(norms)
    total: np.floating[Any] = np.sqrt(np.vdot(each, each))
    return total


def clip_grad_norm(grads: Grads, max_norm: float) -> np.floating[Any]:
    """Scale all gradients, in place, so that their common norm is at most `max_norm`.

    Parameters
    ----------
    grads : dict of ndarray
        Multiplied by min(1, max_norm / (norm + 1e-6)).
    max_norm : float, above 0

    Returns
    -------
    float
        The norm before, of the gradients' dtype.

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
    factor = max_norm / (norm + 1e-6)
    # A norm that is NaN makes all of them NaN, rather than pass by the comparison.
    if not factor >= 1:
        # Infinity times 0 is NaN here, and no news: the norm has said so.
        with np.errstate(invalid="ignore"):
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


def check_step(kind: str, step: Array) -> None:
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
            and isinstance(pair[1], np.ndarray)
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


def _runs(group: ParamGroup) -> Iterator[tuple[Array, list[str]]]:
    """Yield flat views of the group's memory, each with the parameters within it."""
    base: Array | None = None
    begin = end = 0
    names: list[str] = []
    for name, param in zip(group["names"], group["params"], strict=True):
        if not param.flags.c_contiguous:
            raise ValueError(
                f"{name} must be C-contiguous to be updated in place; "
                "assign np.ascontiguousarray of it to the module"
            )
        buffer, start = _place(param)
        if buffer is not base or start != end:
            if base is not None:
                yield base[begin:end], names
            base, begin, names = buffer, start, []
        names.append(name)
        end = start + param.size
    if base is not None:
        yield base[begin:end], names


def _place(param: Array) -> tuple[Array, int]:
    """Return the flat buffer that a parameter lies in, and where; or itself, and 0."""
    base = param.base
    if (
        isinstance(base, np.ndarray)
        and base.ndim == 1
        and base.flags.c_contiguous
        and base.dtype == param.dtype
    ):
        address = param.__array_interface__["data"][0]
        offset = address - base.__array_interface__["data"][0]
        return base, offset // param.itemsize
    return param.reshape(-1), 0


def _gather(grads: Mapping[str, Array], pieces: list[_Piece], out: Array) -> Array:
    """Return a block's gradient: a view where it lies in one piece, else in `out`."""
    if len(pieces) == 1:
        ((name, start, stop),) = pieces
        return grads[name].reshape(-1)[start:stop]
    end = 0
    for name, start, stop in pieces:
        begin, end = end, end + stop - start
        out[begin:end] = grads[name].reshape(-1)[start:stop]
    return out


def _check_grads(grads: Mapping[str, Array], params: Mapping[str, Array]) -> None:
    """Raise unless there is a gradient for each parameter, of its shape and dtype."""
    if len(grads) < len(params) or not params.keys() <= grads.keys():
        missing = next(name for name in params if name not in grads)
        raise ValueError(f"no gradient for {missing!r}; run the backward pass first")
    for name, grad in grads.items():
        param = params.get(name)
        if param is None:
            raise ValueError(unknown("gradient", name, params))
        if grad.shape != param.shape:
            raise ValueError(
                f"gradient of {name} must have shape {param.shape}, "
                f"got shape {grad.shape}"
            )
        if grad.dtype != param.dtype:
            raise TypeError(
                f"gradient of {name} must be {param.dtype.name}, got {grad.dtype.name}"
            )
