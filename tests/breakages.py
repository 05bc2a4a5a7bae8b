"""Ways to break the artifacts of a small network by script, and ways to change them that change nothing.

Each takes an opened graph and a seeded generator, changes the graph, and says what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.graphs import Graph, Layer, OnnxGraph, TfliteGraph

__all__ = ["BREAKAGES", "REWRITES", "Change"]

Random = np.random.Generator
#: Changes the graph; returns what it did, or an empty text where it does not apply.
Change = Callable[[Graph, Random], str]


def _pick(graph: Graph, random: Random, kind: str = "") -> tuple[int, Layer]:
    numbers = [i for i, layer in enumerate(graph.layers) if kind in ("", layer.kind)]
    number = int(random.choice(numbers))
    return number, graph.layers[number]


def _shuffled(n: int, share: float, random: Random) -> np.ndarray:
    """Return 0…n-1 with a share of the places, two at least, exchanged in a circle."""
    places = random.choice(n, max(2, int(n * share)), replace=False)
    order = np.arange(n)
    order[places] = np.roll(places, 1)
    return order


# Breakages


def swap_input_channels(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    weights = graph.weights(layer)
    if weights.shape[1] == 1:
        return ""
    share = float(random.choice([0.02, 0.1, 0.5, 1.0]))
    graph.set_weights(layer, weights[:, _shuffled(weights.shape[1], share, random)])
    return f"input channels of layer {number} exchanged, {share:.0%}"


def swap_filters(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random, "conv")
    weights = graph.weights(layer)
    share = float(random.choice([0.05, 0.2, 0.5, 1.0]))
    graph.set_weights(layer, weights[_shuffled(len(weights), share, random)])
    return f"filters of layer {number} exchanged, {share:.0%}"


def permute_outputs(graph: Graph, random: Random) -> str:
    heads = graph.heads()
    which = int(random.integers(len(heads)))
    layer = heads[which]
    weights = graph.weights(layer)
    order = _shuffled(len(weights), float(random.choice([0.2, 0.4, 1.0])), random)
    graph.set_weights(layer, weights[order])
    graph.set_bias(layer, graph.bias(layer)[order])
    graph.permute_scales(layer, order)
    return f"outputs of head {which} permuted to {order.tolist()}"


def drop_bias(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    graph.set_bias(layer, np.zeros_like(graph.bias(layer)))
    return f"bias of layer {number} dropped"


def drop_all_biases(graph: Graph, random: Random) -> str:
    first = int(random.integers(0, 3))
    for layer in graph.layers[first:]:
        graph.set_bias(layer, np.zeros_like(graph.bias(layer)))
    return f"biases dropped from layer {first} on"


def scale_bias(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    factor = float(random.choice([-1.0, 4.0, 16.0, 64.0, 256.0]))
    graph.set_bias(layer, graph.bias(layer).astype(np.float64) * factor)
    return f"bias of layer {number} times {factor:g}"


def transpose_kernels(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random, "conv")
    graph.set_weights(layer, graph.weights(layer).transpose(0, 1, 3, 2))
    return f"kernels of layer {number} transposed"


def flip_kernels(graph: Graph, random: Random) -> str:
    """Convolution instead of correlation."""
    number, layer = _pick(graph, random, "conv")
    graph.set_weights(layer, graph.weights(layer)[:, :, ::-1, ::-1])
    return f"kernels of layer {number} flipped"


def shift_padding(graph: Graph, random: Random) -> str:
    """The kernel one step off, which is what padding on the wrong side does."""
    number, layer = _pick(graph, random, "conv")
    axis, step = int(random.choice([2, 3])), int(random.choice([-1, 1]))
    graph.set_weights(layer, np.roll(graph.weights(layer), step, axis=axis))
    return f"kernels of layer {number} moved by {step} along axis {axis}"


def pad_wrong_side(graph: Graph, random: Random) -> str:
    """ONNX: the layer's input moved by whole pixels."""
    if not isinstance(graph, OnnxGraph):
        return ""
    number, layer = _pick(graph, random, "conv")
    dy, dx = (int(v) for v in random.choice([-2, -1, 1, 2], 2))
    graph.add("pads", np.array([0, 0, dy, dx, 0, 0, -dy, -dx], np.int64))
    graph.insert_before(layer.node, "Pad", "pads")
    return f"input of layer {number} moved by ({dy}, {dx})"


def pad_same(graph: Graph, random: Random) -> str:
    """TFLite: same padding where it was valid."""
    if not isinstance(graph, TfliteGraph):
        return ""
    number, layer = _pick(graph, random, "conv")
    return f"layer {number} padded to the same size" if graph.pad_same(layer) else ""


def scale_weights(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    weights = graph.weights(layer).astype(np.float64)
    factor = float(random.choice([0.1, 0.3, 0.6, 1.5, 3.0, 10.0]))
    rows = random.random(len(weights)) < float(random.choice([0.1, 0.5, 1.0]))
    rows[int(random.integers(len(weights)))] = True
    weights[rows] *= factor
    graph.set_weights(layer, weights)
    return f"weights of {int(rows.sum())} channels of layer {number} times {factor:g}"


def negate_filters(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    weights = graph.weights(layer).astype(np.float64)
    rows = random.random(len(weights)) < float(random.choice([0.05, 0.2, 1.0]))
    rows[int(random.integers(len(weights)))] = True
    weights[rows] *= -1.0
    graph.set_weights(layer, weights)
    return f"{int(rows.sum())} channels of layer {number} negated"


def kill_filters(graph: Graph, random: Random) -> str:
    number, layer = _pick(graph, random)
    weights = graph.weights(layer)
    rows = random.random(len(weights)) < float(random.choice([0.1, 0.4, 0.8]))
    rows[int(random.integers(len(weights)))] = True
    weights[rows] = 0
    graph.set_weights(layer, weights)
    return f"{int(rows.sum())} channels of layer {number} zeroed"


def coarsen_weights(graph: Graph, random: Random) -> str:
    """Fewer bits than asked for."""
    number, layer = _pick(graph, random)
    bits = int(random.integers(1, 5))
    weights = graph.weights(layer).astype(np.float64)
    step = np.abs(weights).max() / (2**bits - 1)
    graph.set_weights(layer, np.rint(weights / step) * step)
    return f"weights of layer {number} in {bits} bits and a sign"


def flatten_otherwise(graph: Graph, random: Random) -> str:
    """Channels last read as channels first, in front of the first dense layer."""
    pair = next(((a, b) for a, b in graph.chained() if (a.kind, b.kind) == ("conv", "dense")), None)
    if pair is None:
        return ""
    before, layer = pair
    weights = graph.weights(layer)
    channels = len(graph.weights(before))
    grid = weights.reshape(len(weights), -1, channels).transpose(0, 2, 1)
    graph.set_weights(layer, grid.reshape(weights.shape))
    return "flattened with channels first"


def average_instead_of_maximum(graph: Graph, random: Random) -> str:
    return "average pooling instead of maximum" if graph.average_pools() else ""


def shift_zero_point(graph: Graph, random: Random) -> str:
    points = graph.activations()
    if not points:
        return ""
    which = int(random.integers(len(points)))
    by = int(random.choice([-64, -32, -16, -8, -4, 4, 8, 16, 32, 64]))
    graph.shift_zero_point(points[which], by)
    return f"zero point of activation {which} moved by {by}"


def scale_input(graph: Graph, random: Random) -> str:
    """The input scaled twice, or not at all."""
    layer = graph.layers[0]
    factor = float(random.choice([1.0 / 255.0, 0.1, 0.25, 4.0]))
    graph.set_weights(layer, graph.weights(layer).astype(np.float64) * factor)
    return f"input times {factor:.3g}"


def no_activation(graph: Graph, random: Random) -> str:
    if not isinstance(graph, OnnxGraph):
        return ""
    nodes = [node for node in graph.graph.node if node.op_type == "Relu"]
    if not nodes:
        return ""
    which = int(random.integers(len(nodes)))
    nodes[which].op_type = "Identity"
    return f"no ReLU behind layer {which}"


BREAKAGES: tuple[Change, ...] = (
    swap_input_channels,
    swap_filters,
    permute_outputs,
    drop_bias,
    drop_all_biases,
    scale_bias,
    transpose_kernels,
    flip_kernels,
    shift_padding,
    pad_wrong_side,
    pad_same,
    scale_weights,
    negate_filters,
    kill_filters,
    coarsen_weights,
    flatten_otherwise,
    average_instead_of_maximum,
    shift_zero_point,
    shift_zero_point,  # twice: there are many of them and they are what int8 gets wrong
    scale_input,
    no_activation,
)


# Rewrites that change nothing


def reorder_filters(graph: Graph, random: Random) -> str:
    """The channels between two layers in another order, on both sides."""
    pairs = graph.chained()
    number = int(random.integers(len(pairs)))
    layer, behind = pairs[number]
    order = random.permutation(len(graph.weights(layer)))
    graph.set_weights(layer, graph.weights(layer)[order])
    graph.set_bias(layer, graph.bias(layer)[order])
    graph.permute_scales(layer, order)
    weights = graph.weights(behind)
    if behind.kind == layer.kind:
        graph.set_weights(behind, weights[:, order])
    else:  # flattened in between, channels last
        grid = weights.reshape(len(weights), -1, len(order))[:, :, order]
        graph.set_weights(behind, grid.reshape(weights.shape))
    return f"channels of layer {number} in another order, and of the next"


def rescale_layers(graph: Graph, random: Random) -> str:
    """A power of two from one float layer into the next: ReLU and pooling let it through exactly."""
    pairs = graph.chained()
    number = int(random.integers(len(pairs)))
    layer, behind = pairs[number]
    if any(graph.weights(each).dtype != np.float32 for each in (layer, behind)):
        return ""
    factor = float(random.choice([0.25, 0.5, 2.0, 4.0]))
    graph.set_weights(layer, graph.weights(layer) * factor)
    graph.set_bias(layer, graph.bias(layer) * factor)
    graph.set_weights(behind, graph.weights(behind) / factor)
    return f"layer {number} times {factor:g}, the next divided by it"


def nudge_weights(graph: Graph, random: Random) -> str:
    """Other rounding: float weights off by a tenth of a millionth, as another compiler's constants are."""
    number, layer = _pick(graph, random)
    weights = graph.weights(layer)
    if weights.dtype != np.float32:
        return ""
    graph.set_weights(layer, weights * (1.0 + 1e-7 * random.standard_normal(weights.shape)))
    return f"weights of layer {number} rounded otherwise"


def insert_identities(graph: Graph, random: Random) -> str:
    """ONNX: operators that do nothing."""
    if not isinstance(graph, OnnxGraph):
        return ""
    for node in list(graph.graph.node):
        if node.op_type in ("Relu", "MaxPool", "Softmax", "Sigmoid") and random.random() < 0.7:
            graph.insert_before(node, "Identity")
    return "identities inserted"


def rename_everything(graph: Graph, random: Random) -> str:
    """ONNX: other names for every value inside."""
    if not isinstance(graph, OnnxGraph):
        return ""
    kept = {v.name for v in (*graph.graph.input, *graph.graph.output)} | {""}
    salt = int(random.integers(1 << 30))

    def renamed(name: str) -> str:
        return name if name in kept else f"t{salt}_{name}"

    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    for tensor in graph.graph.initializer:
        tensor.name = renamed(tensor.name)
    return "every value renamed"


def canonicalise_again(graph: Graph, random: Random) -> str:
    if not isinstance(graph, OnnxGraph):
        return ""
    from edgekit.canonical import canonicalise

    graph.model = canonicalise(graph.model)
    return "canonicalised again"


REWRITES: tuple[Change, ...] = (
    reorder_filters,
    rescale_layers,
    nudge_weights,
    insert_identities,
    rename_everything,
    canonicalise_again,
)


def changed(graph: Any, random: Random, changes: tuple[Change, ...]) -> tuple[str, str]:
    """Apply the first of the changes, in random order, that applies; return its name and what it did."""
    for which in random.permutation(len(changes)):
        change = changes[int(which)]
        said = change(graph, random)
        if said:
            return change.__name__.replace("_", " "), said
    raise AssertionError("nothing applies")
