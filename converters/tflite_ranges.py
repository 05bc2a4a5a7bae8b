"""Ranges of activations from calibration data, streamed: memory does not grow with the number of samples.

LiteRT's own calibrator keeps a moving average of the extremes, whose result depends on the order of the samples,
and makes a list of the data before it starts. Here the extremes are those of all samples, and where a method
clips, a second pass fills one histogram for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError
from edgekit.sources.tflite import open_interpreter
from edgekit.sources.tflite_graph import TfliteGraph, read_graph
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Range", "activations", "clip", "observe", "run_each"]

#: Smallest and largest value of a tensor, in its own unit.
Range = tuple[float, float]

_BINS = 2048
_PERCENTILE = 99.99
_SHARES = 64
#: Values of one tensor and sample that go into its histogram: of larger ones, as many by chance.
_MOST_VALUES = 1 << 16


def activations(graph: TfliteGraph) -> dict[str, int]:
    """Return the main graph's float tensors that hold a value of a run, by name."""
    main = graph.subgraphs[0]
    made = {*main.inputs, *(i for operator in main.operators for i in operator.outputs if i >= 0)}
    return {
        tensor.name: number
        for number, tensor in enumerate(main.tensors)
        if number in made and tensor.type == "FLOAT32" and not tensor.constant
    }


def run_each(
    path: Path, samples: Iterable[Mapping[str, np.ndarray]], numbers: Mapping[str, int]
) -> Iterator[dict[str, np.ndarray]]:
    """Run a model on one sample after the other; yield the tensors asked for, copies, as they lie in the file.

    Args:
        path: Of a TFLite file with one signature.
        samples: Inputs by the signature's names.
        numbers: Tensors of the main graph by name.
    """
    interpreter = open_interpreter(path, every_tensor=True)
    ((_, inputs, _),) = read_graph(path).signatures.values()
    shapes: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        if shapes != {name: sample[name].shape for name in inputs}:
            shapes = {name: sample[name].shape for name in inputs}
            for name, number in inputs.items():
                interpreter.resize_tensor_input(number, shapes[name])
            interpreter.allocate_tensors()
        for name, number in inputs.items():
            interpreter.set_tensor(number, sample[name])
        interpreter.invoke()
        yield {name: _tensor(interpreter, number) for name, number in numbers.items()}


def _tensor(interpreter: Any, number: int) -> np.ndarray:
    value: np.ndarray = interpreter.get_tensor(number)
    return value


def observe(path: Path, samples: Samples, method: str, steps: int) -> dict[str, Range]:
    """Return the range of every activation of a float TFLite model over calibration data.

    Args:
        path: Of a TFLite file with one signature.
        samples: Inputs by the signature's names; read once for `minmax`, twice for the others.
        method: `minmax`, `percentile` or `mse`; see `clip`.
        steps: Between the smallest and the largest integer of an activation.

    Raises:
        ConversionError: A value is not finite, or the method is unknown.
    """
    if method not in _CLIPS:
        raise ConversionError(f"unknown calibration {method!r}", expected="one of " + ", ".join(_CLIPS))
    numbers = activations(read_graph(path))
    extremes = _extremes(run_each(path, samples, numbers))
    if method == "minmax":
        return extremes
    histograms = _histograms(run_each(path, samples, numbers), extremes)
    return {name: clip(extremes[name], histogram, method, steps) for name, histogram in histograms.items()}


def _extremes(runs: Iterator[dict[str, np.ndarray]]) -> dict[str, Range]:
    import numpy as np

    found: dict[str, Range] = {}
    for values in runs:
        for name, value in values.items():
            if not value.size:
                continue
            low, high = float(value.min()), float(value.max())
            if not np.isfinite(low) or not np.isfinite(high):
                raise ConversionError(f"tensor {name!r} is not finite on a calibration sample")
            before = found.get(name, (0.0, 0.0))  # zero is always exact: it is what padding is
            found[name] = (min(before[0], low), max(before[1], high))
    return found


def _histograms(
    runs: Iterator[dict[str, np.ndarray]], extremes: Mapping[str, Range]
) -> dict[str, np.ndarray]:
    import numpy as np

    counts = {name: np.zeros(_BINS, np.int64) for name in extremes}
    for values in runs:
        for name, value in values.items():
            low, high = extremes.get(name, (0.0, 0.0))
            if high > low:
                some = value if value.size <= _MOST_VALUES else _by_chance(value)
                counts[name] += np.histogram(some, _BINS, (low, high))[0]
    return counts


def _by_chance(value: np.ndarray) -> np.ndarray:
    """Return some values of a large tensor; every n-th would be those of a few channels."""
    import numpy as np

    some: np.ndarray = value.ravel()[np.random.default_rng(0).integers(value.size, size=_MOST_VALUES)]
    return some


def clip(extremes: Range, histogram: np.ndarray, method: str, steps: int) -> Range:
    """Return the range that a method keeps of what was seen; it always holds zero.

    `minmax` keeps all of it, `percentile` the middle 99.99 %, and `mse` the share of it with which the steps
    lose the least: the smallest mean squared error of rounding and clipping together.

    Args:
        extremes: Smallest and largest value; zero lies between them.
        histogram: int64 [bins], counts in equal bins between the two.
        method: One of the three.
        steps: 255 for eight bits.
    """
    if extremes[1] <= extremes[0] or not histogram.any():
        return extremes
    return _CLIPS[method](extremes, histogram, steps)


def _percentile(extremes: Range, histogram: np.ndarray, steps: int) -> Range:  # noqa: ARG001  one of a table
    import numpy as np

    low, high = extremes
    tail = (100.0 - _PERCENTILE) / 200.0 * histogram.sum()
    edges = np.linspace(low, high, len(histogram) + 1)
    above, below = histogram.cumsum(), histogram[::-1].cumsum()
    first = int(np.searchsorted(above, tail, side="right"))
    last = len(histogram) - int(np.searchsorted(below, tail, side="right"))
    return min(0.0, float(edges[first])), max(0.0, float(edges[last]))


def _least_error(extremes: Range, histogram: np.ndarray, steps: int) -> Range:
    import numpy as np

    low, high = extremes
    width = (high - low) / len(histogram)
    centres = low + width * (np.arange(len(histogram)) + 0.5)

    def error(share: float) -> float:
        bottom, top = low * share, high * share
        step = (top - bottom) / steps
        kept = np.clip(np.round((centres - bottom) / step) * step + bottom, bottom, top)
        return float((histogram * (centres - kept) ** 2).sum())

    shares = [(i + 1) / _SHARES for i in range(_SHARES // 4, _SHARES)]
    best = min(shares, key=lambda share: (error(share), -share))
    return low * best, high * best


_CLIPS: dict[str, Callable[[Range, np.ndarray, int], Range]] = {
    "minmax": lambda extremes, _histogram, _steps: extremes,
    "percentile": _percentile,
    "mse": _least_error,
}
