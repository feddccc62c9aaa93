"""Each check can fail, under its own name; what is reported is so."""

import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.adapters import module_problem
from parity.checks import CHECKS, PAIR_CHECKS, VISIBLE, Trial, judge, judge_pair
from parity.pair import Blind
from parity.pairs import PAIRS
from parity.runs import run_case, run_pair
from parity.strategies import LAYOUTS, REGIMES, Case, cases, laid_out, numbers

ROWS = {pair.name: pair for pair in PAIRS}
LINEAR = ROWS["linear"]
CASE = Case({"in_features": 3, "out_features": 4}, {"x": (2, 5, 3)}, seed=1)


# --- defects, each a candidate made from the right one --------------------------------


def forward_off(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)
        return {"out": outputs["out"] * (1 + 1e-4)}, vjp

    return candidate


def gradients_changed(change):
    def defect(right):
        def candidate(inputs):
            outputs, vjp = right(inputs)
            return outputs, lambda cotangents: change(vjp(cotangents))

        return candidate

    return defect


def upstream_ignored(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)
        return outputs, lambda dy: vjp({k: np.ones_like(v) for k, v in dy.items()})

    return candidate


def input_written(right):
    def candidate(inputs):
        result = right(inputs)
        inputs["x"] *= 1.5
        return result

    return candidate


def cotangent_written(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)

        def wrong(cotangents):
            gradients = vjp(cotangents)
            cotangents["out"][...] = 0
            return gradients

        return outputs, wrong

    return candidate


def output_written(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)

        def wrong(cotangents):
            outputs["out"] += 1
            return vjp(cotangents)

        return outputs, wrong

    return candidate


def cache_consumed(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)
        calls = []

        def wrong(cotangents):
            calls.append(1)
            return {k: v / len(calls) for k, v in vjp(cotangents).items()}

        return outputs, wrong

    return candidate


def output_in_a_workspace(right):
    workspace = []

    def candidate(inputs):
        outputs, vjp = right(inputs)
        workspace[:] = workspace or [np.empty_like(outputs["out"])]
        workspace[0][...] = outputs["out"]
        return {"out": workspace[0]}, vjp

    return candidate


def gradient_in_a_workspace(right):
    workspace = []

    def candidate(inputs):
        outputs, vjp = right(inputs)

        def wrong(cotangents):
            gradients = vjp(cotangents)
            workspace[:] = workspace or [np.empty_like(gradients["x"])]
            workspace[0][...] = gradients["x"]
            return gradients | {"x": workspace[0]}

        return outputs, wrong

    return candidate


def random_forward(right):
    rng = np.random.default_rng(0)

    def candidate(inputs):
        outputs, vjp = right(inputs)
        noise = 1 + rng.integers(0, 4) * np.finfo(outputs["out"].dtype).eps
        return {"out": outputs["out"] * noise.astype(outputs["out"].dtype)}, vjp

    return candidate


def strides_ignored(right):
    def candidate(inputs):
        x = inputs["x"]
        base = x.base if isinstance(x.base, np.ndarray) else x
        start = base.reshape(-1)[: x.size].reshape(x.shape)
        return right(inputs | {"x": start})

    return candidate


def promoted(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)
        return {"out": outputs["out"].astype(np.longdouble)}, vjp

    return candidate


def raising(right):
    def candidate(inputs):
        raise IndexError("no such axis")

    return candidate


def transposed(right):
    def candidate(inputs):
        outputs, vjp = right(inputs)
        return {"out": outputs["out"].swapaxes(0, 1)}, vjp

    return candidate


DEFECTS = {
    "forward": (forward_off, transposed, raising),
    "dx": (
        gradients_changed(lambda g: g | {"x": -g["x"]}),
        gradients_changed(lambda g: {k: v for k, v in g.items() if k != "x"}),
        gradients_changed(lambda g: g | {"x": g["x"] * np.nan}),
        upstream_ignored,
    ),
    "d_params": (
        gradients_changed(lambda g: g | {"bias": g["bias"] / 5}),
        gradients_changed(lambda g: g | {"weight": g["weight"].T}),
        gradients_changed(lambda g: g | {"wieght": g["weight"]}),
    ),
    "dtype": (promoted,),
    "unmutated": (input_written, cotangent_written, output_written),
    "repeatable": (
        cache_consumed,
        random_forward,
        output_in_a_workspace,
        gradient_in_a_workspace,
    ),
    "strided": (strides_ignored,),
    "directional": (
        gradients_changed(lambda g: g | {"x": g["x"] * (1 + 1e-6)}),
        upstream_ignored,
    ),
}


def broken(defect):
    def problem(pair, case):
        right = module_problem(pair, case)
        return replace(right, candidate=defect(right.candidate))

    return replace(LINEAR, problem=problem)


def failed(findings):
    return {finding.check for finding in findings if finding.failed}


@pytest.mark.parametrize(
    ("check", "defect"),
    [(check, defect) for check, defects in DEFECTS.items() for defect in defects],
)
def test_check_can_fail(check, defect):
    assert check in failed(judge(Trial(broken(defect), CASE, "float64")))


def test_forward_is_judged_before_backward_is_run():
    def backward_raises(right):
        def candidate(inputs):
            def wrong(cotangents):
                raise IndexError("no such axis")

            return forward_off(right)(inputs)[0], wrong

        return candidate

    found = judge(Trial(broken(backward_raises), CASE, "float64"))
    assert [f.check for f in found if f.failed] == ["forward", "dx"]
    found = judge(Trial(broken(output_written), CASE, "float64"))
    assert failed(found) == {"unmutated"}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_correct_code_fails_no_check(dtype):
    trial = Trial(LINEAR, CASE, dtype)
    assert failed(judge(trial)) == set()
    assert failed(judge_pair(LINEAR, CASE)) == set()


def test_every_check_has_a_defect_here():
    assert {check.name for check in CHECKS} == DEFECTS.keys() | {"blind"}
    names = [check.name for check in (*CHECKS, *PAIR_CHECKS)] + [VISIBLE]
    assert len(set(names)) == len(names)


# --- pairs as such --------------------------------------------------------------------


def test_claim_that_a_gradient_is_zero_is_checked():
    pair = replace(LINEAR, blind=(Blind("d_bias", "so it is said"),))
    assert "blind" in failed(judge(Trial(pair, CASE, "float64")))


class OtherSignature:
    def __init__(self, in_features, out_features, bias=False):
        pass


class OtherErrors:
    def __init__(self, in_features, out_features, bias=True):
        raise ValueError("bad size")


class Renamed(ROWS["linear"].load_candidate()):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__(in_features, out_features, bias)
        self.kernel = self.weight
        del self.weight


@pytest.mark.parametrize(
    ("check", "candidate"),
    [("signature", OtherSignature), ("errors", OtherErrors)],
)
def test_pair_check_can_fail(check, candidate):
    pair = replace(LINEAR, candidate=f"{__name__}:{candidate.__name__}")
    run = next(c.run for c in PAIR_CHECKS if c.name == check)
    assert failed(run(pair, CASE)) == {check}


def test_round_trip_fails_where_names_differ():
    def problem(pair, case):
        right = module_problem(LINEAR, case)
        inputs = dict(right.inputs)
        inputs["kernel"] = inputs.pop("weight")
        return replace(right, inputs=inputs, parameters=frozenset({"kernel", "bias"}))

    pair = replace(LINEAR, candidate=f"{__name__}:Renamed", problem=problem)
    run = next(c.run for c in PAIR_CHECKS if c.name == "round_trip")
    assert failed(run(pair, CASE)) == {"round_trip"}


# --- what cannot be seen --------------------------------------------------------------


def test_vacuous_gradient_is_refused_unless_it_is_listed():
    # Half of the bias of keys and values is the keys'.
    row = ROWS["attention_pool"]
    listed = run_pair(row, "float64", examples=42)
    unlisted = run_pair(replace(row, blind=()), "float64", examples=42)
    assert listed.failures == []
    assert [(f.finding.check, f.finding.tensor) for f in unlisted.failures] == [
        (VISIBLE, "d_kv.bias")
    ]


def test_cotangents_of_ones_would_be_vacuous_for_layer_norm():
    row = ROWS["layer_norm"]

    def problem(pair, case):
        right = module_problem(row, case)
        flat = {n: np.ones_like(right.inputs[n]) for n in ("weight",)}
        ones = {"out": np.ones(case.shapes["x"])}
        return replace(right, inputs=right.inputs | flat, cotangents=ones)

    result = run_pair(replace(row, problem=problem), "float64", examples=42)
    assert (VISIBLE, "d_x") in {
        (f.finding.check, f.finding.tensor) for f in result.failures
    }


# --- sensitivity ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["linear", "layer_norm", "mlp"])
def test_sensitivity_is_the_smallest_error_that_is_flagged(name, dtype):
    row = ROWS[name]
    config = {
        "linear": {"in_features": 6, "out_features": 6},
        "layer_norm": {"dim": 6},
        "mlp": {"dim": 6, "hidden_dim": 6},
    }[name]
    trial = Trial(row, Case(config, {"x": (2, 3, 6)}, seed=2), dtype)
    for finding in judge(trial):
        if finding.sensitivity is None:
            continue
        truth = trial.reference.quantities[finding.tensor].value
        bound = trial.reference.bound(finding.tensor)
        weakest = np.unravel_index(np.argmin(bound / np.abs(truth)), truth.shape)
        for factor, flagged in ((0.5, False), (2.0, True)):
            injected = truth.copy()
            injected[weakest] *= 1 + factor * finding.sensitivity
            share = trial.reference.share(finding.tensor, injected)
            assert (share.max() > 1) == flagged


# --- cases ----------------------------------------------------------------------------


@given(st.data())
def test_case_survives_the_way_through_the_command_line(data):
    row = data.draw(st.sampled_from(PAIRS))
    case = data.draw(cases(row.draw, data.draw(st.sampled_from(row.regimes))))
    again = Case.from_json(case.to_json(), case.seed)
    assert again.to_json() == case.to_json()
    for name in case.shapes:
        np.testing.assert_array_equal(numbers(again, name), numbers(case, name))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"config": {}}',
        '{"config": [], "shapes": {}}',
        '{"config": {}, "shapes": []}',
        '{"config": {}, "shapes": {"x": 3}}',
        '{"config": {}, "shapes": {"x": [2, -1]}}',
        '{"config": {}, "shapes": {"x": ["2"]}}',
        '{"config": {}, "shapes": {}, "regime": "wild"}',
        '{"config": {}, "shapes": {}, "sead": 1}',
    ],
)
def test_case_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        Case.from_json(text, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_layout_changes_memory_and_no_value(layout, shape, dtype):
    x = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(laid_out(x, layout), x)
    if len(shape) > 1:
        assert not laid_out(x, layout).flags.c_contiguous


def test_gaps_hold_nan():
    assert np.isnan(laid_out(np.ones((2, 3)), "gaps").base).sum() == 6


def test_regimes_are_what_they_say():
    values = {
        regime: numbers(replace(CASE, regime=regime, shapes={"x": (4, 9)}), "x")
        for regime in REGIMES
    }
    assert np.ptp(values["constant_rows"], axis=-1).max() == 0
    assert abs(values["offset"].mean() - 1e3) < 1
    assert np.abs(values["extreme"]).max() > 50


def test_shrunk_failure_is_small_and_reproduces():
    pair = broken(gradients_changed(lambda g: g | {"x": g["x"] * 1.001}))
    result = run_pair(pair, "float32", examples=14)
    case = result.failures[0].case
    assert case.config["in_features"] == case.config["out_features"] == 1
    again = run_case(pair, "float32", Case.from_json(case.to_json(), case.seed))
    found = [(f.finding.check, f.finding.tensor) for f in result.failures]
    assert found == [(f.finding.check, f.finding.tensor) for f in again.failures]
    assert ("dx", "d_x") in found


def test_ambiguous_branches_are_drawn_again():
    relu = ROWS["relu"]

    def problem(pair, case):
        right = module_problem(relu, case)

        def function(x):
            # Half of the cases hang on rounding: (x + 1e-30) - x is noise.
            return ((x * 3 + x) - x * 4).relu() if case.seed % 2 else x.relu()

        return replace(right, function=function)

    result = run_pair(replace(relu, problem=problem), "float64", examples=14)
    assert result.ambiguous > 0
    assert result.examples == 14
    assert result.failures == []


def test_cases_depend_on_the_seed_alone(tmp_path, monkeypatch):
    """Hypothesis would draw numbers that stand in whatever module is loaded."""

    def drawn():
        found = []
        run_pair(
            LINEAR,
            "float64",
            examples=140,
            observe=lambda trial: found.append(trial.case),
        )
        return found

    before = drawn()
    numbers = ", ".join(map(str, range(10_000, 10_900)))
    (tmp_path / "many_numbers.py").write_text(f"NUMBERS = [{numbers}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_module("many_numbers")
    assert drawn() == before
