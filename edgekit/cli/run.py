"""`edgekit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from edgekit.model import Model
    from edgekit.predict import Found, Guess

    Predictions = Sequence[tuple[Guess, ...]] | Sequence[tuple[Found, ...]] | None

__all__ = ["run"]

#: Samples that the table shows; all of them are in the JSON and in the file.
_MOST_ROWS = 20
#: Outputs of at most this many values are printed in full.
_MOST_VALUES = 16


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("data", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--label-column", metavar="NAME", help="A column of a .csv or .parquet file to leave out.")
@click.option("--device", metavar="ID", help="Go by this device profile instead of the detected device.")
@click.option("--runtime", metavar="RUNTIME", help="Use this runtime: litert, onnxruntime, openvino, null.")
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads of the runtime; by default the profile's."
)
@click.option("--allow-fallback", is_flag=True, help="Let --device or --runtime step down to what is here.")
@click.option("--allow-unproven", is_flag=True, help="Let an unproven artifact count as an accepted one.")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to show for each sample."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write all outputs to this .npz, by their names, and what postprocessing adds.",
)
@click.option("--overwrite", is_flag=True, help="Let --output replace a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    path: Path,
    data: Path,
    label_column: str | None,
    top: int,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict on arrays or image files.

    BUNDLE is a folder or an .edgekit file. INPUT is .npz (arrays by input name), .npy, .csv, .parquet, an image or
    a folder of images, which are numbered in the order of their names. Samples are run one at a time; nothing is
    recorded for the monitor.
    """
    from edgekit.cli.output import progress_bar
    from edgekit.model import load
    from edgekit.postprocess import finish
    from edgekit.predict import found_objects, predict_file, top_classes

    _check_output(output, overwrite)
    with load(path, monitor=False, **options) as model:
        with progress_bar("running", quiet=as_json) as progress:
            outputs = predict_file(model, data, progress, label_column=label_column)
        task, labels = model.manifest.task, model.manifest.labels
        meant = finish(model.manifest.postprocess, outputs)
        classes = top_classes(meant, labels, top) if task == "classification" else None
        found = found_objects(meant, labels) if "detections" in meant else None
        if output is not None:
            _write(output, {**meant, **outputs}, overwrite)
        if as_json:
            _print_json(model, meant, classes or found)
        elif found is not None:
            _print_found(model, found)
        else:
            _print_text(model, meant, classes)
    if output is not None and not as_json:
        click.echo(f"wrote {output}")


def _check_output(output: Path | None, overwrite: bool) -> None:
    """Refuse an output that cannot be written before the time is spent."""
    from edgekit.errors import UsageError

    if output is None:
        if overwrite:
            raise UsageError("--overwrite is for --output")
        return
    if output.suffix.lower() != ".npz":
        raise UsageError("--output writes .npz files", got=str(output))
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", hint="Give another name, or --overwrite.")


def _write(output: Path, outputs: Mapping[str, np.ndarray], overwrite: bool) -> None:
    from edgekit.arrays import encode_npz
    from edgekit.atomic import staged

    with staged(output, overwrite=overwrite, replaceable=Path.is_file) as temporary:
        temporary.write_bytes(encode_npz(outputs))


def _print_json(model: Model, outputs: Mapping[str, np.ndarray], predictions: Predictions) -> None:
    import dataclasses

    import msgspec

    from edgekit.cli.output import print_json

    print_json(
        {
            "name": model.name,
            "version": model.version,
            "digest": model.digest,
            "plan": msgspec.to_builtins(model.plan),
            "placement": dict(model.session.placement),
            "n": len(next(iter(outputs.values()))),
            "outputs": {name: [str(a.dtype), *a.shape] for name, a in outputs.items()},
            "predictions": None
            if predictions is None
            else [[dataclasses.asdict(one) for one in sample] for sample in predictions],
        }
    )


def _print_text(
    model: Model, outputs: Mapping[str, np.ndarray], classes: Sequence[tuple[Guess, ...]] | None
) -> None:
    from edgekit.cli.output import print_table

    _print_plan(model)
    n = len(next(iter(outputs.values())))
    if classes is not None and n == 1:
        print_table("", ("class", "score"), [(guess.label, _score(guess)) for guess in classes[0]])
    elif classes is not None:
        header = ["sample", *(head for i in range(len(classes[0])) for head in (f"top {i + 1}", "score"))]
        print_table("", header, [_class_row(i, classes[i]) for i in range(min(n, _MOST_ROWS))])
    else:
        rows = [row for i in range(min(n, _MOST_ROWS)) for row in _value_rows(i, outputs)]
        print_table("", ("sample", "output", "shape", "values"), rows)
    if n > _MOST_ROWS:
        click.secho(f"and {n - _MOST_ROWS} samples more: see --json and --output", dim=True)


def _print_found(model: Model, found: Sequence[tuple[Found, ...]]) -> None:
    from edgekit.cli.output import print_table

    _print_plan(model)
    rows = [
        (str(i), one.label, f"{one.score:.4f}", " ".join(f"{side:.1f}" for side in one.box))
        for i, sample in enumerate(found[:_MOST_ROWS])
        for one in sample
    ]
    print_table("", ("sample", "class", "score", "box x1 y1 x2 y2"), rows)
    if len(found) > _MOST_ROWS:
        click.secho(f"and {len(found) - _MOST_ROWS} samples more: see --json and --output", dim=True)


def _print_plan(model: Model) -> None:
    plan = model.plan
    where = ", ".join(f"{place}: {share}" for place, share in model.session.placement.items())
    click.secho(f"{model.name} {model.version} on {plan.device}", bold=True)
    for reason in plan.reasons:
        click.secho(f"  {reason}", dim=True)
    click.secho(f"  {plan.runtime} runs it on {where}", dim=True)


def _score(guess: Guess) -> str:
    return "" if guess.score is None else f"{guess.score:.4f}"


def _class_row(sample: int, guesses: Sequence[Guess]) -> list[str]:
    return [str(sample), *(cell for guess in guesses for cell in (guess.label, _score(guess)))]


def _value_rows(sample: int, outputs: Mapping[str, np.ndarray]) -> list[tuple[str, str, str, str]]:
    return [
        (str(sample), name, str(list(array.shape[1:])), _values(array[sample]))
        for name, array in outputs.items()
    ]


def _values(values: np.ndarray) -> str:
    """Return the values, or where they lie when there are many."""
    flat = values.reshape(-1)
    if flat.size <= _MOST_VALUES:
        return " ".join(f"{v:.5g}" if flat.dtype.kind == "f" else str(v) for v in flat.tolist())
    if flat.dtype.kind not in "fiu":
        return f"{flat.size} values"
    return f"{flat.min():.5g} to {flat.max():.5g}, mean {flat.mean():.5g}"
