"""ONNX and TFLite files of small networks, opened so that a script can change them.

Both show the same layers, convolutions and dense ones, with weights in one layout, whatever the file's own.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Graph", "Layer", "OnnxGraph", "TfliteGraph", "open_graph"]


@dataclass(frozen=True)
class Layer:
    """One layer: its kind, and where its weights and bias are kept."""

    kind: str  # "conv" or "dense"
    weights: Any
    bias: Any
    node: Any


class Graph(abc.ABC):
    """A model file in memory."""

    layers: list[Layer]

    @abc.abstractmethod
    def weights(self, layer: Layer) -> np.ndarray:
        """Return a copy of the weights: [out, in, height, width] of a convolution, [out, in] of a dense."""

    @abc.abstractmethod
    def set_weights(self, layer: Layer, values: np.ndarray) -> None:
        """Write weights back, rounded and clipped where they are integers."""

    @abc.abstractmethod
    def bias(self, layer: Layer) -> np.ndarray:
        """Return a copy of the bias, [out]."""

    @abc.abstractmethod
    def set_bias(self, layer: Layer, values: np.ndarray) -> None:
        """Write a bias back."""

    @abc.abstractmethod
    def permute_scales(self, layer: Layer, order: np.ndarray) -> None:
        """Reorder what is kept per output channel beside weights and bias."""

    @abc.abstractmethod
    def activations(self) -> list[Any]:
        """Return the quantized activations; none in a float model."""

    @abc.abstractmethod
    def shift_zero_point(self, activation: Any, by: int) -> None:
        """Move one activation's zero point for those who read it."""

    @abc.abstractmethod
    def average_pools(self) -> bool:
        """Make every maximum an average; tell whether there was one."""

    @abc.abstractmethod
    def readers(self, node: Any) -> list[Any]:
        """Return the operators that take what one of them gives."""

    def behind(self, layer: Layer) -> list[Layer]:
        """Return the layers that read what this one answers; none behind a head."""
        waiting, found = [layer.node], []
        while waiting:
            for reader in self.readers(waiting.pop()):
                there = next((each for each in self.layers if each.node == reader), None)
                if there is None:
                    waiting.append(reader)
                elif there not in found:
                    found.append(there)
        return found

    def chained(self) -> list[tuple[Layer, Layer]]:
        """Return each layer that only one other reads, and that one."""
        pairs = [(layer, self.behind(layer)) for layer in self.layers]
        return [(layer, readers[0]) for layer, readers in pairs if len(readers) == 1]

    def heads(self) -> list[Layer]:
        """Return the layers that no other reads: what they answer are the outputs."""
        return [layer for layer in self.layers if not self.behind(layer)]

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write the file."""


def _store(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    if like.dtype.kind == "i":
        info = np.iinfo(like.dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    return np.ascontiguousarray(values.astype(like.dtype))


class OnnxGraph(Graph):
    """An ONNX file, float32, float16 or QDQ."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import numpy_helper

        self._read, self._write = numpy_helper.to_array, numpy_helper.from_array
        self.model = onnx.load(str(path))
        self.graph = self.model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.layers = [layer for node in self.graph.node if (layer := self._layer(node)) is not None]

    def _origin(self, name: str) -> str | None:
        """Return the initializer behind a value, through DequantizeLinear."""
        while name not in self.tensors:
            maker = self.makers.get(name)
            if maker is None or maker.op_type != "DequantizeLinear":
                return None
            name = maker.input[0]
        return name

    def _layer(self, node: Any) -> Layer | None:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            return None
        kind = "conv" if node.op_type == "Conv" else "dense"
        if node.op_type == "MatMul":
            add = next(n for n in self.graph.node if node.output[0] in n.input)
            return Layer(kind, self._origin(node.input[1]), self._origin(add.input[1]), node)
        return Layer(kind, self._origin(node.input[1]), self._origin(node.input[2]), node)

    def array(self, name: str) -> np.ndarray:
        return np.array(self._read(self.tensors[name]))

    def set_array(self, name: str, values: np.ndarray) -> None:
        self.tensors[name].CopyFrom(self._write(_store(values, self.array(name)), name))

    def weights(self, layer: Layer) -> np.ndarray:
        values = self.array(layer.weights)
        return values if layer.kind == "conv" else values.T

    def set_weights(self, layer: Layer, values: np.ndarray) -> None:
        self.set_array(layer.weights, values if layer.kind == "conv" else values.T)

    def bias(self, layer: Layer) -> np.ndarray:
        return self.array(layer.bias)

    def set_bias(self, layer: Layer, values: np.ndarray) -> None:
        self.set_array(layer.bias, values)

    def permute_scales(self, layer: Layer, order: np.ndarray) -> None:
        names = {
            name
            for node in self.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in (layer.weights, layer.bias)
            for name in node.input[1:]
        }
        for name in names:
            if self.array(name).ndim == 1:
                self.set_array(name, self.array(name)[order])

    def activations(self) -> list[Any]:
        return [
            node
            for node in self.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] not in self.tensors
        ]

    def shift_zero_point(self, activation: Any, by: int) -> None:
        point = self.array(activation.input[2]).astype(np.int64) + by
        name = f"{activation.input[2]}_shifted"
        self.add(name, _store(point, self.array(activation.input[2])))
        activation.input[2] = name

    def add(self, name: str, values: np.ndarray) -> None:
        self.graph.initializer.append(self._write(values, name))
        self.tensors[name] = self.graph.initializer[-1]

    def average_pools(self) -> bool:
        pools = [node for node in self.graph.node if node.op_type == "MaxPool"]
        for node in pools:
            node.op_type = "AveragePool"
            kept = [each for each in node.attribute if each.name not in ("dilations", "storage_order")]
            del node.attribute[:]
            node.attribute.extend(kept)  # what an average has no word for at this opset
        return bool(pools)

    def readers(self, node: Any) -> list[Any]:
        return [other for other in self.graph.node if set(node.output) & set(other.input)]

    def insert_before(self, node: Any, op_type: str, *more: str, **attributes: Any) -> None:
        """Put an operator on the first input of `node`; it keeps the shape."""
        from onnx import helper

        name = f"{node.input[0]}_{op_type}_{len(self.graph.node)}"
        made = helper.make_node(op_type, [node.input[0], *more], [name], **attributes)
        self.graph.node.insert(list(self.graph.node).index(node), made)
        node.input[0] = name

    def save(self, path: Path) -> None:
        import onnx

        onnx.save(self.model, str(path))


class TfliteGraph(Graph):
    """A TFLite file, float or quantized."""

    _LAYERS = ("CONV_2D", "FULLY_CONNECTED")

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        (self.graph,) = self.model.subgraphs
        self.layers = [
            Layer("conv" if self.name(op) == "CONV_2D" else "dense", int(op.inputs[1]), int(op.inputs[2]), op)
            for op in self.graph.operators
            if self.name(op) in self._LAYERS
        ]

    def name(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
        return str(next(name for name, value in vars(self.schema.BuiltinOperator).items() if value == code))

    def _dtype(self, index: int) -> np.dtype[Any]:
        kinds = {0: np.float32, 1: np.float16, 2: np.int32, 9: np.int8}
        return np.dtype(kinds[self.graph.tensors[index].type])

    def _constant(self, index: int) -> int:
        """Return the constant behind a tensor, through DEQUANTIZE as float16 models have it."""
        for op in self.graph.operators:
            if self.name(op) == "DEQUANTIZE" and index in op.outputs:
                return int(op.inputs[0])
        return index

    def array(self, index: int) -> np.ndarray:
        index = self._constant(index)
        tensor = self.graph.tensors[index]
        data = np.array(self.model.buffers[tensor.buffer].data, np.uint8).tobytes()
        return np.array(np.frombuffer(data, self._dtype(index)).reshape(tensor.shape))

    def set_array(self, index: int, values: np.ndarray) -> None:
        stored = _store(values, self.array(index))
        tensor = self.graph.tensors[self._constant(index)]
        self.model.buffers[tensor.buffer].data = np.frombuffer(stored.tobytes(), np.uint8)

    def weights(self, layer: Layer) -> np.ndarray:
        values = self.array(layer.weights)
        return values.transpose(0, 3, 1, 2) if layer.kind == "conv" else values

    def set_weights(self, layer: Layer, values: np.ndarray) -> None:
        self.set_array(layer.weights, values.transpose(0, 2, 3, 1) if layer.kind == "conv" else values)

    def bias(self, layer: Layer) -> np.ndarray:
        return self.array(layer.bias)

    def set_bias(self, layer: Layer, values: np.ndarray) -> None:
        self.set_array(layer.bias, values)

    def permute_scales(self, layer: Layer, order: np.ndarray) -> None:
        for index in (layer.weights, layer.bias):
            quantization = self.graph.tensors[index].quantization
            for field in ("scale", "zeroPoint"):
                values = getattr(quantization, field, None)
                if values is not None and len(values) == len(order):
                    setattr(quantization, field, np.array(values)[order])

    def activations(self) -> list[Any]:
        return [
            tensor
            for tensor in self.graph.tensors
            if tensor.type == 9 and not len(self._data(tensor)) and tensor.quantization.scale is not None
        ]

    def _data(self, tensor: Any) -> Any:
        data = self.model.buffers[tensor.buffer].data
        return [] if data is None else data

    def shift_zero_point(self, activation: Any, by: int) -> None:
        point = int(activation.quantization.zeroPoint[0]) + by
        activation.quantization.zeroPoint = np.array([np.clip(point, -128, 127)], np.int64)

    def average_pools(self) -> bool:
        operators = self.schema.BuiltinOperator
        pools = [code for code in self.model.operatorCodes if code.builtinCode == operators.MAX_POOL_2D]
        for code in pools:
            code.builtinCode = code.deprecatedBuiltinCode = operators.AVERAGE_POOL_2D
        return bool(pools)

    def readers(self, node: Any) -> list[Any]:
        return [other for other in self.graph.operators if set(node.outputs) & set(other.inputs)]

    def pad_same(self, layer: Layer) -> bool:
        """Pad a convolution that did not: its output grows. Tell whether it did not."""
        padded = layer.node.builtinOptions.padding == self.schema.Padding.SAME
        layer.node.builtinOptions.padding = self.schema.Padding.SAME
        return not padded

    def save(self, path: Path) -> None:
        import flatbuffers  # type: ignore[import-untyped]

        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))


def open_graph(path: Path) -> OnnxGraph | TfliteGraph:
    """Open a model file by its name."""
    return OnnxGraph(path) if path.suffix == ".onnx" else TfliteGraph(path)
