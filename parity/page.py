"""Results as one HTML page that needs nothing else, and as JUnit XML.

The page is well-formed XML too, has no script, and fetches nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from parity.bounds import FACTOR
from parity.checks import CHECKS, PAIR_CHECKS, VISIBLE, Finding
from parity.environment import environment
from parity.files import write_json, write_text
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


def write_report(
    folder: Path, results: Sequence[PairResult], seconds: float
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

    Returns
    -------
    tuple of Path
        The files.
    """
    now = datetime.now().astimezone()
    files = folder / PAGE, folder / JSON, folder / JUNIT
    write_text(files[0], page(results, seconds, now))
    write_json(files[1], to_json(results, seconds))
    write_text(files[2], junit(results, seconds, now))
    return files


# --- the page -------------------------------------------------------------------------


def page(results: Sequence[PairResult], seconds: float, now: datetime) -> str:
    """Return the whole page.

    Parameters
    ----------
    results : sequence of PairResult
    seconds : float
    now : datetime
        When it was measured.
    """
    pairs = [list(group) for _, group in groupby(results, key=lambda r: r.pair)]
    failing = [group for group in pairs if any(r.failures for r in group)]
    headline = (
        f"{len(failing)} of {_count(len(pairs), 'pair')} "
        f"{'does' if len(failing) == 1 else 'do'} not agree"
        if failing
        else f"{'All ' if len(pairs) > 1 else ''}{_count(len(pairs), 'pair')} "
        f"{'agree' if len(pairs) > 1 else 'agrees'}"
    )
    sections = [
        _summary(results, headline, bool(failing), seconds, now),
        _failures(failing),
        _table(results),
        _accuracy(results),
        _pairs(pairs),
        _words(results),
        _environment(),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{_text(headline)} – parity check</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
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
        (_number(sums["max_bound_used"]), "of the error bound used at most"),
    ]
    if ratios:
        tiles.append((f"{max(ratios):.2f} ×", "PyTorch’s float32 error at most"))
    tiles.append((f"{seconds:.0f} s", "measured in"))
    return (
        f'<header class="{"bad" if failed else "good"}">\n'
        '<p class="eyebrow">parity check</p>\n'
        f'<h1><span class="mark">{"✗" if failed else "✓"}</span> '
        f"{_text(headline)}</h1>\n"
        "<p>NumPy, with gradients by hand, against PyTorch with autograd: outputs and "
        "every gradient, element by element, within bounds computed from the "
        f"reference. {now:%-d %B %Y, %H:%M %Z}.</p>\n"
        '<ul class="tiles">'
        + "".join(f"<li><b>{_text(n)}</b> {_text(what)}</li>" for n, what in tiles)
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
                f"{_code(best.cause.name)} – "
                f"{_text(str(best))}<br/>{_text(explained.confidence)}</p>"
                f"<p><b>What to change:</b> {_text(explained.advice)}</p>"
            )
        else:
            cause = '<p class="cause"><b>No known cause fits.</b></p>'
        if explained.facts:
            different = dict.fromkeys(explained.facts)
            facts = "".join(f"<li>{_text(fact)}</li>" for fact in different)
            cause += f"<ul>{facts}</ul>"
    return (
        f'<article class="failure">\n<h3><a href="#{_anchor(result.pair)}">'
        f"{_text(result.pair)}</a> <small>{_text(result.dtype)}</small></h3>\n"
        f"{cause}\n{found}\n"
        "<p>See it again with</p>\n"
        f"<pre>{_text(command(shown[0], result.table))}</pre>\n"
        "<details><summary>All as the command line says it</summary>"
        f"<pre>{_text(describe(result).strip())}</pre></details>\n</article>"
    )


def _finding(finding: Finding) -> str:
    where = f"[{', '.join(map(str, finding.index))}]" if finding.index else ""
    tensor = f" {_code(finding.tensor + where)}" if finding.tensor else ""
    share = f" {_number(finding.share)} times the error bound"
    size = f"<small>{share}</small>" if math.isfinite(finding.share) else ""
    detail = f"<br/>{_text(finding.detail)}" if finding.detail else ""
    values = {
        "candidate": finding.candidate,
        "PyTorch": finding.torch,
        "float64 truth": finding.truth,
    }
    listed = "" if finding.index is None else _list(values)
    return (
        f'<div class="finding"><p><b>{_text(finding.check)}</b>{tensor}{size}{detail}'
        f"</p>{listed}</div>"
    )


def _table(results: Sequence[PairResult]) -> str:
    rows = []
    for result in results:
        shares = [share for found in result.shares.values() for share in found]
        status = "✗ fails" if result.failures else "✓"
        cells = [
            f'<a href="#{_anchor(result.pair)}">{_text(result.pair)}</a>',
            _text(result.dtype),
            f'<span class="{"no" if result.failures else "yes"}">{status}</span>',
            _strip(shares, result.dtype),
            *(_number(result.share(c)) for c in ("forward", "dx", "d_params")),
            _ratio(
                result.error_ratio, listed=None not in result.less_accurate.values()
            ),
            _power(result.sensitivity),
            f"{result.examples}",
            f"{result.tensors}",
            f"{result.seconds:.1f}",
        ]
        rows.append(_row(cells, ["", "left", "left", "left"]))
    header = [
        *("pair", "dtype", "", "share of the bound, 0 to 1", "forward", "dx"),
        *("params", "error ratio", "sensitivity", "cases", "tensors", "s"),
    ]
    return (
        '<section id="table">\n<h2>The table</h2>\n'
        "<p>Forward, dx and params are the largest shares of the error bound that "
        "were used; 1 is the limit. Sensitivity is the smallest relative error in one "
        "element that would have been flagged, for the tensor where it is largest. "
        "The error ratio is NumPy’s float32 error in units of PyTorch’s, for the "
        f"tensor where it is largest.</p>\n{_grid(header, rows, left=4)}\n</section>"
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
            f"Yes, but for {_count(sum(len(r.less_accurate) for r in above), 'tensor')}"
            f", with the reason below. No other has more than {TWICE:.0f} times"
        )
    else:
        answer = f"Not everywhere. {_count(len(without), 'tensor')} without a reason "
        answer += (
            f"{'has' if len(without) == 1 else 'have'} more than {TWICE:.0f} times"
        )
    bars = []
    for result in known:
        tensor, accuracy = worst[result.pair]
        notes = "".join(
            f'<p class="note">{_code(name)} {result.accuracies[name].ratio:.1f} ×: '
            f"{_text(reason or 'no reason is listed')}</p>"
            for name, reason in result.less_accurate.items()
        )
        bars.append(
            f'<li><div class="who"><a href="#{_anchor(result.pair)}">'
            f"{_text(result.pair)}</a> {_code(tensor)}</div>"
            f'<div class="bars">{_bar("numpy", accuracy.candidate, largest)}'
            f"{_bar('torch', accuracy.torch, largest)}</div>"
            f'<div class="ratio">'
            f"{_ratio(accuracy.ratio, listed=bool(result.less_accurate.get(tensor)))}"
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
            f'<article class="pair" id="{_anchor(name)}">\n'
            f'<h3><span class="{"no" if failed else "yes"}">'
            f"{'✗' if failed else '✓'}</span> {_text(name)}</h3>\n{_regimes(group)}\n"
            "<details><summary>Every tensor by every check</summary>\n"
            f"{''.join(map(_tensors, group))}</details>\n</article>"
        )
    return "\n".join(parts) + "\n</div>\n</section>"


def _regimes(group: Sequence[PairResult]) -> str:
    """Draw a strip a regime and dtype."""
    regimes = list(dict.fromkeys(name for r in group for name in r.shares))
    if not regimes:
        return ""
    header = "".join(f"<span>{_text(r.dtype)}</span>" for r in group)
    rows = [f'<div class="regime head"><span></span>{header}</div>']
    for regime in regimes:
        about = _REGIMES.get(regime, "")
        strips = "".join(
            f"<span>{_strip(r.shares.get(regime, []), r.dtype)}"
            f"<em>{_number(max(r.shares.get(regime, []), default=None))}</em></span>"
            for r in group
        )
        rows.append(
            f'<div class="regime"><span title="{_text(about)}">'
            f"{_text(regime.replace('_', ' '))}</span>{strips}</div>"
        )
    return f'<div class="regimes">{"".join(rows)}</div>'


def _strip(shares: Sequence[float], dtype: str) -> str:
    """Draw a histogram from 0 to 1; what is above the limit stands at its right."""
    if not shares:
        return ""
    found = distribution(shares)
    counts = found["histogram"]
    label = f"{found['count']} shares, largest {_number(max(shares))}"
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
        f'preserveAspectRatio="none"><title>{_text(label)}</title>'
        f'<path class="axis" d="M0 16h{BINS}v.7H0z"/>'
        f'<path class="limit" d="M{BINS} 0h.25v17h-.25z"/>'
        f'<path d="{bars}"/>{above}</svg>'
    )


def _tensors(result: PairResult) -> str:
    rows = []
    for record in result.records.values():
        cells = [
            _text(record.check),
            _code(record.tensor) if record.tensor else "",
            f"{record.comparisons}",
            _number(record.share) if _is_measured(record) else _passed(record),
            _power(record.sensitivity),
            "–" if record.seen is None else f"{record.seen:.0%}",
            *_errors(record.accuracy, bool(result.less_accurate.get(record.tensor))),
        ]
        rows.append(_row(cells, ["left", "left wide"]))
    header = ["check", "tensor", "findings", "bound", "sensitivity", "seen"]
    header += ["NumPy’s error", "PyTorch’s", "ratio"]
    # Only the dtype and the number of cases tell the tables of a pair apart.
    return (
        f"<h4>{_text(result.dtype)} <small>{_count(result.examples, 'case')}"
        f"{_again(result)}</small></h4>{_grid(header, rows, left=2)}"
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
    ratio = _ratio(accuracy.ratio, listed=listed)
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
        f"{_list(terms)}\n<h3>Checks</h3>\n{_list(checks)}\n"
        f"<h3>Regimes</h3>\n{_list(about)}\n</section>"
    )


def _environment() -> str:
    found = environment()
    blas = [
        f"{b['library']} {b['version'] or ''}, {b['kernel'] or 'unknown kernel'}"
        for b in found["blas"] or ()
    ]
    packages = found["packages"].items()
    shown = {
        "CPU": f"{found['cpu']}, {_count(found['cores'] or 1, 'core')}",
        "system": found["platform"],
        "Python": found["python"],
        **{name: version for name, version in packages if version is not None},
        "BLAS": "; ".join(dict.fromkeys(blas)) or "unknown",
    }
    return (
        '<section id="environment">\n<h2>The environment</h2>\n'
        f"{_list(shown)}\n</section>"
    )


# --- pieces ---------------------------------------------------------------------------


def _grid(header: Sequence[str], rows: Iterable[str], left: int = 2) -> str:
    heads = "".join(
        f"<th{' class=' + chr(34) + 'left' + chr(34) if i < left else ''}>"
        f"{_text(name)}</th>"
        for i, name in enumerate(header)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str], classes: Sequence[str]) -> str:
    """Return a row whose first cell is its heading; cells are HTML already."""
    kinds = [*classes, *[""] * (len(cells) - len(classes))]
    body = "".join(
        f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>"
        for cell, kind in zip(cells[1:], kinds[1:], strict=True)
    )
    return f'<tr><th scope="row">{cells[0]}</th>{body}</tr>'


def _list(terms: dict[str, Any]) -> str:
    inner = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(about)}</dd></div>"
        for name, about in terms.items()
    )
    return f"<dl>{inner}</dl>"


# What XML 1.0 cannot hold, even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _text(value: object) -> str:
    return escape(_clean(value))


def _clean(value: object) -> str:
    return _UNPRINTABLE.sub("�", str(value))


def _code(value: object) -> str:
    # Long names may break at their dots.
    return f"<code>{_text(value).replace('.', '.<wbr/>')}</code>"


def _anchor(pair: str) -> str:
    return "pair-" + re.sub(r"[^\w-]", lambda m: f"-{ord(m[0]):x}-", pair)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(value: float | str | None) -> str:
    if value is None:
        return "–"
    value = float(value)
    if value != value:
        return "NaN"
    if value == float("inf"):
        return "∞"
    if value < 10:
        return f"{value:.2f}"
    return f"{value:,.0f}" if value < 1e5 else f"{value:.0e}".replace("e+", "e")


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def _ratio(value: float | None, *, listed: bool) -> str:
    """Write an error in units of PyTorch's; `listed` if a reason is for a large one."""
    if value is None:
        return "–"
    if value <= TWICE:
        return f"{_number(value)} ×"
    return f'<span class="{"listed" if listed else "no"}">{_number(value)} ×</span>'


_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#22262b;--soft:#667079;
--line:#e2e4e6;--numpy:#0072b2;--torch:#d98a00;--good:#1a7f4b;--bad:#c0322b;
--goodbg:#e9f5ee;--badbg:#fcebea;--f64:#5a6f8f}
@media (prefers-color-scheme:dark){:root{--bg:#15181b;--card:#1d2125;--ink:#e4e7ea;
--soft:#97a1aa;--line:#31373d;--numpy:#56b4e9;--torch:#f0b13c;--good:#5fcf95;
--bad:#ff7f76;--goodbg:#16291f;--badbg:#331a19;--f64:#93a8c9}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1rem clamp(.75rem,3vw,2rem) 4rem}
h1{font-size:clamp(1.6rem,5vw,2.3rem);line-height:1.15;margin:.1em 0 .4em}
h2{font-size:1.3rem;margin:2.6rem 0 .4rem}h3{font-size:1.05rem;margin:1.3rem 0 .4rem}
h4{font-size:.95rem;margin:1.1rem 0 .3rem}
p{max-width:46rem;margin:.4rem 0 .9rem}small{font-weight:400;color:var(--soft)}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:.2em}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{overflow-wrap:anywhere}
.eyebrow{margin:0;color:var(--soft);font-size:.85rem;letter-spacing:.06em}
header{padding:1.4rem clamp(1rem,3vw,1.8rem);border-radius:14px;margin-top:.6rem}
header.good{background:var(--goodbg)}header.bad{background:var(--badbg)}
.good .mark,.yes{color:var(--good)}.bad .mark,.no{color:var(--bad)}
.no,.listed{font-weight:600}.listed{color:var(--torch)}
.tiles{list-style:none;display:grid;margin:1.2rem 0 0;padding:0;gap:.7rem 1.4rem;
grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr))}
.tiles li{font-size:.85rem;color:var(--soft);line-height:1.3}
.tiles b{display:block;font-size:1.45rem;line-height:1.25;color:var(--ink);
font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:10px;
background:var(--card);max-width:100%}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.85rem;
font-variant-numeric:tabular-nums}
th,td{padding:.34rem .7rem;text-align:right;white-space:nowrap;
border-top:1px solid var(--line);vertical-align:top}
thead th{border-top:0;color:var(--soft);font-weight:500;vertical-align:bottom}
tbody th,th.left,td.left{text-align:left}tbody th{font-weight:500}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
td.wide{text-align:left;white-space:normal;min-width:12rem}
.strip{display:block;width:100%;min-width:6.5rem;height:17px;fill:var(--numpy)}
.strip.float64{fill:var(--f64)}.strip .axis{fill:var(--line)}
.strip .limit{fill:var(--soft)}.strip .over{fill:var(--bad)}
.key{color:var(--soft);font-size:.85rem;margin:.2rem 0 .6rem}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;
vertical-align:-.05em;margin-left:.8em}.swatch:first-child{margin-left:0}
.swatch.numpy,.numpy i{background:var(--numpy)}
.swatch.torch,.torch i{background:var(--torch)}
.errors{list-style:none;margin:0;padding:.3rem 0;border:1px solid var(--line);
border-radius:10px;background:var(--card);font-size:.85rem}
.errors li{display:grid;grid-template-columns:minmax(0,17rem) 1fr 4rem;gap:0 1rem;
padding:.3rem .9rem;align-items:center}
.errors li+li{border-top:1px solid var(--line)}
.errors code{color:var(--soft)}.errors .note{grid-column:1/-1;margin:.2rem 0;
color:var(--soft)}.ratio{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:flex;align-items:center;gap:.4rem;height:.85rem;font-size:.7rem;
color:var(--soft);font-variant-numeric:tabular-nums}
.bar i{display:block;height:.5rem;border-radius:2px;min-width:1px}
.failure{border-left:4px solid var(--bad);background:var(--card);margin:1rem 0;
padding:.3rem clamp(.8rem,2.5vw,1.4rem) 1rem;border-radius:0 10px 10px 0}
.cause{font-size:1.02rem}
.finding{border-top:1px solid var(--line);padding:.5rem 0 .2rem}
.finding p{margin:0 0 .2rem}.finding dl{font-family:ui-monospace,SFMono-Regular,Menlo,
Consolas,monospace}.finding dl div{grid-template-columns:9rem 1fr;padding:.05rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--bg);
border:1px solid var(--line);border-radius:8px;padding:.8rem;margin:.6rem 0 0}
details{margin:.6rem 0}summary{cursor:pointer}
.cards{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,28rem),1fr))}
.pair{border:1px solid var(--line);border-radius:10px;background:var(--card);
padding:.7rem clamp(.7rem,2vw,1rem) .3rem;min-width:0;scroll-margin-top:1rem;
display:flex;flex-direction:column}
.pair:has(details[open]){grid-column:1/-1}.pair:target{border-color:var(--soft)}
.pair h3{margin:0 0 .3rem}.pair details{margin:auto 0 0;padding:.5rem 0}
.pair summary{color:var(--soft);font-size:.82rem}
.regime{display:grid;grid-template-columns:6rem repeat(auto-fit,minmax(6rem,1fr));
gap:.8rem;align-items:center;padding:.15rem 0;font-size:.82rem}
.regime>span{display:flex;align-items:center;gap:.5rem;min-width:0}
.regime.head,.regime em{color:var(--soft);font-style:normal}
.regime em{font-variant-numeric:tabular-nums;font-size:.75rem;min-width:2.2em}
.regime .strip{min-width:0;flex:1}
dl{margin:.4rem 0}dl div{display:grid;grid-template-columns:9rem 1fr;gap:.2rem 1rem;
padding:.22rem 0;font-size:.9rem}dt{color:var(--soft)}dd{margin:0;
overflow-wrap:anywhere}
@media (max-width:40rem){.errors li{grid-template-columns:1fr 3.6rem}
.errors .bars{grid-column:1/-1;grid-row:2}.regime{
grid-template-columns:5.4rem 1fr 1fr;gap:.5rem}dl div{grid-template-columns:1fr;
padding:.35rem 0}dt{font-size:.8rem}.tiles{grid-template-columns:1fr 1fr}
th,td{padding:.34rem .5rem}}
@media print{.pair,.failure{break-inside:avoid}}
"""


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
                classname=_clean(f"parity.{result.pair}.{result.dtype}"),
                name=_clean(check),
                time="0",
            )
            if check in failed:
                message = _first_words(result, check)
                failure = ElementTree.SubElement(
                    case, "failure", type="mismatch", message=_clean(message)
                )
                failure.text = _clean(describe(result).strip())
        suite.attrib = {
            "name": _clean(f"{result.pair} {result.dtype}"),
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
    words += found[0].detail or f"{_number(share)} times the error bound"
    explained = result.explanation
    if explained is not None and explained.causes:
        words += f"; {explained.label}: {explained.causes[0].cause.name}"
    return words
