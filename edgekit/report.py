"""The report of a conversion: `report.json` for programs, `report.html` for people. Written on refusal too."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import __version__
from edgekit.ladder import Attempt, front, loss
from edgekit.state import write_durably

if TYPE_CHECKING:
    from edgekit.manifest import GateResult, Plan, Recipe

__all__ = ["Row", "front_of", "row_as_data", "write_report"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1d21;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d9dde3}
td.n{text-align:right;font-variant-numeric:tabular-nums}.accepted{color:#0a7d33}.unproven{color:#9a6700}
.refused,.failed{color:#c0152b}.skipped{color:#667}code{background:#f0f2f5;padding:.1em .3em;border-radius:3px}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e3e6ea}th,td{border-color:#333a41}
code{background:#22272c}.accepted{color:#4cc36c}.unproven{color:#e0b34a}.refused,.failed{color:#ff6b7d}}
"""


@dataclass(frozen=True)
class Row:
    """One artifact in the table: what became of it.

    Attributes:
        status: `accepted`, `unproven`, `refused`, `failed` or `skipped`.
        bytes: Size of its files; 0 where there are none.
        p50_ms: Median latency on this machine, in milliseconds; 0 where not measured.
        place: Where that was measured.
        placement: What ran where.
        peak_mib: Peak memory of the worker that made it.
        attempts: Every recipe that was tried for it, in order.
        best: The index of the one that it was made by.
        layers: Quantized layer to its signal-to-quantization-noise ratio in dB, where measured.
    """

    name: str
    status: str
    reasons: tuple[str, ...]
    bytes: int = 0
    gate: GateResult | None = None
    p50_ms: float = 0.0
    place: str = "host"
    placement: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None
    peak_mib: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    best: int = 0
    layers: Mapping[str, float] = field(default_factory=dict)


def front_of(rows: Sequence[Row]) -> list[str]:
    """Return the artifacts that may ship and that no other beats in size, loss and latency together."""
    return front(
        {
            row.name: (row.bytes, loss(row.attempts[row.best]), row.p50_ms)
            for row in rows
            if row.status in ("accepted", "unproven") and row.attempts
        }
    )


def row_as_data(row: Row) -> dict[str, Any]:
    """Return one artifact's row as plain data, with stable keys."""
    gate = msgspec.to_builtins(row.gate) if row.gate is not None else {}
    return {
        "artifact": row.name,
        "status": row.status,
        "reasons": list(row.reasons),
        "bytes": row.bytes,
        "parity": gate.get("parity"),
        "metric": gate.get("metric"),
        "calibration_fit": gate.get("calibration_fit", []),
        "p50_ms": round(row.p50_ms, 4) or None,
        "p50_place": row.place if row.p50_ms else None,
        "placement": dict(row.placement),
        "recipe": msgspec.to_builtins(row.recipe) if row.recipe is not None else None,
        "attempts": [msgspec.to_builtins(attempt) for attempt in row.attempts],
        "layers_sqnr_db": {name: round(value, 2) for name, value in row.layers.items()},
        "worker_peak_mib": round(row.peak_mib, 1) or None,
    }


def write_report(
    folder: Path,
    *,
    rows: Sequence[Row],
    plan: Plan | None,
    digest: str | None,
    source: Mapping[str, str],
    target: str,
    task: str,
    notes: Sequence[str],
    seconds: float,
    isa: str,
) -> None:
    """Write `report.json` and `report.html` into `folder`, replacing those of an earlier run."""
    folder.mkdir(exist_ok=True)
    data = {
        "schema": 1,
        "edgekit": __version__,
        "target": target,
        "task": task,
        "source": dict(source),
        "host_isa": isa,
        "digest": digest,
        "plan": msgspec.to_builtins(plan) if plan is not None else None,
        "artifacts": [row_as_data(row) for row in rows],
        "notes": list(notes),
        "seconds": round(seconds, 2),
    }
    text = msgspec.json.format(msgspec.json.encode(data), indent=2)
    write_durably(folder / "report.json", text + b"\n")
    write_durably(folder / "report.html", _page(data).encode())
    recipes = {row.name: row.recipe for row in rows if row.recipe is not None and row.status != "failed"}
    write_durably(
        folder / "recipes.json", msgspec.json.format(msgspec.json.encode(recipes), indent=2) + b"\n"
    )


def _page(data: Mapping[str, Any]) -> str:
    esc = html.escape
    facts = "".join(f"<tr><th>{esc(k)}</th><td>{esc(str(v))}</td></tr>" for k, v in data["source"].items())
    notes = "".join(f"<li>{esc(note)}</li>" for note in data["notes"])
    plan = data["plan"]
    chosen = (
        f"<p>Plan for <b>{esc(plan['device'])}</b>: <code>{esc(plan['artifact'])}</code> in {esc(plan['runtime'])}"
        f"</p><ul>{''.join(f'<li>{esc(r)}</li>' for r in plan['reasons'])}</ul><p>Digest <code>{data['digest']}</code></p>"
        if plan
        else "<p class='refused'>No bundle was written.</p>"
    )
    metric = next((esc(row["metric"]["name"]) for row in data["artifacts"] if row["metric"]), "metric")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Conversion for {esc(data['target'])}</title><style>{_STYLE}</style>"
        f"<h1>{esc(data['source'].get('file', ''))} for {esc(data['target'])}</h1>"
        f"<p>Task: {esc(data['task'])}. Host: <code>{esc(data['host_isa'])}</code>.</p>{chosen}"
        "<table><tr><th>artifact</th><th>verdict</th><th>bytes</th><th>parity, largest error</th>"
        f"<th>{metric}, source</th><th>{metric}, artifact</th><th>drop, bound at 95 %</th><th>n</th><th>p50 (host)</th><th>why</th></tr>"
        f"{''.join(_row(row) for row in data['artifacts'])}</table>"
        f"<h2>Notes</h2><ul>{notes}</ul><h2>Source</h2><table>{facts}</table></html>"
    )


def _row(row: Mapping[str, Any]) -> str:
    parity, metric = row["parity"] or {}, row["metric"] or {}

    def cell(value: Any, form: str) -> str:
        return f"<td class='n'>{format(value, form) if value is not None else '–'}</td>"

    drop = f"{metric['drop_pp']:+.2f}, ≤ {metric['bound_pp']:.2f} pp" if metric else "–"
    speed = f"{row['p50_ms']:.3f} ms" if row["p50_ms"] else "–"
    return (
        f"<tr><td>{html.escape(row['artifact'])}</td><td class='{row['status']}'>{row['status']}</td>"
        f"{cell(row['bytes'] or None, ',d')}{cell(parity.get('max_error'), '.2g')}"
        f"{cell(metric.get('source'), '.4g')}{cell(metric.get('artifact'), '.4g')}<td class='n'>{drop}</td>"
        f"{cell(metric.get('n'), 'd')}<td class='n'>{speed}</td>"
        f"<td>{html.escape('; '.join(row['reasons']))}</td></tr>"
    )
