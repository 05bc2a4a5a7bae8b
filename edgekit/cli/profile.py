"""`edgekit profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.profiling import Identity, Measurement, ProfileReport

__all__ = ["profile"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="RUNTIME",
    help="Measure this runtime; may be repeated. By default the one of the device's plan.",
)
@click.option("--artifact", metavar="ARTIFACT", help="Measure this artifact; by default the plan's.")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1, 256),
    metavar="N",
    help="Measure with N threads; may be repeated. By default 1, 2, 4 … up to the cores.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Measure with N samples in one call; may be repeated. By default 1.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 86400.0),
    default=3.0,
    show_default=True,
    metavar="S",
    help="Length of each measurement after its warm-up.",
)
@click.option("--device", metavar="ID", help="Plan by this profile; by default the detected device's.")
@click.option("--allow-fallback", is_flag=True, help="What was asked for by hand may step down.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def profile(
    bundle: Path,
    runtimes: tuple[str, ...],
    artifact: str | None,
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    seconds: float,
    device: str | None,
    allow_fallback: bool,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory on this machine.

    Each combination of runtime, threads and batch runs in a process of its own: loaded, run once, warmed up
    until it settles, then timed. A percentile is given only where the sample supports it, and an unsteady
    machine is called so.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.output import print_json, progress_bar
    from edgekit.profiling import profile_bundle

    with progress_bar("measuring", quiet=as_json) as watch:
        report = profile_bundle(
            open_bundle(bundle),
            runtimes=runtimes,
            artifact=artifact,
            threads=threads,
            batches=batches or (1,),
            seconds=seconds,
            device=device,
            allow_fallback=allow_fallback,
            watch=watch,
        )
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)


def _print(report: ProfileReport) -> None:
    from edgekit.cli.output import print_table
    from edgekit.timing import PERCENTILES

    for line in _identity(report.identity):
        click.echo(line)
    names = tuple(f"p{each:g}" for each in PERCENTILES)
    header = (
        "runtime",
        "artifact",
        "threads",
        "batch",
        "load",
        "first",
        "min",
        *names,
        "samples/s",
        "peak MiB",
    )
    click.echo("")
    print_table("", (*header, "verdict"), [_row(each, names) for each in report.measurements])
    click.echo(
        "Times in ms, one caller, inputs from the golden set; samples/s counts every sample of a batch."
    )
    for line in dict.fromkeys(_remarks(report)):
        click.echo(line)


def _identity(identity: Identity) -> Iterator[str]:
    yield f"{identity.bundle}, made for {identity.target}, digest {identity.digest[:12]}"
    yield f"measured on: {identity.place} ({identity.device}: {identity.board}, {identity.isa}, {identity.cores} cores)"
    governor = f", governor {identity.governor}" if identity.governor else ""
    load = identity.load_average[0]
    yield f"{identity.kernel}{governor}, load average {load:.2f} before, EdgeKit {identity.edgekit}"
    if identity.place == "host":
        yield f"These times say nothing about the speed of {identity.target}."


def _row(measurement: Measurement, names: tuple[str, ...]) -> tuple[str, ...]:
    plan, sample = measurement.candidate.plan, measurement.sample
    head = (plan.runtime, plan.artifact, str(plan.threads), str(measurement.candidate.batch))
    if sample is None:
        return (*head, *[""] * (len(names) + 5), "failed")
    latency = sample.latency
    return (
        *head,
        f"{sample.load_ms:.1f}",
        f"{sample.first_ms:.2f}",
        f"{latency.min:.3f}",
        *(f"{latency.percentiles[name]:.3f}" if name in latency.percentiles else "–" for name in names),
        f"{sample.throughput_per_s:.0f}",
        f"{sample.peak_mib:.0f}",
        sample.stability.verdict,
    )


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
        yield f"{each.candidate.plan.runtime}: {sample.version}, ran on {where}"
        yield from (
            f"{each.candidate}: {name} not given: {why}" for name, why in sample.latency.refused.items()
        )
        if sample.stability.reasons:
            yield f"{each.candidate}: {sample.stability.verdict}: {'; '.join(sample.stability.reasons)}"
