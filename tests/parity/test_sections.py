"""The page shows moved weights and training curves, and says where they fail."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from parity.curves import Comparison, Curves, Envelope
from parity.page import page
from parity.pairs import PAIRS
from parity.runs import run_pair
from parity.sections import curves_section, transfers_section

NOW = datetime(2030, 1, 2, tzinfo=UTC)
TRANSFER = {
    "from": "numpy",
    "to": "torch",
    "tensors": 30,
    "weights_equal": True,
    "images": 1000,
    "same_predictions": 1000,
}
SAID = "network1: 4 steps; the curves agree"


@pytest.fixture(scope="module")
def results():
    return [run_pair(next(p for p in PAIRS if p.name == "linear"), "float64")]


@pytest.fixture
def comparison():
    losses = {
        "numpy": [2.0, 1.5 * (1 + 1e-15), 1.0 * (1 + 2e-15), math.nan],
        "torch": [2.0, 1.5, 1.0, 0.5],
    }
    free = Curves(loss=losses, drift=[0.0] * 4)
    return Comparison(
        recipe="network1",
        data="mnist-subset",
        dtype="float64",
        steps=4,
        free=free,
        envelope=Envelope([0.5] * 4, [2.0] * 4, [1e-15] * 4),
        lockstep=None,
        verdict=None,
        diverged_at=None,
        parting=None,
    )


def shown(results, *sections):
    """Return the page, which must be well-formed, and its words."""
    text = page(results, 1.0, NOW, sections)
    root = ElementTree.fromstring(text.partition("\n")[2])
    return root, " ".join(" ".join(root.itertext()).split())


def test_what_agrees_is_shown(results, comparison):
    root, words = shown(
        results,
        transfers_section([TRANSFER], "network1", "mnist-subset"),
        curves_section(comparison, SAID),
    )
    assert "numpy to torch 1,000 of 1,000 30 tensors equal bit for bit" in words
    assert SAID in words
    assert root.find(".//header").get("class") == "good"
    charts = root.findall(".//figure[@class='chart']")
    assert len(charts) == 2
    lines = [path.get("d") for chart in charts for path in chart.iter("path")]
    # Steps whose difference is zero, or is not finite, have no logarithm.
    assert [line.count(" ") for line in lines] == [3, 4, 4, 2]
    assert not any("nan" in line for line in lines)


@pytest.mark.parametrize(
    "change", [{"weights_equal": False}, {"same_predictions": 999}]
)
def test_a_transfer_that_fails_makes_the_page_fail(results, change):
    section = transfers_section([TRANSFER | change], "network1", "mnist-subset")
    assert section.failed
    root, words = shown(results, section)
    assert root.find(".//header").get("class") == "bad"
    assert "1 pair agrees; failed: Weights both ways" in words
    assert len(root.findall(".//section[@id='transfers']//td/span[@class='no']")) == 1


def test_curves_that_part_make_the_page_fail(results, comparison):
    section = curves_section(replace(comparison, diverged_at=3), "they part <here>")
    root, words = shown(results, section)
    assert root.find(".//header").get("class") == "bad"
    assert "they part <here>" in words
