"""A TFLite source to the canonical TFLite that goes into bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.tflite_float import to_float
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.signatures import DEFAULT_SIGNATURE
from edgekit.sources.tflite import interface
from edgekit.sources.tflite_graph import TfliteGraph, precision_of, read_graph
from edgekit.streams import Samples

__all__ = ["TfliteToTflite"]


class TfliteToTflite(Converter):
    """The user's TFLite with the one signature that is the model: quantized as it is, unless it is to be requantized.

    A quantized source goes through whole, under the precision that routes call fp32; where the user wants it
    quantized again, its float twin is made.
    """

    sources = ("tflite-source",)
    format = "tflite"
    precisions = ("fp32",)
    environment = "litert"
    needs = ("ai_edge_litert",)
    tools = ("ai-edge-litert",)

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,  # noqa: ARG002
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.tflite`."""
        graph, path = read_graph(source.path), folder / "model.tflite"
        again = source.options.requantize and bool(precision_of(graph))
        subgraph, _, _ = interface(graph, source.options.signature, source.path.name)
        if subgraph:
            raise ConversionError(f"the signature of {source.path.name} is not of the file's main graph")
        if set(graph.signatures) == {DEFAULT_SIGNATURE} and not again:
            path.write_bytes(source.path.read_bytes())
            return path
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model(str(source.path))
        model.signatureDefs = [_signature(graph, source)]
        if again:
            to_float(model)
        path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
        return path


def _signature(graph: TfliteGraph, source: SourceModel) -> Any:
    """Return the one signature: later steps rename tensors, and a signature keeps the names that are the model's."""
    from ai_edge_litert import schema_py_generated as schema

    _, inputs, outputs = interface(graph, source.options.signature, source.path.name)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = DEFAULT_SIGNATURE.encode(), 0
    signature.inputs = [_tensor_map(schema, name, number) for name, number in inputs.items()]
    signature.outputs = [_tensor_map(schema, name, number) for name, number in outputs.items()]
    return signature


def _tensor_map(schema: Any, name: str, number: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), number
    return entry
