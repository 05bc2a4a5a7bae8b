"""`edgekit profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.profiling import Probes, ProfileReport

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
@click.option("--ops", is_flag=True, help="Also tell the time of single operators, in a run of its own.")
@click.option(
    "--top", type=click.IntRange(1, 1000), metavar="N", help="Operators to list with --ops.  [default: 10]"
)
@click.option("--idle-gaps", is_flag=True, help="Also time single calls after pauses of 0, 1 and 10 s.")
@click.option(
    "--gap",
    "gaps",
    multiple=True,
    type=click.FloatRange(0.0, 3600.0),
    metavar="S",
    help="Another pause for --idle-gaps, in seconds; may be repeated.",
)
@click.option(
    "--through-daemon",
    is_flag=True,
    help="Also send the same calls through `edgekit serve`, in turns with this process: the daemon's cost.",
)
@click.option(
    "--sustain",
    metavar="TIME",
    help="Also run so long without a pause, as in 10m or 90s: what heat does to it.",
)
@click.option(
    "--report",
    "report_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write profile.json, a page with plots, and the plots as PNG into DIR.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier report in DIR.")
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
    ops: bool,
    top: int | None,
    idle_gaps: bool,
    gaps: tuple[float, ...],
    through_daemon: bool,
    sustain: str | None,
    report_dir: Path | None,
    overwrite: bool,
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
    machine is called so. docs/profile.md says what each number means.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.output import progress_bar
    from edgekit.profiling import profile_bundle

    if on is not None:
        from edgekit.cli.on_device import profile_on

        profile_on(click.get_current_context(), bundle, on, as_json=as_json)
        return
    probes = _probes(ops, top, sustain, gaps, idle_gaps=idle_gaps, through_daemon=through_daemon)
    given = {
        "ops": ops,
        "idle-gaps": idle_gaps,
        "through-daemon": through_daemon,
        "sustain": sustain,
        "runtime": runtimes,
        "artifact": artifact,
        "batch": batches,
        "device": device,
        "allow-fallback": allow_fallback,
    }
    _check_pick(given, threads, picking=picking, unpin=unpin, state_dir=state_dir)
    _check_report(report_dir, overwrite=overwrite, unpin=unpin)
    if unpin:
        _unpin(bundle, state_dir)
        return
    if picking:
        _pick(bundle, threads, seconds, state_dir, report_dir, as_json=as_json)
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
            probes=probes,
            watch=watch,
        )
    _tell(report, report_dir, as_json=as_json)


def _tell(report: ProfileReport, report_dir: Path | None, *, as_json: bool, **more: object) -> None:
    """Write the report where one is wanted, and print the JSON or the tables."""
    from edgekit.cli.output import print_json
    from edgekit.cli.profile_output import print_profile

    data = {**report.as_json(), **more}
    if report_dir is not None:
        from edgekit.profile_report import write_profile

        write_profile(report_dir, data)
    if as_json:
        print_json(data)
        return
    print_profile(report)
    if report_dir is not None:
        click.echo(f"report: {report_dir / 'profile.html'}")


def _probes(
    ops: bool,
    top: int | None,
    sustain: str | None,
    gaps: tuple[float, ...],
    *,
    idle_gaps: bool,
    through_daemon: bool,
) -> Probes:
    """Return what else is measured; refuse what would be ignored."""
    from edgekit.endurance import GAPS_S
    from edgekit.errors import UsageError
    from edgekit.profiling import Probes

    for option, needed, is_lost in (
        ("--top", "--ops", top and not ops),
        ("--gap", "--idle-gaps", gaps and not idle_gaps),
    ):
        if is_lost:
            raise UsageError(f"{option} has no meaning here", expected=f"{needed} with it")
    return Probes(
        top_ops=(top or 10) if ops else 0,
        gaps_s=tuple(sorted({*GAPS_S, *gaps})) if idle_gaps else (),
        sustain_s=_duration_s(sustain) if sustain is not None else 0.0,
        daemon=through_daemon,
    )


def _duration_s(text: str) -> float:
    """Return seconds of `90s`, `10m`, `1.5h` or a number of seconds."""
    import re

    from edgekit.errors import UsageError

    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(s|m|h|)", text.strip())
    seconds = float(found[1]) * {"h": 3600, "m": 60}.get(found[2], 1) if found else 0.0
    if not 1 <= seconds <= 86_400:
        raise UsageError(
            "--sustain is no length of time", got=repr(text), expected="10m, 90s or 1h; 1 s to 24 h"
        )
    return seconds


def _check_report(folder: Path | None, *, overwrite: bool, unpin: bool) -> None:
    """Refuse before anything is measured what would fail after it."""
    from edgekit.errors import UsageError

    if folder is None:
        if overwrite:
            raise UsageError("--overwrite has no meaning here", expected="--report with it")
        return
    if unpin:
        raise UsageError("--unpin measures nothing", hint="Leave the other options out.")
    from edgekit.profile_report import check_folder

    check_folder(folder, overwrite=overwrite)


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
    path: Path,
    threads: tuple[int, ...],
    seconds: float,
    state_dir: str | None,
    report_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    import msgspec

    from edgekit.bundle import open_bundle
    from edgekit.cli.output import progress_bar
    from edgekit.errors import UnavailableError
    from edgekit.profiling import pick

    with progress_bar("measuring", quiet=as_json) as watch:
        report, plan = pick(
            open_bundle(path), threads=threads, seconds=seconds, state_dir=state_dir, watch=watch
        )
    _tell(report, report_dir, as_json=as_json, pinned=msgspec.to_builtins(plan) if plan else None)
    if plan is None:
        raise UnavailableError(
            "nothing is pinned: the machine was not at rest",
            hint="Stop what else runs, or measure longer: --seconds.",
        )
    if not as_json:
        click.echo(f"pinned: {plan.artifact} in {plan.runtime}, {plan.threads} threads; --unpin forgets it")
