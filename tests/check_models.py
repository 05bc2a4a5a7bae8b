"""What `check` says of a model, beside what conversion really does with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.check.outlook import decide
from edgekit.check.surveyors import survey
from edgekit.check.verdicts import OpVerdict
from edgekit.converters import SourceModel, get_converter
from edgekit.devices import load_profile
from edgekit.errors import EdgeKitError
from edgekit.recipes import recipe_for, wanted_artifacts
from edgekit.routes import converters, start_of
from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime
from edgekit.sources import SourceOptions
from edgekit.streams import NO_SAMPLES

__all__ = ["ROUTES", "Compared", "compare"]

TARGET = "x86-64"
#: Kind of source and format to the route that makes fp32.
ROUTES = {
    ("onnx", "onnx"): ("onnx-fp32",),
    ("onnx", "openvino"): ("onnx-fp32", "onnx-openvino"),
    ("tflite", "tflite"): ("tflite-fp32",),
    ("tflite", "onnx"): ("tflite-fp32", "tflite-onnx"),
    ("tflite", "openvino"): ("tflite-fp32", "tflite-openvino"),
    ("keras", "tflite"): ("keras-tflite",),
    ("keras", "onnx"): ("keras-onnx",),
    ("keras", "openvino"): ("keras-onnx", "onnx-openvino"),
    ("savedmodel", "tflite"): ("keras-tflite",),
    ("savedmodel", "onnx"): ("keras-onnx",),
    ("savedmodel", "openvino"): ("keras-onnx", "onnx-openvino"),
}
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "litert"}


@dataclass(frozen=True)
class Compared:
    """One model and format: what was said before, and the error that came; empty where all went well."""

    name: str
    format: str
    status: str
    refused: bool
    ops: Sequence[OpVerdict]
    error: str

    @property
    def lied(self) -> bool:
        """Whether everything was said to be taken, and an operator was refused all the same."""
        taken = not self.refused and self.status in ("supported", "rewritten", "fallback")
        # OpenVINO drops inputs that nothing needs, or gives two tensors one name: no operator's fault
        return taken and bool(self.error) and "has no tensor" not in self.error


def compare(name: str, kind: str, path: Path, format_: str, options: SourceOptions | None = None) -> Compared:
    """Survey a source, convert it, load the result in its runtime."""
    options = options or SourceOptions()
    opset = int(recipe_for(load_profile(TARGET), ("onnx-fp32",), "onnx", "fp32", 0).options["opset"])
    surveyed = survey(kind, path, options, opset)
    profile = load_profile(TARGET)
    wanted = wanted_artifacts(
        profile, kind, converters(), formats=(format_,), calibrated=True, quantized=surveyed.quantized
    )
    (runtime,) = decide(kind, profile, surveyed, wanted).runtimes
    refused = not runtime.artifacts[0].possible
    error = ""
    try:
        _convert(kind, path, format_, surveyed.inputs, surveyed.outputs, options)
    except EdgeKitError as failure:
        error = str(failure)
    return Compared(name, format_, runtime.status, refused, runtime.ops, error)


def _convert(kind: str, path: Path, format_: str, inputs: Any, outputs: Any, options: SourceOptions) -> None:
    profile = load_profile(TARGET)
    with tempfile.TemporaryDirectory() as scratch:
        source = SourceModel(start_of(kind), path, inputs, outputs, options)
        route = ROUTES[kind, format_]
        for i, step in enumerate(route):
            converter = get_converter(step)
            folder = Path(scratch) / str(i)
            folder.mkdir()
            recipe = recipe_for(profile, route[: i + 1], converter.format, "fp32", 0)
            (made,) = converter.convert(source, [recipe], NO_SAMPLES, folder)
            source = SourceModel(converter.format, Path(made.path), made.inputs, made.outputs, options)
        files = ModelFiles(Path(made.path), made.inputs, made.outputs, made.input_names, made.output_names)
        get_runtime(_RUNTIMES[format_]).load(files, SessionOptions(threads=1)).close()
