"""`edgekit profile --on`: the same measurement on a device, and what its evidence is good for."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.deploy.profiling import Measured
    from edgekit.standing import Known, Standing

__all__ = ["profile_on"]

#: Options of `profile` that mean the same on a device; others write here, or speak of folders here.
_PASSED_ON = (
    "runtimes", "artifact", "threads", "batches", "seconds", "picking", "device", "allow_fallback", "ops", "top",
    "idle_gaps", "gaps", "through_daemon", "sustain",
)  # fmt: skip
#: Those of them that `verify` takes too, so that what is proven is what is measured.
_PROVEN_BY = {"artifact": "--artifact", "device": "--device"}


def profile_on(context: click.Context, path: Path, where: str, *, as_json: bool) -> None:
    """Measure on a device with the options that `profile` was given, and keep what it signs.

    Raises:
        UsageError: An option means nothing there, or nothing was deployed to that address from here.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.output import progress_bar
    from edgekit.deploy.address import parse_address
    from edgekit.deploy.evidence import write_device_evidence
    from edgekit.deploy.link import connected
    from edgekit.deploy.profiling import profile_there
    from edgekit.errors import UsageError
    from edgekit.standing import known_device, raise_standing

    profile, verify = _words(context)
    address, bundle = parse_address(where), open_bundle(path)
    known = known_device(str(address))
    if known is None:
        raise UsageError(
            f"nothing was deployed to {address} from here, so its key is not known",
            hint=f"Deploy first: edgekit deploy {path} {address}.",
        )
    identity, config = (Path(each) if each else None for each in (known.identity, known.config))
    with (
        progress_bar(f"measuring on {address}", quiet=as_json),
        connected(address, identity=identity, config=config) as link,
    ):
        measured = profile_there(bundle, link, known, verify, profile)
    evidence = write_device_evidence(path, f"profile-{known.device_id}", measured.attestation)
    standing = None
    if not measured.obstacle:
        today = datetime.now(timezone.utc).date().isoformat()
        standing = raise_standing(
            measured.evidence,
            measured.attestation,
            bundle=f"{bundle.manifest.name} {bundle.manifest.version}",
            address=str(address),
            date=today,
        )
    _report(measured, known, standing, evidence, as_json=as_json)


def _words(context: click.Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words for `profile` and for `verify` there, of the options that were given here."""
    from click.core import ParameterSource

    from edgekit.errors import UsageError

    profile: list[str] = []
    verify: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in ("on", "as_json"):
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name not in _PASSED_ON:
            raise UsageError(f"{option.opts[0]} has no meaning with --on, which measures elsewhere")
        value = context.params[name]
        values = value if isinstance(value, tuple) else (value,)
        profile += (
            [option.opts[0]] if option.is_flag else [w for v in values for w in (option.opts[0], str(v))]
        )
        if name in _PROVEN_BY or (name == "runtimes" and len(values) == 1):
            verify += [_PROVEN_BY.get(name, "--runtime"), str(values[0])]
    if "--allow-fallback" in profile:
        verify += ["--allow-fallback"] if verify else []
    return tuple(profile), tuple(verify)


def _report(
    measured: Measured, known: Known, standing: Standing | None, kept: Path, *, as_json: bool
) -> None:
    from edgekit.cli.output import print_json
    from edgekit.errors import RefusedError

    evidence = measured.evidence
    if as_json:
        raised = {"device": evidence.device, "date": standing.date} if standing else None
        print_json(
            {
                **(evidence.profile or {}),
                "on": known.address,
                "device_id": evidence.device_id,
                "golden_passed": evidence.golden_passed,
                "evidence": str(kept),
                "verified": raised,
                "not_verified_because": measured.obstacle or None,
            }
        )
    else:
        _print(measured, known, standing, kept)
    if not evidence.golden_passed:
        raise RefusedError(
            f"the golden set fails on {known.address}, so nothing was measured",
            hint="Convert again for this device, or try another --runtime.",
        )


def _print(measured: Measured, known: Known, standing: Standing | None, kept: Path) -> None:
    from edgekit.cli.output import print_table
    from edgekit.deploy.link import plain

    evidence = measured.evidence
    about = ", ".join(
        plain(each) for each in (evidence.board, evidence.isa, f"device {evidence.device_id}") if each
    )
    click.echo(
        f"{plain(evidence.name)} {evidence.version}, digest {evidence.digest[:12]}, on {known.address}"
    )
    click.echo(f"{plain(evidence.device)}: {about}")
    rows = (evidence.profile or {}).get("measurements")
    table = [_row(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if table:
        print_table("", ("runtime", "artifact", "threads", "batch", "p50 ms", "verdict"), table)
    click.echo(f"evidence, signed by the device: {kept}")
    if standing is not None:
        click.echo(
            f"{evidence.device} counts as verified on hardware here: edgekit devices show {evidence.device}"
        )
    else:
        click.echo(f"{plain(evidence.device)} is not raised to hardware: {measured.obstacle}")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one measurement's line; of another EdgeKit's report, what can be found."""
    from edgekit.deploy.link import plain

    def of(*keys: str) -> Any:
        found: Any = row
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    p50 = of("latency_ms", "percentiles", "p50")
    verdict = "failed" if of("error") else of("stability", "verdict")
    words = (of("runtime"), of("artifact"), of("threads"), of("batch"))
    middle = f"{p50:.3f}" if isinstance(p50, float) else ""
    return (*(plain(str(each), 40) for each in words), middle, plain(str(verdict or ""), 40))
