"""Running models without EdgeKit: a source in its own framework, an artifact in its own runtime.

Each function returns a callable from a feed to the outputs in the model's order. Only children call them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.feeds import Feed

__all__ = ["ENGINES", "SOURCES", "Run", "order_inputs"]

Run = Callable[[Feed], list[np.ndarray]]


def order_inputs(names: list[str], feed: Feed) -> list[np.ndarray]:
    """Return the arrays of a feed in a model's order: by name, by the end of the name, else as they come."""
    if all(name in feed for name in names):
        return [feed[name] for name in names]
    if len(names) != len(feed):
        raise ValueError(f"the model takes {names}, the samples have {list(feed)}")
    return list(feed.values())


def _keras(path: Path) -> Run:
    import keras

    return _call(keras.saving.load_model(path, compile=False))


def _keras2(path: Path) -> Run:
    import tf_keras

    return _call(tf_keras.models.load_model(path, compile=False))


def _call(model: Any) -> Run:
    import tensorflow as tf

    def run(feed: Feed) -> list[np.ndarray]:
        values = list(feed.values())
        return [np.asarray(v) for v in tf.nest.flatten(model(values[0] if len(values) == 1 else values))]

    return run


def _saved_model(path: Path) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]

    def run(feed: Feed, _kept: object = loaded) -> list[np.ndarray]:
        return [np.asarray(v) for v in signature(**{k: tf.constant(v) for k, v in feed.items()}).values()]

    return run


def _onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    dtypes = [_numpy_type(value.type) for value in session.get_inputs()]

    def run(feed: Feed) -> list[np.ndarray]:
        ordered = order_inputs(names, feed)
        cast = {n: a.astype(d) for n, a, d in zip(names, ordered, dtypes, strict=True)}
        return [_array(value) for value in session.run(None, cast)]

    return run


def _numpy_type(type_: str) -> Any:
    inner = type_.removeprefix("tensor(").removesuffix(")")
    return {"float": np.float32, "double": np.float64}.get(inner) or np.dtype(inner)


def _array(value: Any) -> np.ndarray:
    """Return an output as an array; a list of class to probability, as skl2onnx makes by default, as one too."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([[row[key] for key in sorted(row)] for row in value])
    return np.asarray(value)


def _tflite(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    signatures = interpreter.get_signature_list()
    if signatures:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        return lambda feed: _call_signature(runner, feed)
    return lambda feed: _call_interpreter(interpreter, feed)


def _call_signature(runner: Any, feed: Feed) -> list[np.ndarray]:
    takes, gives = runner.get_input_details(), runner.get_output_details()
    ordered = order_inputs(list(takes), feed)
    given = {name: _encode(array, takes[name]) for name, array in zip(takes, ordered, strict=True)}
    return [_decode(array, gives[name]) for name, array in runner(**given).items()]


def _call_interpreter(interpreter: Any, feed: Feed) -> list[np.ndarray]:
    ordered = order_inputs([detail["name"] for detail in interpreter.get_input_details()], feed)
    for detail, array in zip(interpreter.get_input_details(), ordered, strict=True):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), ordered, strict=True):
        interpreter.set_tensor(detail["index"], _encode(array, detail))
    interpreter.invoke()
    return [_decode(interpreter.get_tensor(d["index"]), d) for d in interpreter.get_output_details()]


def _encode(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Quantize an input where the artifact wants integers, as the user of one would."""
    scale, zero = detail["quantization"]
    if not scale or array.dtype.kind != "f":
        return array
    limits = np.iinfo(detail["dtype"])
    encoded: np.ndarray = np.clip(np.round(array / scale) + zero, limits.min, limits.max)
    return encoded.astype(detail["dtype"])


def _decode(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    return (array.astype(np.float64) - zero) * scale if scale and array.dtype.kind in "iu" else array


def _openvino(path: Path) -> Run:
    import openvino

    # its CPU plugin computes in bfloat16 where it can; a conversion is compared in float32
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [port.any_name if port.names else str(index) for index, port in enumerate(compiled.inputs)]

    def run(feed: Feed) -> list[np.ndarray]:
        ordered = order_inputs(names, feed)
        return [np.array(value) for value in compiled(ordered).values()]

    return run


def _torch_export(path: Path) -> Run:
    import torch

    module = torch.export.load(path).module()  # a file that this corpus has exported itself

    def run(feed: Feed) -> list[np.ndarray]:
        with torch.no_grad():
            return _torch_arrays(module(*(torch.from_numpy(array) for array in feed.values())))

    return run


def _torch_script(path: Path) -> Run:
    import torch

    module = torch.jit.load(path, map_location="cpu").eval()

    def run(feed: Feed) -> list[np.ndarray]:
        arguments = [array.item() if not array.ndim else torch.from_numpy(array) for array in feed.values()]
        with torch.no_grad():
            return _torch_arrays(module(*arguments))

    return run


def _torch_arrays(outputs: Any) -> list[np.ndarray]:
    return [value.numpy() for value in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def _sklearn(path: Path) -> Run:
    import skops.io

    # the corpus has trained and written this file itself
    estimator = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))

    def run(feed: Feed) -> list[np.ndarray]:
        # both sides get the same values: those that float32, the artifact's type, can hold
        (x,) = (array.astype(np.float32).astype(np.float64) for array in feed.values())
        answers = [np.asarray(estimator.predict(x)).reshape(len(x), -1)]
        if hasattr(estimator, "predict_proba"):
            answers.append(estimator.predict_proba(x))
        return answers

    return run


#: Kind of source to what opens it.
SOURCES = {
    "keras": _keras,
    "keras2": _keras2,
    "savedmodel": _saved_model,
    "onnx": _onnx,
    "tflite": _tflite,
    "torch-export": _torch_export,
    "torchscript": _torch_script,
    "sklearn": _sklearn,
}
#: Format of artifact to what opens it.
ENGINES = {"onnx": _onnx, "tflite": _tflite, "openvino": _openvino}
