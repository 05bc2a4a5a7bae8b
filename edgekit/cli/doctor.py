"""`edgekit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.doctor import Diagnosis

__all__ = ["doctor"]


@click.command()
@click.option("--state-dir", help="The state folder, where it is not the default one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(state_dir: str | None, as_json: bool) -> None:
    """Tell what this machine has and what it lacks.

    Nothing is changed. Each runtime is asked in a process of its own, so a broken one does no harm.
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
    device, state = found.device, found.state
    yield f"EdgeKit {found.edgekit}, Python {found.python}, {found.system}"
    yield ""
    yield click.style("Device", bold=True)
    if device.id:
        yield f"  {device.id}: {device.name}, {device.isa} (profile tried on: {device.verified})"
    yield from (f"  because {reason}" if device.id else f"  {reason}" for reason in device.reasons)
    yield from (f"  note: {note}" for note in device.notes)
    yield ""
    yield click.style("Runtimes", bold=True)
    for runtime in found.runtimes:
        if runtime.problem:
            yield f"  {_mark('-', 'yellow')} {runtime.name}: {runtime.problem}"
        else:
            yield f"  {_mark('+', 'green')} {runtime.name}: {runtime.version} on {', '.join(runtime.providers)}"
        if runtime.problem:
            whose = f"; {device.id} uses it" if runtime.preferred else ""
            yield f"      {runtime.gives}{whose}: {runtime.command}"
    yield ""
    yield click.style("Extras", bold=True)
    for feature in found.features:
        if feature.missing:
            yield f"  {_mark('-', 'yellow')} {feature.extra}: {', '.join(feature.missing)} missing"
            yield f"      {feature.gives}: {feature.command}"
        else:
            yield f"  {_mark('+', 'green')} {feature.extra}: {feature.gives}"
    yield ""
    yield click.style("State", bold=True)
    there = "there" if state.exists else "not made yet"
    access = "writable" if state.writable else "NOT writable for this user"
    yield f"  {state.folder}: {there}, {access}, {state.free_mib} MiB free"


def _mark(sign: str, colour: str) -> str:
    return click.style(sign, fg=colour)
