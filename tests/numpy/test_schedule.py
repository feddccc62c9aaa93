"""Schedules: hand-written values at the places where they turn."""

import math

import pytest

from vit_numpy.schedule import Schedule


def factors(schedule, steps):
    return [schedule.factor(step) for step in steps]


def test_warm_up_never_is_zero_and_ends_at_one():
    assert factors(Schedule(warmup=4), range(6)) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Schedule().factor(0) == 1


def test_drops_count_from_their_own_step():
    schedule = Schedule(decay="step", drops=[10, 20])
    assert factors(schedule, (9, 10, 19, 20, 500)) == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01], rel=1e-15
    )


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_reaches_its_floor_and_stays(decay):
    schedule = Schedule(warmup=10, decay=decay, total=110, floor=0.2)
    assert factors(schedule, (9, 10, 60, 110, 5000)) == pytest.approx(
        [1, 1, 0.6, 0.2, 0.2]
    )


def test_cosine_is_a_cosine():
    schedule = Schedule(decay="cosine", total=8)
    assert schedule.factor(2) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(decay="cosin"), "did you mean 'cosine'"),
        (dict(decay="cosine"), "needs total"),
        (dict(decay="linear", total=5, warmup=5), "total must exceed warmup"),
        (dict(decay="step"), "drops are the steps of decay='step'"),
        (dict(drops=(3,)), "drops are the steps of decay='step'"),
        (dict(decay="step", drops=(3, 3)), "drops must increase"),
        (dict(warmup=-1), "warmup must be at least 0"),
        (dict(floor=1.5), r"floor must be in \[0, 1\]"),
        (dict(decay="step", drops=(1,), drop_factor=0), "drop_factor must be in"),
    ],
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Schedule(**fields)
