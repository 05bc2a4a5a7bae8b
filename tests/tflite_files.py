"""Small TFLite files, written operator by operator, without any converter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["write_unary"]


def write_unary(
    path: Path,
    operators: tuple[str, ...] = ("NEG",),
    *,
    custom: str = "",
    signatures: Mapping[str, tuple[str, str]] | None = None,
    names: tuple[str, ...] = (),
    free: bool = True,
) -> Path:
    """Write a chain of operators that each take one float tensor [n, 3] and give one.

    Args:
        path: Where to.
        operators: By their names in the schema.
        custom: Name of the custom operator that stands last, if any.
        signatures: Key to the names of its input and its output.
        names: Of the tensors, one more than there are operators; `v0`, `v1`, … by default.
        free: Whether n is free, or one.
    """
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    kinds = [*operators, *(["CUSTOM"] if custom else [])]
    graph.tensors = [_tensor(schema, names[i] if names else f"v{i}", free) for i in range(len(kinds) + 1)]
    graph.inputs, graph.outputs = [0], [len(kinds)]
    graph.operators, model.operatorCodes = [], []
    for i, kind in enumerate(kinds):
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        code.customCode = custom.encode() if kind == "CUSTOM" else None
        operator.opcodeIndex, operator.inputs, operator.outputs = i, [i], [i + 1]
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    model.subgraphs = [graph]
    model.signatureDefs = [
        _signature(schema, key, takes, gives, len(kinds))
        for key, (takes, gives) in (signatures or {}).items()
    ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(schema: Any, name: str, free: bool) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name.encode(), schema.TensorType.FLOAT32, 0
    tensor.shape = np.array([1, 3], np.int32)
    tensor.shapeSignature = np.array([-1, 3], np.int32) if free else None
    return tensor


def _signature(schema: Any, key: str, takes: str, gives: str, last: int) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = key.encode(), 0
    for attribute, name, number in (("inputs", takes, 0), ("outputs", gives, last)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), number
        setattr(signature, attribute, [entry])
    return signature
