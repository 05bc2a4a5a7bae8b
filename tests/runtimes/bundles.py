"""Real bundles made of the committed models, without a converter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit.bundle import Bundle, write_bundle
from edgekit.golden import GoldenSet, encode_golden
from edgekit.manifest import (
    Artifact,
    GateResult,
    Golden,
    GoldenTolerance,
    Manifest,
    Plan,
    Recipe,
    SourceInfo,
)
from edgekit.monitor.reference import build_reference, encode_references
from tests.runtimes.cases import ARTIFACTS, IMAGE, PROBABILITIES, golden
from tests.runtimes.make_artifacts import Weights

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("circle", "cross", "square", "star")
FILES = {
    "tflite-fp32": ("tiny_fp32.tflite",),
    "tflite-int8": ("tiny_int8.tflite",),
    "onnx-fp32": ("tiny.onnx",),
    "openvino-fp32": ("tiny.xml", "tiny.bin"),
}


def _artifact(name: str, verdict: str) -> Artifact:
    form, _, precision = name.partition("-")
    files = tuple(f"artifacts/{name}/{file}" for file in FILES[name])
    gate: Any = GateResult(verdict, ())  # type: ignore[arg-type]
    return Artifact(
        form, precision, files[0], files, (IMAGE,), (PROBABILITIES,), Recipe(("by hand",), precision), gate
    )


def write_tiny(
    out: Path,
    artifacts: tuple[str, ...] = tuple(FILES),
    *,
    verdicts: dict[str, str] | None = None,
    outputs: np.ndarray | None = None,
    content: dict[str, bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """Write a bundle of the classifier.

    Args:
        out: Where.
        artifacts: Which of `FILES`.
        verdicts: The gate's, where it is not `accepted`.
        outputs: Golden outputs in place of the right ones, float32 [8, 4].
        content: What is in an artifact's file in place of the committed model, by file name.
        changes: Other fields of the manifest.
    """
    images, right = golden()
    chosen = {name: _artifact(name, (verdicts or {}).get(name, "accepted")) for name in artifacts}
    tolerance = {name: GoldenTolerance(0.1 if "int8" in name else 0.02, 7) for name in artifacts}
    manifest = Manifest(
        name="tiny",
        version=3,
        task="classification",
        source=SourceInfo("keras", "0" * 64),
        inputs=(IMAGE,),
        outputs=(PROBABILITIES,),
        artifacts=chosen,
        plan=Plan("x86-64", artifacts[0], "litert"),
        golden=Golden(len(images), "real", tolerance),
        files={},
        preprocess=({"kind": "image", "input": "image", "color": "grayscale", "scale": 1 / 255},),
        labels=LABELS,
    )
    files: dict[str, Path | bytes] = {
        f"artifacts/{name}/{file}": (content or {}).get(file, ARTIFACTS / file)
        for name in artifacts
        for file in FILES[name]
    }
    expected = right if outputs is None else outputs
    files["golden.npz"] = encode_golden(GoldenSet({"image": images}, {"probabilities": expected}, "real"))
    files["reference.json"] = encode_references(dict.fromkeys(artifacts, _reference()))
    return write_bundle(out, msgspec.structs.replace(manifest, **changes), files)


def _reference() -> Any:
    rng = np.random.default_rng(5)
    probabilities = Weights().forward(rng.random((600, 8, 8, 1), dtype=np.float32))
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in probabilities.astype(np.float64)])
    return build_reference("classification", {"probabilities": probabilities}, labels)
