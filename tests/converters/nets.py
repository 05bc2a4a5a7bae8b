"""Small nets that re-create what goes wrong in the field, and the way one converter after the other makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters import Converted, Converter, SourceModel
from edgekit.manifest import Recipe
from edgekit.streams import NO_SAMPLES, SampleFolder, Samples, store_samples
from edgekit.tensors import TensorSpec

Arrays = dict[str, np.ndarray]

USUAL: dict[str, str | bool] = {
    "activation": "uint8",
    "symmetric_activations": False,
    "reduce_range": False,
    "per_channel": True,
}


def graph(
    nodes: list[Any],
    inputs: Mapping[str, list[Any]],
    outputs: Mapping[str, list[Any]],
    weights: Mapping[str, Any],
    *,
    opset: int = 17,
    ir: int = 8,
) -> Any:
    """Return a model of float inputs and outputs."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", *values, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def node(op: str, reads: str, makes: str, **attributes: Any) -> Any:
    return helper.make_node(op, reads.split(), makes.split(), **attributes)


def run(model: Any, feed: Arrays) -> list[np.ndarray]:
    data = model.SerializeToString() if not isinstance(model, str) else model
    options = ort.SessionOptions()
    options.log_severity_level = 3
    answers: list[np.ndarray] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(
        None, feed
    )
    return answers


def rows(path: str, samples: Samples, output: int = 0) -> np.ndarray:
    """Return an artifact's answers, one row for each sample, exactly as the integers mean them."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, sample)[output].reshape(1, -1) for sample in samples])


def stored(folder: Path, arrays: Arrays) -> SampleFolder:
    return SampleFolder(store_samples(folder, arrays))


def source_of(model: Any, folder: Path, name: str = "source.onnx") -> SourceModel:
    """Return a canonical float model as later converters get it."""
    path = folder / name
    save_canonical(canonicalise(model), str(path))

    def spec(value: Any) -> TensorSpec:
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        return TensorSpec(value.name, "float32", tuple(sizes))

    return SourceModel(
        "onnx", path, tuple(map(spec, model.graph.input)), tuple(map(spec, model.graph.output))
    )


def make(
    converter: Converter,
    source: SourceModel,
    out: Path,
    recipe: Recipe | None = None,
    samples: Samples = NO_SAMPLES,
) -> Converted:
    out.mkdir()
    recipe = recipe or Recipe(route=("x",), precision=converter.precisions[0])
    (made,) = converter.convert(source, [recipe], samples, out)
    return made


def int8(method: str = "minmax", *, kept: tuple[str, ...] = (), **options: str | bool) -> Recipe:
    return Recipe(("x",), "int8", method, 0, {**USUAL, "device": "CPU", **options}, kept)


def convolutions(seed: int = 0, *, batch_norm: bool = True) -> Any:
    """Return three convolutions with batch normalisation and ReLU, then ten logits: x [n, 3, 16, 16] → y [n, 10]."""
    random = np.random.default_rng(seed)
    nodes, weights, before, channels = [], {}, "x", 3
    for i, width in enumerate((16, 32, 32)):
        weights[f"k{i}"] = (
            random.standard_normal((width, channels, 3, 3)) * (2 / (channels * 9)) ** 0.5
        ).astype(np.float32)
        nodes.append(
            node("Conv", f"{before} k{i}", f"c{i}", pads=[1, 1, 1, 1], strides=[2, 2] if i else [1, 1])
        )
        after = f"c{i}"
        if batch_norm:
            for name, low, high in (("s", 0.5, 2.0), ("b", -0.5, 0.5), ("m", -0.2, 0.2), ("v", 0.5, 2.0)):
                weights[f"{name}{i}"] = random.uniform(low, high, width).astype(np.float32)
            nodes.append(node("BatchNormalization", f"c{i} s{i} b{i} m{i} v{i}", f"n{i}"))
            after = f"n{i}"
        nodes.append(node("Relu", after, f"r{i}"))
        before, channels = f"r{i}", width
    nodes += [
        node("GlobalAveragePool", before, "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w z", "y"),
    ]
    weights["w"] = random.standard_normal((32, 10)).astype(np.float32)
    weights["z"] = random.standard_normal(10).astype(np.float32)
    return graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 10]}, weights)


def images(n: int, seed: int = 1, size: int = 16) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((n, 3, size, size)).astype(np.float32)}


def boxes_and_scores() -> Any:
    """Return a detector's head: boxes in pixels and scores in one tensor, y [n, 6, 16], after a convolution each."""
    random = np.random.default_rng(2)
    weights = {
        "k": (random.standard_normal((16, 3, 3, 3)) * 0.3).astype(np.float32),
        "kb": (random.standard_normal((4, 16, 1, 1)) * 100).astype(np.float32),
        "ks": (random.standard_normal((2, 16, 1, 1)) * 0.8).astype(np.float32),
        "shape": np.array([0, 6, 256], np.int64),
    }
    nodes = [
        node("Conv", "x k", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r kb", "boxes"),
        node("Conv", "r ks", "logits"),
        node("Sigmoid", "logits", "scores"),
        node("Concat", "boxes scores", "both", axis=1),
        node("Reshape", "both shape", "y"),
    ]
    return graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 6, 256]}, weights)


def joint_before_a_layer() -> Any:
    """Return a net whose joint of unlike parts is read by a convolution: y [n, 4, 16, 16]."""
    random = np.random.default_rng(3)
    weights = {
        "ka": (random.standard_normal((8, 3, 1, 1)) * 200).astype(np.float32),
        "kb": (random.standard_normal((8, 3, 1, 1)) * 0.2).astype(np.float32),
        "kc": np.concatenate(
            [random.standard_normal((4, 8, 1, 1)) / 400, random.standard_normal((4, 8, 1, 1)) / 0.4], axis=1
        ).astype(np.float32),
    }
    nodes = [
        node("Conv", "x ka", "a"),
        node("Conv", "x kb", "b"),
        node("Concat", "a b", "both", axis=1),
        node("Conv", "both kc", "y"),
    ]
    return graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 4, 16, 16]}, weights)


def depthwise(seed: int = 4) -> Any:
    """Return a depthwise net with one channel that is nearly dead before the depthwise layer and alive behind it.

    Folding batch normalisation leaves such channels: tiny values times huge weights. One scale for all weights then
    rounds the other channels' to nothing. x [n, 3, 16, 16] → y [n, 10].
    """
    random = np.random.default_rng(seed)
    weights = {
        "k0": (random.standard_normal((32, 3, 3, 3)) * 0.3).astype(np.float32),
        "kd": (random.standard_normal((32, 1, 3, 3)) * 0.3).astype(np.float32),
        "k1": (random.standard_normal((32, 32, 1, 1)) * 0.2).astype(np.float32),
        "w": (random.standard_normal((32, 10)) * 2).astype(np.float32),
        "z": np.zeros(10, np.float32),
    }
    weights["k0"][5] /= 1000
    weights["kd"][5] *= 1000
    nodes = [
        node("Conv", "x k0", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "ar"),
        node("Conv", "ar kd", "d", pads=[1, 1, 1, 1], group=32),
        node("Relu", "d", "dr"),
        node("Conv", "dr k1", "b"),
        node("Relu", "b", "br"),
        node("GlobalAveragePool", "br", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w z", "y"),
    ]
    return graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 10]}, weights)


def attention(outlier: float = 60.0) -> Any:
    """Return an attention block of width 32 on 8 tokens; two of its channels are `outlier` times the others.

    x [n, 8, 32] → y [n, 10]. The outliers stand in front of the projections; their weights are small.
    """
    random = np.random.default_rng(5)

    def weight(rows: int, columns: int) -> np.ndarray:
        made: np.ndarray = (random.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)
        return made

    gamma = np.ones(32, np.float32)
    gamma[[3, 17]] = outlier
    undo = (1 / gamma).reshape(-1, 1)
    weights: Arrays = {name: weight(32, 32) * undo for name in ("wq", "wk", "wv")}
    weights |= {
        "wo": weight(32, 32),
        "w1": weight(32, 64) * undo,
        "w2": weight(64, 32),
        "wc": weight(32, 10) * 3,
    }
    weights |= {
        f"b{name}": (random.standard_normal(32) * 0.1).astype(np.float32) for name in ("q", "k", "v", "o")
    }
    weights |= {"gamma": gamma, "beta": np.zeros(32, np.float32), "root": np.float32(32**0.5)}
    nodes = [
        node("LayerNormalization", "x gamma beta", "n0", axis=-1),
        *(n for s in "qkv" for n in (node("MatMul", f"n0 w{s}", f"m{s}"), node("Add", f"m{s} b{s}", s))),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "qk"),
        node("Div", "qk root", "scaled"),
        node("Softmax", "scaled", "soft", axis=-1),
        node("MatMul", "soft v", "mixed"),
        node("MatMul", "mixed wo", "mo"),
        node("Add", "mo bo", "o"),
        node("Add", "x o", "h"),
        node("LayerNormalization", "h gamma beta", "n1", axis=-1),
        node("MatMul", "n1 w1", "m1"),
        node("Relu", "m1", "g"),
        node("MatMul", "g w2", "m2"),
        node("Add", "h m2", "h2"),
        node("ReduceMean", "h2", "pooled", axes=[1], keepdims=0),
        node("MatMul", "pooled wc", "y"),
    ]
    return graph(nodes, {"x": ["n", 8, 32]}, {"y": ["n", 10]}, weights)


def tokens(n: int, seed: int = 6) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((n, 8, 32)).astype(np.float32)}


def plain_quantizer(model: Any, samples: Samples, folder: Path, *, per_channel: bool = True) -> str:
    """Return what ONNX Runtime's own quantizer makes at its defaults: what a user gets by hand."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Arrays | None:
            return next(self._left, None)

    onnx.save(model, str(folder / "plain.onnx"))
    quant_pre_process(str(folder / "plain.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "ready.onnx"), str(folder / "quantized.onnx"), Reader(), QuantFormat.QDQ,
        per_channel=per_channel, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return str(folder / "quantized.onnx")


def snr_db(exact: np.ndarray, rough: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - rough).sum()))


def agreement(exact: np.ndarray, rough: np.ndarray) -> float:
    return float((exact.argmax(1) == rough.argmax(1)).mean())
