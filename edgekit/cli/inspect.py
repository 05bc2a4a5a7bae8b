"""`edgekit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import GateResult

__all__ = ["inspect"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle holds.

    PATH is a bundle's folder or its .edgekit file. Every file's hash is checked on the way.
    """
    from edgekit.bundle import open_bundle

    bundle = open_bundle(path)
    _print_json(bundle) if as_json else _print_text(bundle)


def _size(bundle: Bundle, artifact: str) -> int:
    manifest = bundle.manifest
    return sum(manifest.files[name].bytes for name in manifest.artifacts[artifact].files)


def _print_json(bundle: Bundle) -> None:
    import msgspec

    from edgekit.cli.output import print_json

    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    for name, artifact in manifest["artifacts"].items():
        artifact |= {"bytes": _size(bundle, name), "kept": name in bundle.kept}
    print_json(
        {
            "path": str(bundle.root),
            "digest": bundle.digest,
            "slice": sorted(bundle.kept) != sorted(bundle.manifest.artifacts),
            **manifest,
        }
    )


def _print_text(bundle: Bundle) -> None:
    from edgekit.cli.output import print_table
    from edgekit.tensors import describe

    manifest = bundle.manifest
    click.secho(f"{manifest.name}, version {manifest.version}, {manifest.task}", bold=True)
    print_pairs(
        {
            "digest": bundle.digest,
            "source": f"{manifest.source.kind} {manifest.source.sha256}",
            "inputs": describe(manifest.inputs),
            "outputs": describe(manifest.outputs),
            "labels": ", ".join(manifest.labels),
            "golden set": f"{manifest.golden.n} samples, {manifest.golden.origin}",
            "made by": f"EdgeKit {manifest.edgekit}" if manifest.edgekit else "",
        }
    )
    click.echo()
    names = {a.gate.metric.name for a in manifest.artifacts.values() if a.gate.metric}
    header = (
        "artifact",
        "size",
        "precision",
        "max error",
        min(names, default="metric"),
        "drop, bound (pp)",
        "n",
    )
    rows = [
        (
            name,
            f"{_size(bundle, name) / 1024:,.0f} KiB" + ("" if name in bundle.kept else ", not here"),
            artifact.precision,
            *_evidence(artifact.gate),
            artifact.gate.verdict,
        )
        for name, artifact in sorted(manifest.artifacts.items())
    ]
    print_table("artifacts", (*header, "verdict"), rows)
    for name, artifact in sorted(manifest.artifacts.items()):
        if artifact.gate.verdict != "accepted":
            click.echo(f"{name}: {'; '.join(artifact.gate.reasons)}")
    click.echo()
    _print_plan(bundle)


def _evidence(gate: GateResult) -> tuple[str, str, str, str]:
    """Return the cells of parity, metric, drop with bound, and n; empty where nothing was measured."""
    parity = f"{gate.parity.max_error:.1e}" if gate.parity else ""
    if gate.metric is None:
        return parity, "", "", ""
    metric = gate.metric
    return parity, f"{metric.artifact:.4g}", f"{metric.drop_pp:+.2f} ≤ {metric.bound_pp:.2f}", str(metric.n)


def _print_plan(bundle: Bundle) -> None:
    plan = bundle.manifest.plan
    providers = f" on {', '.join(plan.providers)}" if plan.providers else ""
    threads = f", {plan.threads} threads" if plan.threads else ""
    click.secho(f"plan for {plan.device}: {plan.artifact} in {plan.runtime}{providers}{threads}", bold=True)
    for reason in plan.reasons:
        click.echo(f"  {reason}")


def print_pairs(pairs: dict[str, str]) -> None:
    """Print names and values, one pair a line; empty values are left out."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        if value:
            click.echo(f"{name.ljust(width)}  {value}")
