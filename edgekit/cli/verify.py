"""`edgekit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.verify import Proof

__all__ = ["verify"]


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--device", metavar="ID", help="Go by this device profile instead of the detected device.")
@click.option("--runtime", metavar="RUNTIME", help="Use this runtime: litert, onnxruntime, openvino, null.")
@click.option(
    "--artifact", metavar="NAME", help="Prove this artifact, not the one that the plan would choose."
)
@click.option("--allow-fallback", is_flag=True, help="Let --device or --runtime step down to what is here.")
@click.option("--hashes-only", is_flag=True, help="Check the hashes, run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(path: Path, hashes_only: bool, as_json: bool, **options: Any) -> None:
    """Check a bundle's hashes and run its golden set.

    BUNDLE is a folder or an .edgekit file. Exit code 6: a file is damaged. 4: the hashes are right, but the
    outputs here are not the source model's.
    """
    from edgekit.bundle import open_bundle
    from edgekit.errors import UsageError

    given = [name for name, value in options.items() if value]
    if hashes_only and given:
        raise UsageError(f"--hashes-only runs nothing, so --{given[0].replace('_', '-')} has no meaning")
    bundle = open_bundle(path)
    proof = None if hashes_only else _prove(bundle, options)
    _print_json(bundle, proof) if as_json else _print_text(bundle, proof)
    if proof is not None and not proof.outcome.passed:
        _refuse(proof)


def _prove(bundle: Bundle, options: dict[str, Any]) -> Proof:
    from edgekit.verify import prove

    return prove(bundle, **options)


def _refuse(proof: Proof) -> None:
    from edgekit.errors import RefusedError

    plan = proof.plan
    raise RefusedError(
        f"the golden set fails with {plan.artifact} in {plan.runtime}: {proof.outcome.reason}",
        hint="Do not deploy it here; try another --runtime, or convert again for this device.",
    )


def _print_json(bundle: Bundle, proof: Proof | None) -> None:
    import msgspec

    from edgekit.cli.output import print_json

    golden: dict[str, Any] | None = None
    if proof is not None:
        error = proof.outcome.max_error
        golden = msgspec.to_builtins(proof.outcome)
        golden["max_error"] = error if error != float("inf") else None
    print_json(
        {
            "path": str(bundle.root),
            "name": bundle.manifest.name,
            "version": bundle.manifest.version,
            "digest": bundle.digest,
            "hashes": "right",
            "files": _count(bundle),
            "plan": msgspec.to_builtins(proof.plan) if proof else None,
            "placement": proof.placement if proof else None,
            "golden": golden,
        }
    )


def _count(bundle: Bundle) -> int:
    """Return how many hashed files the bundle has here."""
    gone = set(bundle.manifest.artifacts) - bundle.kept
    absent = {file for name in gone for file in bundle.manifest.artifacts[name].files}
    return len(set(bundle.manifest.files) - absent) + 1


def _print_text(bundle: Bundle, proof: Proof | None) -> None:
    manifest = bundle.manifest
    click.echo(f"{manifest.name}, version {manifest.version}, digest {bundle.digest}")
    click.echo(f"hashes: {_count(bundle)} files are what the manifest says")
    if proof is None:
        return
    plan = proof.plan
    for reason in plan.reasons:
        click.echo(f"  {reason}")
    where = ", ".join(f"{name}: {what}" for name, what in proof.placement.items())
    click.echo(f"plan: {plan.artifact} in {plan.runtime} for {plan.device} ({where})")
    verdict = click.style("passed", fg="green") if proof.outcome.passed else click.style("failed", fg="red")
    click.echo(f"golden set: {verdict}, {proof.outcome.n} samples, {proof.outcome.reason}")
