"""`edgekit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.compare import Comparison, Limit, Ratio

__all__ = ["compare"]


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "limits",
    multiple=True,
    metavar="EXPR",
    help="Exit with 4 when surely so: 'p95 > 1.1x', 'p50 > 5ms', 'peak > 200MiB'; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(a: Path, b: Path, limits: tuple[str, ...], as_json: bool) -> None:
    """Compare two profiles, with intervals on the ratios.

    A and B are what `edgekit profile --json` printed. A ratio is B over A, with its two-sided 95 % interval. Exit
    code 4: a --fail-if holds, the whole interval beyond it.
    """
    from dataclasses import asdict

    from edgekit.cli.output import print_json
    from edgekit.compare import compare_profiles, parse_limit, read_profile_file

    wanted = [parse_limit(text) for text in limits]
    found = compare_profiles(read_profile_file(a), read_profile_file(b))
    verdicts = _verdicts(found, wanted)
    if as_json:
        print_json({**asdict(found), "limits": [{"what": what, "exceeded": hit} for what, hit in verdicts]})
    else:
        _print(found)
        for what, hit in verdicts:
            click.echo(
                f"{what}: " + {True: "exceeded", False: "kept", None: "not decided: more calls would"}[hit]
            )
    _refuse([what for what, hit in verdicts if hit])


def _verdicts(found: Comparison, limits: list[Limit]) -> list[tuple[str, bool | None]]:
    from edgekit.errors import UsageError

    verdicts = []
    for limit in limits:
        there = False
        for pair in found.pairs:
            for ratio in pair.ratios:
                if ratio.metric == limit.metric:
                    there = True
                    who = f"{pair.artifact} in {pair.runtime}, {pair.threads} threads, batch {pair.batch}"
                    verdicts.append(
                        (f"{limit.metric} > {limit.most:g}{limit.unit} ({who})", limit.exceeded(ratio))
                    )
        if not there:
            raise UsageError(
                f"--fail-if {limit.metric}: the profiles have too few calls for it",
                hint="Measure longer: --seconds.",
            )
    return verdicts


def _refuse(exceeded: list[str]) -> None:
    from edgekit.errors import RefusedError

    if exceeded:
        raise RefusedError(f"a limit is exceeded: {exceeded[0]}")


def _print(found: Comparison) -> None:
    from edgekit.cli.output import print_table

    for difference in found.differences:
        click.echo(f"differs: {difference}")
    rows = [
        (pair.artifact, pair.runtime, str(pair.threads), str(pair.batch), *_cells(ratio))
        for pair in found.pairs
        for ratio in pair.ratios
    ]
    header = ("artifact", "runtime", "threads", "batch", "metric", "A", "B", "B / A", "95 % interval")
    print_table("", header, rows)
    for pair in found.pairs:
        if pair.unsteady:
            who = f"{pair.artifact} in {pair.runtime}, {pair.threads} threads, batch {pair.batch}"
            click.echo(f"{who}: not taken at rest: {' and '.join(pair.unsteady)}")
    for each in found.only:
        click.echo(f"only in {each}")


def _cells(ratio: Ratio) -> tuple[str, ...]:
    interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None else ""
    numbers = (f"{value:.3f} {ratio.unit}" for value in (ratio.a, ratio.b))
    return (ratio.metric, *numbers, f"{ratio.value:.3f}", interval)
