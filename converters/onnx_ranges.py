"""Ranges of the tensors of a float ONNX model over calibration data; memory does not grow with the samples."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.calibration import Histogram, Range, choose_range, extremes, observe
from edgekit.calibration_cache import CalibrationCache
from edgekit.converters.onnx_prepare import Prepared, session
from edgekit.errors import ConversionError
from edgekit.streams import SampleFolder, Samples

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["ranges", "run_each", "showing", "sizes"]

#: Values that one run may leave in memory for this module to look at; more are looked at in several runs.
_MOST_VALUES = 1 << 24
_SEEN = CalibrationCache()


def ranges(
    prepared: Prepared, names: Sequence[str], samples: Samples, method: str, *, symmetric: bool
) -> dict[str, Range]:
    """Return the range that a calibration method keeps of each tensor.

    `minmax` looks at the extremes alone, which the graph itself computes. The others share one set of histograms,
    so that a ladder of recipes runs the model twice in all.

    Args:
        prepared: The float model.
        names: Tensors of its main graph.
        samples: Inputs by name.
        method: One of `edgekit.calibration.METHODS`.
        symmetric: Whether the integers' grid has zero in its middle.

    Raises:
        ConversionError: A value is not finite; names the tensor.
    """
    key = _key(prepared.model, samples, names)
    ends = _SEEN.get(key, dict[str, Range], lambda: _extremes(prepared, names, samples))
    if method == "minmax":
        return ends
    histograms = _SEEN.get(key, dict[str, Histogram], lambda: _histograms(prepared, names, samples))
    return {
        name: choose_range(histograms[name], method, symmetric=symmetric)
        if name in histograms
        else ends[name]
        for name in names
    }


def _key(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> list[str] | None:
    """Return what the measured ranges depend on; None for data that has no digest.

    The data's digest covers how it is preprocessed.
    """
    if not isinstance(samples, SampleFolder):
        return None
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    tools = [f"{tool} {version(tool)}" for tool in ("onnxruntime", "numpy")]
    return [digest, samples.digest, f"edgekit {__version__}", platform.machine(), *tools, *names]


def run_each(
    model: onnx.ModelProto, samples: Iterable[Mapping[str, np.ndarray]], names: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Run a model on one sample after the other; yield the tensors asked for."""
    runner = session(model, optimise=True)
    for sample in samples:
        yield dict(zip(names, runner.run(list(names), sample), strict=True))


def showing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with tensors among its answers."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return shown


def _extremes(prepared: Prepared, names: Sequence[str], samples: Samples) -> dict[str, Range]:
    import numpy as np

    ends = dict.fromkeys(names, (0.0, 0.0))
    wanted = [f"{name}/{end}" for name in names for end in ("ReduceMin", "ReduceMax")]
    for values in run_each(_measuring(prepared.model, names), samples, wanted):
        for name in names:
            low, high = float(values[f"{name}/ReduceMin"]), float(values[f"{name}/ReduceMax"])
            if low == np.inf and high == -np.inf:
                continue  # the tensor was empty
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ConversionError(f"tensor {name!r} is not finite on a calibration sample")
            before = ends[name]
            ends[name] = extremes(min(before[0], low), max(before[1], high))
    return ends


def _measuring(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with the extremes of tensors for its only answers.

    An infinity joins each tensor, so that an empty one has extremes too.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    graph = measuring.graph
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "/flat"))
    for end, nothing in (("ReduceMin", np.inf), ("ReduceMax", -np.inf)):
        graph.initializer.append(numpy_helper.from_array(np.array([nothing], np.float32), f"/{end}"))
    empty = _may_be_empty(model)
    for name in names:
        for end in ("ReduceMin", "ReduceMax"):
            read = name
            if name in empty:
                read = f"{name}/{end}/joined"
                graph.node.append(helper.make_node("Reshape", [name, "/flat"], [f"{name}/{end}/flat"]))
                graph.node.append(
                    helper.make_node("Concat", [f"{name}/{end}/flat", f"/{end}"], [read], axis=0)
                )
            graph.node.append(helper.make_node(end, [read], [f"{name}/{end}"], keepdims=0))
            graph.output.append(onnx.ValueInfoProto(name=f"{name}/{end}"))
    return measuring


def _may_be_empty(model: onnx.ModelProto) -> frozenset[str]:
    """Return the tensors whose size depends on values: selections may select nothing."""
    selecting = (
        "NonZero",
        "NonMaxSuppression",
        "Compress",
        "Where",
        "Range",
        "Loop",
        "If",
        "Slice",
        "Unique",
    )
    free: set[str] = set()
    for node in model.graph.node:
        if node.op_type in selecting or any(name in free for name in node.input):
            free.update(node.output)
    return frozenset(free)


def _histograms(prepared: Prepared, names: Sequence[str], samples: Samples) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    for chunk in _chunks(prepared.model, names, samples[0]):
        found |= observe(run_each(showing(prepared.model, chunk), samples, chunk))
    return found


def _chunks(
    model: onnx.ModelProto, names: Sequence[str], sample: Mapping[str, np.ndarray]
) -> list[list[str]]:
    """Return the tensors in groups whose values fit into memory together, by the sizes that the sample gives."""
    known = sizes(model, sample)
    chunks: list[list[str]] = [[]]
    room = _MOST_VALUES
    for name in names:
        size = known.get(name, _MOST_VALUES // 8)
        if chunks[-1] and size > room:
            chunks.append([])
            room = _MOST_VALUES
        chunks[-1].append(name)
        room -= size
    return chunks


def sizes(model: onnx.ModelProto, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many values each tensor has for this sample, as far as shapes tell."""
    import numpy as np
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        shape = value.type.tensor_type.shape
        for dimension, size in zip(
            shape.dim, sample[value.name].shape if value.name in sample else (), strict=False
        ):
            dimension.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred: Any = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    known = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = value.type.tensor_type
        if shape.HasField("shape") and all(d.HasField("dim_value") for d in shape.shape.dim):
            known[value.name] = int(np.prod([d.dim_value for d in shape.shape.dim], dtype=np.int64))
    return known
