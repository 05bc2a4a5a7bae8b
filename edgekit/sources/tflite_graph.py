"""What a TFLite file holds, read from the flatbuffer: operators, tensors, signatures, and how it is quantized."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError

__all__ = ["Operator", "Tensor", "TfliteGraph", "precision_of", "read_graph"]

#: What the generated readers raise on bytes that are no TFLite.
_FAULTS = (
    struct.error,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
_WIDTHS = {"INT8": "int8", "UINT8": "int8", "INT16": "int16x8"}
_STATE = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


@dataclass(frozen=True)
class Tensor:
    """A tensor of one subgraph.

    Attributes:
        name: Its own.
        type: As the schema names it: `FLOAT32`, `INT8`, ….
        constant: Whether its values stand in the file.
        scales: How many scales it has: 0 where it is not quantized, more than 1 where per channel.
        shape: With -1 where a size is free.
    """

    name: str
    type: str
    constant: bool
    scales: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """A node: its kind (`CONV_2D`; a custom one by its own name) and its tensors' numbers; -1 for none."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: bool = False


@dataclass(frozen=True)
class Subgraph:
    """Tensors, nodes in the order they run, and which tensors go in and out."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TfliteGraph:
    """A whole file.

    Attributes:
        subgraphs: The first is the main one, the others are bodies of loops and branches, or other signatures.
        signatures: Key to (subgraph, names of inputs to tensor numbers, names of outputs to tensor numbers).
    """

    subgraphs: tuple[Subgraph, ...]
    signatures: Mapping[str, tuple[int, dict[str, int], dict[str, int]]] = field(default_factory=dict)

    def operators(self) -> Iterator[tuple[Subgraph, Operator]]:
        """Yield every node with its subgraph."""
        for subgraph in self.subgraphs:
            for operator in subgraph.operators:
                yield subgraph, operator

    @property
    def custom(self) -> list[str]:
        """Return the custom operators, by name."""
        return sorted({operator.kind for _, operator in self.operators() if operator.custom})

    @property
    def has_state(self) -> bool:
        """Tell whether the model keeps state between calls, in resource variables."""
        return any(operator.kind in _STATE for _, operator in self.operators())


def precision_of(graph: TfliteGraph) -> str:
    """Return how a TFLite model is quantized: `int8`, `int16x8`, `int8-dynamic`, `fp16`, or nothing for float.

    Static: an operator takes an integer activation with a scale. Dynamic: weights are integers with scales and
    activations float, be they dequantized for each call or multiplied as integers. fp16: weights are halves.

    Args:
        graph: The model.
    """
    found = {kind for subgraph, operator in graph.operators() for kind in _precisions(subgraph, operator)}
    return next((p for p in ("int16x8", "int8", "int8-dynamic", "fp16") if p in found), "")


def _precisions(subgraph: Subgraph, operator: Operator) -> Iterator[str]:
    tensors = [subgraph.tensors[i] for i in operator.inputs if i >= 0]
    for tensor in tensors:
        if tensor.constant and tensor.type == "FLOAT16":
            yield "fp16"
        elif tensor.constant and tensor.scales and tensor.type in ("INT8", "INT4", "UINT8"):
            yield "int8-dynamic"
        elif not tensor.constant and tensor.scales and operator.kind != "DEQUANTIZE":
            yield _WIDTHS.get(tensor.type, "")


def read_graph(path: Path) -> TfliteGraph:
    """Read a TFLite file.

    Args:
        path: Of a file that the runtime opens: the reader itself checks little.

    Raises:
        InvalidFileError: It is not TFLite.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    try:
        model = schema.Model.GetRootAs(content)
        kinds = [_kind(schema, model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
        subgraphs = tuple(
            _subgraph(schema, model, model.Subgraphs(i), kinds) for i in range(model.SubgraphsLength())
        )
        signatures = dict(_signature(model.SignatureDefs(i)) for i in range(model.SignatureDefsLength()))
    except _FAULTS as error:
        raise InvalidFileError(f"{path.name} is not a readable TFLite file: {error}") from error
    return TfliteGraph(subgraphs, signatures)


def _kind(schema: Any, code: Any) -> tuple[str, bool]:
    """Return an operator code's name, and whether it is a custom operator's."""
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # old files have only the byte
    if number == schema.BuiltinOperator.CUSTOM:
        name = code.CustomCode()
        return (name.decode(errors="replace") if name else "a custom operator without a name"), True
    return _names(schema.BuiltinOperator)[number], False


def _names(numbers: type) -> dict[int, str]:
    return {value: key for key, value in vars(numbers).items() if isinstance(value, int)}


def _subgraph(schema: Any, model: Any, subgraph: Any, kinds: list[tuple[str, bool]]) -> Subgraph:
    types = _names(schema.TensorType)
    tensors = tuple(_tensor(model, subgraph.Tensors(i), types) for i in range(subgraph.TensorsLength()))
    operators = []
    for i in range(subgraph.OperatorsLength()):
        node = subgraph.Operators(i)
        kind, custom = kinds[node.OpcodeIndex()]
        inputs = tuple(int(node.Inputs(j)) for j in range(node.InputsLength()))
        outputs = tuple(int(node.Outputs(j)) for j in range(node.OutputsLength()))
        operators.append(Operator(kind, inputs, outputs, custom))
    return Subgraph(
        tensors,
        tuple(operators),
        tuple(int(subgraph.Inputs(i)) for i in range(subgraph.InputsLength())),
        tuple(int(subgraph.Outputs(i)) for i in range(subgraph.OutputsLength())),
    )


def _tensor(model: Any, tensor: Any, types: Mapping[int, str]) -> Tensor:
    buffer = model.Buffers(tensor.Buffer())
    quantization = tensor.Quantization()
    free = tensor.ShapeSignatureLength() > 0
    length = tensor.ShapeSignatureLength() if free else tensor.ShapeLength()
    size = tensor.ShapeSignature if free else tensor.Shape
    return Tensor(
        name=(tensor.Name() or b"").decode(errors="replace"),
        type=types[tensor.Type()],
        constant=buffer.DataLength() > 0 or buffer.Size() > 1,  # beyond 2 GB, data lies behind the flatbuffer
        scales=quantization.ScaleLength() if quantization is not None else 0,
        shape=tuple(int(size(i)) for i in range(length)),
    )


def _signature(signature: Any) -> tuple[str, tuple[int, dict[str, int], dict[str, int]]]:
    inputs = [signature.Inputs(i) for i in range(signature.InputsLength())]
    outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    named = [{t.Name().decode(): int(t.TensorIndex()) for t in tensors} for tensors in (inputs, outputs)]
    key = (signature.SignatureKey() or b"").decode()
    return key, (int(signature.SubgraphIndex()), named[0], named[1])
