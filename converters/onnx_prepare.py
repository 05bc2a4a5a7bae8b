"""The float ONNX that is quantized: folded, every weight stored, every layer with a name and a bias of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.canonical import canonicalise
from edgekit.errors import ConversionError
from edgekit.opset import opset_of
from edgekit.sources.onnx_graph import data_size, read_model, tensors

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["HEAVY", "Prepared", "prepare", "session"]

#: Operators with weights, in whose integers the gain lies.
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: QuantizeLinear takes one scale for each channel from this opset on.
_OPSET = 13
_MOST = 1 << 30


@dataclass
class Prepared:
    """A float model ready to be quantized, and what is asked of its graph again and again.

    Attributes:
        model: Nodes are named by operator and position, `Conv_3`; types are known.
    """

    model: onnx.ModelProto
    weights: dict[str, onnx.TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def maker(self) -> dict[str, onnx.NodeProto]:
        """Return the node that makes each tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes of the main graph that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Return the names of the graph's answers."""
        return frozenset(value.name for value in self.model.graph.output)

    @cached_property
    def floats(self) -> frozenset[str]:
        """Return the float32 tensors that hold a value of a run."""
        graph = self.model.graph
        return frozenset(
            value.name
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == 1 and value.name not in self.weights
        )

    @cached_property
    def read_inside(self) -> frozenset[str]:
        """Return the tensors that branches and loop bodies read from the graph around them."""
        return frozenset(name for node in self.model.graph.node for name in _captured(node))

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Return the float inputs of a node that are not stored."""
        return [name for name in node.input if name in self.floats]

    def array(self, name: str) -> np.ndarray:
        """Return a stored tensor."""
        from onnx import numpy_helper

        array: np.ndarray = numpy_helper.to_array(self.weights[name])
        return array

    def bias_of(self, node: onnx.NodeProto) -> str:
        """Return the name of the bias that shifts a layer's channels, one value for each; empty if it has none."""
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            name: str = node.input[2] if len(node.input) > 2 else ""  # the third input is the bias
            return name if name in self.weights and len(self.weights[name].dims) == 1 else ""
        add = self.bias_add(node)
        if add is None:
            return ""
        return str(next(name for name in add.input if name in self.weights))

    def bias_add(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the addition that shifts the channels of a MatMul by stored values, if that is all that reads it."""
        readers = self.readers.get(node.output[0], [])
        if node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
            return None
        stored = [name for name in readers[0].input if name in self.weights]
        fits = len(stored) == 1 and _is_row(self.weights[stored[0]]) and node.output[0] not in self.outputs
        return readers[0] if fits else None


def _is_row(tensor: onnx.TensorProto) -> bool:
    """Tell a tensor of one value for each channel, the channels last."""
    return bool(tensor.dims) and all(size == 1 for size in tensor.dims[:-1])


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            for child in branch.node:
                yield from child.input
                yield from _captured(child)
            yield from (value.name for value in branch.output)


def session(model: onnx.ModelProto, *, optimise: bool = False) -> Any:
    """Return an ONNX Runtime session; what it computes does not depend on this machine's integer kernels.

    Args:
        model: With all of its weights inside.
        optimise: Fold and fuse what is the same on every machine.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def prepare(path: Path, scratch: Path, *, biases: bool = True) -> Prepared:
    """Return the float model as it is quantized.

    Constants are folded and batch normalisation goes into the weights (ONNX Runtime's basic optimisations), so
    that errors are corrected behind it; every convolution and Gemm gets a bias of its own, zeros if it had none.

    Args:
        path: Of a canonical float model.
        scratch: A folder for what lies in between.
        biases: Give them one.

    Raises:
        ConversionError: The model is too large for one file.
    """
    import onnx
    import onnxruntime as ort

    model = read_model(path)
    if sum(map(data_size, tensors(model))) > _MOST:
        raise ConversionError(
            "static int8 holds the model several times over, and this one is too large",
            got=f"{sum(map(data_size, tensors(model))) >> 20} MiB",
            expected=f"at most {_MOST >> 20} MiB of weights",
            hint="Make int8-dynamic of it.",
        )
    if opset_of(model) < _OPSET:
        model = onnx.version_converter.convert_version(model, _OPSET)
    optimised = scratch / "optimised.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    plain = canonicalise(onnx.load(str(optimised)))
    _name_layers(plain.graph)
    if biases:
        _own_biases(plain.graph)
    return Prepared(onnx.shape_inference.infer_shapes(plain))


def _name_layers(graph: onnx.GraphProto) -> None:
    """Name nodes by operator and position: what a report and `Recipe.float_layers` call a layer."""
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"


def _own_biases(graph: onnx.GraphProto) -> None:
    """Give every convolution and Gemm, and every bias behind a MatMul, a bias that no other node reads."""
    import numpy as np
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        place = _bias_place(node, weights)
        if place is None:
            continue
        name = node.input[place] if place < len(node.input) else ""
        if name and (name not in weights or (uses[name] == 1 and len(weights[name].dims) == 1)):
            continue
        if name and node.op_type != "Gemm":
            values = numpy_helper.to_array(weights[name])
        elif name and not _is_row(weights[name]) and weights[name].dims:
            continue  # another bias for each row: no bias of channels
        else:
            values = np.zeros(_channels(node, weights), np.float32)
            values += numpy_helper.to_array(weights[name]).reshape(-1) if name else 0.0
            node.input.extend([""] * (place + 1 - len(node.input)))
        own = f"{node.name}_bias"
        graph.initializer.append(numpy_helper.from_array(values, own))
        node.input[place] = own


def _bias_place(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> int | None:
    """Return which input of a node is, or would be, its bias."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        stored = len(node.input) > 1 and node.input[1] in weights and weights[node.input[1]].data_type == 1
        return 2 if stored else None
    if node.op_type == "Add":
        stored_at = [i for i, name in enumerate(node.input) if name in weights and _is_row(weights[name])]
        return stored_at[0] if len(stored_at) == 1 else None
    return None


def _channels(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> int:
    numbers = {a.name: a.i for a in node.attribute}
    dims: list[int] = list(weights[node.input[1]].dims)
    if node.op_type == "Gemm":
        return dims[0 if numbers.get("transB", 0) else 1]
    return dims[1] * int(numbers.get("group", 1)) if node.op_type == "ConvTranspose" else dims[0]
