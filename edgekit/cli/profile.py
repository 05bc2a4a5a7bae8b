"""`edgekit profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
@click.option(
    "--pick",
    "picking",
    is_flag=True,
    help="Measure every accepted artifact that runs here, and pin the quickest: serve, run and load then take it.",
)
@click.option("--unpin", is_flag=True, help="Forget what --pick has pinned; measure nothing.")
@click.option("--state-dir", metavar="DIR", help="Where --pick pins; by default the state folder.")
@click.option("--device", metavar="ID", help="Plan by this profile; by default the detected device's.")
@click.option("--allow-fallback", is_flag=True, help="What was asked for by hand may step down.")
@click.option("--on", metavar="ssh://HOST", help="Measure on this device, where the bundle was deployed to.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def profile(
    bundle: Path,
    runtimes: tuple[str, ...],
    artifact: str | None,
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    seconds: float,
    picking: bool,
    unpin: bool,
    state_dir: str | None,
    device: str | None,
    allow_fallback: bool,
    on: str | None,
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

    if on is not None:
        from edgekit.cli.on_device import profile_on

        profile_on(click.get_current_context(), bundle, on, as_json=as_json)
        return
    given = {
        "runtime": runtimes,
        "artifact": artifact,
        "batch": batches,
        "device": device,
        "allow-fallback": allow_fallback,
    }
    _check_pick(given, threads, picking=picking, unpin=unpin, state_dir=state_dir)
    if unpin:
        _unpin(bundle, state_dir)
        return
    if picking:
        _pick(bundle, threads, seconds, state_dir, as_json=as_json)
        return
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


def _check_pick(
    given: Mapping[str, object],
    threads: tuple[int, ...],
    *,
    picking: bool,
    unpin: bool,
    state_dir: str | None,
) -> None:
    """Refuse what would be ignored."""
    from edgekit.errors import UsageError

    if state_dir is not None and not (picking or unpin):
        raise UsageError("--state-dir has no meaning here", expected="--pick or --unpin with it")
    if unpin and (picking or threads):
        raise UsageError("--unpin measures nothing", hint="Leave the other options out.")
    other = next((name for name, value in given.items() if value), None)
    if (picking or unpin) and other:
        word = "--pick" if picking else "--unpin"
        raise UsageError(f"--{other} has no meaning with {word}, which looks at all that runs here")


def _unpin(path: Path, state_dir: str | None) -> None:
    from edgekit.bundle import open_bundle
    from edgekit.pins import remove_pin

    was_there = remove_pin(open_bundle(path).digest, state_dir)
    click.echo("forgotten: the plan is chosen again" if was_there else "nothing was pinned")


def _pick(
    path: Path, threads: tuple[int, ...], seconds: float, state_dir: str | None, *, as_json: bool
) -> None:
    import msgspec

    from edgekit.bundle import open_bundle
    from edgekit.cli.output import print_json, progress_bar
    from edgekit.errors import UnavailableError
    from edgekit.profiling import pick

    with progress_bar("measuring", quiet=as_json) as watch:
        report, plan = pick(
            open_bundle(path), threads=threads, seconds=seconds, state_dir=state_dir, watch=watch
        )
    if as_json:
        print_json({**report.as_json(), "pinned": msgspec.to_builtins(plan) if plan else None})
    else:
        _print(report)
    if plan is None:
        raise UnavailableError(
            "nothing is pinned: the machine was not at rest",
            hint="Stop what else runs, or measure longer: --seconds.",
        )
    if not as_json:
        click.echo(f"pinned: {plan.artifact} in {plan.runtime}, {plan.threads} threads; --unpin forgets it")


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
