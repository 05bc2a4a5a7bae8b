"""Lower an ONNX model's opset to what a target's runtime reads.

ONNX's own version converter has no way down for many operators that only gained data types. Here each node is
looked at alone: it may be written for the older opset when that one's schema takes its types, inputs and attributes.
An attribute that the older one lacks may go where it says the default. A few operators that changed their form
are written in the older one (`_REWRITES`); operators that are newer altogether become the function that ONNX
defines them by. Whatever is left is refused by name. The gate's parity then compares the result with the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError

if TYPE_CHECKING:
    import onnx

__all__ = ["lower", "opset_of"]

#: Below this opset, operators change their meaning and not only their form; ONNX's converter knows those.
_OLDEST = 13
#: Operators that kept their form and changed their meaning, by the opset that did it: their function tells it.
_CHANGED = {"GroupNormalization": 21}
_ONNX_DOMAINS = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model is written for."""
    return max((o.version for o in model.opset_import if o.domain in _ONNX_DOMAINS), default=1)


def lower(model: onnx.ModelProto, most: int) -> onnx.ModelProto:
    """Return the model, written for opset `most` where its own is higher.

    Args:
        model: Any valid model; it may be changed. Weights may lie outside the file.
        most: The highest opset that the target's runtime reads.

    Raises:
        ConversionError: An operator has no older form; names it, its opset and what is read.
    """
    if opset_of(model) <= most:
        return model
    if most < _OLDEST:
        return _by_converter(model, most)
    model = _as_functions(model, most)
    nodes = _Lowering(model, most)
    nodes.graph(model.graph, {})
    for opset in model.opset_import:
        if opset.domain in _ONNX_DOMAINS:
            opset.version = most
    return model


def _by_converter(model: onnx.ModelProto, most: int) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, most)
    except RuntimeError as error:
        raise ConversionError(
            f"the model cannot be written for opset {most}, the newest that the target's runtime reads: "
            + str(error).rpartition("failed:")[2].strip()[:200],
            got=f"opset {opset_of(model)}",
        ) from error


def _as_functions(model: onnx.ModelProto, most: int) -> onnx.ModelProto:
    """Write operators that opset `most` lacks by the functions that define them, as far as they have one."""
    import onnx
    from onnx import inliner

    newer = sorted({node.op_type for node in _nodes(model.graph) if _is_newer(node, opset_of(model), most)})
    if not newer:
        return model
    typed = onnx.shape_inference.infer_shapes(model)  # the functions of some operators depend on types
    for tensor in typed.graph.initializer:
        kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        typed.graph.value_info.append(kind)
    try:
        return inliner.inline_selected_functions(
            typed, [("", name) for name in newer], inline_schema_functions=True
        )
    except RuntimeError:  # a type is unknown: the operator stays, and is refused by name
        return model


def _is_newer(node: onnx.NodeProto, opset: int, most: int) -> bool:
    if node.domain not in _ONNX_DOMAINS:
        return False
    changed = _CHANGED.get(node.op_type, 0)
    return most < changed <= opset or _schema(node.op_type, most) is None


def _schema(name: str, opset: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(name, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _nodes(branch)


class _Lowering:
    """Writes one node after the other for the older opset.

    Attributes:
        constants: Values of small weights by name, arrays.
        most: The older opset.
    """

    def __init__(self, model: onnx.ModelProto, most: int) -> None:
        self.opset, self.most = opset_of(model), most
        self.constants: dict[str, Any] = {}
        self._types = _types(model)

    def graph(self, graph: onnx.GraphProto, outer: Mapping[str, Any]) -> None:
        from onnx import numpy_helper

        self.constants = dict(outer)
        for tensor in graph.initializer:
            if not tensor.external_data and tensor.ByteSize() < 1 << 16:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        seen = self.constants
        for node in graph.node:
            if node.domain in _ONNX_DOMAINS:
                self._node(node)
            for attribute in node.attribute:
                for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                    self.graph(branch, seen)
                    self.constants = seen

    def _node(self, node: onnx.NodeProto) -> None:
        old, new = _schema(node.op_type, self.most), _schema(node.op_type, self.opset)
        if old is None or new is None:
            raise self._refusal(node, new, "the operator is newer")
        if old.deprecated or self.most < _CHANGED.get(node.op_type, 0) <= self.opset:
            raise self._refusal(node, new, "the older form means something else")
        if old.since_version == new.since_version:
            return
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None:
            reason = rewrite(node, self)
            if reason:
                raise self._refusal(node, new, reason)
        for check in (self._attributes, self._inputs):
            reason = check(node, old, new)
            if reason:
                raise self._refusal(node, new, reason)

    def _attributes(self, node: onnx.NodeProto, old: Any, new: Any) -> str:
        """Drop attributes at their default that the older schema lacks; write out defaults that changed."""
        import onnx

        for attribute in list(node.attribute):
            if attribute.name in old.attributes:
                continue
            default = new.attributes[attribute.name].default_value
            given = onnx.helper.get_attribute_value(attribute)
            if not default.name or onnx.helper.get_attribute_value(default) != given:
                return f"its attribute {attribute.name!r} is newer"
            node.attribute.remove(attribute)
        present = {attribute.name for attribute in node.attribute}
        for name, former in old.attributes.items():
            current = new.attributes[name].default_value if name in new.attributes else former.default_value
            changed = current.name and current.SerializeToString() != former.default_value.SerializeToString()
            if name not in present and changed:
                node.attribute.append(current)
        return ""

    def _inputs(self, node: onnx.NodeProto, old: Any, _new: Any) -> str:
        while node.input and not node.input[-1]:
            del node.input[-1]
        if len(node.input) > old.max_input:
            return f"it has {len(node.input)} inputs, of which the older form takes {old.max_input}"
        for names, formals in ((node.input, old.inputs), (node.output, old.outputs)):
            for position, name in enumerate(names):
                taken = formals[min(position, len(formals) - 1)].types
                kind = self._types.get(name, "")
                if kind and kind not in taken:
                    return f"the older form takes no {kind}"
        return ""

    def _refusal(self, node: onnx.NodeProto, new: Any, why: str) -> ConversionError:
        since = f" (opset {new.since_version})" if new is not None else ""
        return ConversionError(
            f"the operator {node.op_type}{since} has no form that the target's runtime reads: {why}",
            got=f"opset {self.opset}",
            expected=f"at most opset {self.most}",
            hint=f"Export the model with opset {self.most}.",
        )


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Return the element type of each tensor that is known, as schemas write it."""
    import onnx

    names = {
        number: f"tensor({_SCHEMA_NAMES.get(name.lower(), name.lower())})"
        for name, number in onnx.TensorProto.DataType.items()
    }
    bare = onnx.ModelProto()
    bare.CopyFrom(model) if model.ByteSize() < 1 << 28 else _copy_without_weights(model, bare)
    graph = onnx.shape_inference.infer_shapes(bare).graph
    found = {
        value.name: names[value.type.tensor_type.elem_type]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    return {**found, **{tensor.name: names[tensor.data_type] for tensor in model.graph.initializer}}


_SCHEMA_NAMES = {"float": "float", "float16": "float16", "double": "double"}


def _copy_without_weights(model: onnx.ModelProto, bare: onnx.ModelProto) -> None:
    """Copy a model whose weights are larger than inference should see; large ones become inputs."""
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "graph"
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < 1 << 16:
            bare.graph.initializer.append(tensor)
        else:
            value = bare.graph.input.add()
            value.name = tensor.name
            value.type.tensor_type.elem_type = tensor.data_type
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add().dim_value = size


def _axes_as_attribute(node: onnx.NodeProto, lowering: _Lowering) -> str:
    """Reductions take their axes as an input from opset 18 on."""
    import onnx

    if len(node.input) < 2 or not node.input[1]:  # the second input holds the axes
        return "without axes it may do nothing" if _integer(node, "noop_with_empty_axes", 0) else ""
    axes = lowering.constants.get(node.input[1])
    if axes is None:
        return "its axes are computed"
    if not axes.size:
        return "its axes are empty"
    del node.input[1]
    node.attribute.append(onnx.helper.make_attribute("axes", [int(axis) for axis in axes.ravel()]))
    for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
        node.attribute.remove(attribute)
    return ""


def _even_split(node: onnx.NodeProto, _lowering: _Lowering) -> str:
    """From opset 18 on, the number of parts is an attribute, and the last part may be smaller.

    Without sizes the older form parts evenly, into as many as it has outputs; where the size is no multiple of
    that, ONNX Runtime refuses the model, and the gate with it.
    """
    for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
        node.attribute.remove(attribute)
    return ""


def _former_modes(node: onnx.NodeProto, lowering: _Lowering) -> str:
    """GridSample named its modes after two dimensions before opset 20; linear was its default under either name."""
    if lowering.most >= 20:
        return ""
    for attribute in node.attribute:
        if attribute.name == "mode":
            attribute.s = {b"linear": b"bilinear", b"cubic": b"bicubic"}.get(attribute.s, attribute.s)
            return ""
    import onnx

    node.attribute.append(onnx.helper.make_attribute("mode", "bilinear"))
    return ""


def _known_modes(node: onnx.NodeProto, lowering: _Lowering) -> str:
    """Refuse values of an attribute that the older form does not know, which no schema tells."""
    for attribute in node.attribute:
        for since in sorted(_NEW_VALUES.get((node.op_type, attribute.name, attribute.s), ())):
            if since > lowering.most:
                return f"{attribute.name}={attribute.s.decode()!r} is newer"
    return ""


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


#: (Operator, attribute, value) to the opset that brought the value.
_NEW_VALUES: Mapping[tuple[str, str, bytes], tuple[int, ...]] = {
    ("Pad", "mode", b"wrap"): (19,),
    ("Resize", "coordinate_transformation_mode", b"half_pixel_symmetric"): (19,),
    ("ScatterND", "reduction", b"max"): (18,),
    ("ScatterND", "reduction", b"min"): (18,),
    ("ScatterElements", "reduction", b"max"): (18,),
    ("ScatterElements", "reduction", b"min"): (18,),
}

#: Operator to what writes a node in the older form; it returns why that cannot be, or nothing.
_REWRITES: Mapping[str, Callable[[Any, _Lowering], str]] = {
    **dict.fromkeys(
        ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare"],
        _axes_as_attribute,
    ),
    "Split": _even_split,
    "GridSample": _former_modes,
    "Pad": _known_modes,
    "Resize": _known_modes,
    "ScatterND": _known_modes,
    "ScatterElements": _known_modes,
}  # fmt: skip
