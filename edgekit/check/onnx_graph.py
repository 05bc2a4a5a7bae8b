"""What an ONNX file holds, read without running it: operators with their types, opsets, free sizes, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.errors import ConversionError
from edgekit.sources.base import SourceOptions
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["form_of", "survey"]

#: Operators whose support depends on what they make as well.
_CASTS = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear")
#: Operators whose support depends on an attribute.
_TELLING = {
    "Resize": ("mode", "coordinate_transformation_mode", "antialias"),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), ("layout",)),
}
_OWN = ("", "ai.onnx")
_INT64 = 7
_DTYPES = {"float": "float32", "double": "float64", "string": "bytes"}
#: What inference calls a size that nothing named, with a number behind it.
_UNNAMED = "unk__"
#: Weights of at most this many bytes may hold shapes, which inference looks at.
_SMALL = 1 << 12


def form_of(node: onnx.NodeProto, takes: Sequence[str], gives: Sequence[str]) -> str:
    """Return what decides whether a reader takes a node, beside its operator and version.

    Args:
        node: The node.
        takes: Element types of its inputs, as ONNX names them in small letters; empty where unknown.
        gives: Likewise of its outputs.

    Returns:
        The first input's type (without inputs, the first output's), and what else tells.
    """
    import onnx

    form = next((t for t in takes if t), "") or next((t for t in gives if t), "")
    if node.op_type in _CASTS and gives and gives[0]:
        form += f">{gives[0]}"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name in _TELLING.get(node.op_type, ()):
        value = attributes.get(name)
        form += f"/{value.decode() if isinstance(value, bytes) else value}" if value else ""
    return form


def survey(path: Path, options: SourceOptions, opset: int) -> Surveyed:
    """Read an ONNX file; its weights stay on the disk.

    Args:
        path: The file.
        options: What the user said about it.
        opset: The newest that the target reads.

    Raises:
        InvalidFileError: It is not ONNX.
    """
    import onnx

    from edgekit.opset import lower, opset_of
    from edgekit.sources.onnx_graph import data_size, external_files, precision_of, read_model, tensors

    model = read_model(path, weights=False)
    external_files(model, path)
    found = [(t.data_type, data_size(t), _count(t)) for t in tensors(model)]
    quantized, own = precision_of(model), opset_of(model)
    inputs, outputs = _specs(model, options)
    before = {(op.name, op.since) for op in _uses(_bare(model))}
    lowering = ""
    if own > opset:
        try:
            whole = onnx.inliner.inline_local_functions(model) if model.functions else model
            model = lower(whole, opset)
        except ConversionError as error:
            lowering = str(error)
    bare = _bare(model)
    ops = list(_uses(bare))
    if own > opset and not lowering:
        ops = [op if (op.name, op.since) in before else _lowered(op) for op in ops]
    return Surveyed(
        dialect="onnx",
        inputs=inputs,
        outputs=outputs,
        ops=merged(ops),
        opset=own,
        ir=model.ir_version,
        lowering=lowering,
        parameters=sum(count for _, _, count in found),
        parameter_bytes=sum(size for _, size, _ in found),
        quantized=quantized,
        free_inside=_free(bare),
        transposes=sum(op.count for op in ops if op.name == "Transpose"),
    )


def _lowered(op: OpUse) -> OpUse:
    import msgspec

    return msgspec.structs.replace(op, lowered=True)


def _count(tensor: onnx.TensorProto) -> int:
    size = 1
    for dimension in tensor.dims:
        size *= dimension
    return size


def _specs(
    model: onnx.ModelProto, options: SourceOptions
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    fixed = {tensor.name for tensor in model.graph.initializer}
    takes = [_spec(value) for value in model.graph.input if value.name not in fixed]
    given = options.input_shapes
    import msgspec

    takes = [msgspec.structs.replace(s, shape=given.get(s.name, s.shape)) for s in takes]
    return tuple(takes), tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    element = _element(value)
    return TensorSpec(name=value.name, dtype=_DTYPES.get(element, element), shape=shape)


def _element(value: onnx.ValueInfoProto) -> str:
    import onnx

    if not value.type.HasField("tensor_type"):
        return "other"
    return _name(onnx, value.type.tensor_type.elem_type)


def _name(onnx: Any, number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number)).lower()


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with types and shapes inferred and without the values of its weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.ir_version = model.ir_version
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = "graph"
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    taken = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_location != 1 and tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in taken:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # noqa: BLE001  # inference gives up by unrelated kinds of error: types stay unknown
        return copy


@dataclass(frozen=True)
class _Scope:
    """Where a node stands.

    Attributes:
        opsets: Domain to version.
        types: Value to element type.
        inside: The construct around it.
        fixed: Constants.
        small: Values that hold numbers and sizes.
        unranked: Values of which nobody knows the number of dimensions.
    """

    opsets: Mapping[str, int]
    types: Mapping[str, str]
    inside: str
    fixed: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()
    unranked: frozenset[str] = frozenset()


def _uses(model: onnx.ModelProto) -> Iterator[OpUse]:
    """Yield every operator, those of branches, loop bodies and called functions too."""
    opsets = {_domain(o.domain): o.version for o in model.opset_import}
    functions = {(f.domain, f.name): f for f in model.functions}
    yield from _graph(model.graph, _Scope(opsets, {}, ""), functions)


def _domain(domain: str) -> str:
    return "" if domain in _OWN else domain


def _graph(
    graph: onnx.GraphProto, scope: _Scope, functions: Mapping[tuple[str, str], Any]
) -> Iterator[OpUse]:
    import onnx

    types = {
        **scope.types,
        **{v.name: _element(v) for v in (*graph.value_info, *graph.input, *graph.output)},
        **{t.name: _name(onnx, t.data_type) for t in graph.initializer},
    }
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    fixed = scope.fixed | constants | {t.name for t in graph.initializer}
    values = [*graph.value_info, *graph.input, *graph.output]
    small = scope.small | {value.name for value in values if _is_small(value)}
    unranked = scope.unranked | {value.name for value in values if _is_unranked(value)}
    inner = _Scope(scope.opsets, types, scope.inside, fixed, small, unranked)
    for node in graph.node:
        yield from _node(node, inner, functions)


def _node(node: onnx.NodeProto, scope: _Scope, functions: Mapping[tuple[str, str], Any]) -> Iterator[OpUse]:
    body = functions.get((node.domain, node.op_type))
    if body is not None:
        opsets = {_domain(o.domain): o.version for o in body.opset_import}
        for child in body.node:
            yield from _node(child, _Scope(opsets, {}, scope.inside), functions)
        return
    yield _use(node, scope)
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            around = scope.inside or node.op_type
            yield from _graph(branch, replace(scope, inside=around), functions)


def _use(node: onnx.NodeProto, scope: _Scope) -> OpUse:
    domain = _domain(node.domain)
    takes = [scope.types.get(name, "") if name else "" for name in node.input]
    gives = [scope.types.get(name, "") for name in node.output]
    schema = _schema(node.op_type, domain, scope.opsets.get(domain, 0))
    return OpUse(
        name=f"{domain}:{node.op_type}" if domain else node.op_type,
        form=form_of(node, takes, gives),
        since=schema.since_version if schema is not None else 0,
        inside=scope.inside,
        computed=any(name in scope.small and name not in scope.fixed for name in node.input[1:]),
        free_rank=bool(node.input) and node.input[0] in scope.unranked,
        types=_constraints(schema, takes, gives) if schema is not None else {},
        function=schema is not None and (schema.has_function or schema.has_context_dependent_function),
    )


def _is_unranked(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def _is_small(value: onnx.ValueInfoProto) -> bool:
    """Tell a number, or a row of 64-bit integers: axes, sizes and the like."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return False
    rank = len(kind.shape.dim)
    return rank == 0 or (rank == 1 and kind.elem_type == _INT64)


def _schema(name: str, domain: str, version: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def _constraints(schema: Any, takes: Sequence[str], gives: Sequence[str]) -> dict[str, str]:
    """Return type constraint to element type, as far as both are known."""
    found: dict[str, str] = {}
    for formals, actual in ((schema.inputs, takes), (schema.outputs, gives)):
        for position, element in enumerate(actual):
            if not formals or not element:
                continue
            formal = formals[min(position, len(formals) - 1)]
            found.setdefault(formal.type_str, element)
    known = {constraint.type_param_str for constraint in schema.type_constraints}
    return {key: value for key, value in sorted(found.items()) if key in known}


def _free(model: onnx.ModelProto) -> int:
    """Return how many values of the main graph have a size that nothing names: only a run tells it."""
    return sum(
        any(
            not d.HasField("dim_value") and (d.dim_param or _UNNAMED).startswith(_UNNAMED)
            for d in _dimensions(value)
        )
        for value in model.graph.value_info
    )


def _dimensions(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim
