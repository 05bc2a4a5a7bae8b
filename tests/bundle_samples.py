"""Small real bundles for tests: two artifacts of arbitrary bytes, a real golden set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.bundle import Bundle, write_bundle
from edgekit.golden import GoldenSet, choose_golden, encode_golden
from edgekit.manifest import Artifact, GateResult, Golden, GoldenTolerance, Manifest, Plan, Recipe, SourceInfo
from edgekit.tensors import TensorSpec

INPUT = TensorSpec("image", "float32", (-1, 4, 4, 1), "NHWC")
OUTPUT = TensorSpec("probabilities", "float32", (-1, 3))


def samples(n: int = 40, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Return byte-valued pictures in [0, 1], a softmax of their quadrants' sums, and its classes."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (n, 4, 4, 1)).astype(np.float32) / np.float32(255)
    logits = 2.0 * np.stack([pixels[:, :2, :2], pixels[:, 2:, :2], pixels[:, :2, 2:]], -1).sum((1, 2, 3))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
    return {"image": pixels}, {"probabilities": scores}, scores.argmax(1)


def golden(n: int = 40) -> GoldenSet:
    inputs, outputs, labels = samples(n)
    return choose_golden(inputs, outputs, labels, task="classification", origin="real")


def artifact(name: str, **changes: Any) -> Artifact:
    format_, _, precision = name.partition("-")
    path = f"artifacts/{name}/model.{format_}"
    made = Artifact(
        format=format_,
        precision=precision,
        path=path,
        files=(path, f"artifacts/{name}/weights.bin"),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        recipe=Recipe(("copy",), precision),
        gate=GateResult("accepted", ("parity holds; accuracy not measured",)),
        isa="x86-64",
    )
    return msgspec.structs.replace(made, **changes)


def manifest(
    chosen: GoldenSet, names: tuple[str, ...] = ("tflite-fp32", "onnx-fp16"), **changes: Any
) -> Manifest:
    tolerance = {name: GoldenTolerance(0.01, chosen.n) for name in names}
    made = Manifest(
        name="quadrants",
        version=1,
        task="classification",
        source=SourceInfo("onnx", "0" * 64),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        artifacts={name: artifact(name) for name in names},
        plan=Plan("x86-64", names[0], "null"),
        golden=Golden(chosen.n, "real", tolerance),
        files={},
    )
    return msgspec.structs.replace(made, **changes)


def files(chosen: GoldenSet, of: Manifest) -> dict[str, Path | bytes]:
    contents: dict[str, Path | bytes] = {
        name: name.encode() * 20 for made in of.artifacts.values() for name in made.files
    }
    return contents | {"golden.npz": encode_golden(chosen), "reference.json": b"{}\n"}


def write(out: Path, *, overwrite: bool = False, **changes: Any) -> Bundle:
    chosen = golden()
    made = manifest(chosen, **changes)
    return write_bundle(out, made, files(chosen, made), overwrite=overwrite)
