"""Weights of an ONNX model stored in eight bits and float again where they are used; nothing is calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["store_channels", "store_rows"]

#: Smaller tables are not worth two more operators.
_LEAST = 1 << 14
#: Smaller weights are not worth one.
_LEAST_WEIGHTS = 256


def store_rows(model: onnx.ModelProto) -> None:
    """Store the float tables that only Gather reads, row by row, as int8 with a scale for each row, in place.

    A row's largest value is 127 steps, so that a row is off by 0.4 % of it at most; nothing is calibrated.

    Args:
        model: Whose names stay, but for the tables'.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    readers: dict[str, list[tuple[int, onnx.NodeProto]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((place, node))
    answers = {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.data_type == 1 and len(t.dims) == 2]:  # rows
        used = readers.get(tensor.name, [])
        rows = [node for place, node in used if node.op_type == "Gather" and place == 0 and _axis(node) == 0]
        table = numpy_helper.to_array(tensor)
        if not rows or len(rows) != len(used) or tensor.name in answers or table.size < _LEAST:
            continue
        integers, scales = _rows(table)
        graph.initializer.remove(tensor)
        name = tensor.name
        graph.initializer.append(numpy_helper.from_array(integers, f"{name}/rows"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
        for node in rows:
            at = next(i for i, other in enumerate(graph.node) if other.name == node.name)
            found, scale = f"{node.output[0]}/row", f"{node.output[0]}/row_scale"
            several = [
                helper.make_node(
                    "Gather", [f"{name}/rows", node.input[1]], [found], f"{node.name}_row", axis=0
                ),
                helper.make_node("Cast", [found], [f"{found}_float"], f"{node.name}_cast", to=1),
                helper.make_node(
                    "Gather", [f"{name}/scales", node.input[1]], [scale], f"{node.name}_scale", axis=0
                ),
                helper.make_node("Mul", [f"{found}_float", scale], [node.output[0]], f"{node.name}_real"),
            ]
            del graph.node[at]
            for offset, new in enumerate(several):
                graph.node.insert(at + offset, new)


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 [n, m] and float32 [n, 1] whose product is the table, nearly."""
    import numpy as np

    scales = np.abs(table).max(axis=1, keepdims=True) / 127.0
    scales = np.where(scales > 0.0, scales, 1.0).astype(np.float32)
    return np.rint(table / scales).clip(-127, 127).astype(np.int8), scales


def store_channels(model: onnx.ModelProto) -> None:
    """Store the float weights of convolutions as int8 with a scale for each output channel, in place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    for node in layers:
        weights = next((t for t in graph.initializer if t.name == node.input[1] and t.data_type == 1), None)
        if weights is None or (table := numpy_helper.to_array(weights)).size < _LEAST_WEIGHTS:
            continue
        axis = 0 if node.op_type == "Conv" else 1
        integers, scales = _channels(table, axis)
        name = f"{weights.name}_{axis}"
        stored = [tensor.name for tensor in graph.initializer]
        if f"{name}/integers" not in stored:
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}/integers"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
            pair = [f"{name}/integers", f"{name}/scales"]
            graph.node.insert(
                0, helper.make_node("DequantizeLinear", pair, [f"{name}/real"], f"{name}_node", axis=axis)
            )
        node.input[1] = f"{name}/real"


def _channels(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 of the table's shape, and float32 [channels]."""
    import numpy as np

    turned = np.moveaxis(table, axis, 0)
    integers, scales = _rows(turned.reshape(len(turned), -1))
    return np.ascontiguousarray(np.moveaxis(integers.reshape(turned.shape), 0, axis)), scales[:, 0]
