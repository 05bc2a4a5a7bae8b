"""`edgekit env`."""

from __future__ import annotations

import click

__all__ = ["env"]

_NAMES = click.Choice(["emulator"])


@click.group()
def env() -> None:
    """Prepare and remove what emulation needs."""


@env.command()
@click.argument("name", type=_NAMES)
@click.option(
    "--mirror", metavar="URL", help="A Debian mirror; default: the one in this machine's apt sources."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(name: str, mirror: str | None, as_json: bool) -> None:  # noqa: ARG001  # one name so far
    """Fetch QEMU, a small arm64 Debian and a device's aarch64 wheels into the cache; no root is needed.

    About 160 MB to fetch and 400 MB on the disk. A step that was done is not done again.
    """
    from edgekit.cli.output import print_json, progress_bar
    from edgekit.emulator import create as make
    from edgekit.emulator import emulator_folder

    with progress_bar("preparing the emulator", quiet=as_json) as progress:
        contents = make(progress, mirror=mirror)
    if as_json:
        print_json({"folder": str(emulator_folder()), "versions": contents.versions})
        return
    click.echo(f"emulator: {emulator_folder()}")
    for each, version in contents.versions.items():
        click.echo(f"  {each} {version}")


@env.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the devices whose CPU can be emulated, and whether that is prepared."""
    from edgekit.cli.output import print_json, print_table
    from edgekit.devices import load_profile, profile_ids
    from edgekit.emulator import emulator_folder, is_ready

    able = [profile for each in profile_ids() if (profile := load_profile(each)).qemu_cpu]
    if as_json:
        print_json({"emulator": {"ready": is_ready(), "devices": {each.id: each.qemu_cpu for each in able}}})
        return
    print_table("", ("device", "CPU model of QEMU"), [(each.id, each.qemu_cpu) for each in able])
    click.echo(
        f"emulator: {emulator_folder()}"
        if is_ready()
        else "emulator: not prepared: edgekit env create emulator"
    )


@env.command()
@click.argument("name", type=_NAMES)
def remove(name: str) -> None:  # noqa: ARG001
    """Remove it from the cache."""
    from edgekit.emulator import delete, emulator_folder

    was_there = delete()
    click.echo(f"removed {emulator_folder()}" if was_there else "there was none")
