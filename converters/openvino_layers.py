"""What is asked of OpenVINO graphs: attention, joints that no one scale suits, and what each layer loses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.converters.onnx_layers import decibels
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["has_attention", "last_outputs", "layer_ratios", "mixed_joints", "names_of", "worthless"]

#: Layers with weights.
_LAYERS = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)
#: Operators that move values and compute none.
_MOVES = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "StridedSlice",
    "Slice",
    "Pad",
    "MaxPool",
    "VariadicSplit",
)
#: Operators that NNCF would quantize wherever they stand.
_ELEMENTWISE = ("Add", "Subtract", "Multiply", "Divide", "Power", "SquaredDifference", "Maximum", "Minimum",
                "ReduceSum", "ReduceMean", "Broadcast", "MVN")  # fmt: skip
#: Operators that may stand between integers.
_LIGHT = ("Relu", "PRelu", "Clamp", "Sigmoid", "HSwish", "Swish", "HSigmoid", "Concat", "AvgPool", "ReduceMean",
          "Interpolate")  # fmt: skip
#: One scale for parts whose ranges differ by this factor leaves the smallest five bits of eight.
_MOST_UNLIKE = 8.0
_SAMPLES = 8
#: Samples that tell whether parts of a joint are alike: a factor of eight shows early.
_JOINT_SAMPLES = 32


def names_of(model: Any) -> frozenset[str]:
    """Return the names of a model's nodes."""
    return frozenset(node.get_friendly_name() for node in model.get_ops())


def worthless(model: Any) -> list[str]:
    """Return the elementwise operators and reductions that are not worth integers, by name: the same rule as for ONNX.

    One is worth it only where all that it reads comes from integers and somebody behind it wants them; a
    polynomial written out, or the statistics of a normalisation, is not. Biases belong to their layers.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    kinds = {name: node.get_type_name() for name, node in nodes.items()}
    layers = {
        name for name, kind in kinds.items() if kind in _LAYERS and _is_stored(nodes[name].input_value(1))
    }
    biases = {name for name, node in nodes.items() if _is_bias(node, layers)}
    chosen = {
        *layers,
        *biases,
        *(name for name, kind in kinds.items() if kind in (*_ELEMENTWISE, *_MOVES, *_LIGHT)),
    }
    while dropped := {name for name in chosen - layers - biases if not _belongs(nodes[name], chosen)}:
        chosen -= dropped
    return sorted(name for name, kind in kinds.items() if kind in _ELEMENTWISE and name not in chosen)


def _is_bias(node: Any, layers: Collection[str]) -> bool:
    values = node.input_values()
    return (
        node.get_type_name() == "Add"
        and any(_is_stored(value) for value in values)
        and any(value.get_node().get_friendly_name() in layers for value in values)
    )


def _belongs(node: Any, chosen: Collection[str]) -> bool:
    reads = [value.get_node().get_friendly_name() for value in node.input_values() if not _is_stored(value)]
    wanted = [
        port.get_node().get_friendly_name() for out in node.outputs() for port in out.get_target_inputs()
    ]
    return bool(reads) and all(name in chosen for name in reads) and any(name in chosen for name in wanted)


def has_attention(model: Any) -> bool:
    """Tell a model with attention: a softmax goes into a product of two activations, or the two are one operator."""
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            return True
        if node.get_type_name() == "Softmax":
            readers = [port.get_node() for port in node.output(0).get_target_inputs()]
            if any(r.get_type_name() == "MatMul" and not _is_stored(r.input_value(1)) for r in readers):
                return True
    return False


def _is_stored(output: Any) -> bool:
    """Tell a value that follows from constants alone."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    return bool(node.inputs()) and all(_is_stored(value) for value in node.input_values())


def mixed_joints(model: Any, samples: Samples) -> list[str]:
    """Return joints of parts that cannot share a scale, such as boxes and scores in one tensor, by name.

    What reads a joint, through operators that only move its values, is among them: it would give it the one scale.

    Args:
        model: The float model.
        samples: Calibration data; up to 32, evenly spread, are run.
    """
    import numpy as np

    parts: dict[str, list[Any]] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Concat" and node.get_output_element_type(0).is_real():
            values = [value for value in node.input_values() if not _is_stored(value)]
            if len(values) > 1:
                parts[node.get_friendly_name()] = values
    if not parts:
        return []
    outputs = [value for values in parts.values() for value in values]
    spans = np.zeros(len(outputs))
    count = min(_JOINT_SAMPLES, len(samples))
    for found in _run(model, outputs, (samples[i * len(samples) // count] for i in range(count))):
        spans = np.maximum(spans, [np.abs(value).max(initial=0.0) for value in found])
    named = dict(zip((_key(value) for value in outputs), spans, strict=True))
    mixed = [name for name, values in parts.items() if _unlike([named[_key(value)] for value in values])]
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    return list(dict.fromkeys(reader for name in mixed for reader in _with_readers(nodes[name])))


def _with_readers(node: Any) -> Iterator[str]:
    yield node.get_friendly_name()
    if node.get_type_name() in ("Concat", *_MOVES):
        for output in node.outputs():
            for port in output.get_target_inputs():
                if port.get_node().get_type_name() != "Result":
                    yield from _with_readers(port.get_node())


def _unlike(spans: Iterable[float]) -> bool:
    alive = [span for span in spans if span > 0.0]
    return len(alive) > 1 and max(alive) > _MOST_UNLIKE * min(alive)


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


def _run(
    model: Any, outputs: list[Any], samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """Run a model in float32 and yield the values asked for, copies."""
    import openvino as ov

    shown = model.clone()
    nodes = {node.get_friendly_name(): node for node in shown.get_ops()}
    ports = [nodes[name].output(index) for name, index in map(_key, outputs)]
    shown.add_results([ov.opset13.result(port) for port in ports])
    return last_outputs(shown, len(ports), samples)


def last_outputs(
    model: Any, last: int, samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """Run a model in float32 and yield its last outputs, copies."""
    import numpy as np
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ports = list(compiled.outputs)[-last:]
    for sample in samples:
        found = compiled(dict(sample))
        yield [np.array(found[port]) for port in ports]


def layer_ratios(exact: Any, quantized: Any, samples: Samples) -> dict[str, float]:
    """Return each quantized layer's signal-to-noise ratio in dB, worst first.

    The inputs of a layer are the float network's, quantized as the layer's are; what it makes of them is compared
    with the float layer's.

    Args:
        exact: The float model.
        quantized: What was made of it, whose layers have the same names.
        samples: A few inputs; the first eight are run.
    """
    import numpy as np

    floats = {node.get_friendly_name(): node for node in exact.get_ops()}
    names = [
        node.get_friendly_name()
        for node in quantized.get_ordered_ops()
        if node.get_type_name() in _LAYERS
        and node.get_friendly_name() in floats
        and any(_is_quantized(value) for value in node.input_values())
    ]
    if not names:
        return {}
    few = [samples[i] for i in range(min(_SAMPLES, len(samples)))]
    parted, fed = _parted(quantized, floats, names)
    wanted = [floats[name].output(0) for name in names]
    wanted += [floats[name].output(port) for name, port in fed.values()]
    exact_runs = list(_run(exact, wanted, few))
    feeds = [
        {**sample, **dict(zip(fed, values[len(names) :], strict=True))}
        for sample, values in zip(few, exact_runs, strict=True)
    ]
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for truth, rough in zip(exact_runs, last_outputs(parted, len(names), feeds), strict=True):
        for i, (value, other) in enumerate(zip(truth[: len(names)], rough, strict=True)):
            signal[i] += np.square(value, dtype=np.float64).sum()
            noise[i] += np.square(value.astype(np.float64) - other).sum()
    ratios = {name: decibels(float(signal[i]), float(noise[i])) for i, name in enumerate(names)}
    return dict(sorted(ratios.items(), key=lambda item: (item[1], item[0])))


def _parted(
    quantized: Any, floats: Mapping[str, Any], names: list[str]
) -> tuple[Any, dict[str, tuple[str, int]]]:
    """Return the quantized model cut before every quantization of a value that the float network makes too.

    Returns:
        The model with the layers' values behind its answers, each cut an input of it; and what each new input is
        fed: node and port of the float model.
    """
    import openvino as ov

    model = quantized.clone()
    order = list(model.get_ordered_ops())
    nodes = {node.get_friendly_name(): node for node in order}
    model.add_results([ov.opset13.result(nodes[name].output(0)) for name in names])
    fed: dict[str, tuple[str, int]] = {}
    added = []
    for node in order:
        if node.get_type_name() != "FakeQuantize" or _is_stored(node.input_value(0)):
            continue
        source = node.input_value(0)
        name, port = _key(source)
        if name not in floats or source.get_node().get_type_name() == "Parameter":
            continue
        parameter = ov.opset13.parameter(source.get_partial_shape(), source.get_element_type())
        key = f"cut{len(fed)}"
        parameter.output(0).set_names({key})
        node.input(0).replace_source_output(parameter.output(0))
        fed[key] = (name, port)
        added.append(parameter)
    model.add_parameters(added)
    return model, fed


def _is_quantized(value: Any) -> bool:
    """Tell a value that comes out of a quantization, through moves of it at most."""
    node = value.get_node()
    if node.get_type_name() == "FakeQuantize":
        return not _is_stored(node.input_value(0))
    return node.get_type_name() in _MOVES and _is_quantized(node.input_value(0))
