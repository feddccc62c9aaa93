"""Mutants that are listed as equivalent compute the same, on a thousand cases each."""

import json
import subprocess
import sys

import pytest

from parity.mutants.tree import package_root

# Units in the last place of the largest number of a tensor.
FEW = 4.0

PROVE = """
import json, multiprocessing, sys
from parity.mutants import Tree, all_mutants, package_root
from parity.mutants.equivalents import Proof, listed
from parity.pairs import PAIRS

tree = Tree(package_root())
proof = Proof(tree, PAIRS)

def prove(mutant):
    return str(mutant), *proof.largest_difference(mutant, int(sys.argv[1]))

with multiprocessing.get_context("fork").Pool(2) as pool:
    mutants = list(listed(all_mutants(tree)))
    print(json.dumps(pool.map(prove, mutants, chunksize=1)))
"""


def proofs(cases):
    done = subprocess.run(
        [sys.executable, "-c", PROVE, str(cases)],
        capture_output=True,
        text=True,
        cwd=package_root().parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_equivalent_mutants_give_the_same_result():
    for mutant, difference, cases in proofs(1000):
        assert difference <= FEW, mutant
        assert cases == 1000, f"no pair runs {mutant}"
