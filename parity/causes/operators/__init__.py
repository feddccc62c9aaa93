"""Variants of operators: what each computes when it is wrong in a known way.

One file a family. The order of `OPERATORS` is that of likelihood: of two variants that
fit, the earlier is named first.
"""

from parity.causes.operators.activation import activations
from parity.causes.operators.attention import attention
from parity.causes.operators.broadcast import broadcasts
from parity.causes.operators.dropout import dropouts
from parity.causes.operators.linear import products
from parity.causes.operators.loss import losses
from parity.causes.operators.norm import layer_norms, rms_norms
from parity.causes.operators.pooling import pooling
from parity.causes.operators.position import positions
from parity.causes.operators.residual import residuals
from parity.causes.operators.scale import factors
from parity.causes.operators.upstream import upstream
from parity.causes.operators.variant import OperatorVariant

__all__ = ["OPERATORS", "OperatorVariant"]

OPERATORS: tuple[OperatorVariant, ...] = tuple(
    activations()
    + layer_norms()
    + rms_norms()
    + products()
    + attention()
    + residuals()
    + broadcasts()
    + dropouts()
    + factors()
    + pooling()
    + losses()
    + positions()
    + upstream()
)
"""Every operator variant, the simplest of each kind first."""
