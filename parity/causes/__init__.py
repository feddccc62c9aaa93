"""Known causes of mismatch, tried in turn when a check fails.

`explain` runs the reference again under every variant in which implementations are
known to go wrong, and names the one that accounts for everything the candidate
computed. `CAUSES` lists their names.
"""

from parity.causes.catalogue import CAUSES, Cause
from parity.causes.explain import explain, explain_result
from parity.causes.explanation import Explanation, Named

__all__ = ["CAUSES", "Cause", "Explanation", "Named", "explain", "explain_result"]
