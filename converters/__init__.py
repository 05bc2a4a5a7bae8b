"""Converters: one file each, imported on first use, run in a worker process."""

from __future__ import annotations

from importlib import import_module

from edgekit.converters.base import Converted, Converter, Rung, SourceModel
from edgekit.errors import UsageError

__all__ = ["CONVERTERS", "Converted", "Converter", "Rung", "SourceModel", "get_converter"]

#: Converter name to class. Adding a converter is one file, one line here and one test.
CONVERTERS = {
    "keras-onnx": "edgekit.converters.keras_onnx:KerasToOnnx",
    "keras-tflite": "edgekit.converters.keras_tflite:KerasToTflite",
    "tflite-fp32": "edgekit.converters.tflite_fp32:TfliteToTflite",
    "tflite-quant": "edgekit.converters.tflite_quant:TfliteToQuantized",
    "torch-onnx": "edgekit.converters.torch_onnx:TorchToOnnx",
    "torch-tflite": "edgekit.converters.torch_tflite:TorchToTflite",
    "torchscript-onnx": "edgekit.converters.torchscript_onnx:TorchScriptToOnnx",
    "sklearn-onnx": "edgekit.converters.sklearn_onnx:SklearnToOnnx",
    "onnx-fp32": "edgekit.converters.onnx_fp32:OnnxToOnnx",
    "onnx-fp16": "edgekit.converters.onnx_fp16:OnnxToFp16",
    "onnx-int8": "edgekit.converters.onnx_int8:OnnxToInt8",
    "onnx-dynamic": "edgekit.converters.onnx_dynamic:OnnxToDynamic",
    "onnx-openvino": "edgekit.converters.onnx_openvino:OnnxToOpenVino",
    "openvino-int8": "edgekit.converters.openvino_int8:OpenVinoToInt8",
    "openvino-weights": "edgekit.converters.openvino_weights:OpenVinoToWeights",
    "tflite-onnx": "edgekit.converters.tflite_onnx:TfliteToOnnx",
    "tflite-openvino": "edgekit.converters.tflite_openvino:TfliteToOpenVino",
    "savedmodel-openvino": "edgekit.converters.savedmodel_openvino:SavedModelToOpenVino",
}


def get_converter(name: str) -> Converter:
    """Return the converter called `name`; its framework is imported by `convert`, not here.

    Raises:
        UsageError: No converter has that name.
    """
    if name not in CONVERTERS:
        raise UsageError(f"unknown converter {name!r}", expected="one of " + ", ".join(CONVERTERS))
    module, _, attribute = CONVERTERS[name].partition(":")
    converter: Converter = getattr(import_module(module), attribute)()
    return converter
