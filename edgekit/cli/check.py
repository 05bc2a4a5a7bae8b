"""`edgekit check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.source_options import format_option, read_source_options, source_options, target_option

if TYPE_CHECKING:
    from edgekit.check.outlook import Outlook, RuntimeOutlook

__all__ = ["check"]

_COLOURS = {
    "supported": "green",
    "rewritten": "cyan",
    "fallback": "yellow",
    "unknown": "yellow",
    "unsupported": "red",
}
#: Operators without anything to say are named in one line.
_QUIET = ("supported",)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@target_option
@format_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="PRECISION",
    help="Only this precision; may be repeated.",
)
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(
    model: Path,
    target: str,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    as_json: bool,
    **source: Any,
) -> None:
    """Tell what convert would do, and why; converts nothing.

    Every operator is looked up in tables of what each runtime took when it was tried: supported, rewritten,
    fallback, unknown or unsupported. Exits 0 when at least one route to the target's formats exists, else 3.
    """
    from edgekit.check.outlook import check as run
    from edgekit.cli.output import print_json

    outlook = run(model, target, formats, precisions, read_source_options(**source))
    if as_json:
        print_json(outlook)
    else:
        _print(model, outlook)
    if not outlook.possible:
        raise SystemExit(3)


def _print(model: Path, outlook: Outlook) -> None:
    from edgekit.tensors import describe

    source, memory = outlook.source, outlook.memory
    click.echo(
        f"{model.name}: {outlook.kind}, {source.parameters:,} weights, {sum(o.count for o in source.ops)} operators"
    )
    click.echo(f"  inputs   {describe(source.inputs)}")
    click.echo(f"  outputs  {describe(source.outputs)}")
    if outlook.versions is not None:
        v = outlook.versions
        click.echo(
            f"  ONNX     opset {v.opset} (read: {v.opset_read}), IR {v.ir} (read: {v.ir_read}): {v.verdict}"
        )
    room = (
        f" of {memory.ram_mib:,} MiB" if memory.ram_mib is not None else ", the device's memory is not known"
    )
    click.echo(f"  memory   {memory.weights_mib:g} MiB of weights{room}: {memory.verdict}")
    for runtime in outlook.runtimes:
        click.echo()
        _print_runtime(outlook.target, runtime)
    click.echo()
    for note in outlook.notes:
        click.echo(f"note: {note}")
    click.echo(f"next: {outlook.next_step}")


def _print_runtime(target: str, runtime: RuntimeOutlook) -> None:
    from edgekit.check.verdicts import REASONS
    from edgekit.cli.output import print_table

    rows = [
        (
            a.name,
            " → ".join(a.route) or "none",
            f"{a.size_bytes / 1024:,.0f} KiB" if a.size_bytes else "",
            "yes" if a.possible else "no",
            "; ".join((*a.reasons, *(f"needs {need}" for need in a.needs))),
        )
        for a in runtime.artifacts
    ]
    print_table(f"{runtime.runtime} on {target}", ("artifact", "route", "about", "possible", "why"), rows)
    telling = [v for v in runtime.ops if v.status not in _QUIET or v.reason]
    for verdict in telling:
        status = click.style(verdict.status.ljust(11), fg=_COLOURS[verdict.status])
        detail = f" ({verdict.detail})" if verdict.detail else ""
        reason = f"{verdict.reason}{detail}: {REASONS[verdict.reason]}" if verdict.reason else ""
        click.echo(f"  {status}  {verdict.count:4d} × {verdict.op}  {reason}")
    fine = [v for v in runtime.ops if v not in telling]
    if fine:
        kinds = len({v.op for v in fine})
        click.echo(
            f"  {click.style('supported', fg='green')}    {sum(v.count for v in fine):4d} operators of {kinds} kinds"
        )
    layout = runtime.layout
    if layout.transposes_at_least:
        click.echo(
            f"  layout: {layout.transposes_at_least} transpositions at pictures, {layout.bytes_per_sample:,} bytes a sample"
        )
