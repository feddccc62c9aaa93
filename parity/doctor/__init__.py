"""Say why ported weights give other outputs than the original.

The outputs of the original are known; those of the port are not the same. `diagnose`
changes the port in every way in which ports are known to differ, one change at a time
and then several together, and says with which its outputs become the original's.

Outputs agree where they are within the error bound that `parity.bounds` computes for
the changed network, so an explanation is one to the last digit: a change that only
brings the outputs nearer is reported as such, and never as the cause.
"""

from parity.doctor.diagnosis import Diagnosis, diagnose
from parity.doctor.explanation import Explanation
from parity.doctor.setup import Change

__all__ = ["Change", "Diagnosis", "Explanation", "diagnose"]
