"""How well each operator of a quantized TFLite model follows the float one, and where one scale cannot serve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.tflite_checks import MOVES
from edgekit.converters.tflite_ranges import Range, activations, run_each
from edgekit.sources.tflite_graph import Subgraph, TfliteGraph, read_graph
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["decibels", "dequantized", "layer_ratios", "mixed_scales", "quantization"]

#: One scale for parts whose ranges differ by this factor leaves the smallest five bits of eight.
_MOST_UNLIKE = 8.0
_LEVEL_DB, _MOST_DB = -120.0, 120.0


def mixed_scales(graph: TfliteGraph, ranges: Mapping[str, Range]) -> list[str]:
    """Return the outputs of joints whose parts cannot share a scale, such as boxes and scores in one tensor.

    What follows a joint and only moves its values stays float with it: it would have the same one scale.

    Args:
        graph: The float model.
        ranges: Of its activations, by tensor name.
    """
    main = graph.subgraphs[0]
    kept: dict[int, None] = {}
    for operator in main.operators:
        joined = operator.kind in ("CONCATENATION", "PACK") and _unlike(main, operator.inputs, ranges)
        follows = operator.kind in MOVES and any(i in kept for i in operator.inputs)
        if joined or follows:
            kept |= dict.fromkeys(operator.outputs)
    return [main.tensors[i].name for i in kept]


def _unlike(main: Subgraph, inputs: tuple[int, ...], ranges: Mapping[str, Range]) -> bool:
    spans = [
        max(abs(low), abs(high))
        for low, high in (ranges[main.tensors[i].name] for i in inputs if main.tensors[i].name in ranges)
    ]
    spans = [span for span in spans if span > 0.0]
    return len(spans) > 1 and max(spans) > _MOST_UNLIKE * min(spans)


def layer_ratios(plain: Path, made: Path, samples: Samples) -> dict[str, float]:
    """Return, by the name of its output, each quantized operator's signal-to-noise ratio in dB, worst first.

    Args:
        plain: The float model.
        made: The quantized one, whose tensors keep the float ones' names.
        samples: A few inputs; the first eight are run.
    """
    import numpy as np

    few = [samples[i] for i in range(min(8, len(samples)))]
    numbers, integers = _comparable(plain, made)
    details = quantization(made)
    signal, noise = dict.fromkeys(numbers, 0.0), dict.fromkeys(numbers, 0.0)
    floats, quantized = run_each(plain, few, numbers), run_each(made, few, integers)
    for exact, rough in zip(floats, quantized, strict=True):
        for name, value in exact.items():
            off = value.astype(np.float64) - dequantized(rough[name], details[integers[name]])
            signal[name] += float(np.square(value, dtype=np.float64).sum())
            noise[name] += float(np.square(off).sum())
    ratios = {name: decibels(signal[name], noise[name]) for name in numbers}
    return dict(sorted(ratios.items(), key=lambda item: (item[1], item[0])))


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), kept within ±120: what is exact, or was never there, has no ratio."""
    if noise <= 0.0:
        return _MOST_DB
    return max(_LEVEL_DB, min(_MOST_DB, 10.0 * math.log10(signal / noise))) if signal > 0.0 else _LEVEL_DB


def _comparable(plain: Path, made: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return the outputs of computing operators that are float in one model and integers in the other, by name."""
    graph, other = read_graph(plain), read_graph(made)
    floats = activations(graph)
    main, changed = graph.subgraphs[0], other.subgraphs[0]
    computed = {i for op in main.operators if op.kind not in MOVES for i in op.outputs}
    integers = {
        tensor.name: number
        for number, tensor in enumerate(changed.tensors)
        if tensor.scales and not tensor.constant and tensor.type in ("INT8", "INT16")
    }
    shared = {name: n for name, n in floats.items() if n in computed and name in integers}
    return shared, {name: integers[name] for name in shared}


def quantization(path: Path) -> dict[int, tuple[float, int]]:
    """Return scale and zero point of a model's activations, by tensor number."""
    from edgekit.sources.tflite import open_interpreter

    details: list[dict[str, Any]] = open_interpreter(path).get_tensor_details()
    return {d["index"]: d["quantization"] for d in details}


def dequantized(value: np.ndarray, scale_and_point: tuple[float, int]) -> np.ndarray:
    """Return what integers stand for, as float64."""
    import numpy as np

    scale, point = scale_and_point
    result: np.ndarray = (value.astype(np.float64) - point) * scale
    return result
