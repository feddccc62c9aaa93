"""Modules without a framework: parameters by attribute, caches by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vit_numpy.config import unknown

Array = NDArray[np.floating[Any]]
Grads = dict[str, Array]
Cache = TypeVar("Cache", bound=NamedTuple)

# A context variable, so that concurrent forwards do not see each other's setting and
# a worker thread that runs in a copied context inherits it.
_saving: ContextVar[bool] = ContextVar("saving", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Run forwards that keep nothing for a backward: every cache is None.

    The activations of a layer are then freed as soon as the next one has used them.
    """
    token = _saving.set(False)
    try:
        yield
    finally:
        _saving.reset(token)


def saving() -> bool:
    """Return whether forwards keep caches: False under `no_grad`."""
    return _saving.get()


def saved(cache: Cache) -> Cache | None:
    """Return `cache`, or None under `no_grad`."""
    return cache if saving() else None


def scoped(name: str, grads: Grads) -> Grads:
    """Return a child's gradients under their names in the parent: `fc1.weight`."""
    return {f"{name}.{key}": grad for key, grad in grads.items()}


class Module:
    """A layer that owns parameters and children, and no activations.

    An array assigned to an attribute is a parameter under that name, a module or a list
    of modules a child, as in `torch.nn.Module`; arrays given to `register_buffer` are
    neither trained nor saved. Everything that `backward` needs travels in the cache
    that `forward` returns, so one module may be used twice, and from two threads.

    Subclasses define::

        forward(x, ...) -> (y, cache)        # cache is a NamedTuple
        backward(dy, cache) -> (dx, grads)   # grads has the keys of state_dict()

    Calling a module runs `forward` and returns only `y`.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, Grads]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` and return only its output."""
        return self.forward(*args, **kwargs)[0]

    def register_buffer(self, name: str, array: Array | None) -> None:
        """Keep `array` as an attribute that is no parameter; `to` converts it too."""
        vars(self).setdefault("_buffers", set()).add(name)
        setattr(self, name, array)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the direct children with their names; those in a list by index."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for i, child in enumerate(value):
                    yield f"{name}.{i}", child

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it, parents first, by dotted name."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Yield every parameter by dotted name, own before children's, like torch."""
        for prefix, module in self.named_modules():
            buffers = vars(module).get("_buffers", ())
            for name, value in vars(module).items():
                if isinstance(value, np.ndarray) and name not in buffers:
                    yield f"{prefix}.{name}" if prefix else name, value

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by name: the arrays themselves, not copies."""
        return dict(self.named_parameters())

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy every parameter in place, so that views of it stay valid.

        Raises
        ------
        ValueError
            If a name is missing or unknown or a shape differs; nothing is changed then.
        """
        own = self.state_dict()
        for name in own:
            if name not in state:
                raise ValueError(f"state has no {name!r}; it holds {len(state)} arrays")
        for name, array in state.items():
            if name not in own:
                raise ValueError(unknown("parameter", name, own))
            if np.shape(array) != own[name].shape:
                raise ValueError(
                    f"{name} must have shape {own[name].shape}, "
                    f"got shape {np.shape(array)}"
                )
        for name, array in own.items():
            array[...] = state[name]

    def to(self, dtype: DTypeLike) -> Self:
        """Convert parameters and buffers to float32 or float64, in this module.

        An array that has the dtype stays the one that it is, as in torch.

        Raises
        ------
        TypeError
            For any other dtype.
        """
        check_dtype("dtype", dtype)
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, np.ndarray):
                    setattr(module, name, value.astype(dtype, copy=False))
        return self


def check_dtype(name: str, dtype: DTypeLike) -> None:
    """Raise unless `dtype` is float32 or float64, the two that are computed in."""
    got = np.dtype(dtype).name
    if got not in ("float32", "float64"):
        raise TypeError(
            f"{name} must be float32 or float64, got {got}; convert it to one of them"
        )
