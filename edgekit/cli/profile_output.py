"""What `edgekit profile` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.daemon_cost import DaemonCost
    from edgekit.endurance import Sustained
    from edgekit.measure import Sample
    from edgekit.op_table import OpTable
    from edgekit.profile_identity import Identity
    from edgekit.profiling import Measurement, ProfileReport

__all__ = ["print_profile"]

_NAME = 40  # letters of an operator's name


def print_profile(report: ProfileReport) -> None:
    """Print the identity, the table of latencies, what else was measured, and the remarks."""
    from edgekit.cli.output import print_table
    from edgekit.timing import PERCENTILES

    for line in _identity(report.identity):
        click.echo(line)
    names = tuple(f"p{each:g}" for each in PERCENTILES)
    header = (
        "runtime", "artifact", "threads", "batch", "load", "first", "min", *names, "max", "samples/s", "peak MiB",
        "verdict",
    )  # fmt: skip
    click.echo("")
    print_table("", header, [_row(each, names) for each in report.measurements])
    click.echo(
        "Times in ms, one caller, inputs from the golden set; samples/s counts every sample of a batch."
    )
    for each in report.measurements:
        _print_gaps(each)
        _print_ops(each)
        _print_daemon(each)
        _print_sustained(each)
    for line in dict.fromkeys(_remarks(report)):
        click.echo(line)


def _identity(identity: Identity) -> Iterator[str]:
    yield f"{identity.bundle}, made for {identity.target}, digest {identity.digest[:12]}"
    chip = f", {identity.soc}" if identity.soc != identity.board else ""
    yield (
        f"measured on: {identity.place} ({identity.device}: {identity.board}{chip}, {identity.isa}, "
        f"{identity.cores} cores)"
    )
    governor = f", governor {identity.governor}" if identity.governor else ""
    mode = f", {identity.power_mode}" if identity.power_mode else ""
    load = identity.load_average[0]
    yield f"{identity.kernel}{governor}{mode}, load average {load:.2f} before, EdgeKit {identity.edgekit}"
    if identity.system:
        yield ", ".join(f"{name} {version}" for name, version in identity.system.items())
    if identity.place == "host":
        yield f"These times say nothing about the speed of {identity.target}."


def _row(measurement: Measurement, names: tuple[str, ...]) -> tuple[str, ...]:
    plan, sample = measurement.candidate.plan, measurement.sample
    head = (plan.runtime, plan.artifact, str(plan.threads), str(measurement.candidate.batch))
    if sample is None:
        return (*head, *[""] * (len(names) + 6), "failed")
    latency = sample.latency
    return (
        *head,
        f"{sample.load_ms:.1f}",
        f"{sample.first_ms:.2f}",
        f"{latency.min:.3f}",
        *(f"{latency.percentiles[name]:.3f}" if name in latency.percentiles else "–" for name in names),
        f"{latency.max:.2f}",
        f"{sample.throughput_per_s:.0f}",
        f"{sample.peak_mib:.0f}",
        sample.stability.verdict,
    )


def _print_gaps(measurement: Measurement) -> None:
    from edgekit.cli.output import print_table

    if measurement.sample is None or not measurement.sample.idle_gaps:
        return
    rows = [
        (
            f"{gap.gap_s:g}",
            str(gap.n),
            f"{gap.min_ms:.3f}",
            f"{gap.median_ms:.3f}",
            f"{gap.max_ms:.3f}",
            f"{gap.over_hot:.2f}" if gap.over_hot is not None else "",
        )
        for gap in measurement.sample.idle_gaps
    ]
    click.echo("")
    print_table(
        f"{measurement.candidate}: one call after a pause, ms",
        ("idle s", "calls", "min", "median", "max", "× hot"),
        rows,
    )


def _print_ops(measurement: Measurement) -> None:
    from edgekit.cli.output import print_table
    from edgekit.op_table import OpTable

    table: OpTable | Exception | None = measurement.ops
    if table is None:
        return
    click.echo("")
    if not isinstance(table, OpTable):
        click.echo(f"{measurement.candidate}: no table of operators: {table}")
        return
    rows = [
        (
            _short(row.name),
            row.kind,
            row.unit + (" (fallback)" if row.fallback else ""),
            row.kernel,
            f"{row.us:.1f}",
            f"{row.share:.1%}",
            f"{row.cumulative:.1%}",
        )
        for row in table.rows
    ]
    title = f"{measurement.candidate}: {len(rows)} of {table.operators} operators, {table.total_us / 1e3:.3f} ms in all of them"
    print_table(title, ("node", "operator", "unit", "kernel", "µs", "share", "cumulative"), rows)
    click.echo(_ops_note(table))


def _ops_note(table: OpTable) -> str:
    fallbacks = (
        f"; {table.fallbacks} operators, {table.fallback_share:.1%} of the time, ran elsewhere than planned"
        if table.fallbacks
        else ""
    )
    return (
        f"A run of its own, {table.calls} calls: the profiler makes a call {1 + table.cost:.2f} × as long "
        f"({table.plain_p50_ms:.3f} → {table.profiled_p50_ms:.3f} ms), the latencies above are without it{fallbacks}."
    )


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]


def _print_daemon(measurement: Measurement) -> None:
    from edgekit.cli.output import print_table
    from edgekit.daemon_cost import DaemonCost

    cost = measurement.daemon
    if cost is None:
        return
    click.echo("")
    if not isinstance(cost, DaemonCost):
        click.echo(f"{measurement.candidate}: not through the daemon: {cost}")
        return
    rows = [
        (
            name,
            str(side.n),
            *(f"{side.percentiles[p]:.3f}" if p in side.percentiles else "–" for p in ("p50", "p90", "p99")),
        )
        for name, side in (("in process", cost.in_process), ("through the daemon", cost.through_daemon))
    ]
    title = f"{measurement.candidate}: paced alike, in turns, {cost.rate_per_s:.0f} calls/s, ms"
    print_table(title, ("", "calls", "p50", "p90", "p99"), rows)
    click.echo(_daemon_note(cost))


def _daemon_note(cost: DaemonCost) -> str:
    low, high = cost.cost_interval_ms
    busy = (
        f" Others used {cost.others_cores:.1f} cores meanwhile: the cost is theirs too."
        if cost.others_cores > 0.5
        else ""
    )
    return (
        f"The daemon's cost: {cost.cost_ms:+.3f} ms ({low:+.3f} to {high:+.3f}), {cost.ratio:.2f} ×, "
        f"{cost.request_bytes:,} bytes in and {cost.reply_bytes:,} out, by Unix socket; it takes "
        f"{cost.daemon_mib:.0f} MiB.{busy}"
    )


def _print_sustained(measurement: Measurement) -> None:
    if measurement.sample is None or measurement.sample.sustained is None:
        return
    click.echo("")
    for line in _sustained(measurement.sample.sustained):
        click.echo(f"{measurement.candidate}: {line}")


def _sustained(found: Sustained) -> Iterator[str]:
    yield (
        f"sustained {found.seconds:.0f} s, {found.runs:,} calls: p50 {found.first_p50_ms:.3f} ms in the first "
        f"{found.edge_s:.0f} s, {found.last_p50_ms:.3f} ms in the last: {found.change:+.1%}"
    )
    heat = found.heat
    if heat.start_c is not None and heat.end_c is not None and heat.max_c is not None:
        yield f"hottest zone {heat.start_c:.1f} °C before, {heat.end_c:.1f} °C after, {heat.max_c:.1f} °C at most"
    if found.energy_j is not None:
        above = (
            f", {found.energy_per_run_mj:.3f} mJ a call above the {found.rest_w:.2f} W at rest"
            if found.energy_per_run_mj is not None
            else ""
        )
        yield f"{found.energy_j:.1f} J by {found.energy_of}{above}"
    for word in heat.throttled:
        yield f"slowed down: {word}"


def _remarks(report: ProfileReport) -> Iterator[str]:
    for each in report.measurements:
        plan = each.candidate.plan
        yield from (f"plan: {reason}" for reason in plan.reasons)
    for each in report.measurements:
        if each.sample is None:
            yield f"{each.candidate}: failed: {each.error}"
            continue
        sample = each.sample
        where = ", ".join(f"{name} ({what})" for name, what in sample.placement.items())
        asked = ", ".join(each.candidate.plan.providers) or "the default"
        yield f"{each.candidate.plan.runtime}: {sample.version}, asked for {asked}, ran on {where}"
        yield from (f"{each.candidate}: {line}" for line in _sample_remarks(sample))
    for each in report.measurements[:1]:
        if each.sample is not None:
            yield from (f"{name} not read: {why}" for name, why in each.sample.heat.absent.items())


def _sample_remarks(sample: Sample) -> Iterator[str]:
    compiled = (
        "loaded and compiled in one call"
        if sample.compile_ms is None
        else f"{sample.compile_ms:.1f} of the {sample.load_ms:.1f} ms of loading were compiling"
    )
    cache = {"hit": ", from the cache", "miss": ", into the cache", "none": ""}[sample.cache]
    pss = f", PSS {sample.pss_mib:.0f}" if sample.pss_mib is not None else ""
    yield (
        f"{compiled}{cache}; warm after {sample.warm_up_s:.2f} s and {sample.warm_up_runs} calls; memory "
        f"{sample.before_mib:.0f} MiB before, {sample.loaded_mib:.0f} loaded{pss}, {sample.peak_mib:.0f} at most"
    )
    intervals = [f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in sample.latency.intervals.items()]
    if intervals:
        yield f"95 % intervals, ms: {', '.join(intervals)}; MAD {sample.latency.mad:.4f}, CoV {sample.latency.cov:.0%}"
    yield from (f"{name} not given: {why}" for name, why in sample.latency.refused.items())
    heat = sample.heat
    if heat.end_c is not None and heat.max_c is not None:
        yield f"hottest zone {heat.end_c:.1f} °C after, {heat.max_c:.1f} °C at most"
    if heat.clock_min_mhz is not None and heat.clock_mean_mhz is not None:
        yield f"clocks {heat.clock_mean_mhz:.0f} MHz on average, {heat.clock_min_mhz:.0f} at least"
    if heat.module_mw is not None:
        yield f"the module took {heat.module_mw / 1e3:.2f} W"
    if heat.package_w is not None:
        yield f"the processor's package took {heat.package_w:.2f} W"
    if sample.stability.reasons:
        yield f"{sample.stability.verdict}: {'; '.join(sample.stability.reasons)}"
