"""Canonical ONNX: the same graph gives the same bytes, whatever an exporter called things.

Exporters number nodes and constants differently from run to run. Here dead nodes go, calls of the model's own
functions are written out, constants become weights (which quantizers look for), nodes come in the order a
depth-first walk from the outputs meets them, and nodes, tensors and initializers are named by position.

Weights that lie outside the file stay there until the result is written, a block at a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekit.errors import ConversionError
from edgekit.sources.onnx_graph import data_size, place, tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["DATA_FILE", "canonicalise", "fold_constants", "open_inside", "save_canonical", "sort_nodes"]

#: Where the weights of a model lie that no single file can hold.
DATA_FILE = "model.onnx.data"
#: No protobuf message is larger: a file of this size still leaves room for the graph.
_MOST_IN_FILE = 2**31 - (1 << 24)
_BLOCK = 1 << 22
#: Weights outside the file start at a multiple of this, so that a runtime can map them.
_ALIGNMENT = 4096
_OUTSIDE = 1  # TensorProto.DataLocation.EXTERNAL


class _Names:
    """Hands out `v0, v1, …`, `w0, …` and `n0, …` in the order they are asked for, but none of those taken."""

    def __init__(self, taken: Collection[str]) -> None:
        self.counts: dict[str, int] = {}
        self.taken = taken

    def next(self, prefix: str) -> str:
        number = self.counts.get(prefix, 0)
        while f"{prefix}{number}" in self.taken:
            number += 1
        self.counts[prefix] = number + 1
        return f"{prefix}{number}"


def canonicalise(
    model: onnx.ModelProto,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    ir_version: int | None = None,
) -> onnx.ModelProto:
    """Return the model in canonical form.

    Args:
        model: Any valid ONNX model; it is not changed.
        inputs: Names for the graph's inputs, in order; by default they keep theirs.
        outputs: Names for the graph's outputs, in order; by default they keep theirs.
        ir_version: Highest IR version the target reads.

    Raises:
        ConversionError: The graph has a cycle, or a value that nothing makes.
    """
    import onnx

    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    result = onnx.ModelProto()
    result.ir_version = min(model.ir_version, ir_version) if ir_version else model.ir_version
    result.producer_name = "edgekit"
    result.opset_import.extend(sorted(model.opset_import, key=lambda opset: opset.domain))
    graph = model.graph
    fixed = {v.name for v in graph.initializer} | {v.values.name for v in graph.sparse_initializer}
    true_inputs = [v for v in graph.input if v.name not in fixed]
    renamed = {
        **dict(zip((v.name for v in true_inputs), inputs or [v.name for v in true_inputs], strict=True)),
        **dict(zip((v.name for v in graph.output), outputs or [v.name for v in graph.output], strict=True)),
    }
    _canonical_graph(graph, result.graph, renamed, _Names(set(renamed.values())), "graph")
    return result


def _canonical_graph(
    graph: onnx.GraphProto, out: onnx.GraphProto, outer: Mapping[str, str], names: _Names, label: str
) -> None:
    """Write `graph` into `out`; `outer` holds the names that are already decided."""
    graph = fold_constants(graph)
    makers = {value: node for node in graph.node for value in node.output if value}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    order, used = _walk(graph, makers, set(weights) | set(sparse))
    renamed = dict(outer)
    out.name = label
    for value in used:
        renamed[value] = names.next("w")
    for value in graph.output:
        # a graph may return an initializer or one of its inputs: its declared name wins
        renamed[value.name] = outer.get(value.name) or renamed.get(value.name) or names.next("v")
    for value in graph.input:
        if value.name not in weights and value.name not in sparse:
            if value.name not in renamed:
                renamed[value.name] = names.next("v")
            out.input.append(value)
            out.input[-1].name = renamed[value.name]
            out.input[-1].doc_string = ""
    for node in order:
        for value in node.output:
            if value and value not in renamed:
                renamed[value] = names.next("v")
        _copy_node(node, out, renamed, names)
    for value in used:
        source = weights.get(value)
        if source is not None:
            out.initializer.append(source)
            out.initializer[-1].name = renamed[value]
            out.initializer[-1].doc_string = ""
            if out.initializer[-1].data_location != _OUTSIDE:  # said or left out: the same
                out.initializer[-1].ClearField("data_location")
        elif value in sparse:
            out.sparse_initializer.append(sparse[value])
            out.sparse_initializer[-1].values.name = renamed[value]
    for value in graph.output:
        out.output.append(value)
        out.output[-1].name = renamed[value.name]
        out.output[-1].doc_string = ""


def _copy_node(node: onnx.NodeProto, out: onnx.GraphProto, renamed: Mapping[str, str], names: _Names) -> None:
    copy = out.node.add()
    copy.op_type, copy.domain, copy.name = node.op_type, node.domain, names.next("n")
    copy.input.extend(renamed.get(value, value) for value in node.input)
    copy.output.extend(renamed.get(value, value) for value in node.output)
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        new = copy.attribute.add()
        new.CopyFrom(attribute)
        new.doc_string = ""
        if attribute.HasField("g"):
            new.g.Clear()
            _canonical_graph(attribute.g, new.g, renamed, names, "branch")
        for i, branch in enumerate(attribute.graphs):
            new.graphs[i].Clear()
            _canonical_graph(branch, new.graphs[i], renamed, names, "branch")


def _walk(
    graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto], fixed: set[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Return the live nodes in depth-first post-order from the outputs, and the fixed values by first use."""
    order: list[onnx.NodeProto] = []
    used: dict[str, None] = {}
    state: dict[int, int] = {}  # 1 on the path, 2 done; by id, since nodes have no reliable name
    for output in graph.output:
        stack: list[tuple[str, bool]] = [(output.name, False)]
        while stack:
            value, leaving = stack.pop()
            node = makers.get(value)
            if value in fixed:
                used.setdefault(value)
            if node is None or (state.get(id(node)) == 2 and not leaving):
                continue
            if leaving:
                if state[id(node)] != 2:
                    order.append(node)
                state[id(node)] = 2
            elif state.get(id(node)) == 1:
                raise ConversionError(f"the ONNX graph has a cycle through {value!r}")
            else:
                state[id(node)] = 1
                stack.append((value, True))
                stack.extend((wanted, False) for wanted in reversed(_reads(node)))
    return order, list(used)


def _reads(node: onnx.NodeProto) -> list[str]:
    """Return the values that a node reads, those of its branches included."""
    values = [value for value in node.input if value]
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            inner = {v.name for v in branch.input} | {t.name for t in branch.initializer}
            for child in branch.node:
                values.extend(v for v in _reads(child) if v not in inner)
                inner.update(child.output)
            values.extend(v.name for v in branch.output if v.name not in inner)
    return values


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put a graph's live nodes in canonical order, in place; the others go. Names stay."""
    makers = {value: node for node in graph.node for value in node.output if value}
    order, _ = _walk(graph, makers, {tensor.name for tensor in graph.initializer})
    nodes = [type(node).FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(nodes)


def fold_constants(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Return the graph with its tensor constants among its weights; branches inside it keep theirs.

    A constant that the graph itself answers stays a node, since a branch may not answer a weight everywhere.
    """
    import onnx

    answers = {value.name for value in graph.output}
    found = {
        node.output[0]: tensor
        for node in graph.node
        if node.op_type == "Constant" and node.output[0] not in answers
        if (tensor := _constant(node)) is not None
    }
    if not found:
        return graph
    folded = onnx.GraphProto()
    folded.name = graph.name
    folded.node.extend(node for node in graph.node if not node.output or node.output[0] not in found)
    folded.input.extend(graph.input)
    folded.output.extend(graph.output)
    folded.sparse_initializer.extend(graph.sparse_initializer)
    folded.initializer.extend(graph.initializer)
    for name, tensor in found.items():
        folded.initializer.append(tensor)
        folded.initializer[-1].name = name
    return folded


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant node as a tensor; None of a sparse one, or of text."""
    import numpy as np
    import onnx

    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor: onnx.TensorProto = value
        return tensor
    dtypes = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in dtypes:
        return None
    return onnx.numpy_helper.from_array(np.array(value, dtypes[attribute.name]))


def open_inside(path: Path) -> Any:
    """Return an ONNX Runtime session of a model with every float32 value of its graph among its outputs.

    Values of branches and loop bodies stay inside; nothing is fused or folded away.
    """
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    shown = {value.name for value in model.graph.output}
    for value in model.graph.value_info:
        if value.name not in shown and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            model.graph.output.append(value)
    outside = {place(t)[0] for t in tensors(model) if t.data_location == _OUTSIDE}
    with tempfile.TemporaryDirectory() as scratch:
        for location in outside:
            _link(path.parent / location, Path(scratch) / location)
        shown_path = Path(scratch) / "shown.onnx"
        shown_path.write_bytes(model.SerializeToString())
        return ort.InferenceSession(str(shown_path), options, providers=["CPUExecutionProvider"])


def _link(file: Path, other: Path) -> None:
    other.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, other)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, other)


def save_canonical(model: onnx.ModelProto, path: str, folder: Path | None = None) -> None:
    """Write a canonical model with stable bytes: one file, and `DATA_FILE` beside it beyond what one can hold.

    Args:
        model: The model; the places of its outside weights are changed where they are written beside it.
        path: Of the file.
        folder: Where weights lie that are outside of the model.
    """
    outside = [tensor for tensor in tensors(model) if tensor.data_location == _OUTSIDE]
    with open(path, "wb") as stream:  # noqa: PTH123
        if not outside:
            stream.write(model.SerializeToString(deterministic=True))
            return
        assert folder is not None
        if sum(map(data_size, tensors(model))) < _MOST_IN_FILE:
            _write_whole(model, stream, folder)
        else:
            _write_beside(outside, Path(path).parent / DATA_FILE, folder)
            stream.write(model.SerializeToString(deterministic=True))


def _write_beside(outside: Sequence[onnx.TensorProto], file: Path, folder: Path) -> None:
    """Write weights into a file of their own, and their places into the model."""
    with file.open("wb") as stream:
        for tensor in outside:
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            offset = stream.tell()
            for block in _blocks(tensor, folder):
                stream.write(block)
            said = {"location": file.name, "offset": str(offset), "length": str(stream.tell() - offset)}
            del tensor.external_data[:]
            for key, value in said.items():
                tensor.external_data.add(key=key, value=value)


def _blocks(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    """Yield the values of an outside tensor, a block at a time."""
    location, offset, left = place(tensor)
    with (folder / location).open("rb") as stream:
        if left < 0:
            left = os.fstat(stream.fileno()).st_size - offset
        stream.seek(offset)
        while left > 0 and (block := stream.read(min(_BLOCK, left))):
            left -= len(block)
            yield block
    if left > 0:
        raise ConversionError(f"the weights in {location} end too early")


def _write_whole(model: onnx.ModelProto, stream: IO[bytes], folder: Path) -> None:
    """Write a model and its outside weights as one file, without ever holding them all.

    A protobuf message is its fields, each behind its number and length: here those of the graph's outside weights
    (field 5 of the graph, which is field 7 of the model) follow the rest, and their values (field 9) are copied.
    """
    import onnx

    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.graph.ClearField("initializer")
    graph = rest.graph.SerializeToString(deterministic=True)
    rest.ClearField("graph")
    if any(tensor.data_location == _OUTSIDE for tensor in tensors(rest)):
        raise ConversionError(
            "weights outside the file are in a branch or a function", hint="Save it as one file."
        )
    heads = [_head(tensor, folder) for tensor in model.graph.initializer]
    size = len(graph) + sum(len(_field(5, len(h) + n)) + len(h) + n for h, n in heads)
    stream.write(rest.SerializeToString(deterministic=True) + _field(7, size) + graph)
    for tensor, (head, length) in zip(model.graph.initializer, heads, strict=True):
        stream.write(_field(5, len(head) + length) + head)
        if tensor.data_location == _OUTSIDE:
            for block in _blocks(tensor, folder):
                stream.write(block)


def _head(tensor: onnx.TensorProto, folder: Path) -> tuple[bytes, int]:
    """Return a weight's bytes up to its outside values, and how many of these follow."""
    import onnx

    if tensor.data_location != _OUTSIDE:
        return tensor.SerializeToString(deterministic=True), 0
    location, offset, length = place(tensor)
    if length < 0:
        length = (folder / location).stat().st_size - offset
    plain = onnx.TensorProto()
    plain.CopyFrom(tensor)
    plain.ClearField("external_data")
    plain.ClearField("data_location")
    return plain.SerializeToString(deterministic=True) + _field(9, length), length


def _field(number: int, length: int) -> bytes:
    """Return what stands before `length` bytes of a protobuf field."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:  # seven bits a byte
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
