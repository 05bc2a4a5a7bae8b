"""The models that the runtime tests run, and the runtimes that can run them here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgekit.errors import UnavailableError
from edgekit.runtimes import ModelFiles, Runtime, Session, SessionOptions, get_runtime
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

ARTIFACTS = Path(__file__).parent / "artifacts"
GOLDEN = ARTIFACTS / "golden.npz"
ENGINES = ("litert", "onnxruntime", "openvino")
ENDINGS = {"litert": "tflite", "onnxruntime": "onnx", "openvino": "xml"}

IMAGE = TensorSpec("image", "float32", (-1, 8, 8, 1), "NHWC")
PROBABILITIES = TensorSpec("probabilities", "float32", (-1, 4))


def tiny(engine: str, *, precision: str = "fp32", path: Path | None = None) -> ModelFiles:
    """Return the classifier in the engine's format; `null` has the golden set in place of a model."""
    stem = f"tiny_{precision}" if engine == "litert" else "tiny"
    own = ARTIFACTS / f"{stem}.{ENDINGS.get(engine, 'none')}"
    return ModelFiles(path or own, (IMAGE,), (PROBABILITIES,), golden=GOLDEN)


def pair(engine: str, renamed: Mapping[str, str] | None = None) -> ModelFiles:
    """Return the model of two inputs and two outputs, its tensors canonically called as `renamed` says."""
    names = dict(renamed or {})
    own = {own: canonical for canonical, own in names.items()}

    def spec(name: str) -> TensorSpec:
        return TensorSpec(own.get(name, name), "float32", (-1, 3))

    return ModelFiles(
        ARTIFACTS / f"pair.{ENDINGS[engine]}",
        (spec("left"), spec("right")),
        (spec("total"), spec("scaled")),
        names,
        names,
    )


def runtime_or_skip(name: str) -> Runtime:
    """Return the runtime; skip the test, naming the extra, where its library is not installed."""
    runtime = get_runtime(name)
    try:
        runtime.version()
    except UnavailableError as error:
        pytest.skip(f"{name} needs the extra [{runtime.extra}]: {error}")
    return runtime


def open_tiny(engine: str, options: SessionOptions | None = None) -> Session:
    """Return a session of the classifier on one thread."""
    return runtime_or_skip(engine).load(tiny(engine), options or SessionOptions(threads=1))


def golden() -> tuple[np.ndarray, np.ndarray]:
    """Return (images float32 [8, 8, 8, 1], the probabilities float32 [8, 4] that numpy computes)."""
    with np.load(GOLDEN) as arrays:
        return arrays["input:image"], arrays["output:probabilities"]
