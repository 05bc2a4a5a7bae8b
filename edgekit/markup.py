"""What the pages of reports are made of: one self-contained HTML file, no script, nothing fetched, light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["document", "esc", "facts", "table"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#5c6570;--paper:#fff;--card:#f6f7f9;--rule:#dde1e6;
--good:#0a7d33;--doubt:#8a5a00;--bad:#c0152b;--main:#2257c4;--second:#b35900;--c2:#0a7d33;--c3:#7a3fc4;--c4:#c0152b;--c5:#5c6570}
@media(prefers-color-scheme:dark){:root{--ink:#e3e6ea;--soft:#98a2ad;--paper:#14171a;--card:#1d2126;--rule:#333a41;
--good:#4cc36c;--doubt:#e0b34a;--bad:#ff6b7d;--main:#7da7ff;--second:#f0a45d;--c2:#4cc36c;--c3:#c39bff;--c4:#ff6b7d;--c5:#98a2ad}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1.5rem 1rem 4rem;
color:var(--ink);background:var(--paper)}h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem}h3{font-size:.95rem;margin:1.2rem 0 .4rem}p,ul{margin:.4rem 0}
.note,.tick,.label,figcaption{color:var(--soft)}.note{font-size:.86rem}code{background:var(--card);padding:.1em .3em;
border-radius:3px;overflow-wrap:anywhere}.banner{background:var(--card);border-left:4px solid var(--good);padding:.6rem .9rem;
border-radius:4px;margin:1rem 0}.banner.refused{border-color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:left;padding:.35rem .4rem;vertical-align:top;
border-bottom:1px solid var(--rule);overflow-wrap:break-word}th{color:var(--soft);font-weight:600}th.n{text-align:right}td.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}td.why{min-width:9rem;overflow-wrap:anywhere}
td.name{white-space:nowrap}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.4rem 0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}.accepted{color:var(--good)}
.stable{color:var(--good)}.unknown{color:var(--doubt)}.unstable{color:var(--bad)}.unproven{color:var(--doubt)}.refused,.failed{color:var(--bad)}.skipped{color:var(--soft)}
details{border:1px solid var(--rule);border-radius:6px;padding:.5rem .9rem;margin:.7rem 0}summary{cursor:pointer;
font-weight:600;overflow-wrap:anywhere}svg{display:block;max-width:100%;height:auto;font:12px system-ui,sans-serif}
.scroll{overflow-x:auto}.scroll+table{margin-top:.6rem}svg.chart{width:100%;max-width:42rem;
min-width:30rem}svg text.name{paint-order:stroke;stroke:var(--paper);stroke-width:3px}svg.square{width:100%}svg text{fill:var(--ink)}svg text.tick,svg text.label{fill:var(--soft)}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}.front{fill:none;stroke:var(--main);stroke-dasharray:4 4}
.dot{stroke-width:2;fill-opacity:.75}.dot.accepted{fill:var(--good);stroke:var(--good)}.dot.unproven{fill:var(--doubt);
stroke:var(--doubt)}.dot.refused,.dot.failed{fill:none;stroke:var(--bad)}.ring{fill:none;stroke:var(--main);stroke-width:2}
.bar{fill:var(--main)}.bar.float{fill:var(--second)}.cell{fill:var(--card)}.agree{fill:var(--good)}.differ{fill:var(--bad)}
svg text.count{font-size:11px}.spark{width:100%;max-width:12rem}.spark polyline{fill:none;stroke:var(--main);stroke-width:1.5}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.8rem}figure{margin:0;background:var(--card);
border-radius:6px;padding:.6rem}figure img{width:96px;height:auto;image-rendering:pixelated;border-radius:3px;background:#fff}
figcaption{font-size:.82rem;overflow-wrap:anywhere}figcaption b{color:var(--ink)}.key{display:inline-block;width:.8em;height:.8em;
border-radius:2px;margin:0 .3em 0 .8em;vertical-align:-.05em;background:var(--main)}.key.float{background:var(--second)}
.c0{--c:var(--main)}.c1{--c:var(--second)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.curve{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.curve.faint{stroke-width:1;opacity:.6}circle[class^=c]{fill:var(--c)}
.key[class*=" c"]{background:var(--c)}.key.faint{opacity:.6}.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem}.legend .key{margin-left:0}
.bar.fallback{fill:var(--second)}.banner ul{padding-left:1.2rem}.unsteady{border-color:var(--bad)}
@media(max-width:40rem){thead{display:none}tr{display:block;border-bottom:1px solid var(--rule);padding:.5rem 0}
td,td.n,td.name{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.1rem 0;white-space:normal;text-align:right}
td::before{content:attr(data-label);color:var(--soft);flex:none}td.name{font-weight:600}td.why{display:block;text-align:left;min-width:0}
td.why::before{display:block}td.empty{display:none}svg.fit{min-width:0}svg.fit text{font-size:18px}}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        parts: HTML, one after the other.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<title>{esc(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def esc(value: object) -> str:
    """Return text that means nothing to HTML."""
    return html.escape(str(value))


def table(header: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return a table of (class, inner HTML) cells; on a narrow screen each row becomes a card."""
    numeric = {i for row in rows for i, (kind, _) in enumerate(row) if kind == "n"}
    head = "".join(
        f"<th{' class=n' if i in numeric else ''}>{esc(name)}</th>" for i, name in enumerate(header)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td class='{kind}{'' if inner else ' empty'}' data-label='{esc(name)}'>{inner}</td>"
            for name, (kind, inner) in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(rows: Sequence[tuple[str, object]]) -> str:
    """Return a list of names and values, plain text both."""
    return "<dl>" + "".join(f"<dt>{esc(key)}</dt><dd>{esc(value)}</dd>" for key, value in rows) + "</dl>"
