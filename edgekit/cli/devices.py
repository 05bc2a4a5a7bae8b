"""`edgekit devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.devices import DeviceProfile
    from edgekit.standing import Standing

__all__ = ["devices"]


@click.group()
def devices() -> None:
    """List, show and detect devices."""


@devices.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the devices and families that `--target` takes."""
    from edgekit.cli.output import print_json, print_table
    from edgekit.devices import load_profile, profile_ids
    from edgekit.standing import verified_as

    profiles = [load_profile(each) for each in profile_ids()]
    if as_json:
        print_json(profiles)
        return
    rows = [
        (
            each.id,
            each.name,
            each.family if not each.is_family else "",
            _made(each),
            verified_as(each.id, each.verified),
        )
        for each in profiles
    ]
    print_table("", ("id", "device", "family", "convert makes", "verified"), rows)


def _made(profile: DeviceProfile) -> str:
    if profile.withdrawn:
        return "nothing: withdrawn"
    return "; ".join(f"{each} {', '.join(profile.precisions(each))}" for each in profile.formats())


@devices.command()
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(device: str, as_json: bool) -> None:
    """Show one profile: what the device is, and what suits it."""
    import msgspec

    from edgekit.cli.output import print_json
    from edgekit.devices import load_profile
    from edgekit.standing import standings

    profile, here = load_profile(device), standings(device)
    if as_json:
        seen = [{k: v for k, v in msgspec.structs.asdict(each).items() if k != "evidence"} for each in here]
        print_json({**msgspec.structs.asdict(profile), "verified_here": seen})
        return
    for line in _describe(profile, here):
        click.echo(line)


def _describe(profile: DeviceProfile, here: tuple[Standing, ...]) -> list[str]:
    from edgekit.detect import isa_name

    int8 = profile.int8
    facts = {
        "family": profile.family,
        "extends": ", ".join(profile.lineage),
        "instruction set": isa_name(profile.arch, profile.isa)
        + (f" ({', '.join(profile.isa)})" if profile.isa else ""),
        "cores": profile.cores,
        "clock": f"{profile.clock_mhz} MHz" if profile.clock_mhz else None,
        "RAM": f"{profile.ram_mib} MiB or more" if profile.ram_mib else None,
        "accelerators": ", ".join(profile.accelerators),
        "shapes": "static only" if profile.static_shapes else "any",
        "ONNX": f"opset {profile.max_opset}, IR {profile.max_ir} at most",
        "int8": f"{int8.activation} activations{' (symmetric)' if int8.symmetric_activations else ''}, {int8.weights} "
        f"weights{' of 7 bits' if int8.reduce_range else ''}",
        "install": profile.install,
        "verified": f"hardware, by your own evidence (shipped: {profile.verified})"
        if here
        else profile.verified,
    }
    lines = [f"{profile.id}: {profile.name}"]
    lines += [f"  {name + ':':<17}{value}" for name, value in facts.items() if value]
    for rank, each in enumerate(profile.runtimes, 1):
        providers = " -> ".join(each.providers)
        lines.append(f"  {f'runtime {rank}:':<17}{each.runtime} ({providers}): {', '.join(each.precisions)}")
    lines += [
        f"  {'seen here:':<17}{each.bundle}, digest {each.digest[:12]}, on {each.date}: "
        + ", ".join(part for part in (each.board, each.address, f"device {each.device_id}") if part)
        for each in here
    ]
    lines += [f"  withdrawn: {profile.withdrawn}"] if profile.withdrawn else []
    return [*lines, *(f"  note: {note}" for note in profile.notes)]


@devices.command()
@click.option(
    "--root", default="/", show_default=True, help="Look for /proc, /sys, /etc and /dev under this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def detect(root: str, as_json: bool) -> None:
    """Tell which device this is, and why.

    Of an accelerator, the trail is followed from the bus over driver, node and permission to its libraries and to the
    runtime that sees it, which is asked in a process of its own.
    """
    from edgekit import detect as detection
    from edgekit.cli.output import print_json
    from edgekit.devices import load_profile
    from edgekit.trail import follow

    found = detection.detect(root)
    profile = load_profile(found.profile_id)
    steps = follow(profile, root)
    isa = detection.isa_name(found.arch, found.isa)
    if as_json:
        print_json(
            {
                "device": found.profile_id,
                "isa": isa,
                "reasons": found.reasons,
                "signals": found.signals,
                "trail": steps,
            }
        )
        return
    click.echo(f"{profile.id}: {profile.name}, {isa}")
    for line in (*found.reasons, *(f"{profile.id}: {step.step} {step.said}" for step in steps)):
        click.echo(f"  {line}")
    click.echo("signals")
    width = max(map(len, found.signals), default=0) + 2
    for name, value in found.signals.items():
        click.echo(f"  {name + ':':<{width}}{value}")
