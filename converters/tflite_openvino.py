"""TFLite float32 to OpenVINO IR, fp32 and fp16."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_openvino import OnnxToOpenVino, save_ir
from edgekit.converters.tflite_readers import readable_copy
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.tflite_graph import read_graph
from edgekit.streams import Samples

__all__ = ["TfliteToOpenVino"]


class TfliteToOpenVino(OnnxToOpenVino):
    """By OpenVINO's own reader; it knows neither custom operators nor state between calls."""

    sources = ("tflite",)
    needs = ("openvino", "ai_edge_litert")  # type: ignore[assignment]  # one more than the base

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one IR, under the names of the model's signature."""
        import openvino as ov

        graph = read_graph(source.path)
        if graph.has_state:
            raise ConversionError("OpenVINO takes no resource variables, in which the model keeps its state")
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            model = ov.convert_model(str(readable_copy(source.path, Path(scratch))))
        ((_, inputs, outputs),) = graph.signatures.values()
        for ports, named in ((model.inputs, inputs), (model.outputs, outputs)):
            own = {f"t{number}": name for name, number in named.items()}
            for port in ports:
                port.set_names({own[next(name for name in port.get_names() if name in own)]})
        if recipe.options["static"]:
            model.reshape({spec.name: list(spec.shape) for spec in self.inputs(source, recipe)})
        return save_ir(model, folder, half=recipe.precision == "fp16")
