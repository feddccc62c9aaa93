"""The page is whole, safe and says what was found; JUnit XML and JSON say the same."""

import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from parity.adapters import module_problem
from parity.causes import explain_result
from parity.checks import Errors, Finding
from parity.cli import main
from parity.page import junit, page, write_report
from parity.pair import LessAccurate
from parity.pairs import PAIRS
from parity.report import BINS, distribution, table, to_json
from parity.runs import Accuracy, PairResult, run_pair

NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
ROWS = {pair.name: pair for pair in PAIRS}
NASTY = "a<b> & \"c\" 'd' \x00</style><script>x</script>"


def doubled(pair, case):
    """Return a problem whose candidate doubles the weight's gradient."""
    right = module_problem(ROWS["linear"], case)

    def candidate(inputs):
        outputs, vjp = right.candidate(inputs)

        def wrong(cotangents):
            gradients = vjp(cotangents)
            return gradients | {"weight": gradients["weight"] * 2}

        return outputs, wrong

    return replace(right, candidate=candidate)


@pytest.fixture(scope="module")
def agreeing():
    rows = [ROWS["linear"], ROWS["erf"]]
    return [run_pair(r, d, examples=21) for r in rows for d in ("float64", "float32")]


@pytest.fixture(scope="module")
def failing():
    pair = replace(ROWS["linear"], name=NASTY, problem=doubled, mirrored=False)
    result = run_pair(pair, "float32", examples=14)
    result.explanation = explain_result(pair, result)
    return [result]


def parsed(text):
    """Parse a page as the XML that it is, too."""
    start, _, rest = text.partition("\n")
    assert start == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def words(element):
    return " ".join(" ".join(element.itertext()).split())


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [
            value
            for name, value in attributes
            if name in ("href", "src", "srcset", "data", "action", "poster")
        ]


def all_of(text):
    """Return a page's elements by id, and check that it needs nothing else."""
    root = parsed(text)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    references = References()
    references.feed(text)
    assert {ref.removeprefix("#") for ref in references.found} <= set(ids)
    assert not {"script", "link", "iframe", "img", "object"} & references.tags
    style = root.find("head/style").text
    assert not re.search(r"url\(|@import|https?:", style)
    assert "http" not in text
    return {e.get("id"): e for e in root.iter() if e.get("id")}


def test_page_is_self_contained_and_well_formed(agreeing, failing):
    for results in (agreeing, failing, [*agreeing, *failing]):
        all_of(page(results, 1.0, NOW))


def test_page_says_that_all_agree(agreeing):
    text = page(agreeing, 12.3, NOW)
    root, ids = parsed(text), all_of(text)
    assert words(root.find(".//h1")) == "✓ All 2 pairs agree"
    assert "failures" not in ids
    rows = ids["table"].findall(".//tbody/tr")
    assert [words(row)[:14].split()[:2] for row in rows] == [
        [r.pair, r.dtype] for r in agreeing
    ]
    assert "Yes, but for 1 tensor" in words(ids["accuracy"])
    assert ROWS["erf"].less_accurate[0].reason in words(ids["accuracy"])
    strips = ids["pair-linear"].findall(".//div[@class='regime']")
    assert len(strips) == len(ROWS["linear"].regimes)
    assert "numpy" in words(ids["environment"])


def test_page_shows_what_fails_and_why(agreeing, failing):
    text = page([*agreeing, *failing], 1.0, NOW)
    root, ids = parsed(text), all_of(text)
    assert words(root.find(".//h1")) == "✗ 1 of 3 pairs does not agree"
    said = words(ids["failures"])
    explanation = failing[0].explanation
    assert explanation.causes[0].cause.name in said
    assert " ".join(explanation.advice.split()) in said
    assert "d_params d_weight" in said
    assert "parity check" in said
    assert repr(failing[0].failures[0].finding.candidate) in said
    marks = [words(h)[0] for h in root.findall(".//article[@class='pair']/h3")]
    assert marks == ["✓", "✓", "✗"]


def test_names_are_escaped(failing):
    text = page(failing, 1.0, NOW)
    assert "<script>" not in text
    assert "\x00" not in text
    root = parsed(text)
    shown = NASTY.replace("\x00", "�")
    assert words(root.find(".//section[@id='failures']//h3/a")) == shown
    suite = ElementTree.fromstring(junit(failing, 1.0, NOW))[0]
    assert suite.get("name") == f"{shown} float32"


def test_values_that_are_no_numbers_are_shown():
    result = PairResult("broken", "float32")
    values = [math.nan, math.inf]
    findings = [
        Finding("forward", "out", v, index=(0,), candidate=v, torch=v, truth=v, seen=v)
        for v in values
    ]
    result.add([replace(f, seen=1.0) for f in findings], "normal")
    result.failures = [
        SimpleNamespace(finding=f, run=None, case=CASE, pair="broken", dtype="float32")
        for f in findings
    ]
    said = words(all_of(page([result], 1.0, NOW))["failures"])
    assert "nan" in said
    assert "inf" in said
    assert json.dumps(to_json([result], 1.0), allow_nan=False)


CASE = SimpleNamespace(
    config={}, shapes={}, seed=0, regime="normal", to_json=lambda: "{}"
)


def test_junit_has_a_test_a_check(agreeing, failing):
    root = ElementTree.fromstring(junit([*agreeing, *failing], 9.0, NOW))
    assert root.tag == "testsuites"
    assert int(root.get("tests")) == len(root.findall(".//testcase"))
    assert int(root.get("failures")) == len(root.findall(".//failure"))
    suite = root[0]
    assert suite.get("name") == "linear float64"
    cases = {case.get("name"): case for case in suite}
    assert {"forward", "dx", "d_params", "directional", "errors"} <= cases.keys()
    assert all(not len(case) for case in suite)
    failed = {case.get("name"): case for case in root[-1] if len(case)}
    assert set(failed) == {f.finding.check for f in failing[0].failures}
    failure = failed["d_params"][0]
    assert failure.get("message").startswith("d_weight: ")
    assert "likely cause" in failure.get("message")
    assert "reproduce" in failure.text


def test_report_is_three_files(tmp_path, agreeing):
    files = write_report(tmp_path, agreeing, 3.0)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    names = [file.name for file in files]
    assert names == ["report.html", "report.json", "junit.xml"]
    assert json.loads(files[1].read_text("utf-8")) == to_json(agreeing, 3.0)


def test_command_writes_the_report(tmp_path, capsys):
    folder = tmp_path / "new" / "report"
    arguments = ["check", "--layer", "relu", "--examples", "14", "--workers", "1"]
    assert main([*arguments, "--report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    all_of((folder / "report.html").read_text("utf-8"))
    (tmp_path / "file").write_text("")
    assert main([*arguments, "--report", str(tmp_path / "file")]) == 2


# --- accuracy -------------------------------------------------------------------------


def test_accuracy_counts_each_case_the_same():
    accuracy = Accuracy()
    accuracy.add(Errors(3.0, 1.0, 5.0, 2.0))
    accuracy.add(Errors(4.0, 7.0, 4.0, 8.0))
    assert accuracy.candidate == pytest.approx(math.sqrt((9 + 16) / 2))
    assert accuracy.ratio == pytest.approx(math.sqrt((9 + 16) / (1 + 49)))
    assert accuracy.max_ratio == 5 / 8


def test_ratio_without_an_error_of_torch():
    assert Accuracy(1, 0.0, 0.0).ratio == 1
    assert Accuracy(1, 0.1, 0.0).ratio == math.inf


def noisy(pair, case):
    """Return a problem whose candidate is right to a few units in the last place."""
    right = module_problem(ROWS["linear"], case)

    def candidate(inputs):
        outputs, vjp = right.candidate(inputs)
        eps = np.finfo(outputs["out"].dtype).eps
        out = outputs["out"] * (1 + eps)
        return {"out": out.astype(outputs["out"].dtype)}, vjp

    return replace(right, candidate=candidate, inference=None)


def test_less_accurate_tensors_are_pointed_out():
    pair = replace(ROWS["linear"], problem=noisy, mirrored=False)
    result = run_pair(pair, "float32", examples=42)
    assert result.failures == []
    assert result.less_accurate == {"out": None}
    assert result.error_ratio == result.accuracies["out"].ratio > 2
    said = words(all_of(page([result], 1.0, NOW))["accuracy"])
    assert "Not everywhere. 1 tensor without a reason has more than 2 times" in said
    assert f"{result.error_ratio:.2f}" in table([result])
    listed = replace(pair, less_accurate=(LessAccurate("o*", "it is noisy"),))
    again = run_pair(listed, "float32", examples=42)
    assert again.less_accurate == {"out": "it is noisy"}
    assert "it is noisy" in words(all_of(page([again], 1.0, NOW))["accuracy"])


def test_errors_are_measured_in_float32_only(agreeing):
    for result in agreeing:
        assert bool(result.accuracies) == (result.dtype == "float32")


def test_distribution_counts_every_share():
    found = distribution([0.0, 0.5, 1.0, 1.5, math.inf])
    histogram = found["histogram"]
    assert sum(histogram) == found["count"] == 5
    assert (histogram[0], histogram[BINS - 1], histogram[BINS]) == (1, 1, 2)
    assert found["median"] == 1.0
    assert found["max"] == "inf"


def test_shares_are_kept_by_regime(agreeing):
    for result in agreeing:
        count = sum(
            r.comparisons for r in result.records.values() if r.seen is not None
        )
        assert sum(map(len, result.shares.values())) == count
        assert max(s for found in result.shares.values() for s in found) <= 1
