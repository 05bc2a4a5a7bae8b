"""Channels of very different ranges brought to one scale in front of a layer, whose weights take the difference.

One scale for a whole activation leaves the small channels no steps. Dividing each channel by a factor, and multiplying
the weights that read it, changes nothing in float: factors are powers of two, so not even the last bit. They are those
of cross-layer equalisation and SmoothQuant (Nagel et al. 2019, arXiv:1906.04721; Xiao et al. 2022, arXiv:2211.10438),
rounded, and found only where they are expected to take the noise of eight bits down by `_WORTH_DB`. The division goes
into the weights in front where only ReLU and pooling are between; elsewhere it is a node.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Exponents", "equalise", "find_exponents", "power_exponents", "recall", "remember"]

#: Name of the first layer that reads a value, to the exponent of two by which each of its channels is divided.
Exponents = Mapping[str, Sequence[int]]
#: Powers of the activation's range in a factor; the rest is the weights' own. One half makes both alike.
_SHARES = (0.5, 0.75, 1.0)
_WORTH_DB = 6.0
#: NNCF gives a channel with a scale of its own at least this share of the largest channel's.
_LEAST_SCALE = 0.01
#: What lets a positive factor through, channel by channel.
_HOMOGENEOUS = ("Relu", "MaxPool", "AvgPool")
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_KEY = "edgekit_equalised"


@dataclass(frozen=True)
class _Group:
    """Layers that read one value.

    Attributes:
        value: The output that they read.
        layers: The layers, in order.
        axis: Of the value's channels: 1 in maps, -1 in rows.
        alone: The layers give each channel a scale of its own, as depthwise convolutions do.
    """

    value: Any
    layers: tuple[Any, ...]
    axis: int
    alone: bool

    @property
    def name(self) -> str:
        return str(self.layers[0].get_friendly_name())


def find_exponents(model: Any, samples: Samples, skip: Collection[str] = ()) -> dict[str, list[int]]:
    """Return by what powers of two the channels in front of layers are divided with profit.

    Args:
        model: A float OpenVINO model.
        samples: Calibration data.
        skip: Names of layers that stay in float.
    """
    groups = [g for g in _groups(model) if not all(n.get_friendly_name() in skip for n in g.layers)]
    found = {}
    for group, ranges in zip(groups, _ranges(model, groups, samples), strict=True):
        exponents = power_exponents(_weights(group), *ranges, alone=group.alone)
        if exponents is not None:
            found[group.name] = [int(exponent) for exponent in exponents]
    return found


def power_exponents(
    weights: np.ndarray, low: np.ndarray, high: np.ndarray, power: np.ndarray, *, alone: bool
) -> np.ndarray | None:
    """Return the exponents of two of what each channel is divided by, int64 [channels]; None where not worth it.

    Args:
        weights: float [outputs, channels, taps].
        low: Least value of each channel, float [channels].
        high: Largest value of each channel, float [channels].
        power: Mean square of each channel, float [channels].
        alone: Each channel has a scale of its own, and outputs of its own: weights are [channels, 1, taps].
    """
    import numpy as np

    spans = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
    if alone:
        found = spans[spans > 0.0]
        if not len(found) or found.min() >= _LEAST_SCALE * found.max():
            return None
        return _rounded(np.where(spans > 0.0, spans, np.median(found)))
    rows = np.abs(weights).max(axis=(1, 2), keepdims=True)
    weights = np.divide(
        weights, rows, out=np.zeros(weights.shape), where=rows > 0.0
    )  # a row has its own scale
    reach = np.abs(weights).max(axis=(0, 2))
    alive = (spans > 0.0) & (reach > 0.0)
    if not alive.any():
        return None
    # what was silent may not stay so: it is taken to say as much as the others
    typical = np.median((spans * reach)[alive])
    reach = np.where(reach > 0.0, reach, np.median(reach[alive]))
    spans = np.where(alive, spans, typical / reach)
    candidates = [_rounded(spans**share / reach ** (1.0 - share)) for share in _SHARES]
    noises = [_noise(weights, low, high, power, 2.0**exponents) for exponents in candidates]
    best = int(np.argmin(noises))
    plain = _noise(weights, low, high, power, np.ones_like(spans))
    return candidates[best] if noises[best] * 10.0 ** (_WORTH_DB / 10.0) <= plain else None


def _rounded(factors: np.ndarray) -> np.ndarray:
    """Return the nearest exponents of two, with a median of zero."""
    import numpy as np

    exponents = np.log2(factors)
    return np.asarray(np.round(exponents - np.median(exponents)), np.int64)


def _noise(
    weights: np.ndarray, low: np.ndarray, high: np.ndarray, power: np.ndarray, factors: np.ndarray
) -> float:
    """Return the mean over the outputs of expected noise over signal, with one scale for the activation.

    Rounding to steps of d leaves a noise of d²/12; outputs are sums, channels and roundings taken as independent.
    """
    import numpy as np

    scaled = weights * factors[None, :, None]
    step = (max(float((high / factors).max()), 0.0) - min(float((low / factors).min()), 0.0)) / 255.0
    steps = np.abs(scaled).max(axis=(1, 2)) / 127.0
    noise = step**2 * np.square(scaled).sum(axis=(1, 2))
    noise += steps**2 * weights.shape[2] * (power / factors**2).sum()
    signal = (np.square(weights) * power[None, :, None]).sum(axis=(1, 2))
    heard = signal > 0.0
    return float((noise[heard] / signal[heard]).mean() / 12.0) if heard.any() else 0.0


# What a model remembers of it


def remember(model: Any, exponents: Exponents) -> None:
    """Write into a model how it was equalised; nothing where it was not."""
    if exponents:
        model.set_rt_info(json.dumps(exponents, sort_keys=True, separators=(",", ":")), [_KEY])


def recall(model: Any) -> dict[str, list[int]]:
    """Return how a model was equalised."""
    if not model.has_rt_info([_KEY]):
        return {}
    found: dict[str, list[int]] = json.loads(model.get_rt_info([_KEY]).astype(str))
    return found


# The graph


def equalise(model: Any, exponents: Exponents) -> list[str]:
    """Divide channels and multiply the weights that read them; return the names of nodes put in.

    Args:
        model: A float OpenVINO model; it is changed, its function is not.
        exponents: As `find_exponents` gave them for this model.
    """
    import numpy as np

    inserted = []
    for group in _groups(model):
        if group.name not in exponents:
            continue
        factors = np.exp2(np.array(exponents[group.name], np.float32))
        for layer in group.layers:
            _scale(layer, 1, _on_inputs(layer, factors))
        if not _fold(group, 1.0 / factors):
            inserted.append(_insert(group, 1.0 / factors))
    return inserted


def _groups(model: Any) -> list[_Group]:
    found: dict[tuple[str, int, int, bool], list[Any]] = {}
    for node in model.get_ordered_ops():
        axis = _channel_axis(node)
        if axis is not None:
            source, alone = node.input_value(0), node.get_type_name() == "GroupConvolution"
            key = (source.get_node().get_friendly_name(), source.get_index(), axis, alone)
            found.setdefault(key, []).append(node)
    return [
        _Group(layers[0].input_value(0), tuple(layers), axis, alone)
        for (_, _, axis, alone), layers in found.items()
    ]


def _channel_axis(node: Any) -> int | None:
    """Return the axis of the channels that a layer with weights of its own reads; None for any other node."""
    kind = node.get_type_name()
    if kind not in _LAYERS or not _is_float_constant(node.input_value(1)):
        return None
    shape = node.input_value(1).get_shape()
    if kind == "MatMul":
        rank = node.input_value(0).get_partial_shape().rank
        rows = not node.get_attributes()["transpose_a"] and len(shape) == 2
        return -1 if rows and rank.is_static and rank.get_length() > 1 else None
    return 1 if kind == "Convolution" or shape[2] == 1 else None


def _is_float_constant(value: Any) -> bool:
    node = value.get_node()
    return bool(node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32")


def _weights(group: _Group) -> np.ndarray:
    """Return the weights of all layers of a group, float [outputs, channels, taps]."""
    import numpy as np

    kernels = [_kernel(layer) for layer in group.layers]
    taps = max(kernel.shape[2] for kernel in kernels)
    return np.concatenate([np.pad(k, ((0, 0), (0, 0), (0, taps - k.shape[2]))) for k in kernels])


def _kernel(layer: Any) -> np.ndarray:
    values: np.ndarray = layer.input_value(1).get_node().data
    if layer.get_type_name() == "MatMul":
        return (values if layer.get_attributes()["transpose_b"] else values.T)[:, :, None]
    if layer.get_type_name() == "GroupConvolution":
        return values.reshape(values.shape[0] * values.shape[1], values.shape[2], -1)
    return values.reshape(*values.shape[:2], -1)


def _ranges(model: Any, groups: list[_Group], samples: Samples) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield least, largest and mean square of each channel of each group's value.

    The graph itself reduces its values: what comes out of it is small, however large they are.
    """
    import numpy as np
    from openvino import opset13

    from edgekit.converters.openvino_layers import last_outputs

    if not groups:
        return
    shown = model.clone()
    nodes = {node.get_friendly_name(): node for node in shown.get_ops()}
    reduced = []
    for group in groups:
        value = nodes[group.value.get_node().get_friendly_name()].output(group.value.get_index())
        reduced += _reductions(value, group.axis)
    shown.add_results([opset13.result(node) for node in reduced])
    runs = list(last_outputs(shown, len(reduced), samples))
    for i in range(0, len(reduced), 3):
        lows, highs, powers = (np.stack([run[i + part] for run in runs]) for part in range(3))
        yield lows.min(axis=0), highs.max(axis=0), powers.mean(axis=0, dtype=np.float64)


def _reductions(value: Any, axis: int) -> list[Any]:
    """Return nodes that give least, largest and mean square of each channel, float [channels]."""
    from openvino import opset13

    rank = value.get_partial_shape().rank.get_length()
    others = [i for i in range(rank) if i != axis % rank]
    return [
        opset13.reduce_min(value, others),
        opset13.reduce_max(value, others),
        opset13.reduce_mean(opset13.multiply(value, value), others),
    ]


def _fold(group: _Group, factors: np.ndarray) -> bool:
    """Multiply what makes a group's value, where only the group reads it; tell whether that could be done."""
    readers = {layer.get_friendly_name() for layer in group.layers}
    node, scaled = group.value.get_node(), []
    while _read_by(node) == readers:
        kind, readers = node.get_type_name(), {node.get_friendly_name()}
        if kind in _LAYERS and group.axis == (-1 if kind == "MatMul" else 1) and _is_own(node):
            scaled.append((node, 1, _on_outputs(node, factors)))
            for each in scaled:
                _scale(*each)
            return True
        stored = [i for i in range(len(node.inputs())) if _is_float_constant(node.input_value(i))]
        if kind in ("Add", "Multiply") and len(stored) == 1:
            scaled.append((node, stored[0], _along(group, factors)))
            if kind == "Multiply":
                for each in scaled:
                    _scale(*each)
                return True
            node = node.input_value(1 - stored[0]).get_node()
        elif kind == "Relu" or (kind in _HOMOGENEOUS and group.axis == 1):
            node = node.input_value(0).get_node()
        else:
            return False
    return False


def _read_by(node: Any) -> set[str]:
    return {
        port.get_node().get_friendly_name() for value in node.outputs() for port in value.get_target_inputs()
    }


def _is_own(layer: Any) -> bool:
    """Tell a layer whose weights are stored, and two-dimensional in a product."""
    stored = layer.input_value(1)
    return _is_float_constant(stored) and (layer.get_type_name() != "MatMul" or len(stored.get_shape()) == 2)


def _along(group: _Group, factors: np.ndarray) -> np.ndarray:
    """Return factors in the shape that broadcasts along the channels of a group's value."""
    if group.axis == -1:
        return factors
    return factors.reshape(1, -1, *[1] * (group.value.get_partial_shape().rank.get_length() - 2))


def _on_inputs(layer: Any, factors: np.ndarray) -> np.ndarray:
    """Return factors of the channels that a layer reads, in the shape that broadcasts over its weights."""
    rank = len(layer.input_value(1).get_shape())
    if layer.get_type_name() == "MatMul":
        return factors if layer.get_attributes()["transpose_b"] else factors[:, None]
    if layer.get_type_name() == "GroupConvolution":
        return factors.reshape(-1, *[1] * (rank - 1))
    return factors.reshape(1, -1, *[1] * (rank - 2))


def _on_outputs(layer: Any, factors: np.ndarray) -> np.ndarray:
    """Return factors of the channels that a layer makes, in the shape that broadcasts over its weights."""
    shape = layer.input_value(1).get_shape()
    if layer.get_type_name() == "MatMul":
        return factors[:, None] if layer.get_attributes()["transpose_b"] else factors
    if layer.get_type_name() == "GroupConvolution":
        return factors.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
    return factors.reshape(-1, *[1] * (len(shape) - 1))


def _scale(node: Any, port: int, factors: np.ndarray) -> None:
    """Multiply a constant that a node reads."""
    import openvino as ov

    values = node.input_value(port).get_node().data
    node.input(port).replace_source_output(ov.opset13.constant(values * factors).output(0))


def _insert(group: _Group, factors: np.ndarray) -> str:
    """Put a multiplication between a group's value and its layers; return its name."""
    import openvino as ov

    node = ov.opset13.multiply(group.value, ov.opset13.constant(_along(group, factors)))
    node.set_friendly_name(f"Equalised_{group.name}")
    for layer in group.layers:
        layer.input(0).replace_source_output(node.output(0))
    return str(node.get_friendly_name())
