"""Whether a file holds quantized weights at all: some tools hand the float network over, and say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["holds_integers"]

_SMALL = ("int8", "uint8", "int4", "uint4")


def holds_integers(format_: str, file: Path) -> bool:
    """Say whether an artifact has a constant of eight bits or fewer that is more than a number.

    Args:
        format_: `tflite`, `onnx` or `openvino`.
        file: The artifact; of OpenVINO's two files the `.xml`.
    """
    return any(_TYPES_IN[format_](file))


def _in_onnx(file: Path) -> Iterator[bool]:
    import onnx

    small = {onnx.TensorProto.DataType.Value(name.upper()) for name in _SMALL}

    def tensors(graph: Any) -> Iterator[Any]:
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from [attribute.t, *attribute.tensors]
                for inner in [attribute.g, *attribute.graphs]:
                    yield from tensors(inner)

    for tensor in tensors(onnx.load(file, load_external_data=False).graph):
        yield tensor.data_type in small and len(tensor.dims) > 0


def _in_tflite(file: Path) -> Iterator[bool]:
    from ai_edge_litert.interpreter import Interpreter

    # the shape of a number is empty; activations count too: they are of eight bits only beside such weights
    for tensor in Interpreter(str(file)).get_tensor_details():
        yield tensor["dtype"].__name__ in _SMALL and len(tensor["shape"]) > 0


def _in_openvino(file: Path) -> Iterator[bool]:
    import openvino

    for operation in openvino.Core().read_model(file).get_ops():
        if operation.get_type_name() == "Constant":
            name = operation.get_element_type().get_type_name()
            yield name in ("i8", "u8", "i4", "u4", "nf4") and len(operation.get_output_shape(0)) > 0


_TYPES_IN = {"onnx": _in_onnx, "tflite": _in_tflite, "openvino": _in_openvino}
