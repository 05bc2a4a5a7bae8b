"""`edgekit check`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["check"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", "-t", required=True, help="A device profile or a family: see `edgekit devices list`."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(model: Path, target: str, as_json: bool) -> None:
    """Tell what convert would do, and why; converts nothing.

    Exits 0 when at least one route to the target's formats exists, else 3.
    """
    from edgekit.check import check as run
    from edgekit.cli.output import print_json, print_table
    from edgekit.tensors import describe

    outlook = run(model, target)
    if as_json:
        print_json(outlook)
    else:
        click.echo(f"{model.name}: {outlook.kind}")
        click.echo(f"  inputs   {describe(outlook.source.inputs)}")
        click.echo(f"  outputs  {describe(outlook.source.outputs)}")
        rows = [
            (
                a.name,
                " → ".join(a.route) or "none",
                a.runtime,
                "yes" if a.possible else "no",
                "; ".join(a.reasons),
            )
            for a in outlook.artifacts
        ]
        print_table(f"for {target}", ("artifact", "route", "runs in", "possible", "why"), rows)
        for note in outlook.notes:
            click.echo(f"note: {note}")
    if not outlook.possible:
        raise SystemExit(3)
