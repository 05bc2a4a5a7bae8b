"""ONNX files read without their weights: where these lie, and whether they are quantized already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgekit.errors import InvalidFileError
from edgekit.sources.base import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["data_size", "external_files", "place", "precision_of", "read_model", "tensors"]

_INTEGERS = (2, 3, 21, 22)  # uint8, int8, uint4, int4
#: Operators that compute in integers on what was measured before.
_STATIC = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearMul",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearLeakyRelu",
        "QGemm",
    ]
)
#: Operators that compute in integers and measure as they run, or hold integers and compute in float.
_DYNAMIC = frozenset(
    [
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MatMulBnb4",
        "QAttention",
    ]
)


def read_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: Of the file.
        weights: Read those that lie in other files too.

    Raises:
        InvalidFileError: It is not ONNX, or its weights lie elsewhere than beside it, or are not there.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise InvalidFileError(f"{path.name} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node and not model.graph.output:
        raise InvalidFileError(f"{path.name} is not an ONNX file: it holds no graph")
    external_files(model, path)
    if weights:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor of a model: weights, constants, and those of branches and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            yield from _graph_tensors(branch)


def place(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return where the values of a tensor lie that are outside the file: location, offset, bytes (-1 if not said)."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    return said.get("location", ""), int(said.get("offset") or 0), int(said.get("length") or -1)


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the files beside a model that hold its weights, after each was checked.

    Raises:
        InvalidFileError: One lies elsewhere than beside the model, is not there, or is too short.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location == 1:
            location, offset, length = place(tensor)
            sizes[location] = max(sizes.get(location, 0), offset + max(length, 0))
    return [_checked(path, location, size) for location, size in sizes.items()]


def _checked(path: Path, location: str, size: int) -> Path:
    relative = PurePosixPath(location.replace("\\", "/"))
    file = path.parent / relative
    inside = location and not relative.is_absolute() and ".." not in relative.parts
    if not inside or not file.resolve().is_relative_to(path.parent.resolve()):
        raise InvalidFileError(
            f"{path.name} has weights outside its folder",
            got=repr(location),
            expected="a file beside the model",
            hint="Save the model again with its weights beside it.",
        )
    if not file.is_file():
        raise InvalidFileError(
            f"{path.name} keeps its weights in {location}, which is missing",
            hint=f"Put it into {path.parent}.",
        )
    if file.stat().st_size < size:
        raise InvalidFileError(
            f"{location}, the weights of {path.name}, is too short",
            got=f"{file.stat().st_size} bytes",
            expected=f"at least {size}",
        )
    return file


def data_size(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a tensor's values take, wherever they lie."""
    length = place(tensor)[2] if tensor.data_location == 1 else 0
    return length if length > 0 else int(tensor.ByteSize())


def precision_of(model: onnx.ModelProto) -> str:
    """Return the precision of a quantized model, or nothing of a float one.

    `int8` where activations are integers by scales measured before, `int8-dynamic` where weights alone are stored
    as integers. A model of which a small part is in integers, as a lookup by bytes is, counts as float.
    """
    used = {node.op_type for node in _all_nodes(model)}
    fixed = {tensor.name for tensor in tensors(model)} | {
        node.output[0] for node in _all_nodes(model) if node.op_type == "Constant"
    }
    activations = any(
        node.op_type == "QuantizeLinear" and node.input[0] not in fixed for node in _all_nodes(model)
    )
    if used & _STATIC or activations:
        return "int8"
    if used & _DYNAMIC:
        return "int8-dynamic"
    whole = sum(data_size(tensor) for tensor in tensors(model))
    integers = sum(data_size(tensor) for tensor in tensors(model) if tensor.data_type in _INTEGERS)
    return "int8-dynamic" if whole and integers > whole / 4 else ""


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _nodes(model.graph)
    for function in model.functions:
        yield from function.node


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _nodes(branch)
