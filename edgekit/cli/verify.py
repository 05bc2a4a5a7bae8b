"""`edgekit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.verify import EmulatedProof, Proof

__all__ = ["verify"]


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--device", metavar="ID", help="Go by this device profile instead of the detected device.")
@click.option("--runtime", metavar="RUNTIME", help="Use this runtime: litert, onnxruntime, openvino, null.")
@click.option(
    "--artifact", metavar="NAME", help="Prove this artifact, not the one that the plan would choose."
)
@click.option("--allow-fallback", is_flag=True, help="Let --device or --runtime step down to what is here.")
@click.option(
    "--emulate",
    metavar="ID",
    help="Run under this device's CPU by emulation, not here (edgekit env create emulator).",
)
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path),
    help="With --emulate: judge on this labelled data too, as the gate does.",
)
@click.option("--label-column", metavar="C", help="Column of a table that holds the labels.")
@click.option(
    "--max-drop",
    type=float,
    metavar="PP",
    help="Most that the metric may lose, in percentage points.  [default: 1.0]",
)
@click.option("--hashes-only", is_flag=True, help="Check the hashes, run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(path: Path, hashes_only: bool, as_json: bool, emulate: str | None, **options: Any) -> None:
    """Check a bundle's hashes and run its golden set.

    BUNDLE is a folder or an .edgekit file. Exit code 6: a file is damaged. 4: the hashes are right, but the
    outputs here are not the source model's. With --emulate, the evidence is also written to BUNDLE.report.
    """
    from edgekit.bundle import open_bundle

    judging = {name: options.pop(name) for name in ("evaluation", "label_column", "max_drop")}
    _check_options({**options, **judging, "emulate": emulate, "hashes_only": hashes_only})
    bundle = open_bundle(path)
    proof: Proof | None = None
    if emulate is not None:
        proof = _emulate(bundle, path, emulate, {k: options[k] for k in ("runtime", "artifact")}, judging)
    elif not hashes_only:
        proof = _prove(bundle, options)
    _print_json(bundle, proof) if as_json else _print_text(bundle, proof)
    if proof is not None:
        _refuse(proof)


#: Option to what it needs.
_NEEDS = {
    "evaluation": "--emulate",
    "label_column": "--eval",
    "max_drop": "--eval",
    "allow_fallback": "--device or --runtime",
}


def _check_options(given: dict[str, Any]) -> None:
    """Refuse what would be ignored."""
    from edgekit.errors import UsageError

    there = {name: _word(name) for name, value in given.items() if value not in (None, False)}
    if "hashes_only" in there and len(there) > 1:
        raise UsageError(f"--hashes-only runs nothing, so {next(iter(there.values()))} has no meaning")
    if "emulate" in there:
        for name in ("device", "allow_fallback"):
            if name in there:
                raise UsageError(f"{there[name]} has no meaning with --emulate, which names the device")
    for name, needs in _NEEDS.items():
        if name in there and not any(word in there.values() for word in needs.split(" or ")):
            raise UsageError(f"{there[name]} has no meaning here", expected=f"{needs} with it")


def _word(name: str) -> str:
    return "--" + {"evaluation": "eval"}.get(name, name.replace("_", "-"))


def _prove(bundle: Bundle, options: dict[str, Any]) -> Proof:
    from edgekit.verify import prove

    return prove(bundle, **options)


def _emulate(
    bundle: Bundle, path: Path, emulate: str, options: dict[str, Any], judging: dict[str, Any]
) -> EmulatedProof:
    from edgekit.cli.output import progress_bar
    from edgekit.devices import load_profile
    from edgekit.emulator import emulator_of
    from edgekit.gate import Policy
    from edgekit.verify import prove_emulated, write_evidence

    max_drop = judging.pop("max_drop")
    policy = Policy() if max_drop is None else Policy(max_drop)
    with progress_bar(f"emulating {emulate}") as progress:
        proof = prove_emulated(
            bundle, emulator_of(load_profile(emulate)), policy=policy, progress=progress, **options, **judging
        )
    write_evidence(bundle, path, proof)
    return proof


def _refuse(proof: Proof) -> None:
    """Raise where the golden set or the gate said no."""
    from edgekit.errors import RefusedError
    from edgekit.verify import EmulatedProof

    plan = proof.plan
    if not proof.outcome.passed:
        raise RefusedError(
            f"the golden set fails with {plan.artifact} in {plan.runtime}: {proof.outcome.reason}",
            hint="Do not deploy it here; try another --runtime, or convert again for this device.",
        )
    judged = proof.evaluated if isinstance(proof, EmulatedProof) else None
    if judged is not None and judged.gate.verdict == "refused":
        raise RefusedError(
            f"{plan.artifact} is refused under {plan.device}'s CPU: {judged.gate.reasons[0].rstrip('.')}",
            hint="Do not deploy it there; convert again with --prove emulated.",
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
            **_emulated_data(proof),
        }
    )


def _emulated_data(proof: Proof | None) -> dict[str, Any]:
    from edgekit.verify import EmulatedProof, evidence

    return {"emulated": evidence(proof)} if isinstance(proof, EmulatedProof) else {}


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
    _print_emulated(proof)


def _print_emulated(proof: Proof) -> None:
    from edgekit.verify import EmulatedProof

    if not isinstance(proof, EmulatedProof):
        return
    own = ("python", "numpy", "ai-edge-litert", "onnxruntime")
    versions = [f"{name} {proof.versions[name]}" for name in own if name in proof.versions]
    click.echo(f"emulated: {', '.join([proof.emulator, *versions])}; correctness, not speed")
    if proof.evaluated is None:
        return
    gate, metric = proof.evaluated.gate, proof.evaluated.gate.metric
    colour = {"accepted": "green", "unproven": "yellow"}.get(gate.verdict, "red")
    line = f"evaluation data: {click.style(gate.verdict, fg=colour)}"
    if metric is not None:
        line += (
            f", {metric.name} {metric.artifact:.4g}, {metric.source:.4g} by {proof.evaluated.reference} here, "
            f"drop {metric.drop_pp:+.2f} ≤ {metric.bound_pp:.2f} pp on {metric.n} samples"
        )
    click.echo(line)
    for reason in gate.reasons:
        click.echo(f"  {reason}")
