"""Bias correction: what quantization shifts on average, channel by channel, is taken back from the biases.

Rounding a layer's weights moves the mean of each output channel (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, 2019, §4.2). The shift is measured on calibration data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.converters.onnx_layers import run_layers
from edgekit.converters.onnx_prepare import HEAVY, Prepared, session
from edgekit.converters.onnx_ranges import sizes
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["correct_biases"]

#: Means settle early: more samples cost time and change nothing.
_SAMPLES = 64
#: What the samples' values between two layers may take in memory, in bytes.
_MOST_BYTES = 1 << 28


def correct_biases(
    prepared: Prepared, quantized: onnx.ModelProto, samples: Samples, *, sequential: bool
) -> None:
    """Shift the biases of a quantized model, in place.

    Args:
        prepared: The float model.
        quantized: What was made of it, its nodes in order.
        samples: Calibration data; up to 64, evenly spread, are run.
        sequential: Correct one layer after the other, each on what the corrected ones before it make; else all at
            once, each on the float network's values.
    """
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    readers = [node for node in quantized.graph.node if node.op_type in HEAVY]
    layers = {node.name: node for node in readers if _is_quantized(node, stored, quantized)}
    nodes = [node for node in prepared.model.graph.node if node.name in layers and prepared.bias_of(node)]
    if not nodes:
        return
    few = _spread(samples, _affordable(prepared, samples[0]))
    if not sequential:
        shifts = _own_shifts(prepared, quantized, few)
        for node in nodes:
            _shift(quantized, prepared.bias_of(node), shifts[node.name])
        return
    wanted = _means(prepared.model, {node.name: (node.output[0], _axis(node)) for node in nodes}, few)
    inside = {node.name for node in nodes if node.op_type != "MatMul"}
    walk = _Walk(quantized, few)
    biases = {node.name: prepared.bias_of(node) for node in nodes}
    for part in _parts(quantized, [node for node in quantized.graph.node if node.name in biases]):
        walk.run(part)
        name, made = part.layer.name, part.layer.output[0]
        shift = walk.mean(made, _axis(part.layer)) - wanted[name]
        _shift(quantized, biases[name], shift)
        if name in inside:
            walk.correct(made, _axis(part.layer), shift)


@dataclass(frozen=True)
class _Part:
    """The nodes of a model between two layers, the second included.

    Attributes:
        nodes: In order.
        layer: The last of them.
        reads: Values from before that they need.
        leaves: Values that they make and a later part needs.
    """

    nodes: tuple[onnx.NodeProto, ...]
    layer: onnx.NodeProto
    reads: tuple[str, ...]
    leaves: tuple[str, ...]


def _parts(model: onnx.ModelProto, layers: Sequence[onnx.NodeProto]) -> Iterator[_Part]:
    """Yield a model in parts that each end with a layer; what follows from stored values alone is in every part."""
    stored = {tensor.name for tensor in model.graph.initializer}
    constants: dict[str, onnx.NodeProto] = {}
    moving = []
    for node in model.graph.node:
        reads = [*node.input, *_inner_reads(node)]
        if node.input and all(not name or name in stored or name in constants for name in reads):
            constants |= dict.fromkeys(node.output, node)
        else:
            moving.append(node)
    ends = [next(i for i, node in enumerate(moving) if node.name == layer.name) for layer in layers]
    start = 0
    for end in ends:
        nodes = moving[start : end + 1]
        later = {name for node in moving[end + 1 :] for name in (*node.input, *_inner_reads(node))}
        made = {name for node in nodes for name in node.output if name}
        read = {name for node in nodes for name in (*node.input, *_inner_reads(node)) if name} - made - stored
        helped = _needed_constants(read, constants)
        yield _Part(
            (*helped, *nodes),
            nodes[-1],
            tuple(sorted(read - set(constants))),
            tuple(sorted(made & (later | {nodes[-1].output[0]}))),
        )
        start = end + 1


def _needed_constants(names: Iterable[str], constants: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes that make values from stored ones, those they need before them."""
    found: dict[str, onnx.NodeProto] = {}
    for name in sorted(names):
        node = constants.get(name)
        if node is not None and node.name not in found:
            for before in _needed_constants(node.input, constants):
                found.setdefault(before.name, before)
            found[node.name] = node
    return list(found.values())


class _Walk:
    """Runs a model part by part on a few samples; only values that are needed later are kept."""

    def __init__(self, model: onnx.ModelProto, few: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._model = model
        self._kept = [dict(sample) for sample in few]
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def run(self, part: _Part) -> None:
        """Run a part on every sample."""
        runner = session(self._model_of(part))
        for kept in self._kept:
            found = runner.run(list(part.leaves), {name: kept[name] for name in part.reads if name in kept})
            kept.update(zip(part.leaves, found, strict=True))

    def mean(self, name: str, axis: int) -> np.ndarray:
        """Return the mean of each channel of a value over the samples."""
        import numpy as np

        mean: np.ndarray = np.mean([_mean(kept[name], axis) for kept in self._kept], axis=0)
        return mean

    def correct(self, name: str, axis: int, shift: np.ndarray) -> None:
        """Take a shift of the channels back from a value."""
        import numpy as np

        for kept in self._kept:
            value = kept[name]
            shape = [1] * value.ndim
            shape[axis] = -1
            kept[name] = (value - shift.reshape(shape)).astype(np.float32)

    def _model_of(self, part: _Part) -> onnx.ModelProto:
        import onnx
        from onnx import helper

        model = onnx.ModelProto()
        model.ir_version = self._model.ir_version
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(part.nodes)
        names = {name for node in part.nodes for name in (*node.input, *_inner_reads(node))}
        model.graph.initializer.extend(self._stored[name] for name in sorted(names) if name in self._stored)
        for name in part.reads:
            if name in self._kept[0]:
                kind = helper.np_dtype_to_tensor_dtype(self._kept[0][name].dtype)
                rank = self._kept[0][name].ndim
                model.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * rank))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.leaves)
        return model


def _is_quantized(node: onnx.NodeProto, stored: Mapping[str, object], quantized: onnx.ModelProto) -> bool:
    return any(
        other.op_type == "DequantizeLinear" and other.output[0] == node.input[1] and other.input[0] in stored
        for other in quantized.graph.node
    )


def _affordable(prepared: Prepared, sample: Mapping[str, np.ndarray]) -> int:
    """Return how many samples' values fit between two layers: a few times the largest tensor each."""
    largest = max(sizes(prepared.model, sample).values(), default=1)
    return max(4, min(_SAMPLES, _MOST_BYTES // (4 * 4 * largest)))


def _spread(samples: Samples, most: int) -> list[dict[str, np.ndarray]]:
    count = min(most, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _axis(node: onnx.NodeProto) -> int:
    """Return where the channels of a layer's output lie."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of each channel, float64 [channels]."""
    import numpy as np

    mean: np.ndarray = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).mean(0, dtype=np.float64)
    return mean


def _own_shifts(
    prepared: Prepared, quantized: onnx.ModelProto, few: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    axes = {node.name: _axis(node) for node in prepared.model.graph.node}
    sums: dict[str, np.ndarray] = {}
    for values in run_layers(prepared, quantized, few):
        for layer, (exact, rough) in values.items():
            if layer.partition("_")[0] in HEAVY:
                shift = _mean(rough, axes[layer]) - _mean(exact, axes[layer])
                sums[layer] = sums.get(layer, 0.0) + shift / len(few)
    return sums


def _means(
    model: onnx.ModelProto, wanted: Mapping[str, tuple[str, int]], few: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the mean of each channel of tensors over samples, by layer."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in shown.graph.output}
    names = [name for name, _ in wanted.values()]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    runner = session(shown)
    given = {value.name for value in runner.get_inputs()}
    means: dict[str, list[np.ndarray]] = {layer: [] for layer in wanted}
    for sample in few:
        values = runner.run(names, {name: value for name, value in sample.items() if name in given})
        for (layer, (_, axis)), value in zip(wanted.items(), values, strict=True):
            means[layer].append(_mean(value, axis))
    return {layer: sum(found) / len(found) for layer, found in means.items()}  # type: ignore[misc]  # none is empty


def _inner_reads(node: onnx.NodeProto) -> set[str]:
    found: set[str] = set()
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            for child in branch.node:
                found.update(child.input)
                found |= _inner_reads(child)
            found.update(value.name for value in branch.output)
    return found


def _shift(quantized: onnx.ModelProto, bias: str, shift: np.ndarray) -> None:
    """Take a shift back from a bias: float, or int32 behind the DequantizeLinear that has the bias's name."""
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    if bias in stored:
        value = numpy_helper.to_array(stored[bias]).astype(np.float64) - shift
        stored[bias].CopyFrom(numpy_helper.from_array(value.astype(np.float32), bias))
        return
    node = next(node for node in quantized.graph.node if bias in node.output)
    tensor = stored[node.input[0]]
    scale = numpy_helper.to_array(stored[node.input[1]]).astype(np.float64)
    limits = np.iinfo(np.int32)
    steps = numpy_helper.to_array(tensor).astype(np.float64) - np.rint(shift / scale)
    tensor.CopyFrom(
        numpy_helper.from_array(np.clip(steps, limits.min, limits.max).astype(np.int32), tensor.name)
    )
