"""Every row of the table agrees, and every public thing has a row."""

from multiprocessing.reduction import ForkingPickler

import pytest

from parity.pairs import PAIRS
from parity.runs import run_pair, run_pairs
from vit_numpy import layers, loss, model, optim, schedule

# The smallest relative error in one element that every row must flag, whatever the
# tensor: some hundred units in the last place, and as many times more for a network.
SENSITIVE = {"float64": 1e-12, "float32": 5e-4}


def public_classes(module, base):
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_each_public_layer_has_exactly_one_row():
    losses = {
        name
        for name, value in vars(loss).items()
        if name in public_classes(loss, object) and hasattr(value, "backward")
    } - {"Loss"}
    optimizers = public_classes(optim, optim.Optimizer) - {"Optimizer"}
    expected = [
        # Functions with cases of their own, and two further uses of what has a row.
        *("softmax", "exp_scores", "erf", "gelu", "gelu_tanh"),
        *("AdamW", "VisionTransformer"),
        *layers.__all__,
        *losses,
        *optimizers,
        "clip_grad_norm",
        *public_classes(schedule, object),
        model.VisionTransformer.__name__,
    ]
    rows = [pair.candidate.partition(":")[2] for pair in PAIRS]
    assert sorted(rows) == sorted(expected)


def test_names_are_unique_and_rows_can_be_sent_to_other_processes():
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert ForkingPickler.loads(ForkingPickler.dumps(pair)).name == pair.name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pair_agrees_and_would_notice(pair):
    for dtype in pair.dtypes:
        result = run_pair(pair, dtype, examples=21, seed=1)
        assert result.failures == []
        assert result.share() <= 1
        assert result.sensitivity <= SENSITIVE[dtype]
        if dtype == "float32":
            # At most twice PyTorch's error, or listed; and nothing listed in vain.
            assert None not in result.less_accurate.values()
            reasons = {listed.reason for listed in pair.less_accurate}
            assert set(result.less_accurate.values()) == reasons


def test_results_depend_on_the_seed_and_not_on_the_number_of_processes():
    pairs = [pair for pair in PAIRS if pair.name in ("linear", "flatten")]
    alone = run_pairs(pairs, examples=14, seed=3)
    shared = run_pairs(pairs, examples=14, seed=3, workers=2)
    other = run_pairs(pairs, examples=14, seed=4)
    for result in (*alone, *shared, *other):
        result.seconds = 0.0
    assert shared == alone
    assert other != alone
