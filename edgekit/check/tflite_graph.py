"""What a TFLite file holds, for `check`: read from the flatbuffer, so that a file no runtime opens can be told why."""

from __future__ import annotations

from pathlib import Path

from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.errors import InvalidFileError
from edgekit.sources.base import SourceOptions
from edgekit.tensors import TensorSpec

__all__ = ["survey"]

_DTYPES = {"STRING": "bytes"}
_FLOATS = ("FLOAT32", "FLOAT16", "FLOAT64")


def survey(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001  one of a table of surveys
    """Read a TFLite file.

    Raises:
        InvalidFileError: It is not TFLite, or damaged.
    """
    from edgekit.sources.tflite import interface
    from edgekit.sources.tflite_graph import precision_of, read_graph

    graph = read_graph(path)
    number, inputs, outputs = interface(graph, options.signature, path.name)
    try:
        tensors = graph.subgraphs[number].tensors
        specs = [tuple(_spec(name, tensors[i]) for name, i in side.items()) for side in (inputs, outputs)]
        types = [(op, [sub.tensors[i].type for i in op.inputs if i >= 0]) for sub, op in graph.operators()]
    except IndexError as error:
        raise InvalidFileError(f"{path.name} is damaged: it names a tensor that it does not have") from error
    main = graph.subgraphs[0].operators if graph.subgraphs else ()
    inside = {id(op) for op in main}
    ops = [
        OpUse(
            name=op.kind,
            form="custom" if op.custom else (kinds[0].lower() if kinds else ""),
            inside="" if id(op) in inside else "a branch or loop",
        )
        for op, kinds in types
    ]
    weights = [
        t for sub in graph.subgraphs for t in sub.tensors if t.constant and (t.type in _FLOATS or t.scales)
    ]
    return Surveyed(
        dialect="tflite",
        inputs=specs[0],
        outputs=specs[1],
        ops=merged(ops),
        parameters=sum(_size(t.shape) for t in weights),
        parameter_bytes=path.stat().st_size,
        quantized=precision_of(graph),
        transposes=sum(op.name == "TRANSPOSE" for op in ops),
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= max(side, 1)
    return size


def _spec(name: str, tensor: object) -> TensorSpec:
    from edgekit.sources.tflite_graph import Tensor

    assert isinstance(tensor, Tensor)
    dtype = _DTYPES.get(tensor.type, tensor.type.lower())
    return TensorSpec(
        name=name, dtype=dtype, shape=tensor.shape, layout="NHWC" if len(tensor.shape) == 4 else ""
    )
