"""`edgekit convert`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.source_options import (
    SOURCE_OPTIONS,
    format_option,
    read_source_options,
    source_options,
    target_option,
)

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.convert import ConvertRequest, Verdicts
    from edgekit.report import Row

__all__ = ["convert"]

_TASKS = ("classification", "detection", "segmentation", "regression", "embedding", "generation", "other")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@target_option
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle: a folder, or a file ending in .edgekit.",
)
@format_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="PRECISION",
    help="Exactly this precision (fp32, fp16, int8-dynamic, int8, int16x8); may be repeated. What is named must pass.",
)
@click.option("--task", type=click.Choice(_TASKS), help="What the model does; inferred where it can be.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Typical inputs for static int8 and int16x8: .npz, .npy, .csv, .parquet or a folder of images.",
)
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path),
    help="Labelled data for the gate: .npz with labels under y, .csv, .parquet or class folders of images.",
)
@click.option("--label-column", help="The label's column in a .csv file.")
@click.option("--metric", help="Metric of the gate; by default the task's own.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0.0, 100.0),
    default=1.0,
    show_default=True,
    metavar="PP",
    help="Accuracy budget in percentage points.",
)
@click.option("--min-metric", type=float, help="Refuse a source that is itself below this.")
@click.option("--allow-unproven", is_flag=True, help="Let an unproven artifact be chosen for the plan.")
@click.option("--strict", is_flag=True, help="Refuse what is unproven.")
@click.option(
    "--preprocess",
    type=click.Path(path_type=Path),
    help="A TOML file that says how pictures, tables and texts become inputs, and what outputs mean: docs/data.md.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="INPUT=OUTPUT",
    help="An input that takes an output of the step before; rows of data are then consecutive steps.",
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Class names, one a line, in the model's order."
)
@click.option(
    "--prove",
    type=click.Choice(["host", "emulated"]),
    default="host",
    show_default=True,
    help="Where the gate runs the artifacts: on this CPU, or on the target's by emulation (edgekit env create emulator).",
)
@click.option(
    "--golden",
    type=click.Choice(["real", "synthetic"]),
    default="real",
    show_default=True,
    help="Ship some of your samples as the self-test, or none of them.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recipes of an earlier conversion, OUT.report/recipes.json: tried as they are, without the ladder.",
)
@source_options
@click.option("--name", help="The bundle's name; by default the model file's.")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="The bundle's version.")
@click.option(
    "--jobs", type=click.IntRange(1), default=2, show_default=True, help="Workers that may be busy at once."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="S",
    help="Longest time for one artifact, in seconds.",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="MIB",
    help="Most resident memory of a worker, in MiB.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(as_json: bool, **options: Any) -> None:
    """Convert a trained model into a bundle for a target.

    MODEL is a .keras, .h5, .onnx, .tflite, .pt2, TorchScript .pt or .skops file, or a SavedModel folder. Every
    artifact passes the gate: parity with the source model, the metric's drop within the budget. One that loses too
    much is tried again with more careful recipes; what still fails is refused, with reasons in OUT.report.
    """
    from edgekit.cli.output import progress_bar
    from edgekit.convert import convert as run
    from edgekit.errors import EdgeKitError

    signal.signal(signal.SIGTERM, _end)
    request = _request(**options)
    judged: list[Verdicts] = []
    try:
        with progress_bar("converting", quiet=as_json) as progress:
            bundle = run(request, progress, judged.append).bundle
    except EdgeKitError as error:
        for verdicts in judged:  # none, where the command ended before there was anything to judge
            _show(verdicts, None, request, as_json=as_json, refusal=str(error))
        raise
    _show(judged[0], bundle, request, as_json=as_json)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # on the way out the workers end and the scratch folder goes


def _show(
    verdicts: Verdicts,
    bundle: Bundle | None,
    request: ConvertRequest,
    *,
    as_json: bool,
    refusal: str | None = None,
) -> None:
    if as_json:
        _print_json(verdicts, bundle, request.out, refusal)
        return
    _print_verdicts(verdicts, request)
    if bundle is not None:
        _print_bundle(bundle, request.out)
        click.echo(f"report: {verdicts.report / 'report.html'}")


def _request(
    *,
    preprocess: Path | None,
    states: tuple[str, ...],
    labels: Path | None,
    max_drop: float,
    min_metric: float | None,
    strict: bool,
    time_limit: float | None,
    memory_limit: float | None,
    recipe_file: Path | None,
    **options: Any,
) -> Any:
    from edgekit.convert import ConvertRequest
    from edgekit.data import read_preprocess
    from edgekit.gate import Policy
    from edgekit.postprocess import read_postprocess
    from edgekit.process import WorkerLimits
    from edgekit.recipes import read_recipes

    source = {name: options.pop(name) for name in SOURCE_OPTIONS}
    return ConvertRequest(
        policy=Policy(max_drop, min_metric, strict),
        preprocess=read_preprocess(preprocess) if preprocess else (),
        postprocess=read_postprocess(preprocess) if preprocess else (),
        state=dict(_state(text) for text in states),
        labels=_read_labels(labels) if labels else (),
        recipes=read_recipes(recipe_file) if recipe_file else {},
        limits=WorkerLimits(time_limit, memory_limit),
        source_options=read_source_options(**source),
        **options,
    )


def _state(text: str) -> tuple[str, str]:
    from edgekit.errors import UsageError

    name, separator, origin = text.partition("=")
    if not (separator and name and origin):
        raise UsageError("--state is malformed", got=repr(text), expected="INPUT=OUTPUT")
    return name, origin


def _read_labels(path: Path) -> tuple[str, ...]:
    from edgekit.errors import UsageError

    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --labels {path}: {error}") from error
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"--labels {path} has no names, or one twice")
    return names


def _print_json(verdicts: Verdicts, bundle: Bundle | None, out: Path, refusal: str | None) -> None:
    import msgspec

    from edgekit.cli.output import print_json
    from edgekit.report import row_as_data

    print_json(
        {
            "bundle": str(out) if bundle else None,
            "digest": bundle.digest if bundle else None,
            "task": verdicts.task,
            "plan": msgspec.to_builtins(bundle.manifest.plan) if bundle else None,
            "artifacts": [row_as_data(row) for row in verdicts.rows],
            "notes": list(verdicts.notes),
            "report": str(verdicts.report),
            "refusal": refusal,
        }
    )


def _print_verdicts(verdicts: Verdicts, request: ConvertRequest) -> None:
    from edgekit.cli.output import print_table

    metrics = {row.gate.metric.name for row in verdicts.rows if row.gate and row.gate.metric}
    print_table(
        f"{request.model.name} for {request.target}",
        (
            "artifact",
            "size",
            "max error",
            next(iter(metrics), "metric"),
            "drop, bound (pp)",
            "n",
            "p50",
            "verdict",
        ),
        [_cells(row) for row in verdicts.rows],
    )
    for names, reasons in _reasons(verdicts.rows):
        click.echo(f"{', '.join(names)}: {reasons}")
    _print_front(verdicts)
    for note in verdicts.notes:
        click.echo(f"note: {note}")


def _reasons(rows: Sequence[Row]) -> list[tuple[list[str], str]]:
    """Return why artifacts were not accepted; those of one and the same reason together."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.status != "accepted":
            found.setdefault("; ".join(row.reasons).replace(row.name, "\0"), []).append(row.name)
    return [
        (names, text.replace("\0", names[0] if len(names) == 1 else "them")) for text, names in found.items()
    ]


def _print_front(verdicts: Verdicts) -> None:
    """Say what was tried for each artifact that took more than one recipe, and which artifacts no other beats."""
    from edgekit.making import describe
    from edgekit.report import front_of

    for row in verdicts.rows:
        if len(row.attempts) > 1:
            click.echo(
                f"{row.name}: {len(row.attempts)} recipes tried, kept: {describe(row.attempts[row.best].recipe)}"
            )
    names = front_of(verdicts.rows)
    if len(names) > 1:
        click.echo("front (size, loss, p50): " + ", ".join(names))


def _cells(row: Row) -> tuple[str, ...]:
    parity = row.gate.parity if row.gate else None
    metric = row.gate.metric if row.gate else None
    return (
        row.name,
        f"{row.bytes / 1024:,.0f} KiB" if row.bytes else "",
        f"{parity.max_error:.1e}" if parity else "",
        f"{metric.artifact:.4g}" if metric else "",
        f"{metric.drop_pp:+.2f} ≤ {metric.bound_pp:.2f}" if metric else "",
        str(metric.n) if metric else "",
        f"{row.p50_ms:.3f} ms {row.place}" if row.p50_ms else "",
        row.status,
    )


def _print_bundle(bundle: Bundle, out: Path) -> None:
    plan, golden = bundle.manifest.plan, bundle.manifest.golden
    where = " → ".join(plan.providers)
    click.echo(f"plan: {plan.artifact} in {plan.runtime}" + (f" on {where}" if where else ""))
    for reason in plan.reasons:
        click.echo(f"  {reason}")
    if golden.origin == "real":
        click.echo(f"golden set: {golden.n} of your samples (--golden synthetic ships none of yours)")
    else:
        click.echo(f"golden set: {golden.n} synthetic samples")
    click.echo(f"bundle: {out}  sha256:{bundle.digest}")
