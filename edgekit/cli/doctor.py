"""`edgekit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgekit.doctor import DeviceFinding, Diagnosis, FeatureFinding, RuntimeFinding, StateFinding

__all__ = ["doctor"]


@click.command()
@click.option("--state-dir", help="The state folder, where it is not the default one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(state_dir: str | None, as_json: bool) -> None:
    """Tell what this machine has and what it lacks.

    Nothing is changed. Each runtime is tried in a process of its own, so a broken one does no harm; what is found
    holds for the next start of every other command.
    """
    from edgekit.cli.output import print_json
    from edgekit.doctor import diagnose

    found = diagnose(state_dir=state_dir)
    if as_json:
        print_json(found.as_json())
        return
    for line in _page(found):
        click.echo(line)


def _page(found: Diagnosis) -> Iterator[str]:
    yield f"EdgeKit {found.edgekit}, Python {found.python}, {found.system}"
    yield from _section("Device", _device(found.device))
    tried = "Runtimes, each imported and run on a tiny model in a process of its own"
    yield from _section(tried, (line for each in found.runtimes for line in _runtime(each, found.device.id)))
    yield from _section("Extras", (line for each in found.features for line in _feature(each)))
    yield from _section("State", _state(found.state))
    yield ""
    yield _verdict(found)


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield click.style(title, bold=True)
    yield from (f"  {line}" for line in lines)


def _device(device: DeviceFinding) -> Iterator[str]:
    if device.id:
        yield f"{device.id}: {device.name}, {device.isa} (profile verified: {device.verified})"
    yield from (f"because {reason}" if device.id else reason for reason in device.reasons)
    for step in device.trail:
        yield f"{_mark('+', 'green') if step.ok else _mark('-', 'yellow')} {step.step} {step.said}"
    if device.signals:
        yield "signals: " + "; ".join(f"{name} {value}" for name, value in device.signals.items())
    yield from (f"note: {note}" for note in device.notes)


def _runtime(runtime: RuntimeFinding, device: str) -> Iterator[str]:
    if not runtime.problem:
        there = f"{_mark('+', 'green')} {runtime.name}: {runtime.version} on {', '.join(runtime.providers)}"
        yield there + (f"; {device} lists it" if runtime.preferred else "")
        if runtime.lacks:
            yield f"    without {', '.join(runtime.lacks)}, which {device} wants: see the device's lines above"
        return
    broken = "" if runtime.missing else "installed but broken: "
    mark = _mark("-", "yellow") if runtime.missing else _mark("!", "red")
    yield f"{mark} {runtime.name}: {broken}{runtime.problem}"
    whose = f"; {device} lists it" if runtime.preferred else ""
    yield f"    {runtime.gives}{whose}: {runtime.command or 'nothing is published for this system'}"


def _feature(feature: FeatureFinding) -> Iterator[str]:
    if not feature.missing:
        yield f"{_mark('+', 'green')} {feature.extra}: {feature.gives}"
        return
    yield f"{_mark('-', 'yellow')} {feature.extra}: {', '.join(feature.missing)} missing"
    yield f"    {feature.gives}: {feature.command}"


def _state(state: StateFinding) -> Iterator[str]:
    there = "there" if state.exists else "not made yet"
    access = "writable" if state.writable else "NOT writable for this user"
    yield f"{state.folder}: {there}, {access}, {state.free_mib} MiB free"


def _verdict(found: Diagnosis) -> str:
    """Return whether a bundle can run here at all, and in what, which is why this page is read."""
    here = [each.name for each in found.runtimes if not each.problem]
    first = [each for each in here if any(r.name == each and r.preferred for r in found.runtimes)]
    if not here:
        return "No bundle can run here: no runtime works. One of the commands above gives one."
    if found.device.id and not first:
        return f"Bundles run here in {_and(here)}, but {found.device.id} lists none of these."
    return f"Bundles run here in {_and(first or here)}."


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _mark(sign: str, colour: str) -> str:
    return click.style(sign, fg=colour)
