"""Scores of cases that can be counted by hand."""

import numpy as np
import pytest

from parity.scores import probabilities, score, worst_mistakes

NAMES = ("ant", "bee", "cat")
LOGITS = np.array([[3, 1, 0], [0, 2, 5], [0, 2, 1], [1, 1, 0]], np.float32)
LABELS = np.array([0, 1, 1, 1])


def test_counts():
    found = score(LOGITS, LABELS, NAMES)
    assert found.top1 == 0.5
    assert found.top5 == 1
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    ant, bee, cat = found.per_class()
    assert (ant["precision"], ant["recall"]) == (0.5, 1)
    assert ant["f1"] == pytest.approx(2 / 3)
    assert (bee["precision"], bee["recall"], bee["f1"]) == (1, 1 / 3, 0.5)
    # Predicted once, and wrongly; there was none to find.
    assert (cat["precision"], cat["recall"], cat["f1"]) == (0, None, 0)


def test_loss_is_mean_cross_entropy():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(4), LABELS]).mean()
    assert score(LOGITS, LABELS, NAMES).loss == pytest.approx(expected, rel=1e-6)
    assert score(LOGITS * 1000, LABELS, NAMES).loss < 2000


def test_fifth_place_counts_and_sixth_does_not():
    logits = np.array([[5, 4, 3, 2, 1, 0.0]] * 2)
    found = score(logits, np.array([4, 5]), tuple("abcdef"))
    assert found.top5 == 0.5


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match=r"logits must have shape \(4, 3\)"):
        score(LOGITS[:, :2], LABELS, NAMES)
    bad = LOGITS.copy()
    bad[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="got nan for image 2"):
        score(bad, LABELS, NAMES)


def test_worst_mistakes_come_first_and_right_answers_not_at_all():
    logits = np.array([[9, 0, 0], [0, 1, 0], [0, 0, 4], [5, 0, 0]], np.float32)
    labels = np.array([0, 0, 1, 2])
    found = worst_mistakes(logits, labels, 5)
    assert [(m.index, m.true, m.predicted) for m in found] == [
        (3, 2, 0),
        (2, 1, 2),
        (1, 0, 1),
    ]
    e = np.exp(5)
    assert found[0].probability == pytest.approx(e / (e + 2))
    assert found[0].true_probability == pytest.approx(1 / (e + 2))
    assert worst_mistakes(logits, labels, 1) == found[:1]
    assert worst_mistakes(logits[:1], labels[:1], 5) == []


def test_confusions_are_ordered_by_frequency():
    logits = np.repeat(LOGITS, [1, 2, 1, 1], axis=0)
    labels = np.array([0, 1, 1, 1, 1])
    found = score(logits, labels, NAMES)
    assert found.confusions() == [(2, 1, 2), (1, 1, 0)]


def test_probabilities_of_huge_logits_are_finite():
    shares = probabilities(np.array([[1e4, 0.0], [3.0, 3.0]]))
    assert shares.tolist() == [[1, 0], [0.5, 0.5]]
    with pytest.raises(FloatingPointError, match="got inf for image 0"):
        probabilities(np.array([[np.inf, 0.0]]))
