"""The float twin of a quantized TFLite model: what it would be without its integers, to be quantized again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["to_float"]

#: What stands between float and integers, and is nothing once all is float.
_BRIDGES = ("QUANTIZE", "DEQUANTIZE")


def to_float(model: Any) -> None:
    """Turn every quantized tensor of a model into float32, in place; constants take the values they stand for.

    Args:
        model: A `ModelT` of the TFLite schema.

    Raises:
        ConversionError: A tensor is packed in a way that is not known here.
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    names = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    kinds = [names[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes]
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if _scales(tensor) is not None or tensor.type == schema.TensorType.FLOAT16:
                values = _values(model, tensor, schema)
                if values is not None:
                    model.buffers.append(_buffer(schema, values.astype(np.float32)))
                    tensor.buffer = len(model.buffers) - 1
                tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        same = _drop_bridges(subgraph, kinds)
        for signature in model.signatureDefs or ():
            if model.subgraphs[signature.subgraphIndex] is subgraph:
                for output in signature.outputs:
                    output.tensorIndex = same.get(output.tensorIndex, output.tensorIndex)


def _scales(tensor: Any) -> np.ndarray | None:
    quantization = tensor.quantization
    found: np.ndarray | None = quantization.scale if quantization is not None else None
    return found if found is not None and len(found) else None


def _values(model: Any, tensor: Any, schema: Any) -> np.ndarray | None:
    """Return what a constant tensor's integers or halves stand for; None where it is not constant."""
    import numpy as np

    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    types = {
        schema.TensorType.FLOAT16: np.float16,
        schema.TensorType.INT8: np.int8,
        schema.TensorType.UINT8: np.uint8,
        schema.TensorType.INT16: np.int16,
        schema.TensorType.INT32: np.int32,
        schema.TensorType.INT64: np.int64,
    }
    if tensor.type not in types:
        raise ConversionError(
            f"tensor {tensor.name.decode()!r} cannot be made float again",
            hint="Convert from the float model.",
        )
    raw = np.frombuffer(bytes(data), types[tensor.type]).reshape(tensor.shape)
    scales = _scales(tensor)
    if scales is None:
        halves: np.ndarray = raw
        return halves
    points = np.asarray(tensor.quantization.zeroPoint)
    shape = [1] * raw.ndim
    if len(scales) > 1:
        shape[tensor.quantization.quantizedDimension] = len(scales)
    else:
        shape = [1] * max(raw.ndim, 1)
    scale = np.asarray(scales, np.float64).reshape(shape)
    point = points.astype(np.float64).reshape(shape) if points.size == scale.size else 0.0
    values: np.ndarray = ((raw.astype(np.float64) - point) * scale).reshape(raw.shape)
    return values


def _buffer(schema: Any, values: np.ndarray) -> Any:
    import numpy as np

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return buffer


def _drop_bridges(subgraph: Any, kinds: list[str]) -> dict[int, int]:
    """Remove operators that led to integers or back; return their outputs' numbers to those of their inputs."""
    same: dict[int, int] = {}
    kept = []
    for operator in subgraph.operators:
        operator.inputs = [same.get(int(i), int(i)) for i in operator.inputs]
        if kinds[operator.opcodeIndex] in _BRIDGES:
            same[int(operator.outputs[0])] = operator.inputs[0]
        else:
            kept.append(operator)
    subgraph.operators = kept
    subgraph.outputs = [same.get(int(i), int(i)) for i in subgraph.outputs]
    return same
