"""TFLite float32 to ONNX, by tf2onnx."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.canonical import canonicalise
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_static import save_float
from edgekit.converters.tflite_readers import readable_copy
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.tflite_graph import read_graph
from edgekit.streams import Samples

if TYPE_CHECKING:
    import onnx

__all__ = ["TfliteToOnnx"]


class TfliteToOnnx(Converter):
    """ONNX in canonical form under the signature's names; quantized tensors become QuantizeLinear pairs."""

    sources = ("tflite",)
    format = "onnx"
    precisions = ("fp32",)
    environment = "tensorflow"
    needs = ("tensorflow", "tf2onnx", "onnx", "ai_edge_litert")
    tools = ("tf2onnx", "onnx")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        graph = read_graph(source.path)
        if graph.has_state:
            raise ConversionError("ONNX has no resource variables, in which the model keeps its state")
        ((_, inputs, outputs),) = graph.signatures.values()
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            readable = readable_copy(source.path, Path(scratch))
            model = _convert(readable, inputs, outputs, int(recipe.options["opset"]))
        canonical = canonicalise(
            model, inputs=list(inputs), outputs=list(outputs), ir_version=int(recipe.options["ir"])
        )
        return save_float(canonical, source, recipe, folder)


def _convert(path: Path, inputs: dict[str, int], outputs: dict[str, int], opset: int) -> onnx.ModelProto:
    import tf2onnx

    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_tflite(
        str(path),
        opset=opset,
        input_names=[f"t{number}" for number in inputs.values()],
        output_names=[f"t{number}" for number in outputs.values()],
    )
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param:  # numbered by a counter of the whole process
                size.dim_param = f"{value.name}_{axis}"
    return model
