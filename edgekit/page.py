"""The report as a page for people: one self-contained HTML file, no script, nothing fetched, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.markup import document, esc, facts, table
from edgekit.pictures import Dot, bars, confusion_cells, png_uri, scatter, sparkline

if TYPE_CHECKING:
    import numpy as np

__all__ = ["page"]

#: More classes than this are told by their confusions alone.
_SQUARE = 20
_WORST_LAYERS = 20
_TOP_CONFUSIONS = 20
_PICTURE = 3


def page(data: Mapping[str, Any], pictures: Mapping[str, Sequence[np.ndarray | None]]) -> str:
    """Return the page.

    Args:
        data: What `report.json` holds.
        pictures: Artifact to the pictures of its worst samples, as `edgekit.evidence.WorstSample` has them.
    """
    title = f"{data['source'].get('file', '')} for {data['target']}"
    metric = next((row["metric"]["name"] for row in data["artifacts"] if row["metric"]), "metric")
    parts = [
        f"<h1>{esc(title)}</h1>",
        _heading(data),
        _plan(data),
        "<h2>Artifacts</h2>",
        _artifacts(data["artifacts"], metric),
        _front(data, metric),
        *(
            _section(row, data, pictures.get(row["artifact"], ()))
            for row in data["artifacts"]
            if _has_more(row)
        ),
        _notes(data["notes"]),
        _source(data["source"]),
    ]
    return document(title, parts)


def _heading(data: Mapping[str, Any]) -> str:
    return (
        f"<p class='note'>Task: {esc(data['task'])}. Judged on <code>{esc(data['judged_on'])}</code> in "
        f"{data['seconds']:.0f} s by EdgeKit {esc(data['edgekit'])}.</p>"
    )


def _plan(data: Mapping[str, Any]) -> str:
    plan = data["plan"]
    if not plan:
        return "<div class='banner refused'>No bundle was written.</div>"
    reasons = "".join(f"<li>{esc(reason)}</li>" for reason in plan["reasons"])
    return (
        f"<div class='banner'>Plan for <b>{esc(plan['device'])}</b>: <code>{esc(plan['artifact'])}</code> in "
        f"{esc(plan['runtime'])}<ul class='note'>{reasons}</ul><p class='note'>Digest <code>{esc(data['digest'])}</code></p></div>"
    )


def _artifacts(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    header = (
        "artifact", "verdict", "size", "parity, largest error", f"{metric}, source", f"{metric}, artifact",
        "drop, bound at 95 %", "n", "p50", "peak of the worker", "why",
    )  # fmt: skip
    return table(header, [list(_artifact(row)) for row in rows])


def _artifact(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    parity, metric = row["parity"] or {}, row["metric"] or {}
    yield "name", esc(row["artifact"])
    yield row["status"], row["status"]
    yield "n", _size(row["bytes"])
    yield "n", _number(parity.get("max_error"), ".2g")
    yield "n", _number(metric.get("source"), ".4g")
    yield "n", _number(metric.get("artifact"), ".4g")
    yield "n", _drop(metric)
    yield "n", _number(metric.get("n"), ",d")
    yield "n", f"{row['p50_ms']:.3f} ms {esc(row['p50_place'])}" if row["p50_ms"] else ""
    yield "n", f"{row['worker_peak_mib']:,.0f} MiB" if row["worker_peak_mib"] else ""
    yield "why", esc("; ".join(row["reasons"]))


def _number(value: Any, form: str) -> str:
    return format(value, form) if value is not None else ""


def _size(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1024:,.0f} KiB" if count >= 10_240 else f"{count:,d} bytes"


def _drop(metric: Mapping[str, Any] | None) -> str:
    return f"{metric['drop_pp']:+.2f}, ≤ {metric['bound_pp']:.2f} pp" if metric else ""


def _front(data: Mapping[str, Any], metric: str) -> str:
    chosen = data["plan"]["artifact"] if data["plan"] else ""
    judged = [row for row in data["artifacts"] if row["bytes"] and row["parity"]]
    measured = bool(judged) and all(row["metric"] for row in judged)
    unit, name = (
        (1024.0, "size, KiB")
        if max((r["bytes"] for r in judged), default=0) < 1 << 23
        else (1 << 20, "size, MiB")
    )
    dots = [
        Dot(
            name=row["artifact"],
            x=row["bytes"] / unit,
            y=row["metric"]["artifact"] if measured else 100.0 * row["parity"]["p95_error"],
            size=row["p50_ms"] or 0.0,
            kind=row["status"],
            marked=row["artifact"] == chosen,
            front=row["artifact"] in data["front"],
        )
        for row in judged
    ]
    if len(dots) < 2:
        return ""
    what = metric if measured else "95th percentile of the error, % of range"
    return (
        f"<h2>Size against {esc(what)}</h2><div class='scroll'>{scatter(dots, name, what)}</div><p class='note'>Larger dots took longer here "
        "(p50). Refused ones are hollow, the chosen one is ringed, the dashed line joins those that no other beats in "
        "size, loss and time together.</p>"
    )


def _has_more(row: Mapping[str, Any]) -> bool:
    return bool(row["recipe"] or row["attempts"] or row["layers_sqnr_db"] or row["confusion"] or row["worst"])


def _section(row: Mapping[str, Any], data: Mapping[str, Any], pictures: Sequence[np.ndarray | None]) -> str:
    chosen = bool(data["plan"]) and data["plan"]["artifact"] == row["artifact"]
    parts = [
        _recipe(row["recipe"]),
        _ladder(row["attempts"]),
        _layers(row),
        _confusion(row["confusion"], data["labels"]),
        _worst(row["worst"], pictures),
    ]
    return (
        f"<details{' open=' + chr(34) + 'open' + chr(34) if chosen else ''}><summary>{esc(row['artifact'])} "
        f"<span class='{row['status']}'>{row['status']}</span></summary>{''.join(parts)}</details>"
    )


def _recipe(recipe: Mapping[str, Any] | None) -> str:
    if not recipe:
        return ""
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in recipe.get("options", {}).items())
    kept = ", ".join(recipe.get("float_layers", ()))
    rows = [("route", " → ".join(recipe["route"])), ("precision", recipe["precision"])]
    if recipe.get("calibration"):
        rows.append(
            ("calibration", f"{recipe['calibration']} on {recipe.get('calibration_samples', 0)} samples")
        )
    rows += [("options", options)] * bool(options) + [("kept in float", kept)] * bool(kept)
    return "<h3>Recipe</h3>" + facts(rows)


def _ladder(attempts: Sequence[Mapping[str, Any]]) -> str:
    if len(attempts) < 2:
        return ""
    rows = [
        [
            ("n", str(i)),
            ("", esc(_rung(attempt["recipe"]))),
            (attempt["status"], attempt["status"]),
            ("n", _size(attempt["bytes"])),
            ("n", _drop(attempt["metric"])),
            ("why", esc("; ".join(attempt["reasons"]))),
        ]
        for i, attempt in enumerate(attempts, 1)
    ]
    return "<h3>What was tried</h3>" + table(
        ("rung", "recipe", "verdict", "size", "drop, bound at 95 %", "why"), rows
    )


def _rung(recipe: Mapping[str, Any]) -> str:
    kept = len(recipe.get("float_layers", ()))
    words = [" → ".join(recipe["route"]), recipe.get("calibration", "")]
    words += [f"{kept} layer{'s' if kept > 1 else ''} in float"] if kept else []
    return ", ".join(word for word in words if word)


def _layers(row: Mapping[str, Any]) -> str:
    layers = row["layers_sqnr_db"]
    if not layers:
        return ""
    kept = set(row["recipe"]["float_layers"]) if row["recipe"] else set()
    worst = sorted(layers, key=lambda name: (layers[name], name))[:_WORST_LAYERS]
    kinds = {name: "float" if name in kept else "quantized" for name in worst}
    more = f", the worst {len(worst)} of {len(layers)}" if len(layers) > len(worst) else ""
    return (
        f"<h3>Signal to quantization noise by layer{more}</h3><p class='note'><span class='key'></span>quantized"
        f"<span class='key float'></span>kept in float</p><div class='scroll'>"
        f"{bars({name: layers[name] for name in worst}, kinds, 'dB')}</div>"
    )


def _confusion(found: Mapping[str, Any] | None, labels: Sequence[str]) -> str:
    if not found:
        return ""
    count = found["classes"]
    names = [labels[i] if i < len(labels) else f"class {i}" for i in range(count)]
    total = sum(cell[2] for cell in found["cells"])
    agree = sum(cell[2] for cell in found["cells"] if cell[0] == cell[1])
    said = f"<h3>Source's class against artifact's</h3><p class='note'>{agree:,d} of {total:,d} samples agree.</p>"
    if count <= _SQUARE:
        square = [[0] * count for _ in range(count)]
        for i, j, n in found["cells"]:
            square[i][j] = n
        return said + confusion_cells(square, names)
    off = sorted((cell for cell in found["cells"] if cell[0] != cell[1]), key=lambda c: (-c[2], c[0], c[1]))
    rows = [[("", esc(names[i])), ("", esc(names[j])), ("n", f"{n:,d}")] for i, j, n in off[:_TOP_CONFUSIONS]]
    return said + (table(("source", "artifact", "samples"), rows) if rows else "")


def _worst(samples: Sequence[Mapping[str, Any]], pictures: Sequence[np.ndarray | None]) -> str:
    if not samples:
        return ""
    shown = list(pictures) + [None] * (len(samples) - len(pictures))
    figures = "".join(_figure(sample, shown[i]) for i, sample in enumerate(samples))
    return f"<h3>Samples furthest from the source</h3><div class='samples'>{figures}</div>"


def _figure(sample: Mapping[str, Any], picture: np.ndarray | None) -> str:
    error = f"{sample['error']:.3g} of range" if sample["error"] is not None else "not finite"
    label = f"<br/>label: <b>{esc(sample['label'])}</b>" if sample["label"] is not None else ""
    answers = "".join(
        f"<br/>{who}: {', '.join(f'<b>{esc(name)}</b> {score:.3g}' for name, score in sample[who])}"
        for who in ("source", "artifact")
        if sample[who]
    )
    return f"<figure>{_drawn(picture)}<figcaption>sample {sample['index']}, error {error}{label}{answers}</figcaption></figure>"


def _drawn(picture: np.ndarray | None) -> str:
    if picture is None:
        return ""
    if picture.ndim == _PICTURE:
        return f"<img alt='the sample' width='96' src='{png_uri(picture)}'/>"
    return sparkline(picture)


def _notes(notes: Sequence[str]) -> str:
    return f"<h2>Notes</h2><ul>{''.join(f'<li>{esc(note)}</li>' for note in notes)}</ul>" if notes else ""


def _source(source: Mapping[str, Any]) -> str:
    return "<h2>Source and tools</h2>" + facts(list(source.items()))
