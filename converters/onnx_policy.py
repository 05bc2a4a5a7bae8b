"""Which layers of an ONNX model are worth integers: data, and pure functions of the graph and its ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.calibration import Range
from edgekit.converters.onnx_prepare import HEAVY, Prepared

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT", "LIGHT", "MOVES", "Choice", "candidates", "choose"]

#: Operators between layers that have integer kernels. One is in integers only where what it reads comes from
#: integers and somebody behind it wants them: elsewhere it would cost two conversions and precision for nothing.
LIGHT = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Resize", "Pad",
)  # fmt: skip

#: Operators that move values and compute none: they are in integers where what they read is.
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")

#: Operators that stay in float, and why, though quantizers know some of them.
FLOAT = {
    "Softmax": "its answers crowd near zero, where a 256th is coarse, and a detector's or a classifier's scores end in it",
    "LogSoftmax": "its range is wide, and the largest values alone matter",
    "LayerNormalization": "its statistics divide by a standard deviation, which steps of an outlier's scale drown",
    "InstanceNormalization": "likewise",
    "BatchNormalization": "what is left of it after folding stands behind no layer with weights",
    "GroupNormalization": "likewise",
    "RMSNormalization": "likewise",
    "ReduceMean": "the statistics of a normalisation",
    "Pow": "squares span twice the decades",
    "Sqrt": "likewise",
    "Exp": "likewise",
    "Log": "likewise",
    "Reciprocal": "likewise",
    "Div": "a small divisor has no steps left",
    "Erf": "half of a GELU, which is read and written in float around it",
    "Where": "a mask of minus infinities would take the whole range",
    "TopK": "ties between steps change the order",
    "ArgMax": "likewise",
    "CumSum": "errors add up",
    "Gather": "tables are stored row by row instead",
}

#: One scale for parts whose ranges differ by this factor leaves the smallest five bits of eight.
_MOST_UNLIKE = 8.0


@dataclass(frozen=True)
class Choice:
    """What is in integers.

    Attributes:
        layers: Names of the nodes.
        floats: Tensors that stay in float though an integer layer makes them.
    """

    layers: frozenset[str]
    floats: frozenset[str]


def candidates(prepared: Prepared) -> list[str]:
    """Return the tensors whose ranges a choice or a quantizer may ask for, in the graph's order.

    What is kept in float only takes from them, so that one look at the data serves every recipe.
    """
    most = choose(prepared, {}, ()).layers
    found: dict[str, None] = {}
    for node in prepared.model.graph.node:
        if node.name in most:
            found |= dict.fromkeys(
                [*prepared.activations(node), *(n for n in node.output if n in prepared.floats)]
            )
    return list(found)


def choose(prepared: Prepared, ranges: Mapping[str, Range], kept: Collection[str]) -> Choice:
    """Return what is quantized.

    Args:
        prepared: The float model.
        ranges: Of the tensors that `candidates` names; without them no joint is looked at.
        kept: Layers that the recipe keeps in float.
    """
    nodes = prepared.model.graph.node
    left = {*kept, *_mixed(prepared, ranges)}
    left |= {add.name for node in nodes if (add := prepared.bias_add(node)) is not None}
    chosen = {
        node.name
        for node in nodes
        if node.name not in left and (_is_heavy(prepared, node) or node.op_type in (*LIGHT, *MOVES))
    }
    while dropped := {n.name for n in nodes if n.name in chosen and not _belongs(prepared, n, chosen)}:
        chosen -= dropped
    floats = {
        name
        for node in nodes
        for name in node.output
        if name in prepared.read_inside
        or (node.name in chosen and _ends_in_float(prepared, node, chosen))
        or (node.name in chosen and _feeds(prepared, name, kept, chosen))
    }
    return Choice(frozenset(chosen), frozenset(floats | (prepared.read_inside & prepared.floats)))


def _is_heavy(prepared: Prepared, node: onnx.NodeProto) -> bool:
    """Tell a layer with stored float weights.

    A product of two activations stays in float: nothing of it is stored in eight bits, and both factors lose.
    """
    if node.op_type not in HEAVY or len(node.input) < 2:  # values and weights
        return False
    name = node.input[1]
    return (
        name in prepared.weights
        and prepared.weights[name].data_type == 1
        and node.input[0] in prepared.floats
    )


def _mixed(prepared: Prepared, ranges: Mapping[str, Range]) -> set[str]:
    """Return joints of parts that cannot share a scale, and all that would read them with the one scale."""
    names: set[str] = set()
    tensors: set[str] = set()
    for node in prepared.model.graph.node:
        if _unlike(prepared, node, ranges) or tensors.intersection(node.input):
            names.add(node.name)
            if node.op_type == "Concat" or node.op_type in MOVES:
                tensors.update(node.output)
    return names


def _unlike(prepared: Prepared, node: onnx.NodeProto, ranges: Mapping[str, Range]) -> bool:
    """Tell a joint whose parts cannot share a scale, such as boxes and scores in one tensor."""
    if node.op_type != "Concat":
        return False
    spans = [max(-low, high) for low, high in (ranges[n] for n in prepared.activations(node) if n in ranges)]
    spans = [span for span in spans if span > 0.0]
    return len(spans) > 1 and max(spans) > _MOST_UNLIKE * min(spans)


def _belongs(prepared: Prepared, node: onnx.NodeProto, chosen: Collection[str]) -> bool:
    """Tell whether an operator stands between integers; a layer with weights always does."""
    if node.op_type in HEAVY:
        return True
    reads = prepared.activations(node)
    makers = [prepared.maker.get(name) for name in reads]
    fed = bool(reads) and all(maker is not None and maker.name in chosen for maker in makers)
    return fed and any(_is_wanted(prepared, name, chosen) for name in node.output)


def _is_wanted(prepared: Prepared, name: str, chosen: Collection[str]) -> bool:
    return any(reader.name in chosen for reader in prepared.readers.get(name, ()))


def _ends_in_float(prepared: Prepared, node: onnx.NodeProto, chosen: Collection[str]) -> bool:
    """Tell a matrix product that only floats read: its kernel answers them, and a scale would only lose.

    A convolution has no such kernel: without a scale behind it, it would run in float.
    """
    if node.op_type not in ("Gemm", "MatMul"):
        return False
    return not any(_is_wanted(prepared, name, chosen) for name in node.output)


def _feeds(prepared: Prepared, name: str, kept: Collection[str], chosen: Collection[str]) -> bool:
    """Tell a tensor that only floats read, a layer among them that the recipe keeps: it is kept for what it reads."""
    readers = prepared.readers.get(name, [])
    if not kept or any(reader.name in chosen for reader in readers):
        return False
    return any(
        reader.name in kept
        or (
            reader.op_type in (*LIGHT, *MOVES)
            and any(_feeds(prepared, output, kept, chosen) for output in reader.output)
        )
        for reader in readers
    )
