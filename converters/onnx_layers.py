"""Each layer of a quantized ONNX model on the float network's values: what it alone loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.converters.onnx_prepare import HEAVY, Prepared, session
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["Pair", "decibels", "layer_ratios", "pairs", "run_layers"]

#: Before the name of every tensor of the quantized layers, where both models stand in one graph.
_MARK = "quantized/"
_SAMPLES = 8
_MOST_DB = 120.0


@dataclass(frozen=True)
class Pair:
    """How a tensor is quantized: real = scale × (integer − zero point), integers from `lowest` to `highest`."""

    scale: float
    point: int
    lowest: int
    highest: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the values as the integers hold them, float64."""
        import numpy as np

        steps = np.rint(values.astype(np.float64) / self.scale) + self.point
        result: np.ndarray = (np.clip(steps, self.lowest, self.highest) - self.point) * self.scale
        return result


def plain(name: str) -> str:
    """Return the float model's name of a tensor: the quantizer renames the graph's answers before their pair."""
    return name.removesuffix("_QuantizeLinear_Input")


def pairs(model: onnx.ModelProto) -> dict[str, Pair]:
    """Return how each quantized activation is quantized, by the float model's name of it."""
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored:
            scale, point = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
            limits = np.iinfo(point.dtype)
            found[plain(node.input[0])] = Pair(float(scale), int(point), int(limits.min), int(limits.max))
    return found


def side_by_side(
    prepared: Prepared, quantized: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """Return one model that holds the float network and every quantized layer on the float network's values.

    Returns:
        The model, and for each layer by name the float tensor that it makes and the quantized layer's own, both
        before any quantization of it.
    """
    import onnx

    both = onnx.ModelProto()
    both.CopyFrom(prepared.model)
    stored = {tensor.name for tensor in quantized.graph.initializer}
    weights = stored | {
        node.output[0]
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    layers = {node.name: node for node in prepared.model.graph.node}
    compared = {}
    for tensor in quantized.graph.initializer:
        both.graph.initializer.append(tensor)
        both.graph.initializer[-1].name = _MARK + tensor.name
    integers = {
        name
        for node in quantized.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.output
    }
    for node in quantized.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and node.name not in layers:
            continue
        copy = both.graph.node.add()
        copy.CopyFrom(node)
        copy.name = _MARK + node.name
        pair = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for place, name in enumerate(node.input):
            inside = not name or name in weights or name in integers
            copy.input[place] = (_MARK + name if name else "") if inside else plain(name)
        for place, name in enumerate(node.output):
            copy.output[place] = _MARK + name if name else ""
        if not pair and any(name in integers for name in node.input):
            compared[node.name] = (layers[node.name].output[0], _MARK + node.output[0])
    return both, compared


def run_layers(
    prepared: Prepared, quantized: onnx.ModelProto, samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield, for each sample, what every layer makes in float and in integers of the same float values."""
    import onnx

    both, compared = side_by_side(prepared, quantized)
    names = list(dict.fromkeys(name for two in compared.values() for name in two))
    there = {value.name for value in both.graph.output}
    both.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    runner = session(both)
    for sample in samples:
        values = dict(zip(names, runner.run(names, sample), strict=True))
        yield {layer: (values[one], values[other]) for layer, (one, other) in compared.items()}


def layer_ratios(prepared: Prepared, quantized: onnx.ModelProto, samples: Samples) -> dict[str, float]:
    """Return each quantized layer's signal-to-noise ratio in dB, worst first.

    A layer reads the float network's values and quantizes them as it does; what it makes is quantized as what
    follows reads it, and compared with the float layer's, behind its activation where the two are one.

    Args:
        prepared: The float model.
        quantized: What was made of it.
        samples: A few inputs; the first eight are run.
    """
    import numpy as np

    scales = pairs(quantized)
    made = {node.name: plain(node.output[0]) for node in quantized.graph.node}
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    few = (samples[i] for i in range(min(_SAMPLES, len(samples))))
    for values in run_layers(prepared, quantized, few):
        for layer, (exact, rough) in values.items():
            pair = scales.get(made[layer])
            exact, rough = exact.astype(np.float64), rough.astype(np.float64)  # noqa: PLW2901  # both as one type
            if pair is not None and made[layer] != _output(prepared, layer):
                exact = _activated(prepared, made[layer], exact)  # noqa: PLW2901  # the two are one layer
            rough = rough if pair is None else pair.apply(rough)  # noqa: PLW2901  # likewise
            signal[layer] = signal.get(layer, 0.0) + float(np.square(exact).sum())
            noise[layer] = noise.get(layer, 0.0) + float(np.square(exact - rough).sum())
    telling = [n.name for n in prepared.model.graph.node if n.name in signal and _computes(n)]
    ratios = {layer: decibels(signal[layer], noise[layer]) for layer in telling}
    return dict(sorted(ratios.items(), key=lambda item: (item[1], item[0])))


def _computes(node: onnx.NodeProto) -> bool:
    from edgekit.converters.onnx_policy import LIGHT

    return node.op_type in HEAVY or node.op_type in LIGHT


def _output(prepared: Prepared, layer: str) -> str:
    name: str = next(node.output[0] for node in prepared.model.graph.node if node.name == layer)
    return name


def _activated(prepared: Prepared, name: str, values: np.ndarray) -> np.ndarray:
    """Apply the activation that the quantizer drew into a layer: a scale whose zero is its lowest step clips alike."""
    import numpy as np

    node = prepared.maker[name]
    if node.op_type == "Relu":
        rectified: np.ndarray = np.maximum(values, 0.0)
        return rectified
    low, high = (
        float(prepared.array(node.input[i]))
        if len(node.input) > i and node.input[i] in prepared.weights
        else end
        for i, end in ((1, -math.inf), (2, math.inf))
    )
    clipped: np.ndarray = np.clip(values, low, high)
    return clipped


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), kept within ±120: what is exact, or was never there, has no ratio."""
    if noise <= 0.0:
        return _MOST_DB
    if signal <= 0.0:
        return -_MOST_DB
    return max(-_MOST_DB, min(_MOST_DB, 10.0 * math.log10(signal / noise)))
