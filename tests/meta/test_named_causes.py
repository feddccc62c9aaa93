"""The hand-written defects are explained by the causes that they stand for.

Whoever wrote the defects had not read the causes. Each is put into the source in
memory, by a process of its own; the rows of the table that run it are checked in order,
and what fails is explained as `parity check` explains it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from parity.causes import CAUSES
from parity.defects import DEFECTS, Defect
from parity.mutants.tree import Tree, package_root

EXPECTED: dict[str, tuple[str, str]] = {
    "GELU tanh against erf": ("gelu-form", r"tanh for erf|erf for tanh"),
    "upstream gradient ignored": ("upstream-ignored", r"of (gelu|relu)"),
    "LayerNorm eps": ("norm-eps", r"eps = 1e-(05|12)"),
    "eps outside the root": ("norm-eps-placement", r"not .* under the root"),
    "variance not biased": ("variance-unbiased", r"N - 1"),
    "input written to": ("aliasing", r"is written to"),
    "weight transposed": ("weight-transposed", r"used transposed"),
    "stale cache": ("stale-cache", r"an earlier call"),
    "gradient not summed over the batch": (
        "broadcast-gradient",
        r"not summed over it.*of the (first|last) image alone",
    ),
    "kernel layout HWIO": ("conv-layout", r"stored as \(in, height, width, out\)"),
    "patch feature order": ("patch-order", r"\(row, column, channel\)"),
    "qkv packing": ("qkv-packing", r"as \(heads, (3, features|features, 3)\)"),
    "k and v swapped": ("qkv-swapped", r"q, v, k"),
    "attention scale missing": ("attention-scale", r"left out"),
    "attention scale by D": ("attention-scale", r"width of all heads"),
    "softmax over the wrong axis": ("softmax-axis", r"the axis before last"),
    "maximum over the wrong axis": ("softmax-max-axis", r"maximum .* wrong axis"),
    "softmax backward only diagonal": ("softmax-backward", r"diagonal"),
    "softmax backward divided by the batch size": ("batch-division", r"of softmax"),
    "residual gradient dropped": ("residual-dropped", r"in backward only"),
    "residual dropped": ("residual-dropped", r"in forward only"),
    "norm skipped in forward but not in backward": (
        "norm-skipped",
        r"in forward only",
    ),
    "gradient averaged over the batch": (
        "broadcast-gradient",
        r"the mean in the place of the sum|divided by the batch size",
    ),
    "class token not trained": ("not-trained", r"no gradient"),
    "positions shifted": ("position-shift", r"shifted"),
    "dropout drawn again in backward": ("dropout-backward", r"not use the forward's"),
    "dropout on in evaluation": ("dropout-in-evaluation", r"reference does not"),
    "dropout off in training": ("dropout-ignored", r"not applied"),
    "dropout scale": ("dropout-scale", r"multiplied by p\b|not scaled"),
    "dtype promotion": ("dtype-promotion", r"another dtype"),
    "drop path per batch": ("dropout-mask-shape", r"for the batch\)|for the batch,"),
    "drop path per element": ("dropout-mask-shape", r"drawn for each element"),
    "drop path rate by depth": ("drop-path-rates", r"the same in all blocks"),
    "loss averaged twice": ("loss-averaged-twice", r"averaged twice"),
    "gradient not divided by the batch size": (
        "loss-not-averaged",
        r"in backward only",
    ),
    "log(p + 1e-10)": ("loss-log-eps", r"log\(p \+ 1e-10\)"),
    "softmax applied twice": ("softmax-twice", r"applied twice"),
    "label smoothing over K - 1": ("label-smoothing", r"K - 1"),
    "squared error averaged over the batch only": (
        "loss-not-averaged",
        r"over the outputs",
    ),
    "Adam eps inside the root": ("adam-eps", r"\(inside the root\)"),
    "Adam eps before bias correction": ("adam-eps", r"\(.*before bias correction\)"),
    "Adam bias correction missing": ("adam-bias-correction", r"of both moments"),
    "Adam step counter stuck": ("adam-step-count", r"\(stuck"),
    "Adam root over both moments": ("adam-moments", r"a root over both moments"),
    "weight decay coupled": ("weight-decay-coupling", r"added to the gradient"),
    "weight decay decoupled": ("weight-decay-coupling", r"the other way round"),
    "weight decay not times lr": ("weight-decay-lr", r"not multiplied by the learning"),
    "weight decay on biases and norms": ("weight-decay-groups", r"leaves alone"),
    "hidden gradient clipping": ("clipping", r"norm of all at most 1, before"),
    "momentum damped": ("momentum", r"damped by 1 - momentum"),
    "gradients clipped one by one": ("clipping", r"each gradient by its own norm"),
    "learning rate zero at step 0": ("schedule-zero-start", r"starts from zero"),
    "learning rate off by one step": ("schedule-off-by-one", r"the next step's"),
    "strides ignored": ("strides-ignored", r"not contiguous"),
}
"""For what a defect stands for, the cause, and words that tell it from its like."""

ROWS = {
    "layers/activation.py": "relu gelu activation mlp block attention_pool",
    "layers/layer_norm.py": "layer_norm attention block attention_pool",
    "layers/linear.py": "linear pre_logits mlp attention block",
    "layers/conv.py": "conv2d patch_embed",
    "layers/patch_embed.py": "patch_embed",
    "layers/attention.py": "attention block",
    "layers/block.py": "block",
    "layers/heads.py": "attention_pool",
    "layers/dropout.py": "dropout drop_path attention mlp block",
    "layers/drop_path.py": "drop_path block",
    "model.py": "vision_transformer",
    "config.py": "vision_transformer",
    "loss.py": "cross_entropy mean_squared_error",
    "optim.py": "sgd adam adamw parameter_groups clip_grad_norm",
    "schedule.py": "schedule",
    "functional.py": "linear layer_norm attention attention_pool block",
}
"""The rows that run a file, in the order of the table."""

# Of those that the first of their rows shows: to check what is right takes longest.
SAMPLE = (
    "linear keeps its first input",
    "dropout drawn again in backward",
    "dropout left on in evaluation",
    "gradients clipped in secret",
    "learning rate zero at first",
)
SECONDS = 5.0
"""Processor time that an explanation may take."""

Answer = dict[str, Any]


def named_right(defect: Defect, answer: Answer) -> bool:
    """Tell whether a user learns from the answer what the defect is."""
    cause, words = EXPECTED[defect.cause]
    return answer["cause"] == cause and bool(re.search(words, answer["says"]))


def answers(defect: Defect, tree: Tree, *, all_rows: bool) -> list[Answer]:
    """Return what is said of the first row that a defect fails, or of all."""
    from parity.causes import explain_result
    from parity.pairs import PAIRS
    from parity.runs import run_pair

    tree.replace(defect.file, defect.applied(tree.sources[defect.file]))
    tree.install()
    by_name = {pair.name: pair for pair in PAIRS}
    found: list[Answer] = []
    for row in ROWS[defect.file].split():
        for dtype in by_name[row].dtypes:
            result = run_pair(by_name[row], dtype, shrink=False)
            if not result.failures:
                continue
            started = time.process_time()
            said = explain_result(by_name[row], result)
            seconds = time.process_time() - started
            assert said is not None
            found.append(
                {
                    "row": f"{row} {dtype}",
                    "cause": said.cause,
                    "says": str(said.causes[0]) if said.causes else "",
                    "possible": said.possible,
                    "seconds": seconds,
                    "lines": "\n".join(said.lines()),
                }
            )
            if not all_rows:
                return found
            break
    return found


def run_defects(names: list[str], *, all_rows: bool) -> dict[str, list[Answer]]:
    """Explain defects in a process that has nothing of the package in memory."""
    scope = "all rows" if all_rows else "first row"
    done = subprocess.run(
        [sys.executable, __file__, scope, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=7200,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


def main(scope: str, names: list[str]) -> None:
    """Print the answers to each defect as a line of JSON."""
    # Loaded once, for all the children.
    import vit_torch  # noqa: F401

    tree = Tree(package_root())
    for defect in (d for d in DEFECTS if d.name in names):
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        try:
            said = answers(defect, tree, all_rows=scope == "all rows")
            print(json.dumps([defect.name, said]), flush=True)
        finally:
            os._exit(0)


# --- the tests ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> dict[str, list[Answer]]:
    return run_defects(list(SAMPLE), all_rows=False)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_first_answer_is_right(name: str, sample: Any) -> None:
    defect = next(d for d in DEFECTS if d.name == name)
    (answer,) = sample[name]
    assert named_right(defect, answer), answer["lines"]
    assert answer["seconds"] < SECONDS


@pytest.mark.slow
def test_most_defects_are_named_and_none_is_named_wrongly_for_certain() -> None:
    found = run_defects([d.name for d in DEFECTS], all_rows=True)
    counts: Counter[str] = Counter()
    silent: list[str] = []
    wrong: list[str] = []
    for defect in DEFECTS:
        assert found[defect.name], f"{defect.name} was not found"
        for number, answer in enumerate(found[defect.name]):
            right = named_right(defect, answer)
            said = f"{defect.name}: {answer['row']}\n{answer['lines']}"
            if not right and answer["cause"] and not answer["possible"]:
                wrong.append(said)
            if not number:
                counts["right"] += right
                silent += [] if right else [said]
    seconds = [a["seconds"] for said in found.values() for a in said]
    print(f"{counts['right']} of {len(DEFECTS)} right, {max(seconds):.1f} s at most")
    assert not wrong, "\n".join(wrong)
    assert counts["right"] >= 0.95 * len(DEFECTS), "\n".join(silent)
    assert max(seconds) < SECONDS


def test_the_table_is_of_the_defects_and_the_causes() -> None:
    assert EXPECTED.keys() == {defect.cause for defect in DEFECTS}
    assert {cause for cause, _ in EXPECTED.values()} <= CAUSES.keys()
    assert set(SAMPLE) <= {defect.name for defect in DEFECTS}


def test_an_answer_of_the_right_name_with_other_words_is_not_right() -> None:
    defect = next(d for d in DEFECTS if d.cause == "attention scale by D")
    says = "the attention logits are not multiplied by 1 / sqrt(head_dim) (left out)"
    assert not named_right(defect, {"cause": "attention-scale", "says": says})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
