"""Mutants that are listed as equivalent compute the same, on a thousand cases each."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from parity.mutants.equivalents import FEW, in_scales
from parity.mutants.tree import package_root

HARNESS = """
import json, sys
from itertools import groupby
from parity.mutants import Change, Tree, all_mutants, mutant_change, package_root
from parity.mutants.equivalents import Proof, listed
from parity.pairs import PAIRS
from parity.workers import in_processes

tree = Tree(package_root())
"""

PROVE = """
def prove(mutants):
    proof = Proof(tree, PAIRS)
    return [
        (str(m), *proof.difference(mutant_change(m, tree), int(sys.argv[1])))
        for m in mutants
    ]

# Those of a file are run by the same cases, which are computed once a process.
files = groupby(listed(all_mutants(tree)), key=lambda mutant: mutant.file)
groups = [list(group) for _, group in files]
proofs = [one for group in in_processes(prove, groups, 2, "fork") for one in group]
print(json.dumps(proofs))
"""

CHANGED = """
names, changes = json.loads(sys.argv[1])
proof = Proof(tree, [pair for pair in PAIRS if pair.name in names])
found = []
for file, old, new in changes:
    source = tree.sources[file]
    if source.count(old) != 1:
        sys.exit(f"{old!r} must stand once in {file}")
    change = Change(file, lambda: source.replace(old, new))
    found.append(proof.difference(change, 100))
print(json.dumps(found))
"""


def harness(code, argument):
    """Run it in a process of its own, which imports the package from memory."""
    done = subprocess.run(
        [sys.executable, "-c", HARNESS + code, argument],
        capture_output=True,
        text=True,
        cwd=package_root().parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_equivalent_mutants_give_the_same_result():
    proofs = harness(PROVE, "1000")
    for mutant, difference, cases in proofs:
        assert difference <= FEW, mutant
        # A few cases are left out, whose branches hang on rounding.
        assert cases >= 990, f"too few cases run {mutant}"
    print(f"{len(proofs)} mutants, {max(d for _, d, _ in proofs):.2f} scales at most")


SCALE = "layers/layer_scale.py"
LINEAR = "layers/linear.py"
LOSS = "loss.py"
FORWARD = "return x * self.gamma, saved(LayerScaleCache(x))"
ROWS = "y: Array = x.reshape(-1, x.shape[-1]) @ self.weight.T"
SAME = (
    # Another order of summation, wider sums, and the same in other words.
    (LINEAR, ROWS, "y: Array = x[..., ::-1].reshape(-1, x.shape[-1]) @ self.weight.T"
     "[::-1]"),
    (LINEAR, ROWS, "y: Array = (x.reshape(-1, x.shape[-1]).astype('f8')"
     " @ self.weight.T).astype(x.dtype)"),
    (SCALE, FORWARD, FORWARD.replace("x * self.gamma", "self.gamma * x")),
    (LOSS, "-picked / batch_size", "picked / -batch_size"),
)  # fmt: skip
DEFECTS = (
    # Eight units in the last place of every element, or of one.
    (SCALE, FORWARD, FORWARD.replace("gamma", "gamma * (1 + 8 * np.finfo(x.dtype).eps)"
     ".astype(x.dtype)", 1)),
    (LINEAR, "y += self.bias", "y += self.bias; y[-1, -1] *= x.dtype.type(1) + "
     "8 * np.finfo(x.dtype).eps"),
    # Where numbers are large, or few, alone.
    (SCALE, FORWARD, FORWARD.replace("x *", "(x if abs(x).max() < 400 else -x) *", 1)),
    (SCALE, FORWARD, FORWARD.replace("x *", "(x if len(x) > 1 else -x) *", 1)),
    # In backward and in float64 alone, in float32 alone, for a batch of one alone.
    (LINEAR, "column_sum(dy)", "column_sum(dy) * (1 + 1e-13)"),
    (LOSS, "np.log(np.exp(log_p)", "np.log(1e-6 * (log_p.dtype == 'f4') + "
     "np.exp(log_p)"),
    (LOSS, "-picked / batch_size", "-picked / (batch_size + (batch_size == 1) * 1e-5)"),
    # For labels alone, which are integers.
    (LOSS, "targets].sum()", "targets - 1].sum()"),
    # Another shape, another dtype, an error.
    (SCALE, "column_sum(dy * x)", "column_sum(dy * x)[None]"),
    (SCALE, FORWARD, FORWARD.replace("gamma", "gamma.astype('f8')", 1)),
    (SCALE, FORWARD, FORWARD.replace("gamma", "gama", 1)),
)  # fmt: skip


def test_what_is_as_accurate_is_equivalent_and_a_small_defect_is_not():
    names = ["layer_scale", "linear", "cross_entropy"]
    found = harness(CHANGED, json.dumps([names, [*SAME, *DEFECTS]]))
    for change, (difference, cases) in zip([*SAME, *DEFECTS], found, strict=True):
        assert (difference <= FEW) == (change in SAME), (change, difference)
        assert cases >= 95


def test_the_measure_is_of_each_element():
    expected, scale = np.array([1.0, 1e-9, 0.0]), np.array([1e-7, 1e-16, 1e-16])
    assert in_scales(expected, expected, scale) == 0
    # A small number beside a large one is held to its own scale.
    for place in (1, 2):
        moved = expected + 1e-15 * (np.arange(3) == place)
        assert in_scales(moved, expected, scale) == pytest.approx(10)
    assert in_scales(expected.astype("f4"), expected, scale) == math.inf
    assert in_scales(expected[:2], expected, scale) == math.inf
    for other in (np.nan, np.inf):
        assert in_scales(np.array([1.0, 1e-9, other]), expected, scale) == math.inf
        same = np.array([1.0, 1e-9, other])
        assert in_scales(same, same.copy(), scale) == 0
