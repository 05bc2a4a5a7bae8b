"""Make the small models that the runtime tests run: `python -m tests.runtimes.make_artifacts`.

They are committed, a few KB each, so that the device tests need no converter. Two models, each in every
format, their weights drawn from a fixed seed:

- `tiny`: image float32 [-1, 8, 8, 1] to probabilities float32 [-1, 4]; also as int8 TFLite;
- `pair`: left and right float32 [-1, 3] to total = left + right and scaled = 2 left, to try names.

`golden.npz` holds what numpy computes for `tiny` on eight inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FOLDER", "make_all"]

FOLDER = Path(__file__).parent / "artifacts"
_OPSET, _IR = 17, 8  # old enough for every ONNX Runtime that the extra allows


class Weights:
    """The weights of `tiny`: a 3x3 convolution of 4 filters with ReLU, 2x2 max pooling, dense 4, softmax."""

    def __init__(self, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        self.kernel = rng.normal(0, 0.6, (3, 3, 1, 4)).astype(np.float32)
        self.bias = rng.normal(0, 0.1, 4).astype(np.float32)
        self.dense = rng.normal(0, 0.5, (3 * 3 * 4, 4)).astype(np.float32)
        self.dense_bias = rng.normal(0, 0.1, 4).astype(np.float32)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """Return probabilities float32 [N, 4] for image float32 [N, 8, 8, 1]."""
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], (3, 3), axis=(1, 2))
        features = np.einsum("nhwij,ijf->nhwf", windows, self.kernel[:, :, 0, :]) + self.bias
        pooled = np.maximum(features, 0).reshape(-1, 3, 2, 3, 2, 4).max(axis=(2, 4))
        logits = pooled.reshape(len(image), -1) @ self.dense + self.dense_bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
        return shares.astype(np.float32)


def _images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 8, 8, 1), dtype=np.float32)


def _tiny_function(w: Weights) -> Any:
    import tensorflow as tf

    def tiny(image: Any) -> Any:
        features = tf.nn.relu(tf.nn.conv2d(image, w.kernel, 1, "VALID") + w.bias)
        pooled = tf.nn.max_pool2d(features, 2, 2, "VALID")
        logits = tf.reshape(pooled, [-1, w.dense.shape[0]]) @ w.dense + w.dense_bias
        return {"probabilities": tf.nn.softmax(logits)}

    return tf.function(tiny, input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")])


def _pair_function() -> Any:
    import tensorflow as tf

    spec = [tf.TensorSpec([None, 3], tf.float32, name=name) for name in ("left", "right")]

    def pair(left: Any, right: Any) -> Any:
        return {"total": left + right, "scaled": left * 2.0}

    return tf.function(pair, input_signature=spec)


def _tflite(function: Any, calibration: Callable[[], Any] | None = None) -> bytes:
    """Convert by way of a SavedModel, so that the file has a signature."""
    import tempfile

    import tensorflow as tf

    module = tf.Module()
    module.f = function
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        data: bytes = converter.convert()
    return data


def _tiny_onnx(w: Weights) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "kernel": w.kernel.transpose(3, 2, 0, 1),
        "bias": w.bias,
        "dense": w.dense,
        "dense_bias": w.dense_bias,
        "flat": np.array([-1, w.dense.shape[0]], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "kernel", "bias"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["pool"], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["nhwc", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "dense", "dense_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return _onnx_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8, 1])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in weights.items()],
        )
    )


def _pair_onnx() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])

    nodes = [
        helper.make_node("Add", ["left", "right"], ["total"]),
        helper.make_node("Mul", ["left", "two"], ["scaled"]),
    ]
    two = numpy_helper.from_array(np.array(2.0, np.float32), "two")
    return _onnx_model(
        helper.make_graph(
            nodes, "pair", [info("left"), info("right")], [info("total"), info("scaled")], [two]
        )
    )


def _onnx_model(graph: Any) -> Any:
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_all(folder: Path = FOLDER) -> None:
    """Write every artifact into `folder`."""
    import onnx
    import openvino

    folder.mkdir(exist_ok=True)
    w = Weights()
    tiny, pair = _tiny_function(w), _pair_function()

    def calibration() -> Any:
        for image in _images(64, seed=1):
            yield [image[None]]

    (folder / "tiny_fp32.tflite").write_bytes(_tflite(tiny))
    (folder / "tiny_int8.tflite").write_bytes(_tflite(tiny, calibration))
    (folder / "pair.tflite").write_bytes(_tflite(pair))
    for name, model in (("tiny", _tiny_onnx(w)), ("pair", _pair_onnx())):
        onnx.save(model, folder / f"{name}.onnx")
        ir = openvino.convert_model(folder / f"{name}.onnx")
        openvino.save_model(ir, folder / f"{name}.xml", compress_to_fp16=False)
    images = _images(8, seed=2)
    arrays: dict[str, Any] = {"input:image": images, "output:probabilities": w.forward(images)}
    np.savez(folder / "golden.npz", **arrays)


if __name__ == "__main__":
    make_all()
