"""The mutants themselves: what is changed, where it runs, and what becomes of it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from parity.defects import DEFECTS
from parity.mutants import all_mutants
from parity.mutants.equivalents import equivalents
from parity.mutants.operators import OPERATORS, mutants, mutate
from parity.mutants.tree import Tree, package_root

ROOT = package_root()


def changes(source, operator=None):
    return [
        (m.before, m.after)
        for m in mutants(source, "file.py")
        if operator in (None, m.operator)
    ]


def run(*arguments):
    """Run Python in a process of its own, as the package must not be imported yet."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=600,
    )


# --- what is changed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "code", "expected"),
    [
        ("operator", "return a - b", ("a - b", "a + b")),
        ("operator", "y += b", ("y += b", "y -= b")),
        ("operator", "return a @ b", ("a @ b", "a * b")),
        ("term", "return a + b", ("a + b", "a")),
        ("term", "return a - b", ("a - b", "-b")),
        ("swap", "return a / b", ("a / b", "b / a")),
        ("swap", "np.subtract(a, b, out=y)", None),
        ("sign", "return -a", ("-a", "a")),
        ("sign", "return y, cache", ("return (y, cache)", "return (-y, cache)")),
        ("constant", "return x[0]", ("0", "1")),
        ("constant", "return 0.5 * x", ("0.5", "0.55")),
        ("constant", "return x == 'a'", ("'a'", "'a_'")),
        ("constant", "f(x, flag=True)", ("True", "False")),
        ("comparison", "return a < b", ("a < b", "a <= b")),
        ("comparison", "return a is None", ("a is None", "a is not None")),
        ("condition", "if a:\n        f(a)", ("a", "not a")),
        ("condition", "return a and b", ("a and b", "a or b")),
        ("condition", "return a if b else c", ("a if b else c", "c if b else a")),
        ("statement", "y *= 2", ("y *= 2", "")),
        ("statement", "np.exp(y, out=y)", ("np.exp(y, out=y)", "")),
        ("statement", "y[0] = 1", ("y[0] = 1", "")),
        ("return", "return dx, {'a': da}", ("{'a': da}", "{}")),
        (
            "argument",
            "return x.sum(axis=1, keepdims=True)",
            ("x.sum(axis=1, keepdims=True)", "x.sum(axis=1)"),
        ),
        ("function", "return np.exp(x)", ("np.exp(x)", "x")),
        ("function", "return x.mean()", ("x.mean()", "x.sum()")),
        ("transpose", "return x.T", ("x.T", "x")),
        (
            "transpose",
            "return x.transpose(0, 2, 1)",
            ("x.transpose(0, 2, 1)", "x.transpose(2, 0, 1)"),
        ),
        ("slice", "return x[n:]", ("n:", "n + 1:")),
        ("slice", "return x[..., None]", ("x[..., None]", "x")),
        ("loop", "return reversed(x)", ("reversed(x)", "x")),
        ("loop", "return range(n)", ("range(n)", "range(n - 1)")),
    ],
)
def test_operator_makes_the_change(operator, code, expected):
    source = f"def function(x):\n    {code}\n"
    found = changes(source, operator)
    assert expected in found if expected else found
    for mutant in mutants(source, "file.py"):
        compile(mutate(source, mutant), "file.py", "exec")


def test_every_operator_is_used_on_the_package():
    assert {m.operator for m in all_mutants(Tree(ROOT))} == OPERATORS.keys()


@pytest.mark.parametrize(
    "source",
    [
        '"""Text 1 + 2."""',
        "import math",
        "Array = NDArray[Any]",
        "def f(x: Literal[1, 2]) -> tuple[int, ...]:\n    '''Return 1 + 2.'''",
        "def f(x):\n    if x < 0:\n        raise ValueError(f'{x - 1}')",
        "def f(x):\n    check_int('x', x, 1)",
        "def _check_shape(x):\n    return x[0] + 1",
    ],
)
def test_what_refuses_or_says_something_is_left_alone(source):
    assert changes(source) == []


def test_a_mutant_is_known_by_its_line_wherever_that_stands():
    source = "def f(x):\n    return x + 1\n"
    moved = f"'''Text.'''\n\n\n{source}"
    assert [m.key for m in mutants(source, "a.py")] == [
        m.key for m in mutants(moved, "a.py")
    ]


def test_keys_are_unique_and_mutants_many():
    every = all_mutants(Tree(ROOT))
    assert len({m.key for m in every}) == len(every) > 1000


def test_a_constant_is_seen_by_what_uses_it_even_through_another():
    source = "A = 2\nB = A / 3\n\ndef f():\n    return B\n\ndef g():\n    return 1\n"
    two = next(m for m in mutants(source, "a.py") if (m.before, m.after) == ("2", "3"))
    assert 5 in two.lines
    assert 8 not in two.lines


# --- hand-written defects and equivalents ---------------------------------------------


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_fits_the_source_and_changes_it(defect):
    source = (ROOT / defect.file).read_text()
    changed = defect.applied(source)
    assert changed != source
    compile(changed, defect.file, "exec")


def test_defect_that_no_longer_fits_says_so():
    with pytest.raises(ValueError, match="matches 0 times"):
        DEFECTS[0].applied("nothing")


def test_equivalents_are_few_explained_and_exist():
    every = {m.key for m in all_mutants(Tree(ROOT))}
    listed = equivalents()
    assert len({entry.key for entry in listed}) == len(listed) <= 0.03 * len(every)
    for entry in listed:
        assert entry.key in every
        assert len(entry.reason) > 20


# --- what becomes of them -------------------------------------------------------------

JUDGE = """
import json, sys
from parity.mutants import judge_changes, Tree, package_root, prepare, Change
from parity.pairs import PAIRS

pairs = [pair for pair in PAIRS if pair.name == "layer_scale"]
tree = Tree(package_root())
prepared = prepare(pairs, tree, examples=14)
source = tree.sources["layers/layer_scale.py"]
line = "        return x * self.gamma, saved(LayerScaleCache(x))"
changes = [
    Change("layers/layer_scale.py", lambda new=new: source.replace(line, new))
    for new in json.loads(sys.argv[1])
]
verdicts = judge_changes(changes, tree, pairs, prepared, workers=2)
print(json.dumps([verdict.killed_by for verdict in verdicts]))
"""


def test_each_way_to_fail_counts_as_killed():
    line = "        return x * self.gamma, saved(LayerScaleCache(x))"
    ways = {
        line: None,
        line.replace("*", "+"): "forward",
        line.replace("x *", "undefined *"): "forward",
        "        while True: pass": "time",
        "        import numpy\n        numpy.ones(1 << 40)": "memory",
        "        import os\n        os.abort()": "crash",
        "        import os\n        os._exit(3)": "crash",
        "    syntax error": "raised",
    }
    done = run("-c", JUDGE, json.dumps(list(ways)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(ways.values())


def test_module_that_holds_on_to_the_original_is_refused():
    hold = "import parity.checks, vit_numpy\nparity.checks.held = vit_numpy.layers\n"
    done = run("-c", f"{hold}{JUDGE}", "[]")
    assert done.returncode == 1
    assert "but holds held" in done.stderr


KEPT = """
import sys
import numpy as np
from parity.mutants.cases import Watch
from parity.mutants.tree import Tree, package_root

tree = Tree(package_root())
tree.install()
from vit_numpy.functional import column_sum

watch, seen = Watch(tree), []
watch.start()
for _ in range(2):
    column_sum(np.ones((2, 3)))
    seen.append(watch.taken())
watch.stop()
sys.exit(not seen[0] == seen[1] != frozenset())
"""


def test_what_is_kept_for_later_calls_is_run_by_each_case():
    done = run("-c", KEPT)
    assert done.returncode == 0, done.stderr


def contents():
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_fixed_sample_is_killed_and_nothing_is_written(tmp_path):
    file = tmp_path / "mutants.json"
    before = contents()
    compiled = {path: path.stat().st_mtime_ns for path in ROOT.rglob("*.pyc")}
    layers = "linear gelu layer_scale dropout cross_entropy schedule"
    done = run(
        *("-m", "parity", "mutants", "--layer", *layers.split()),
        *("--sample", "60", "--seed", "1", "--json", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    assert result["mutants"] == 60
    assert result["killed"] + result["equivalent"] == 60
    assert result["survivors"] == 0
    assert all(defect["killed_by"] for defect in result["defects"])
    assert contents() == before
    for path, modified in compiled.items():
        assert path.stat().st_mtime_ns == modified


HOLE = """
import sys
from dataclasses import replace
import parity.pairs
from parity.cli import main

def draw(draw, regime):
    config = {"in_chans": 1, "out_chans": 1, "kernel_size": 1}
    return config, {"x": (2, 1, 3, 3)}

conv = next(pair for pair in parity.pairs.PAIRS if pair.name == "conv2d")
parity.pairs.PAIRS = (replace(conv, draw=draw),)
sys.exit(main(["mutants", "--layer", "conv2d", *sys.argv[1:]]))
"""


def test_hole_in_the_cases_is_reported_with_status_1(tmp_path):
    # One kernel of one pixel shows too little of a convolution's many paths.
    file = tmp_path / "mutants.json"
    done = run(
        *("-c", HOLE, "--examples", "14", "--sample", "20"),
        *("--workers", "2", "--json", str(file)),
    )
    assert done.returncode == 1, done.stderr
    assert "survived (" in done.stdout
    result = json.loads(file.read_text())
    assert result["survivors"] == len(result["surviving"]) > 0


@pytest.mark.slow
def test_no_mutant_survives(tmp_path):
    file = tmp_path / "mutants.json"
    done = run("-m", "parity", "mutants", "--workers", "2", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(Path(file).read_text())
    assert result["mutants"] >= 1000
    assert result["detection_rate"] == 1.0
