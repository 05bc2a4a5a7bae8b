"""`edgekit deploy`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.deploy.checks import Check
    from edgekit.deploy.steps import Deployed

__all__ = ["deploy"]


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("where", metavar="ssh://[USER@]HOST[:PORT]")
@click.option("--dry-run", is_flag=True, help="Check the device and stop; nothing changes there.")
@click.option("--device", metavar="ID", help="Go by this profile, not by the detected one.")
@click.option("--runtime", metavar="R", help="Use this runtime: litert, onnxruntime, openvino, null.")
@click.option(
    "--allow-fallback",
    is_flag=True,
    help="What runs there may be less than the plan, such as the CPU for a GPU.",
)
@click.option(
    "--service",
    type=click.Choice(["auto", "system", "user", "none"]),
    default="auto",
    show_default=True,
    help="Run the daemon under systemd: the system's (root or sudo), the user's own, whichever may be had, or neither.",
)
@click.option(
    "--to",
    "root",
    default=".local/share/edgekit",
    show_default=True,
    metavar="DIR",
    help="EdgeKit's folder on the device; a relative one is in the login's home.",
)
@click.option(
    "--state-dir",
    "state",
    default=".local/state/edgekit",
    show_default=True,
    metavar="DIR",
    help="The state folder on the device, likewise.",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Log in with this private key, as `ssh -i` does.",
)
@click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Use this ssh configuration in place of yours.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def deploy(
    path: Path,
    where: str,
    dry_run: bool,
    device: str | None,
    runtime: str | None,
    allow_fallback: bool,
    service: str,
    root: str,
    state: str,
    identity: Path | None,
    ssh_config: Path | None,
    as_json: bool,
) -> None:
    """Put a bundle onto a device by ssh, and prove it there.

    The device is detected and checked first; where it fails, nothing is changed on it (exit code 4). Then EdgeKit and
    its runtime are installed into a folder of its own, from wheels that are fetched here; the bundle's slice for the
    device is copied; its golden set is run there; and the daemon is enabled. The same command again goes on where a
    broken link (exit code 7) stopped it. Hosts, keys and host keys are those of your ssh configuration; it never asks
    for a password.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.output import print_json, progress_bar
    from edgekit.deploy.address import parse_address
    from edgekit.deploy.link import connected
    from edgekit.deploy.steps import Deployed, Wish
    from edgekit.deploy.steps import deploy as run

    address = parse_address(where)
    bundle = open_bundle(path)
    wish = Wish(root, state, device, runtime, service, allow_fallback, dry_run)
    done = Deployed(str(address), f"{bundle.manifest.name} {bundle.manifest.version}", bundle.digest)
    kept = None
    try:
        with progress_bar("deploying", quiet=as_json) as progress:
            progress("connecting", 0, 0)
            with connected(address, identity=identity, config=ssh_config) as link:
                if not as_json:
                    click.echo(f"{address}: connected")
                run(bundle, link, wish, done, _silent if as_json else _tell, progress)
        if done.attestation is not None:
            kept = _keep(path, done, identity, ssh_config)
    finally:
        if as_json:
            print_json(_data(done, wish.dry_run, kept))
    if not as_json:
        _finish(done, dry_run, kept)


def _silent(check: Check) -> None:
    pass


def _tell(check: Check) -> None:
    mark = click.style("ok", fg="green") if check.passed else click.style("no", fg="red")
    click.echo(f"  {mark}  {check.name + ':':<17}{check.said}")


def _keep(path: Path, done: Deployed, identity: Path | None, config: Path | None) -> Path:
    """Remember the device, and write its evidence into the bundle's report folder."""
    from edgekit.deploy.evidence import write_device_evidence
    from edgekit.standing import Known, remember_device

    given = [str(each.absolute()) if each else None for each in (identity, config)]
    remember_device(Known(done.address, done.device_id, done.root, done.state, *given))
    assert done.attestation is not None
    return write_device_evidence(path, f"deployed-{done.device_id}", done.attestation)


def _finish(done: Deployed, dry_run: bool, kept: Path | None) -> None:
    if dry_run:
        click.echo(f"{done.address} passes its check; nothing was changed there (--dry-run)")
        return
    click.echo(f"deployed: {done.bundle} on {done.address}, device {done.device_id}")
    click.echo(f"evidence: {kept}")


def _data(done: Deployed, dry_run: bool, kept: Path | None) -> dict[str, Any]:
    import msgspec

    data: dict[str, Any] = msgspec.to_builtins(done)
    data.pop("attestation")
    data["start"] = shlex.join(done.start)
    return {**data, "dry_run": dry_run, "evidence": str(kept) if kept else None}
