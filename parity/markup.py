"""Pieces of an HTML page, and its style."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from parity.runs import TWICE


def grid(header: Sequence[str], rows: Iterable[str], left: int = 2) -> str:
    """Return a table that scrolls if it is wide; the first columns stand left."""
    heads = "".join(
        f"<th{' class=' + chr(34) + 'left' + chr(34) if i < left else ''}>"
        f"{escaped(name)}</th>"
        for i, name in enumerate(header)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def table_row(cells: Sequence[str], classes: Sequence[str]) -> str:
    """Return a row whose first cell is its heading; cells are HTML already."""
    kinds = [*classes, *[""] * (len(cells) - len(classes))]
    body = "".join(
        f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>"
        for cell, kind in zip(cells[1:], kinds[1:], strict=True)
    )
    return f'<tr><th scope="row">{cells[0]}</th>{body}</tr>'


def definitions(terms: dict[str, Any]) -> str:
    """Return a list of terms, each with what it means."""
    inner = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(about)}</dd></div>"
        for name, about in terms.items()
    )
    return f"<dl>{inner}</dl>"


# What XML 1.0 cannot hold, even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escaped(value: object) -> str:
    """Return text as HTML and XML hold it."""
    return escape(printable(value))


def printable(value: object) -> str:
    """Replace what XML cannot hold."""
    return _UNPRINTABLE.sub("�", str(value))


def code(value: object) -> str:
    """Return a name as code."""
    # Long names may break at their dots.
    return f"<code>{escaped(value).replace('.', '.<wbr/>')}</code>"


def anchor(pair: str) -> str:
    """Return the address of a pair on the page."""
    return "pair-" + re.sub(r"[^\w-]", lambda m: f"-{ord(m[0]):x}-", pair)


def counted(number: int, what: str) -> str:
    """Return a number of things, in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number(value: float | str | None) -> str:
    """Write a share or an error, short."""
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


def power(value: float | None) -> str:
    """Write an order of magnitude."""
    return "–" if value is None else f"{value:.0e}"


def times(value: float | None, *, listed: bool) -> str:
    """Write an error in units of PyTorch's; `listed` if a reason is for a large one."""
    if value is None:
        return "–"
    if value <= TWICE:
        return f"{number(value)} ×"
    return f'<span class="{"listed" if listed else "no"}">{number(value)} ×</span>'


STYLE = """
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
.chart{margin:1rem 0 .4rem}.chart figcaption{font-size:.9rem;margin-bottom:.3rem}
.plot{display:grid;grid-template-columns:4.6rem 1fr;border:1px solid var(--line);
border-radius:10px;background:var(--card);padding:.7rem .9rem .5rem 0;
font-size:.75rem;color:var(--soft);font-variant-numeric:tabular-nums}
.plot .scale{display:flex;flex-direction:column;justify-content:space-between;
text-align:right;padding-right:.6rem}.plot .steps{grid-column:2;display:flex;
justify-content:space-between;border-top:1px solid var(--line);padding-top:.2rem}
.plot svg{display:block;width:100%;height:9rem}.plot path{fill:none;stroke-width:2;
vector-effect:non-scaling-stroke}.plot .numpy{stroke:var(--numpy)}
.plot .torch{stroke:var(--torch);stroke-dasharray:5 5}
.plot .envelope{stroke:var(--soft);stroke-width:1}
.swatch.envelope{background:var(--soft)}
@media print{.pair,.failure{break-inside:avoid}}
"""
