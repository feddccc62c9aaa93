"""Curves agree where both backends are right, and a defect is found and named."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import curves, recipes  # noqa: E402
from parity.cli import main  # noqa: E402
from parity.data import load  # noqa: E402
from vit_numpy.layers.attention import Attention  # noqa: E402
from vit_numpy.layers.mlp import MLP  # noqa: E402
from vit_numpy.optim import AdamW  # noqa: E402

# Whatever a step can hold: dropout of three kinds, clipping, smoothing.
FULL = {
    "data": "mnist-subset",
    "batch_size": 8,
    "model.depth": 2,
    "model.act": "gelu",
    "model.final_norm": "before",
    "model.drop_path": 0.2,
    "model.attn_drop": 0.1,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
}


@pytest.fixture(scope="module")
def dataset():
    return load("mnist-subset")


def small(dtype, **changes):
    return recipes.load("network1").replace(FULL | {"dtype": dtype} | changes)


def test_free_float64_curves_agree(dataset):
    found = curves.compare(small("float64"), dataset, 20)
    assert found.diverged_at is None
    assert max(found.free.relative_difference) < 1e-13
    assert found.lockstep is None
    # The masks are really the same, and really used: others change the loss.
    other = curves.run_free(small("float64", **{"model.act_drop": 0.0}), dataset, 20)[0]
    assert other.loss["numpy"] != found.free.loss["numpy"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("resync", [1, 3])
def test_lockstep_stays_within_the_bound(dtype, resync, dataset):
    found = curves.compare(small(dtype), dataset, 6, resync=resync, judged=2)
    assert found.diverged_at is None
    assert found.verdict.steps == ([1, 6] if resync == 1 else [1, 2, 3, 4, 5, 6])
    assert 0 < found.verdict.max_bound_used <= 1
    assert found.free.loss["torch"] == found.lockstep.loss["torch"]


def test_mixed_batches_are_judged_too(dataset):
    recipe = small("float32", augment=[{"name": "flip"}, {"name": "mixup"}])
    found = curves.compare(recipe, dataset, 2, judged=2)
    assert found.diverged_at is None
    plain = curves.run_free(small("float32"), dataset, 2)[0]
    assert plain.loss["numpy"][0] != found.free.loss["numpy"][0]


def test_sgd_is_judged_too(dataset):
    recipe = small("float32").replace({"schedule.warmup_steps": 0})
    tables = recipe.to_dict()
    tables["optimizer"] = {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.01,
    }
    recipe = recipes.Recipe.from_dict(tables)
    _, verdict = curves.run_lockstep(recipe, dataset, 3, judged=3)
    assert verdict.failed_at is None
    assert 0 < verdict.max_bound_used <= 1


def test_defect_in_backward_is_named(monkeypatch, dataset):
    backward = MLP.backward

    def wrong(self, dy, cache):
        dx, grads = backward(self, dy, cache)
        return dx, grads | {"fc1.bias": grads["fc1.bias"] * 1.001}

    monkeypatch.setattr(MLP, "backward", wrong)
    found = curves.compare(small("float32"), dataset, 3, judged=3)
    assert (found.diverged_at, found.parting.step) == (1, 1)
    assert found.parting.place.layer == "blocks.1.mlp.fc1"


def test_defect_in_forward_is_named(monkeypatch, dataset):
    forward = Attention.forward

    def wrong(self, x, masks=None):
        y, cache = forward(self, x, masks)
        return y * np.float64(1 + 1e-9), cache

    monkeypatch.setattr(Attention, "forward", wrong)
    found = curves.compare(small("float64"), dataset, 10)
    assert found.diverged_at is not None
    assert (found.parting.step, found.parting.place.layer) == (1, "blocks.0.attn")


def test_defect_in_the_optimizer_is_named(monkeypatch, dataset):
    monkeypatch.setattr(AdamW, "decoupled", False)
    found = curves.compare(small("float32"), dataset, 2, judged=2)
    assert (found.diverged_at, found.parting.step) == (1, 1)
    assert found.parting.place.direction == "update"


def test_leaving_the_envelope():
    envelope = [1e-16, 1e-15, 1e-12, 1e-12]
    assert curves.leaves([0, 1e-14, 1e-11, 9e-11], envelope, "float64") is None
    assert curves.leaves([0, 1e-12, 1e-11, 1e-12], envelope, "float64") == 2
    assert curves.leaves([0, 0, 0, np.nan], envelope, "float64") == 4


def test_one_ulp_moves_every_parameter_to_a_neighbour():
    model = torch.nn.Linear(20, 30)
    before = [p.detach().numpy().copy() for p in model.parameters()]
    curves.move_by_one_ulp(model, torch.Generator().manual_seed(1))
    for old, new in zip(before, model.parameters(), strict=True):
        moved = new.detach().numpy()
        up = moved > old
        towards = np.where(up, np.inf, -np.inf).astype(old.dtype)
        assert np.array_equal(np.nextafter(old, towards), moved)
        assert 0 < up.mean() < 1


def test_numbers_below_one_are_refused(dataset):
    with pytest.raises(ValueError, match="resync must be at least 1, got 0"):
        curves.compare(small("float64"), dataset, 5, resync=0)


def test_command_writes_json_and_plot(tmp_path, capsys):
    out, plot = tmp_path / "curves.json", tmp_path / "curves.png"
    arguments = ["curves", "network1", "--steps", "4", "--json", str(out)]
    assert main([*arguments, "--plot", str(plot)]) == 0
    assert "the curves agree" in capsys.readouterr().out
    found = json.loads(out.read_text("utf-8"))
    assert found["steps"] == 4
    assert found["diverged_at"] is None
    assert found["max_relative_difference"] <= 1e-10
    for series in ("loss", "accuracy", "grad_norm"):
        assert [len(found[series][name]) for name in ("numpy", "torch")] == [4, 4]
    assert len(found["drift"]) == 4
    assert found["environment"]["packages"]["numpy"] == np.__version__
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["netwrok1"], "did you mean 'network1'"),
        (["network1", "--steps", "0"], "must be a whole number of at least 1"),
        (["network1", "--data", "mnist-subst"], "did you mean 'mnist-subset'"),
        (["network1", "--json", "absent/folder/x.json"], "make it first"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, message, capsys):
    assert main(["curves", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_network1_agrees_over_200_free_steps(dataset):
    recipe = recipes.load("network1").replace({"dtype": "float64"})
    assert recipe.config().act_drop == 0.1
    found, _ = curves.run_free(recipe, dataset, 200)
    assert max(found.relative_difference) <= 1e-10
