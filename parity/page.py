"""Results as one HTML page that needs nothing else, and as JUnit XML.

The page is well-formed XML too, has no script, and fetches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from parity.bounds import FACTOR
from parity.checks import CHECKS, PAIR_CHECKS, VISIBLE, Finding
from parity.environment import environment
from parity.files import write_json, write_text
from parity.markup import (
    STYLE,
    anchor,
    code,
    counted,
    definitions,
    escaped,
    grid,
    number,
    power,
    printable,
    table_row,
    times,
)
from parity.report import BINS, command, describe, distribution, to_json, totals
from parity.runs import TWICE, Accuracy, PairResult, Record

PAGE, JSON, JUNIT = "report.html", "report.json", "junit.xml"

_REGIMES = {
    "normal": "standard normal numbers",
    "single": "a batch of one",
    "one_token": "one token an image",
    "constant_rows": "rows without variance",
    "offset": "a thousand away from zero",
    "scales": "scales from 1e-3 to 300",
    "extreme": "large enough to saturate a softmax",
}
_ABOUT = {check.name: check.about for check in (*CHECKS, *PAIR_CHECKS)} | {
    VISIBLE: "every tensor stands above its bound in some case"
}
# A scale for bars of errors; the unit is what rounding alone explains.
_LONGEST_BAR = 90.0


@dataclass(frozen=True)
class Section:
    """A part of the page that says something else than the pairs do.

    Attributes
    ----------
    name : str
        Its address on the page.
    title : str
    failed : bool
        Whether what it shows does not agree.
    html : str
        All that stands below the title.
    """

    name: str
    title: str
    failed: bool
    html: str


def write_report(
    folder: Path,
    results: Sequence[PairResult],
    seconds: float,
    sections: Sequence[Section] = (),
) -> tuple[Path, ...]:
    """Write the page, and the same as JSON and as JUnit XML, each whole or not at all.

    Parameters
    ----------
    folder : Path
        Which is there.
    results : sequence of PairResult
        Of `parity.runs.run_pairs`.
    seconds : float
        How long they took.
    sections : sequence of Section, default ()
        For the page alone.

    Returns
    -------
    tuple of Path
        The files.
    """
    now = datetime.now().astimezone()
    files = folder / PAGE, folder / JSON, folder / JUNIT
    write_text(files[0], page(results, seconds, now, sections))
    write_json(files[1], to_json(results, seconds))
    write_text(files[2], junit(results, seconds, now))
    return files


# --- the page -------------------------------------------------------------------------


def page(
    results: Sequence[PairResult],
    seconds: float,
    now: datetime,
    further: Sequence[Section] = (),
) -> str:
    """Return the whole page.

    Parameters
    ----------
    results : sequence of PairResult
    seconds : float
    now : datetime
        When it was measured.
    further : sequence of Section, default ()
        Stand behind the table.
    """
    pairs = [list(group) for _, group in groupby(results, key=lambda r: r.pair)]
    failing = [group for group in pairs if any(r.failures for r in group)]
    headline = (
        f"{len(failing)} of {counted(len(pairs), 'pair')} "
        f"{'does' if len(failing) == 1 else 'do'} not agree"
        if failing
        else f"{'All ' if len(pairs) > 1 else ''}{counted(len(pairs), 'pair')} "
        f"{'agree' if len(pairs) > 1 else 'agrees'}"
    )
    wrong = [section.title for section in further if section.failed]
    if wrong:
        headline += f"; failed: {', '.join(wrong)}"
    sections = [
        _summary(results, headline, bool(failing or wrong), seconds, now),
        _failures(failing),
        _table(results),
        *map(_further, further),
        _accuracy(results),
        _pairs(pairs),
        _words(results),
        _environment(),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{escaped(headline)} – parity check</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _summary(
    results: Sequence[PairResult],
    headline: str,
    failed: bool,
    seconds: float,
    now: datetime,
) -> str:
    sums = totals(results, seconds)
    ratios = [r.error_ratio for r in results if r.error_ratio is not None]
    tiles = [
        (f"{sum(r.examples for r in results):,}", "cases"),
        (f"{sums['comparisons']:,}", "comparisons"),
        (f"{sums['failures']:,}", "failure" if sums["failures"] == 1 else "failures"),
        (
            number(sums["max_bound_used"]),
            "of the error bound used at most, by any check",
        ),
    ]
    if ratios:
        tiles.append((f"{max(ratios):.2f} ×", "PyTorch’s float32 error at most"))
    tiles.append((f"{seconds:.0f} s", "measured in"))
    return (
        f'<header class="{"bad" if failed else "good"}">\n'
        '<p class="eyebrow">parity check</p>\n'
        f'<h1><span class="mark">{"✗" if failed else "✓"}</span> '
        f"{escaped(headline)}</h1>\n"
        "<p>NumPy, with gradients by hand, against PyTorch with autograd: outputs and "
        "every gradient, element by element, within bounds computed from the "
        f"reference. {now:%-d %B %Y, %H:%M %Z}.</p>\n"
        '<ul class="tiles">'
        + "".join(f"<li><b>{escaped(n)}</b> {escaped(what)}</li>" for n, what in tiles)
        + "</ul>\n</header>"
    )


def _failures(failing: Sequence[Sequence[PairResult]]) -> str:
    if not failing:
        return ""
    parts = ['<section id="failures">\n<h2>What does not agree</h2>']
    for group in failing:
        for result in (r for r in group if r.failures):
            parts.append(_failure(result))
    return "\n".join(parts) + "\n</section>"


def _failure(result: PairResult) -> str:
    # Other layouts say nothing that the contiguous one has not said.
    plain = [f for f in result.failures if f.finding.check != "strided"]
    shown = plain or result.failures
    found = "".join(_finding(failure.finding) for failure in shown)
    cause = ""
    if result.explanation is not None:
        explained = result.explanation
        if explained.causes:
            best = explained.causes[0]
            cause = (
                f'<p class="cause"><b>{explained.label.capitalize()}:</b> '
                f"{code(best.cause.name)} – "
                f"{escaped(str(best))}<br/>{escaped(explained.confidence)}</p>"
                f"<p><b>What to change:</b> {escaped(explained.advice)}</p>"
            )
        else:
            cause = '<p class="cause"><b>No known cause fits.</b></p>'
        if explained.facts:
            different = dict.fromkeys(explained.facts)
            facts = "".join(f"<li>{escaped(fact)}</li>" for fact in different)
            cause += f"<ul>{facts}</ul>"
    return (
        f'<article class="failure">\n<h3><a href="#{anchor(result.pair)}">'
        f"{escaped(result.pair)}</a> <small>{escaped(result.dtype)}</small></h3>\n"
        f"{cause}\n{found}\n"
        "<p>See it again with</p>\n"
        f"<pre>{escaped(command(shown[0], result.table))}</pre>\n"
        "<details><summary>All as the command line says it</summary>"
        f"<pre>{escaped(describe(result).strip())}</pre></details>\n</article>"
    )


def _finding(finding: Finding) -> str:
    where = f"[{', '.join(map(str, finding.index))}]" if finding.index else ""
    tensor = f" {code(finding.tensor + where)}" if finding.tensor else ""
    share = f" {number(finding.share)} times the error bound"
    size = f"<small>{share}</small>" if math.isfinite(finding.share) else ""
    detail = f"<br/>{escaped(finding.detail)}" if finding.detail else ""
    values = {
        "candidate": finding.candidate,
        "PyTorch": finding.torch,
        "float64 truth": finding.truth,
    }
    listed = "" if finding.index is None else definitions(values)
    return (
        f'<div class="finding"><p><b>{escaped(finding.check)}</b>{tensor}{size}{detail}'
        f"</p>{listed}</div>"
    )


def _table(results: Sequence[PairResult]) -> str:
    rows = []
    for result in results:
        shares = [share for found in result.shares.values() for share in found]
        status = "✗ fails" if result.failures else "✓"
        cells = [
            f'<a href="#{anchor(result.pair)}">{escaped(result.pair)}</a>',
            escaped(result.dtype),
            f'<span class="{"no" if result.failures else "yes"}">{status}</span>',
            _strip(shares, result.dtype),
            *(number(result.share(c)) for c in ("forward", "dx", "d_params")),
            times(result.error_ratio, listed=None not in result.less_accurate.values()),
            power(result.sensitivity),
            f"{result.examples}",
            f"{result.tensors}",
            f"{result.seconds:.1f}",
        ]
        rows.append(table_row(cells, ["", "left", "left", "left"]))
    header = [
        *("pair", "dtype", "", "share of the bound, 0 to 1", "forward", "dx"),
        *("params", "error ratio", "sensitivity", "cases", "tensors", "s"),
    ]
    return (
        '<section id="table">\n<h2>The table</h2>\n'
        "<p>Forward, dx and params are the largest shares of the error bound that "
        "were used; 1 is the limit. Other checks, as of strided inputs, may use more. "
        "Sensitivity is the smallest relative error in one "
        "element that would have been flagged, for the tensor where it is largest. "
        "The error ratio is NumPy’s float32 error in units of PyTorch’s, for the "
        f"tensor where it is largest.</p>\n{grid(header, rows, left=4)}\n</section>"
    )


def _further(section: Section) -> str:
    mark = '<span class="no">✗</span> ' if section.failed else ""
    return (
        f'<section id="{escaped(section.name)}">\n<h2>{mark}{escaped(section.title)}'
        f"</h2>\n{section.html}\n</section>"
    )


def _accuracy(results: Sequence[PairResult]) -> str:
    known = [r for r in results if r.accuracies]
    if not known:
        return ""
    worst = {r.pair: max(r.accuracies.items(), key=lambda i: i[1].ratio) for r in known}
    largest = max(max(a.candidate, a.torch) for _, a in worst.values())
    above = [r for r in known if r.less_accurate]
    without = [t for r in above for t, reason in r.less_accurate.items() if not reason]
    if not above:
        answer = f"Yes. No tensor of any pair has more than {TWICE:.0f} times"
    elif not without:
        answer = (
            "Yes, but for "
            f"{counted(sum(len(r.less_accurate) for r in above), 'tensor')}, with the "
            f"reason below. No other has more than {TWICE:.0f} times"
        )
    else:
        answer = f"Not everywhere. {counted(len(without), 'tensor')} without a reason "
        answer += (
            f"{'has' if len(without) == 1 else 'have'} more than {TWICE:.0f} times"
        )
    bars = []
    for result in known:
        tensor, accuracy = worst[result.pair]
        notes = "".join(
            f'<p class="note">{code(name)} {result.accuracies[name].ratio:.1f} ×: '
            f"{escaped(reason or 'no reason is listed')}</p>"
            for name, reason in result.less_accurate.items()
        )
        bars.append(
            f'<li><div class="who"><a href="#{anchor(result.pair)}">'
            f"{escaped(result.pair)}</a> {code(tensor)}</div>"
            f'<div class="bars">{_bar("numpy", accuracy.candidate, largest)}'
            f"{_bar('torch', accuracy.torch, largest)}</div>"
            f'<div class="ratio">'
            f"{times(accuracy.ratio, listed=bool(result.less_accurate.get(tensor)))}"
            f"</div>{notes}</li>"
        )
    return (
        '<section id="accuracy">\n<h2>Is NumPy as accurate as PyTorch?</h2>\n'
        f"<p>{answer} PyTorch’s float32 error against float64. For each pair, the "
        "tensor with the largest ratio: root mean square errors over all cases, in "
        "units of what rounding alone explains there.</p>\n"
        '<p class="key"><span class="swatch numpy"></span> NumPy '
        '<span class="swatch torch"></span> PyTorch</p>\n'
        f'<ol class="errors">{"".join(bars)}</ol>\n</section>'
    )


def _bar(side: str, value: float, largest: float) -> str:
    length = _LONGEST_BAR * value / largest if largest else 0.0
    return (
        f'<div class="bar {side}"><i style="width:{length:.1f}%"></i>'
        f"<span>{value:.2f}</span></div>"
    )


def _pairs(pairs: Sequence[Sequence[PairResult]]) -> str:
    parts = [
        '<section id="pairs">\n<h2>Pair by pair</h2>\n'
        "<p>How the share of the bound is distributed, by regime and dtype, over the "
        "tensors of all cases: from 0 on the left to 1, the limit, on the right; the "
        'number is the largest.</p>\n<div class="cards">'
    ]
    for group in pairs:
        failed = any(result.failures for result in group)
        name = group[0].pair
        parts.append(
            f'<article class="pair" id="{anchor(name)}">\n'
            f'<h3><span class="{"no" if failed else "yes"}">'
            f"{'✗' if failed else '✓'}</span> {escaped(name)}</h3>\n{_regimes(group)}\n"
            "<details><summary>Every tensor by every check</summary>\n"
            f"{''.join(map(_tensors, group))}</details>\n</article>"
        )
    return "\n".join(parts) + "\n</div>\n</section>"


def _regimes(group: Sequence[PairResult]) -> str:
    """Draw a strip a regime and dtype."""
    regimes = list(dict.fromkeys(name for r in group for name in r.shares))
    if not regimes:
        return ""
    header = "".join(f"<span>{escaped(r.dtype)}</span>" for r in group)
    rows = [f'<div class="regime head"><span></span>{header}</div>']
    for regime in regimes:
        about = _REGIMES.get(regime, "")
        strips = "".join(
            f"<span>{_strip(r.shares.get(regime, []), r.dtype)}"
            f"<em>{number(max(r.shares.get(regime, []), default=None))}</em></span>"
            for r in group
        )
        rows.append(
            f'<div class="regime"><span title="{escaped(about)}">'
            f"{escaped(regime.replace('_', ' '))}</span>{strips}</div>"
        )
    return f'<div class="regimes">{"".join(rows)}</div>'


def _strip(shares: Sequence[float], dtype: str) -> str:
    """Draw a histogram from 0 to 1; what is above the limit stands at its right."""
    if not shares:
        return ""
    found = distribution(shares)
    counts = found["histogram"]
    label = f"{found['count']} shares, largest {number(max(shares))}"
    most = max(counts)
    bars = "".join(
        # Roots, so that a single one among hundreds is seen.
        f"M{x} 16v-{max(2.0, 16 * (count / most) ** 0.5):.1f}h.8V16z"
        for x, count in enumerate(counts[:BINS])
        if count
    )
    above = ""
    if counts[BINS]:
        above = f'<path class="over" d="M{BINS} 0h1V16h-1z"/>'
    return (
        f'<svg class="strip {dtype}" viewBox="0 0 {BINS + 1} 17" role="img" '
        f'preserveAspectRatio="none"><title>{escaped(label)}</title>'
        f'<path class="axis" d="M0 16h{BINS}v.7H0z"/>'
        f'<path class="limit" d="M{BINS} 0h.25v17h-.25z"/>'
        f'<path d="{bars}"/>{above}</svg>'
    )


def _tensors(result: PairResult) -> str:
    rows = []
    for record in result.records.values():
        cells = [
            escaped(record.check),
            code(record.tensor) if record.tensor else "",
            f"{record.comparisons}",
            number(record.share) if _is_measured(record) else _passed(record),
            power(record.sensitivity),
            "–" if record.seen is None else f"{record.seen:.0%}",
            *_errors(record.accuracy, bool(result.less_accurate.get(record.tensor))),
        ]
        rows.append(table_row(cells, ["left", "left wide"]))
    header = ["check", "tensor", "findings", "bound", "sensitivity", "seen"]
    header += ["NumPy’s error", "PyTorch’s", "ratio"]
    # Only the dtype and the number of cases tell the tables of a pair apart.
    return (
        f"<h4>{escaped(result.dtype)} <small>{counted(result.examples, 'case')}"
        f"{_again(result)}</small></h4>{grid(header, rows, left=2)}"
    )


def _again(result: PairResult) -> str:
    return f", {result.ambiguous} ambiguous drawn again" if result.ambiguous else ""


def _is_measured(record: Record) -> bool:
    return record.seen is not None or record.check in ("strided", "directional")


def _passed(record: Record) -> str:
    return "holds" if record.share <= 1 else '<span class="no">✗</span>'


def _errors(accuracy: Accuracy | None, listed: bool) -> list[str]:
    if accuracy is None:
        return ["–"] * 3
    ratio = times(accuracy.ratio, listed=listed)
    return [f"{accuracy.candidate:.3f}", f"{accuracy.torch:.3f}", ratio]


def _words(results: Sequence[PairResult]) -> str:
    used = dict.fromkeys(record.check for r in results for record in r.records.values())
    regimes = dict.fromkeys(name for r in results for name in r.shares)
    checks = {name: _ABOUT[name] for name in used if name in _ABOUT}
    about = {name: _REGIMES[name] for name in regimes if name in _REGIMES}
    terms = {
        "bound": f"{FACTOR:.0f} times the sum of PyTorch’s own error in the same "
        "dtype and of what rounding every operator at random does to the float64 "
        "reference; for each element by itself",
        "unit of errors": "that spread of the reference, root mean square over the "
        "tensor",
        "seen": "the largest part of a tensor that stood above its bound in a case",
    }
    return (
        '<section id="words">\n<h2>The words</h2>\n'
        f"{definitions(terms)}\n<h3>Checks</h3>\n{definitions(checks)}\n"
        f"<h3>Regimes</h3>\n{definitions(about)}\n</section>"
    )


def _environment() -> str:
    found = environment()
    blas = [
        f"{b['library']} {b['version'] or ''}, {b['kernel'] or 'unknown kernel'}"
        for b in found["blas"] or ()
    ]
    packages = found["packages"].items()
    shown = {
        "CPU": f"{found['cpu']}, {counted(found['cores'] or 1, 'core')}",
        "system": found["platform"],
        "Python": found["python"],
        **{name: version for name, version in packages if version is not None},
        "BLAS": "; ".join(dict.fromkeys(blas)) or "unknown",
    }
    return (
        '<section id="environment">\n<h2>The environment</h2>\n'
        f"{definitions(shown)}\n</section>"
    )


# --- JUnit ----------------------------------------------------------------------------


def junit(results: Sequence[PairResult], seconds: float, now: datetime) -> str:
    """Return a test suite a pair and dtype, a test a check, for CI to show.

    Parameters
    ----------
    results : sequence of PairResult
    seconds : float
    now : datetime
        When it was measured.
    """
    root = ElementTree.Element("testsuites", name="parity check")
    tests = failures = 0
    for result in results:
        suite = ElementTree.SubElement(root, "testsuite")
        checks = dict.fromkeys(record.check for record in result.records.values())
        failed = {f.finding.check for f in result.failures}
        for check in checks | dict.fromkeys(sorted(failed)):
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=printable(f"parity.{result.pair}.{result.dtype}"),
                name=printable(check),
                time="0",
            )
            if check in failed:
                message = _first_words(result, check)
                failure = ElementTree.SubElement(
                    case, "failure", type="mismatch", message=printable(message)
                )
                failure.text = printable(describe(result).strip())
        suite.attrib = {
            "name": printable(f"{result.pair} {result.dtype}"),
            "tests": str(len(suite)),
            "failures": str(len(failed)),
            "errors": "0",
            "skipped": "0",
            "time": f"{result.seconds:.3f}",
            "timestamp": f"{now:%Y-%m-%dT%H:%M:%S}",
        }
        tests += len(suite)
        failures += len(failed)
    root.attrib |= {
        "tests": str(tests),
        "failures": str(failures),
        "errors": "0",
        "time": f"{seconds:.3f}",
    }
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _first_words(result: PairResult, check: str) -> str:
    """Say in a line what failed of a check, and the likely cause."""
    found = [f.finding for f in result.failures if f.finding.check == check]
    tensors = ", ".join(dict.fromkeys(f.tensor for f in found if f.tensor))
    share = max(f.share for f in found)
    words = f"{tensors or result.pair}: "
    words += found[0].detail or f"{number(share)} times the error bound"
    explained = result.explanation
    if explained is not None and explained.causes:
        words += f"; {explained.label}: {explained.causes[0].cause.name}"
    return words
