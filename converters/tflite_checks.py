"""Whether a TFLite artifact is what its precision says: a converter may ignore what it was told without a word."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import ConversionError
from edgekit.sources.tflite_graph import TfliteGraph, precision_of, read_graph

__all__ = ["HEAVY", "MOVES", "activation_share", "check_precision", "refuse_joint_outputs"]

#: Operators that carry most of the arithmetic: those whose activations must be integers in a static artifact.
HEAVY = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D")
# fmt: off
#: Operators that move values and compute none: their input's scale is their output's.
MOVES = frozenset((
    "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE", "GATHER",
    "GATHER_ND", "CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "PAD",
    "PADV2", "MIRROR_PAD", "REVERSE_V2", "QUANTIZE", "DEQUANTIZE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE",
    "MAX_POOL_2D", "TILE", "BROADCAST_TO",
))
# fmt: on
_JOINTS = ("CONCATENATION", "PACK")
_INTEGERS = {"int8": ("INT8", "UINT8"), "int16x8": ("INT16",)}


def activation_share(graph: TfliteGraph, precision: str) -> float:
    """Return the share of heavy operators whose activations are the integers of `precision`; 1 without any.

    Args:
        graph: A TFLite file.
        precision: `int8` or `int16x8`.
    """
    heavy = [(subgraph, op) for subgraph, op in graph.operators() if op.kind in HEAVY]
    types = _INTEGERS[precision]
    done = [
        op
        for subgraph, op in heavy
        if any(
            subgraph.tensors[i].type in types and not subgraph.tensors[i].constant
            for i in op.inputs
            if i >= 0
        )
    ]
    return len(done) / len(heavy) if heavy else 1.0


def check_precision(path: Path, precision: str) -> None:
    """Refuse an artifact that is not what was asked for, such as dynamic-range weights instead of static int8.

    Raises:
        ConversionError: Saying what it is.
    """
    graph = read_graph(path)
    found = precision_of(graph) or "fp32"
    if precision in _INTEGERS:
        share = activation_share(graph, precision)
        if found not in (precision, "fp32") or not share:  # without any such operator, float is no fault
            raise ConversionError(
                f"the converter made no {precision}: calibration data was ignored",
                got=f"{found}, {share:.0%} of convolutions and matrix products on integers",
                hint="Report it with the model: this is never shipped.",
            )
    elif precision == "fp32" and found != "fp32":
        raise ConversionError("the converter quantized what was to stay float", got=found)


def refuse_joint_outputs(path: Path) -> None:
    """Refuse an artifact in which parts that are joined in an output share a scale, such as boxes and scores.

    Whether they can, only their ranges tell, which the artifact no longer has.

    Raises:
        ConversionError: Naming the joint.
    """
    main = read_graph(path).subgraphs[0]
    behind = set(main.outputs)
    for operator in reversed(main.operators):
        if operator.kind not in MOVES or not behind & set(operator.outputs):
            continue
        behind |= set(operator.inputs)
        made = main.tensors[operator.outputs[0]]
        parts = {i for i in operator.inputs if i >= 0 and not main.tensors[i].constant}
        if operator.kind in _JOINTS and len(parts) > 1 and made.scales:
            raise ConversionError(
                "TensorFlow's quantizer gives one scale for parts that are joined in an output",
                got=made.name,
                hint="The LiteRT quantizer looks at the parts' ranges first.",
            )
