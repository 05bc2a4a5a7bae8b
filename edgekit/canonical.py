"""Canonical ONNX: the same graph gives the same bytes, whatever an exporter called things.

Exporters number nodes and constants differently from run to run. Here dead nodes go, nodes come in the order
a depth-first walk from the outputs meets them, and nodes, tensors and initializers are named by position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError

if TYPE_CHECKING:
    import onnx

__all__ = ["canonicalise", "open_inside", "save_canonical"]


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

    result = onnx.ModelProto()
    result.ir_version = min(model.ir_version, ir_version) if ir_version else model.ir_version
    result.producer_name = "edgekit"
    result.opset_import.extend(sorted(model.opset_import, key=lambda opset: opset.domain))
    result.functions.extend(sorted(model.functions, key=lambda f: (f.domain, f.name)))
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


def open_inside(path: Path) -> Any:
    """Return an ONNX Runtime session of a model with every float32 value of its graph among its outputs.

    Values of branches and loop bodies stay inside; nothing is fused or folded away.
    """
    import onnx
    import onnxruntime as ort

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    shown = {value.name for value in model.graph.output}
    for value in model.graph.value_info:
        if value.name not in shown and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            model.graph.output.append(value)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def save_canonical(model: onnx.ModelProto, path: str) -> None:
    """Write a canonical model as one file with stable bytes."""
    with open(path, "wb") as stream:  # noqa: PTH123
        stream.write(model.SerializeToString(deterministic=True))
