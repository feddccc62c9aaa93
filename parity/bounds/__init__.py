r"""Error bounds computed from the reference, so that no check carries a tolerance.

How close must two float32 implementations of the same function be? A fixed
tolerance either passes defects or cries wolf, because the error that rounding
causes depends on the function, on the data and on the element. This package measures
it instead, for any PyTorch function, by *stochastic arithmetic* [1]_ [2]_: the
reference is evaluated in float64 several times, forward and backward, and the result
of every primitive operator is perturbed at random by as much as the tested precision
would have rounded it. How far the results scatter is how far correct code may be off.

For one tensor, element by element, a candidate passes if and only if

.. math:: |c - r| \le K \, (|t - r| + s + \text{tiny}), \qquad K = 4

r
    The truth: the reference in float64, each operator decomposed into primitives.
t
    PyTorch's own result in the tested dtype, from its ordinary kernels.
s
    The spread: the largest \|r_k − r\| over R = 16 perturbed evaluations.
tiny
    The smallest normal number of the dtype.

The rules (``rounding.py``), with u the unit roundoff and ξ uniform, of variance 1:

=====================================  ==============================================
exact: views, selections, relu, max,   nothing is added; branch decisions are noted
negation, times a power of two
elementwise                            ``u ξ |out|``, twice that for exp, log, tanh …
sums and products of n terms           ``u ξ √n op(|inputs|)``
normalisations, softmax, GELU, losses  decomposed into the operators above
anything else                          refused: `NoRuleError` says how to add a rule
=====================================  ==============================================

The inputs themselves are not perturbed: they are rounded to the tested dtype first
and both sides get the same numbers (`Reference.inputs`, `Reference.cotangents`).

For float64 there is no wider type to hold the noise, so the noise is made at 2⁻³⁰
and the spread scaled down to 2⁻⁵³: at these sizes the response is linear.

Examples
--------
>>> ref = reference(torch.nn.functional.gelu, {"input": x}, dtype=torch.float32)
>>> ref.ambiguous                 # a kink was within rounding: draw other inputs
False
>>> float(ref.share("out", my_gelu(ref.inputs["input"])).max())       # passes if <= 1
0.21
>>> ref.visible("d_input")        # a check that cannot see proves nothing
1.0

A module is a function of its parameters too::

    def function(x, **parameters):
        return torch.func.functional_call(module, parameters, (x,))

    reference(function, {"x": x, **dict(module.named_parameters())})

Notes
-----
What a user of the bounds should know:

- They say that a candidate is as accurate as PyTorch's formulation. A correct but
  *less accurate formulation* is flagged, and that is the word for it: softmax as
  ``exp(x - logsumexp(x))`` on large inputs, a variance as E[x²] − μ², an erf good to
  1e-7 only. Orders of summation, ``einsum`` and algebra of equal accuracy are not.
- A branch (a ReLU at 0, a tie in a maximum) that rounding could decide either way has
  no bound; `Reference.ambiguous` says so, and the case must be drawn again.
- Where the truth is far below its bound (the key bias of attention has gradient
  zero) passing proves nothing; `Reference.visible` measures how much can be seen.
- Overflow belongs to the dtype: where PyTorch's own result is infinite or NaN the
  candidate may be the same, and a candidate that is not finite elsewhere fails.
- With fewer than 16 runs the spread is a poor estimate (8 reach twice the ratio on
  correct code, 2 raise false alarms).
- Randomness inside the function is refused: pass masks as inputs. Optimizers need
  ``foreach=False``: a rule exists for each operator, not for lists of tensors.
- The decompositions use PyTorch internals of the pinned version; the tests compare
  each with its kernel and check each rule against real rounding.

References
----------
.. [1] J. Vignes, "A stochastic arithmetic for reliable scientific computation",
   Mathematics and Computers in Simulation 35, 1993.
.. [2] D. S. Parker, "Monte Carlo arithmetic: exploiting randomness in floating-point
   arithmetic", UCLA CSD-970002, 1997.
"""

from parity.bounds.decompositions import NoRuleError
from parity.bounds.measure import FACTOR, Quantity, Reference, reference
from parity.bounds.rounding import (
    Operation,
    Rounding,
    accumulation,
    elementwise,
    exact,
    register_decomposition,
    register_rule,
)

__all__ = [
    "FACTOR",
    "NoRuleError",
    "Operation",
    "Quantity",
    "Reference",
    "Rounding",
    "accumulation",
    "elementwise",
    "exact",
    "reference",
    "register_decomposition",
    "register_rule",
]
