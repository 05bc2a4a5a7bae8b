"""Bias correction: the mean error that quantization leaves in each convolution, taken back from its bias."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.tflite_layers import dequantized, quantization
from edgekit.converters.tflite_ranges import activations, run_each
from edgekit.sources.tflite_graph import read_graph
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["correct_biases"]

#: Samples that the means are taken over.
_SAMPLES = 32
_BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def correct_biases(plain: Path, made: Path, calibration: Samples) -> None:
    """Rewrite the integer biases of `made` so that each layer's mean output is the float one's, channel by channel.

    Layers come in the order they run, each behind the corrected ones before it (Nagel et al. 2019, "Data-Free
    Quantization Through Weight Equalization and Bias Correction", section 4.2, with means from data).

    Args:
        plain: The float model.
        made: The quantized one; it is rewritten.
        calibration: Inputs; the first 32 are run, once for each layer.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    few = [calibration[i] for i in range(min(_SAMPLES, len(calibration)))]
    floats = activations(read_graph(plain))
    layers = {name: ends for name, ends in _biased(made).items() if name in floats}
    wanted = _means(plain, few, {name: floats[name] for name in layers}, {})
    points = quantization(made)
    model = flatbuffer_utils.read_model(str(made))
    for name, (output, bias) in layers.items():
        found = _means(made, few, {name: output}, points)
        _shift(model, bias, wanted[name] - found[name])
        made.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))


def _biased(made: Path) -> dict[str, tuple[int, int]]:
    """Return the layers on integers that have a bias: name of the output to its number and the bias's."""
    main = read_graph(made).subgraphs[0]
    found = {}
    for operator in main.operators:
        if operator.kind not in _BIASED or len(operator.inputs) < 3 or operator.inputs[2] < 0:
            continue
        bias, output = main.tensors[operator.inputs[2]], main.tensors[operator.outputs[0]]
        if bias.constant and bias.scales and output.scales:
            found[output.name] = (operator.outputs[0], operator.inputs[2])
    return found


def _means(
    path: Path,
    few: list[dict[str, np.ndarray]],
    numbers: Mapping[str, int],
    points: Mapping[int, tuple[float, int]],
) -> dict[str, np.ndarray]:
    """Return each tensor's mean over samples and all axes but the last, float64 [channels]."""
    import numpy as np

    sums: dict[str, Any] = {}
    for values in run_each(path, few, numbers):
        for name, value in values.items():
            exact = dequantized(value, points[numbers[name]]) if points else value.astype(np.float64)
            sums[name] = sums.get(name, 0.0) + exact.mean(axis=tuple(range(exact.ndim - 1)))
    return {name: total / len(few) for name, total in sums.items()}


def _shift(model: Any, number: int, by: np.ndarray) -> None:
    """Add to a bias, in its own integers."""
    import numpy as np

    tensor = model.subgraphs[0].tensors[number]
    buffer = model.buffers[tensor.buffer]
    kind = np.int64 if len(buffer.data) == 8 * by.size else np.int32
    steps = np.round(by / np.asarray(tensor.quantization.scale, np.float64))
    limits = np.iinfo(kind)
    old = np.frombuffer(bytes(buffer.data), kind)
    new = np.clip(old.astype(np.float64) + steps, limits.min, limits.max).astype(kind)
    buffer.data = np.frombuffer(new.tobytes(), np.uint8)
