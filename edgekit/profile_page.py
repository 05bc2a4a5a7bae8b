"""The report of a profile as a page for people: one self-contained HTML file, light and dark, for a phone too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.charts import Curve, curves
from edgekit.markup import document, esc, facts, table
from edgekit.pictures import bars
from edgekit.profile_curves import cdf, label, over_time, sustained, sweep, telling

__all__ = ["profile_page"]

Row = Mapping[str, Any]
_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")
#: Bars of operators; the table has them all.
_BARS = 12


def profile_page(data: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        data: What `edgekit profile --json` prints.
    """
    identity, rows = data["identity"], telling(data)
    title = f"{identity['bundle']} on {identity['board'] or identity['device']}"
    quickest = min(
        rows, key=lambda row: row["latency_ms"]["percentiles"].get("p50", row["latency_ms"]["mean"])
    )
    parts = [
        f"<h1>{esc(title)}</h1>",
        _heading(identity),
        _verdict(data["measurements"]),
        "<h2>Latency</h2>",
        _latencies(data["measurements"]),
        "<p class='note'>Milliseconds, one caller, inputs from the golden set; samples/s counts every sample.</p>",
        "<h3>Share of calls that took at most so long</h3>",
        curves(cdf(rows), "latency, ms", "share of calls", log_x=True, zero=True, top=1.06),
        _sweep(rows),
        "<h2>Each measurement</h2>",
        *(_section(row, is_open=row is quickest) for row in rows),
        "<h2>Where and how</h2>",
        _identity(identity),
        _absent(rows[0]["heat"]["absent"]),
    ]
    return document(title, parts)


def _heading(identity: Mapping[str, Any]) -> str:
    counts = (
        "the device that the bundle is for"
        if identity["place"] == "device"
        else f"a host: these times say nothing about the speed of {identity['target']}"
    )
    return f"<p class='note'>Measured on <code>{esc(identity['device'])}</code>, {esc(counts)}. EdgeKit {esc(identity['edgekit'])}.</p>"


def _verdict(rows: Sequence[Row]) -> str:
    """Return what to believe, first of all."""
    bad = [row for row in rows if row["error"] or row["stability"]["verdict"] != "stable"]
    if not bad:
        return "<div class='banner'>Measured on a machine at rest.</div>"
    lines = "".join(f"<li><b>{esc(label(row))}</b>: {_doubt(row)}</li>" for row in bad)
    return f"<div class='banner unsteady'>Not all of it can be relied on:<ul>{lines}</ul></div>"


def _doubt(row: Row) -> str:
    if row["error"]:
        return f"<span class='failed'>failed</span>: {esc(row['error'])}"
    found = row["stability"]
    return f"<span class='{found['verdict']}'>{found['verdict']}</span>: {esc('; '.join(found['reasons']))}"


def _latencies(rows: Sequence[Row]) -> str:
    header = ("measurement", *_PERCENTILES, "max", "samples/s", "load", "first", "peak", "verdict")
    return f"<div class='scroll'>{table(header, [list(_latency(row)) for row in rows])}</div>"


def _latency(row: Row) -> Iterator[tuple[str, str]]:
    yield "name", esc(label(row))
    if row["error"]:
        yield from [("n", "")] * (len(_PERCENTILES) + 5)
        yield "failed", "failed"
        return
    found = row["latency_ms"]
    for name in _PERCENTILES:
        yield "n", _percentile(found, name)
    yield "n", _ms(found["max"])
    yield "n", f"{row['throughput_per_s']:,.0f}"
    yield "n", f"{row['load_ms']:.1f} ms"
    yield "n", f"{_ms(row['first_ms'])} ms"
    yield "n", f"{row['peak_mib']:.0f} MiB"
    yield row["stability"]["verdict"], row["stability"]["verdict"]


def _ms(value: float) -> str:
    """Return milliseconds with as many digits as mean something.

    >>> _ms(0.03217), _ms(4.5678), _ms(68.21), _ms(1234.5)
    ('0.0322', '4.57', '68.2', '1,234')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percentile(found: Mapping[str, Any], name: str) -> str:
    if name not in found["percentiles"]:
        return f"<span class='note' title='{esc(found['refused'].get(name, ''))}'>–</span>"
    interval = found["intervals"].get(name)
    value = _ms(found["percentiles"][name])
    return (
        f"<span title='95 %: {_ms(interval[0])} to {_ms(interval[1])} ms'>{value}</span>"
        if interval
        else value
    )


def _sweep(rows: Sequence[Row]) -> str:
    p50 = sweep(rows, "p50")
    if not p50:
        return ""
    marks = sorted({row["threads"] for row in rows})
    throughput = sweep(rows, "throughput_per_s")
    return (
        f"<h2>Sweep</h2>{curves(p50, 'threads', 'p50, ms', zero=True, marks=marks)}"
        f"{curves(throughput, 'threads', 'samples/s', zero=True, marks=marks)}"
    )


def _section(row: Row, *, is_open: bool) -> str:
    verdict = row["stability"]["verdict"]
    parts = [
        "<h3>Latency over time</h3>",
        curves(over_time(row), "time, s", "ms", log_y=True),
        _phases(row),
        _ops(row["ops"]),
        _gaps(row["idle_gaps"]),
        _daemon(row["through_daemon"]),
        _sustained(row),
        _memory(row),
        _heat(row["heat"]),
        _how(row),
    ]
    return (
        f"<details{' open=' + chr(34) + 'open' + chr(34) if is_open else ''}><summary>{esc(label(row))} "
        f"<span class='{verdict}'>{verdict}</span></summary>{''.join(parts)}</details>"
    )


def _phases(row: Row) -> str:
    found = row["latency_ms"]
    kept = {"hit": "from the cache", "miss": "into the cache", "none": "nothing is kept"}[row["cache"]]
    compiling = (
        "in one call with loading" if row["compile_ms"] is None else f"{row['compile_ms']:.1f} ms of loading"
    )
    warm = "until it settled" if row["settled"] else "without settling"
    at = f", {found['max_at_s']:.2f} s in" if found["max_at_s"] is not None else ""
    refused = "; ".join(f"{name} {why}" for name, why in found["refused"].items())
    intervals = ", ".join(
        f"{name} {_ms(low)} to {_ms(high)}" for name, (low, high) in found["intervals"].items()
    )
    rows = [
        ("import", f"{row['import_ms']:.0f} ms"),
        ("load", f"{row['load_ms']:.1f} ms"),
        ("compile", f"{compiling}; {kept}"),
        ("first call", f"{_ms(row['first_ms'])} ms"),
        ("warm-up", f"{row['warm_up_s']:.2f} s, {row['warm_up_runs']:,} calls, {warm}"),
        ("steady", f"{row['steady_s']:.2f} s, {found['n']:,} calls"),
        ("min, mean, max", f"{_ms(found['min'])}, {_ms(found['mean'])}, {_ms(found['max'])} ms{at}"),
        ("MAD, CoV", f"{found['mad']:.3g} ms, {found['cov']:.1%}"),
        ("95 % intervals, ms", intervals or "none: too few calls"),
    ]
    return "<h3>Phases</h3>" + facts(rows + [("not given", refused)] * bool(refused))


def _ops(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    if "error" in found:
        return f"<h3>Operators</h3><p class='note'>{esc(found['error'])}</p>"
    shown = found["rows"][:_BARS]
    names = _distinct([f"{row['name']}" for row in shown])
    values = {name: row["us"] for name, row in zip(names, shown, strict=True)}
    kinds = {name: "fallback" for name, row in zip(names, shown, strict=True) if row["fallback"]}
    rows = [
        [
            ("name", esc(row["name"])),
            ("", esc(row["kind"])),
            ("", esc(row["unit"]) + (" <b class='unproven'>fallback</b>" if row["fallback"] else "")),
            ("", esc(row["kernel"] or row["place"])),
            ("n", f"{row['us']:.1f} µs"),
            ("n", f"{row['share']:.1%}"),
            ("n", f"{row['cumulative']:.1%}"),
        ]
        for row in found["rows"]
    ]
    fell = (
        f" {found['fallbacks']} operators, {found['fallback_share']:.1%} of the time, ran elsewhere than planned."
        if found["fallbacks"]
        else ""
    )
    return (
        f"<h3>Operators</h3><div class='scroll'>{bars(values, kinds, 'µs')}</div>"
        + table(("node", "operator", "unit", "kernel", "time", "share", "cumulative"), rows)
        + f"<p class='note'>{len(rows)} of {found['operators']} operators, {found['total_us'] / 1e3:.3f} ms in all of "
        f"them. A run of its own, {found['calls']} calls: the profiler makes a call {1 + found['cost']:.2f} × as long "
        f"({found['plain_p50_ms']:.3f} → {found['profiled_p50_ms']:.3f} ms); the latencies above are without it.{fell}</p>"
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names with a number behind those that come again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _gaps(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        [
            ("name", f"{gap['gap_s']:g} s"),
            ("n", str(gap["n"])),
            ("n", f"{gap['min_ms']:.3f} ms"),
            ("n", f"{gap['median_ms']:.3f} ms"),
            ("n", f"{gap['max_ms']:.3f} ms"),
            ("n", f"{gap['over_hot']:.2f} ×" if gap["over_hot"] is not None else ""),
        ]
        for gap in found
    ]
    header = ("pause", "calls", "min", "median", "max", "over back-to-back")
    return "<h3>One call after a pause</h3>" + table(header, rows)


def _daemon(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    if "error" in found:
        return f"<h3>Through the daemon</h3><p class='note'>{esc(found['error'])}</p>"
    sides = (("in process", found["in_process"]), ("through the daemon", found["through_daemon"]))
    rows = [
        [
            ("name", name),
            ("n", f"{side['n']:,}"),
            *(
                ("n", f"{side['percentiles'][p]:.3f} ms" if p in side["percentiles"] else "–")
                for p in ("p50", "p90", "p99")
            ),
        ]
        for name, side in sides
    ]
    low, high = found["cost_interval_ms"]
    busy = (
        f" Others used {found['others_cores']:.1f} cores meanwhile: the cost is theirs too."
        if found["others_cores"] > 0.5
        else ""
    )
    return (
        "<h3>Through the daemon</h3>"
        + table(("", "calls", "p50", "p90", "p99"), rows)
        + f"<p class='note'>The daemon's cost: <b>{found['cost_ms']:+.3f} ms</b> ({low:+.3f} to {high:+.3f}), "
        f"{found['ratio']:.2f} ×. Both sides in turns, {found['rate_per_s']:.0f} calls begun per second, "
        f"{found['request_bytes']:,} bytes in and {found['reply_bytes']:,} out by Unix socket. It takes "
        f"{found['daemon_mib']:.0f} MiB.{busy}</p>"
    )


def _sustained(row: Row) -> str:
    found, lines = row["sustained"], sustained(row)
    if not found:
        return ""
    energy = (
        [("energy", f"{found['energy_j']:.1f} J by {found['energy_of']}")]
        if found["energy_j"] is not None
        else []
    )
    if found["energy_per_run_mj"] is not None:
        energy.append(
            ("a call", f"{found['energy_per_run_mj']:.3f} mJ above the {found['rest_w']:.2f} W at rest")
        )
    degrees = found["temperatures_c"]
    heat = ""
    if degrees:
        points = [(each["at_s"] / 60, t) for each, t in zip(found["windows"], degrees, strict=False)]
        heat = curves([Curve("temperature", points, 1)], "time, min", "hottest zone, °C")
    facts_ = [
        (f"first {found['edge_s']:.0f} s", f"p50 {_ms(found['first_p50_ms'])} ms"),
        (f"last {found['edge_s']:.0f} s", f"p50 {_ms(found['last_p50_ms'])} ms, {found['change']:+.1%}"),
        ("slowed down", "; ".join(found["heat"]["throttled"]) or "not seen"),
        *energy,
    ]
    return (
        f"<h3>Sustained, {found['seconds']:.0f} s</h3>{curves(lines, 'time, min', 'p50, ms', zero=True)}{heat}"
        + facts(facts_)
    )


def _memory(row: Row) -> str:
    pss = f"{row['pss_mib']:.0f} MiB" if row["pss_mib"] is not None else "not told by this kernel"
    return "<h3>Memory</h3>" + facts(
        [
            ("before", f"{row['before_mib']:.0f} MiB"),
            (
                "loaded",
                f"{row['loaded_mib']:.0f} MiB, {row['loaded_mib'] - row['before_mib']:+.0f} for runtime and model",
            ),
            ("peak", f"{row['peak_mib']:.0f} MiB"),
            ("PSS", pss),
        ]
    )


def _heat(found: Mapping[str, Any]) -> str:
    rows = []
    if found["end_c"] is not None:
        rows.append(
            (
                "hottest zone",
                f"{found['start_c']:.1f} °C before, {found['end_c']:.1f} after, {found['max_c']:.1f} at most",
            )
        )
        rows.append(
            ("zones", ", ".join(f"{name} {value:.1f} °C" for name, value in found["zones_c"].items()))
        )
    if found["clock_min_mhz"] is not None:
        rows.append(
            ("clocks", f"{found['clock_mean_mhz']:.0f} MHz on average, {found['clock_min_mhz']:.0f} at least")
        )
    if found["module_mw"] is not None:
        rows.append(("module", f"{found['module_mw'] / 1e3:.2f} W"))
    if found["rails_mw"]:
        rows.append(
            ("rails", ", ".join(f"{name} {value / 1e3:.2f} W" for name, value in found["rails_mw"].items()))
        )
    if found["package_w"] is not None:
        rows.append(("processor", f"{found['package_w']:.2f} W"))
    if "throttling" not in found["absent"]:
        rows.append(("slowed down", "; ".join(found["throttled"]) or "not seen"))
    return "<h3>Heat and power</h3>" + facts(rows) if rows else ""


def _how(row: Row) -> str:
    model = row["model"] or {"sha256": "", "precision": "", "inputs": {}}
    shapes = ", ".join(f"{name} {each['dtype']} {each['shape']}" for name, each in model["inputs"].items())
    rows = [
        ("runtime", row["version"]),
        ("asked for", ", ".join(row["providers"]) or "the default"),
        ("ran on", ", ".join(f"{name} ({what})" for name, what in row["placement"].items())),
        (
            "settings",
            ", ".join(f"{name} = {value}" for name, value in row["settings"].items()) or "none told",
        ),
        ("inputs", shapes),
        ("model", f"{model['precision']}, sha256 {model['sha256']}"),
        ("plan", "; ".join(row["plan_reasons"])),
    ]
    return "<h3>How it ran</h3>" + facts(rows)


def _identity(identity: Mapping[str, Any]) -> str:
    governors = ", ".join(f"{core} {name}" for core, name in identity["governors"].items())
    rows = [
        ("device", f"{identity['device']}, for {identity['target']}"),
        ("board", identity["board"]),
        ("chip", identity["soc"]),
        ("instruction set", identity["isa"]),
        ("cores", identity["cores"]),
        ("governors", governors or "none shown"),
        ("power mode", identity["power_mode"] or "none shown"),
        ("kernel", identity["kernel"]),
        (
            "system",
            ", ".join(f"{name} {version}" for name, version in identity["system"].items())
            or "nothing of the list found",
        ),
        ("load before", ", ".join(f"{each:.2f}" for each in identity["load_average"])),
        ("Python, EdgeKit", f"{identity['python']}, {identity['edgekit']}"),
        ("bundle", f"{identity['bundle']}, {identity['digest']}"),
    ]
    return facts(rows)


def _absent(found: Mapping[str, str]) -> str:
    if not found:
        return ""
    lines = "".join(f"<li>{esc(name)}: {esc(why)}</li>" for name, why in found.items())
    return f"<h3>Not read</h3><ul class='note'>{lines}</ul>"
