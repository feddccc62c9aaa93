"""What a pair is: two implementations of one thing, and how to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    differentiable : bool
        Whether gradients are compared.
    cotangents : dict of str to ndarray, optional
        Given for the root of a backward, where it is 1; random otherwise.
    """

    inputs: Arrays
    candidate: Candidate
    function: Callable[..., Any]
    parameters: frozenset[str] = frozenset()
    differentiable: bool = True
    cotangents: Arrays | None = None


@dataclass(frozen=True)
class Blind:
    """Elements of a gradient that are zero in truth, so that nothing can be seen there.

    Attributes
    ----------
    reason : str
        Why the true gradient is zero.
    where : callable
        From a case to what indexes the elements.
    """

    reason: str
    where: Callable[[Case], Any] = lambda case: ...


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
    blind : mapping of str to Blind
        Gradients that are zero in truth, by name ('d_qkv.bias'), with the reason.
    refused : tuple of dict
        Constructor arguments that both sides must refuse in the same words.
    mirrored : bool
        Whether both sides are ours, with equal signatures, errors and state.
    """

    name: str
    candidate: str
    reference: str
    draw: DrawConfiguration
    problem: Callable[[Pair, Case], Problem]
    regimes: tuple[str, ...] = REGIMES
    blind: Mapping[str, Blind] = field(default_factory=dict)
    refused: tuple[dict[str, Any], ...] = ()
    mirrored: bool = True

    def load_candidate(self) -> Any:
        """Import the candidate."""
        return load(self.candidate)

    def load_reference(self) -> Any:
        """Import the reference."""
        return load(self.reference)


def load(path: str) -> Any:
    """Return what 'module:name' stands for."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
