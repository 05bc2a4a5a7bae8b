"""What a Keras model or a SavedModel holds, for `check`: the operators of its signature's graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.sources.base import SourceOptions

__all__ = ["survey_keras", "survey_keras2", "survey_savedmodel"]

_FLOW = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")
_ELEMENTS = {"float64": "double", "float32": "float"}


def survey_keras(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001
    """Read a Keras 3 file, by the SavedModel that it exports."""
    from edgekit.sources.keras import KerasSource

    source = KerasSource(path, options)
    return _survey(source.saved, SourceOptions(), source.notes)


def survey_keras2(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001
    """Read a Keras 2 file, likewise."""
    from edgekit.sources.keras2 import Keras2Source

    source = Keras2Source(path, options)
    return _survey(source.saved, SourceOptions(), source.notes)


def survey_savedmodel(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001
    """Read one signature of a SavedModel."""
    return _survey(path, options, ())


def _survey(folder: Path, options: SourceOptions, notes: tuple[str, ...]) -> Surveyed:
    from edgekit.sources.keras import SavedModelSource

    source = SavedModelSource(folder, options)
    graph = source.signature.graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}
    seen: set[str] = set()
    ops = list(_uses(graph.node, functions, "", seen))
    weights = list({id(v): v for v in source.signature.variables}.values())
    sizes = [(int(v.shape.num_elements() or 0), v.dtype.size) for v in weights]
    frozen = [] if weights else list(_constants(graph, functions))
    return Surveyed(
        dialect="tensorflow",
        inputs=source.inputs,
        outputs=source.outputs,
        ops=merged(ops),
        parameters=sum(n for n, _ in [*sizes, *frozen]),
        parameter_bytes=sum(n * width for n, width in [*sizes, *frozen]),
        transposes=sum(op.count for op in ops if op.name == "Transpose"),
        notes=notes,
    )


def _uses(nodes: Any, functions: dict[str, Any], inside: str, seen: set[str]) -> Iterator[OpUse]:
    """Yield every operator; a function that several nodes call counts once for each, but not within itself."""
    for node in nodes:
        yield OpUse(name=node.op, form=_element(node), inside=inside)
        for called in _called(node):
            if called in functions and called not in seen:
                around = inside or (node.op if node.op in _FLOW else "")
                yield from _uses(functions[called].node_def, functions, around, seen | {called})


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.func.name:
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _element(node: Any) -> str:
    import tensorflow as tf

    for key in ("T", "dtype", "SrcT"):
        if key in node.attr and node.attr[key].type:
            name = tf.dtypes.as_dtype(node.attr[key].type).name
            return _ELEMENTS.get(str(name), str(name))
    return ""


def _constants(graph: Any, functions: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield how many elements a frozen graph's float constants have, and their width in bytes."""
    import tensorflow as tf

    for node in (*graph.node, *(n for f in functions.values() for n in f.node_def)):
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            dtype = tf.dtypes.as_dtype(tensor.dtype)
            if dtype.is_floating:
                yield int(tf.TensorShape(tensor.tensor_shape).num_elements() or 0), dtype.size
