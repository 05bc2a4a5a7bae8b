"""Real metrics that int8 keeps: real weights, real data, all formats that the runtimes can open, by the command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conversions import command, environment
from tests.models import model

pytestmark = [pytest.mark.convert, pytest.mark.soak]

ALL = ("tflite", "onnx", "openvino")
#: Model of the corpus, formats, further words, largest drop in percentage points, least value at int8.
KEPT = [
    ("d2", ALL, (), 0.3, 0.989),
    # no converter here leads from ONNX to TFLite; the source holds int8 weights
    ("d8-sentiment", ("onnx", "openvino"), ("--requantize",), 0.5, 0.85),
    ("reference-cnn", ALL, (), 0.3, 0.98),
    ("detector", ALL, (), 1.0, 0.5),
]


def int8_rows(name: str, formats: tuple[str, ...], words: tuple[str, ...], out: Path) -> list[dict[str, Any]]:
    """Convert a model of the corpus to static int8 in several formats; return the artifacts of the report."""
    entry = model(name)
    asked = [word for form in formats for word in ("--format", form)]
    asked += ["--calibration", str(entry.calibration), "--eval", str(entry.evaluation), "--task", entry.task]
    asked += [*entry.options, *words, "--precision", "int8", "--json", "--overwrite"]
    done = subprocess.run(
        command("convert", entry.path, "-t", "x86-64", "-o", out, *asked),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.stdout, done.stderr
    artifacts: list[dict[str, Any]] = json.loads(done.stdout)["artifacts"]
    return artifacts


@pytest.mark.parametrize(("name", "formats", "words", "drop_pp", "least"), KEPT, ids=[k[0] for k in KEPT])
def test_int8_keeps_the_metric(
    name: str,
    formats: tuple[str, ...],
    words: tuple[str, ...],
    drop_pp: float,
    least: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = int8_rows(name, formats, words, tmp_path / "out")
    with capsys.disabled():
        for row in rows:
            metric = row["metric"] or {
                "name": "nothing measured",
                "source": 0,
                "artifact": 0,
                "drop_pp": 0,
                "bound_pp": 0,
                "n": 0,
            }
            print(
                f"\n{name} {row['artifact']} {row['status']}: {metric['name']} {metric['source']:.4f} → "
                f"{metric['artifact']:.4f}, drop {metric['drop_pp']:+.2f} ≤ {metric['bound_pp']:.2f} pp, "
                f"n = {metric['n']}, {len(row['attempts'])} recipes; {row['reasons'][0]}"
            )
    assert [(row["artifact"], row["status"]) for row in rows] == [(f"{f}-int8", "accepted") for f in formats]
    assert max(row["metric"]["drop_pp"] for row in rows) <= drop_pp
    assert min(row["metric"]["artifact"] for row in rows) >= least
