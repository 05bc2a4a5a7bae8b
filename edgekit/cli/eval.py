"""`edgekit eval`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.evaluate import ClassScore, Evaluation

__all__ = ["evaluate"]

#: With more classes than this, only the worst are shown.
_MOST_CLASSES = 20


@click.command("eval")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--artifact", metavar="NAME", help="Score this artifact, not the one that the plan would choose."
)
@click.option("--label-column", metavar="NAME", help="The label's column in a .csv file.")
@click.option(
    "--metric",
    metavar="NAME",
    help="top1, macro_f1, roc_auc, mae, map, miou, recall@1, psnr, …: docs/metrics.md; by default the task's own.",
)
@click.option("--device", metavar="ID", help="Go by this device profile instead of the detected device.")
@click.option("--runtime", metavar="RUNTIME", help="Use this runtime: litert, onnxruntime, openvino, null.")
@click.option("--allow-fallback", is_flag=True, help="Let --device or --runtime step down to what is here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(path: Path, data: Path, as_json: bool, **options: Any) -> None:
    """Score a bundle on labelled data.

    BUNDLE is a folder or an .edgekit file. DATA is .npz (arrays by input name, labels under y), .csv with
    --label-column, or a folder of images in class folders. The interval is two-sided at 95 %.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.output import progress_bar
    from edgekit.evaluate import evaluate as run

    bundle = open_bundle(path)
    with progress_bar("scoring", quiet=as_json) as progress:
        result = run(bundle, data, progress=progress, **options)
    _print_json(bundle, result) if as_json else _print_text(bundle, result)


def _print_json(bundle: Bundle, result: Evaluation) -> None:
    import msgspec

    from edgekit.cli.output import print_json

    matrix = result.confusion
    print_json(
        {
            "path": str(bundle.root),
            "digest": bundle.digest,
            "metric": result.metric,
            "value": result.value,
            "low": result.low,
            "high": result.high,
            "interval": result.interval,
            "n": result.n,
            "classes": list(result.class_names),
            "confusion": matrix.tolist() if matrix is not None else None,
            "plan": msgspec.to_builtins(result.plan),
        }
    )


def _print_text(bundle: Bundle, result: Evaluation) -> None:
    from edgekit.cli.output import print_table
    from edgekit.evaluate import class_scores

    plan = result.plan
    click.echo(f"{bundle.manifest.name}: {plan.artifact} in {plan.runtime} for {plan.device}")
    click.secho(
        f"{result.metric} {result.value:.4g}, 95 % interval {result.low:.4g} to {result.high:.4g} "
        f"({result.interval}), n = {result.n}",
        bold=True,
    )
    if result.confusion is None:
        return
    scores = class_scores(result.confusion, result.class_names)
    title = "by class (rows of the confusion matrix: --json)"
    if len(scores) > _MOST_CLASSES:
        scores = sorted((s for s in scores if s.n), key=lambda s: s.recall)[:_MOST_CLASSES]
        title = f"the {len(scores)} classes with the lowest recall (all: --json)"
    click.echo()
    print_table(title, ("class", "n", "recall", "precision", "mistaken for"), [_row(s) for s in scores])


def _row(score: ClassScore) -> tuple[str, ...]:
    def share(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.3f}"

    mistaken = f"{score.mistaken_for} ({score.mistakes})" if score.mistakes else ""
    return score.name, str(score.n), share(score.recall), share(score.precision), mistaken
