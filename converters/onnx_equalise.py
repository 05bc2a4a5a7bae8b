"""Equalisation: outlier channels of a normalisation are divided there and multiplied in the weights behind it.

The function stays the same in float; a scale for the whole tensor then fits all of its channels (Xiao et al.,
SmoothQuant, 2023, with α = 0.5: the factor is the root of a channel's largest value over its weights' largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.converters.onnx_prepare import HEAVY, Prepared
from edgekit.converters.onnx_ranges import run_each, showing
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["equalise", "equalise_like"]

#: Channels whose factors differ by less are alike already.
_ALIKE = 1.5


def equalise(prepared: Prepared, samples: Samples) -> Prepared | None:
    """Return the model with channels equalised, or None where there is nothing to gain.

    Args:
        prepared: The float model; it is not changed.
        samples: Calibration data.
    """
    places = _places(prepared)
    largest = _largest(prepared, list(places), samples)
    factors = {
        name: found
        for name, (node, readers) in places.items()
        if (found := _factors(prepared, node, largest[name], readers)).max() >= _ALIKE * found.min()
    }
    return _divide(prepared, factors) if factors else None


def equalise_like(prepared: Prepared, quantized: onnx.ModelProto) -> Prepared:
    """Return the model with the channels equalised as they are in what was made of it.

    Args:
        prepared: The float model; it is not changed.
        quantized: An equalised model, whose normalisations are float.
    """
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    factors = {}
    for name, (node, _) in _places(prepared).items():
        divided = stored.get(_name(node, 1))
        if divided is not None:
            scale = prepared.array(node.input[1])
            factors[name] = np.where(scale != 0.0, scale, 1.0) / np.where(
                scale != 0.0, numpy_helper.to_array(divided), 1.0
            )
    return _divide(prepared, factors)


def _places(prepared: Prepared) -> dict[str, tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Return normalisations and the layers behind them, by the tensor between."""
    found = ((node, _readers(prepared, node)) for node in prepared.model.graph.node)
    return {node.output[0]: (node, readers) for node, readers in found if readers}


def _divide(prepared: Prepared, factors: Mapping[str, np.ndarray]) -> Prepared:
    """Divide the channels of tensors by factors, and multiply what reads them."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    places = _places(prepared)
    for name, factor in factors.items():
        node, readers = places[name]
        for place in range(1, len(node.input)):  # the scale, and the shift if there is one
            _own(model, node, place, prepared.array(node.input[place]) / factor)
        for reader in readers:
            by_rows = factor.reshape(1, -1) if _is_transposed(reader) else factor.reshape(-1, 1)
            _own(model, reader, 1, prepared.array(reader.input[1]) * by_rows)
    read = {name for node in model.graph.node for name in node.input} | prepared.read_inside
    for tensor in [t for t in model.graph.initializer if t.name not in read | prepared.outputs]:
        model.graph.initializer.remove(tensor)
    return Prepared(model)


def _readers(prepared: Prepared, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the matrix products that read a normalisation, if nothing else does and all weights are stored."""
    name = node.output[0] if node.output else ""
    readers = prepared.readers.get(name, [])
    fits = (
        node.op_type == "LayerNormalization"
        and all(
            value in prepared.weights and len(prepared.weights[value].dims) == 1 for value in node.input[1:]
        )
        and name not in prepared.outputs | prepared.read_inside
        and all(
            r.op_type in HEAVY[2:]
            and r.input[0] == name
            and r.input[1] in prepared.weights
            and len(prepared.weights[r.input[1]].dims) == 2  # a matrix
            and not _number(r, "transA")
            for r in readers
        )
    )
    return readers if fits else []


def _number(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return bool(_number(node, "transB"))


def _largest(prepared: Prepared, names: list[str], samples: Samples) -> dict[str, np.ndarray]:
    """Return the largest absolute value of each channel, the last axis, of each tensor."""
    import numpy as np

    found: dict[str, np.ndarray] = {}
    if not names:
        return found
    for values in run_each(showing(prepared.model, names), samples, names):
        for name, value in values.items():
            seen = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            found[name] = np.maximum(found[name], seen) if name in found else seen
    return found


def _factors(
    prepared: Prepared, node: onnx.NodeProto, largest: np.ndarray, readers: list[onnx.NodeProto]
) -> np.ndarray:
    """Return what each channel is divided by, float32 [channels]; their geometric mean is one."""
    import numpy as np

    scale = prepared.array(node.input[1])
    weights = np.zeros_like(largest)
    for reader in readers:
        array = np.abs(prepared.array(reader.input[1]))
        weights = np.maximum(weights, array.max(axis=0 if _is_transposed(reader) else 1))
    alive = (largest > 0.0) & (weights > 0.0) & (scale != 0.0)
    factors = np.ones_like(largest)
    factors[alive] = np.sqrt(largest[alive] / weights[alive])
    if alive.any():
        factors[alive] /= np.exp(np.log(factors[alive]).mean())
    result: np.ndarray = factors.astype(np.float32)
    return result


def _name(node: onnx.NodeProto, place: int) -> str:
    return f"{node.name}_{place}_equalised"


def _own(model: onnx.ModelProto, node: onnx.NodeProto, place: int, values: np.ndarray) -> None:
    """Give a node another stored input, which no other node reads."""
    import numpy as np
    from onnx import numpy_helper

    same = next(other for other in model.graph.node if other.name == node.name)
    same.input[place] = _name(node, place)
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), same.input[place]))
