"""Real metrics that int8 keeps: real weights, real data, all formats that the runtimes can open."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.convert import ConvertRequest, convert
from edgekit.gate import Policy
from edgekit.report import Row
from edgekit.sources import SourceOptions
from tests.models import model

pytestmark = [pytest.mark.convert, pytest.mark.soak]

ALL = ("tflite", "onnx", "openvino")
#: Model of the corpus, formats, largest drop in percentage points, least value at int8.
KEPT = [
    ("d2", ALL, 0.3, 0.989),
    ("d8-sentiment", ("onnx", "openvino"), 0.5, 0.85),  # no converter here leads from ONNX to TFLite
    ("reference-cnn", ALL, 0.3, 0.98),
    ("detector", ALL, 1.0, 0.5),
]


def int8_rows(name: str, formats: tuple[str, ...], budget_pp: float, out: Path) -> list[Row]:
    """Convert a model of the corpus to static int8 in several formats; return the rows of those that shipped."""
    entry = model(name)
    options = SourceOptions(requantize="--requantize" in entry.options)
    outcome = convert(
        ConvertRequest(
            entry.path,
            "x86-64",
            out,
            formats=formats,
            precisions=("int8",),
            task=entry.task,
            calibration=entry.calibration,
            evaluation=entry.evaluation,
            policy=Policy(max_drop_pp=max(budget_pp, 1.0)),
            source_options=options,
        )
    )
    return [row for row in outcome.rows if row.status == "accepted"]


@pytest.mark.parametrize(("name", "formats", "drop_pp", "least"), KEPT, ids=[kept[0] for kept in KEPT])
def test_int8_keeps_the_metric(
    name: str,
    formats: tuple[str, ...],
    drop_pp: float,
    least: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = int8_rows(name, formats, drop_pp, tmp_path / "out")
    assert [row.name for row in rows] == [f"{form}-int8" for form in formats]
    for row in rows:
        assert row.gate is not None
        metric = row.gate.metric
        assert metric is not None
        with capsys.disabled():
            print(
                f"\n{name} {row.name}: {metric.name} {metric.source:.4f} → {metric.artifact:.4f}, drop "
                f"{metric.drop_pp:+.2f} ≤ {metric.bound_pp:.2f} pp, n = {metric.n}, {len(row.attempts)} recipes"
            )
        assert metric.drop_pp <= drop_pp
        assert metric.artifact >= least
