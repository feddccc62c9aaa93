"""What a pair is: two implementations of one thing, and how to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from parity.strategies import REGIMES, Array, Case, DrawConfiguration

Arrays = dict[str, Array]
Vjp = Callable[[Arrays], Arrays]
Candidate = Callable[[Arrays], tuple[Arrays, Vjp]]
"""``candidate(inputs) -> outputs, vjp`` with ``vjp(cotangents) -> gradients``.

Outputs and cotangents have the same names, inputs and gradients too; parameters are
inputs. All arrays have the tested dtype.
"""


@dataclass(frozen=True)
class Problem:
    """A pair made concrete by a case, in no dtype yet.

    Attributes
    ----------
    inputs : dict of str to ndarray
        All that both sides compute with, in float64.
    candidate : callable
        The implementation that is tested.
    function : callable
        The reference, in PyTorch: takes `inputs` by name, returns a tensor (named
        'out') or a dict of tensors.
    parameters : frozenset of str
        Which of the inputs are parameters.
    differentiate : bool or frozenset of str
        Whether gradients are compared, or those of which inputs.
    cotangents : dict of str to ndarray, optional
        Given for the root of a backward, where it is 1; random otherwise.
    inference : callable, optional
        From inputs to outputs, where the candidate keeps nothing for a backward.
    batched : bool
        Whether the noisy runs of the reference may be done together; not where it
        computes from something else than floating inputs.
    """

    inputs: Arrays
    candidate: Candidate
    function: Callable[..., Any]
    parameters: frozenset[str] = frozenset()
    differentiate: bool | frozenset[str] = True
    cotangents: Arrays | None = None
    batched: bool = True
    inference: Callable[[Arrays], Arrays] | None = None


def _everywhere(config: Mapping[str, Any]) -> Any:
    return ...


@dataclass(frozen=True)
class Blind:
    """Elements of a gradient that are zero in truth, so that nothing can be seen there.

    Attributes
    ----------
    tensor : str
        Name or pattern, as 'd_*.qkv.bias'.
    reason : str
        Why the true gradient is zero.
    where : callable
        From the case's configuration to what indexes the elements; by default all.
    """

    tensor: str
    reason: str
    where: Callable[[Mapping[str, Any]], Any] = _everywhere


@dataclass(frozen=True)
class LessAccurate:
    """A tensor whose float32 error is more than twice PyTorch's, though no defect.

    Attributes
    ----------
    tensor : str
        Name or pattern, as 'd_*'.
    reason : str
        Where the error comes from, and why it stays.
    """

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A candidate, a reference, and the cases that they are compared on.

    Attributes
    ----------
    name : str
        What `parity check --layer` calls it.
    candidate, reference : str
        The two classes or functions, as 'module:name'; imported when they are needed.
    draw : callable
        Draws configuration and shapes in a regime.
    problem : callable
        Builds both sides for a case.
    regimes : tuple of str
        Those that make sense here.
    dtypes : tuple of str
        Those that it is compared in.
    blind : tuple of Blind
        Gradients that are zero in truth, with the reason.
    less_accurate : tuple of LessAccurate
        Where the candidate's float32 error is more than twice PyTorch's, and why.
    refused : tuple of dict
        Constructor arguments that both sides must refuse in the same words.
    refused_calls : tuple of (dict, tuple)
        Constructor arguments, and arguments that the result must refuse when called.
    mirrored : bool
        Whether both sides are ours, with equal signatures, errors and state.
    """

    name: str
    candidate: str
    reference: str
    draw: DrawConfiguration
    problem: Callable[[Pair, Case], Problem]
    regimes: tuple[str, ...] = REGIMES
    dtypes: tuple[str, ...] = ("float64", "float32")
    blind: tuple[Blind, ...] = ()
    less_accurate: tuple[LessAccurate, ...] = ()
    refused: tuple[dict[str, Any], ...] = ()
    refused_calls: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...] = ()
    mirrored: bool = True

    def blinded(self, tensor: str, case: Case) -> list[Any]:
        """Return what indexes the elements of a tensor that cannot be seen."""
        return [
            blind.where(case.config)
            for blind in self.blind
            if fnmatchcase(tensor, blind.tensor)
        ]

    def why_less_accurate(self, tensor: str) -> str | None:
        """Return the reason that is listed for a tensor, if there is one."""
        for listed in self.less_accurate:
            if fnmatchcase(tensor, listed.tensor):
                return listed.reason
        return None

    def load_candidate(self) -> Any:
        """Import the candidate."""
        return load(self.candidate)

    def load_reference(self) -> Any:
        """Import the reference."""
        return load(self.reference)


def refuse_same_names(pairs: Iterable[Pair]) -> None:
    """Raise ValueError if two pairs have one name."""
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise ValueError(
                f"every pair must have a name of its own, got {pair.name!r} twice; "
                "give one of the two another name"
            )
        seen.add(pair.name)


def construct(factory: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a class or function of either twin with arguments that JSON can hold.

    A model's configuration is given as its fields, and made by the twin itself.
    """
    given = dict(arguments)
    if isinstance(given.get("config"), Mapping):
        package = factory.__module__.partition(".")[0]
        config_class = import_module(f"{package}.config").ViTConfig
        given["config"] = config_class.from_dict(given["config"])
    return factory(**given)


_REQUIRED = object()


def load(path: str, default: Any = _REQUIRED) -> Any:
    """Return what 'module:name' stands for, or the default if the module has none."""
    module, _, name = path.partition(":")
    found = getattr(import_module(module), name, default)
    if found is _REQUIRED:
        raise ValueError(f"{module} has no {name!r}; write 'module:name'")
    return found
