"""What a user does without EdgeKit: each tool called as its own documentation says, nothing more.

A child runs one task: `python -m tests.models.bare_tools TASK.json`. The task is `{"do": "make", …}` or
`{"do": "run", …}`; its answer is written beside it, so that a crash leaves none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.build import save_arrays
from tests.models.feeds import Feed, load_feeds

__all__ = ["MAKERS", "NoToolError", "make"]


class NoToolError(Exception):
    """No tool of those installed claims to make this."""


Maker = Callable[[Path, str, list[Feed], Path], Path]


# TFLite


def _tensorflow_to_tflite(open_converter: Callable[[Any, Path], Any]) -> Maker:
    def make(path: Path, precision: str, calibration: list[Feed], out: Path) -> Path:
        import tensorflow as tf

        converter = open_converter(tf, path)
        ops = tf.lite.OpsSet
        if precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        if precision in ("int8", "int16x8"):
            _need(calibration)
            converter.representative_dataset = lambda: (list(feed.values()) for feed in calibration)
            kind = ops.TFLITE_BUILTINS_INT8
            if precision == "int16x8":
                kind = ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            converter.target_spec.supported_ops = [kind]
        file = out / "model.tflite"
        file.write_bytes(converter.convert())
        return file

    return make


def _from_keras(tf: Any, path: Path) -> Any:
    return tf.lite.TFLiteConverter.from_keras_model(_load_keras(path))


def _load_keras(path: Path) -> Any:
    if path.suffix == ".keras":
        import keras

        return keras.saving.load_model(path, compile=False)
    import tf_keras

    return tf_keras.models.load_model(path, compile=False)


def _from_saved_model(tf: Any, path: Path) -> Any:
    return tf.lite.TFLiteConverter.from_saved_model(str(path))


def _quantize_tflite(path: Path, precision: str, calibration: list[Feed], out: Path) -> Path:
    from litert_quantizer import quantizer, recipe

    file = out / "model.tflite"
    if precision == "fp32":
        shutil.copy(path, file)
        return file
    recipes = {
        "int8-dynamic": recipe.dynamic_wi8_afp32,
        "int8": recipe.static_wi8_ai8,
        "int16x8": recipe.static_wi8_ai16,
    }
    if precision not in recipes:
        raise NoToolError("the quantizer has no recipe for float16")
    tool = quantizer.Quantizer(str(path), recipes[precision]())
    if tool.need_calibration:
        _need(calibration)
        tool.quantize(tool.calibrate(_signature_data(path, calibration))).export_model(str(file))
    else:
        tool.quantize().export_model(str(file))
    return file


def _signature_data(path: Path, calibration: list[Feed]) -> dict[str | None, list[Feed]]:
    from ai_edge_litert.interpreter import Interpreter

    from tests.models.engines import order_inputs

    interpreter = Interpreter(str(path))
    named = [detail["name"] for detail in interpreter.get_input_details()]
    key, signature = next(iter(interpreter.get_signature_list().items()), (None, {"inputs": named}))
    takes = signature["inputs"]
    return {key: [dict(zip(takes, order_inputs(takes, feed), strict=True)) for feed in calibration]}


def _torch_export_to_tflite(path: Path, precision: str, calibration: list[Feed], out: Path) -> Path:
    import litert_torch
    import torch

    _need(calibration)  # whose first sample is the example that tracing needs
    example = tuple(torch.from_numpy(array) for array in calibration[0].values())
    plain = out / "float.tflite"
    litert_torch.convert(torch.export.load(path).module(), example).export(str(plain))
    return _quantize_tflite(plain, precision, calibration, out)


# ONNX


def _then_quantize(to_onnx: Callable[[Path, list[Feed], Path], None]) -> Maker:
    def make(path: Path, precision: str, calibration: list[Feed], out: Path) -> Path:
        file = out / "model.onnx"
        if precision == "fp32":
            to_onnx(path, calibration, file)
            return file
        (out / "float").mkdir()  # torch writes two files, and only what is made of them is the artifact
        to_onnx(path, calibration, out / "float" / "model.onnx")
        _QUANTIZERS[precision](out / "float" / "model.onnx", calibration, file)
        return file

    return make


def _keras_to_onnx(path: Path, calibration: list[Feed], file: Path) -> None:
    model = _load_keras(path)
    if calibration:
        model(next(iter(calibration[0].values())))  # without a call it refuses what was loaded, and says so
    model.export(file, format="onnx")


def _keras2_to_onnx(path: Path, _calibration: list[Feed], file: Path) -> None:
    import tf2onnx

    tf2onnx.convert.from_keras(_load_keras(path), output_path=str(file))


def _by_tf2onnx(option: str) -> Callable[[Path, list[Feed], Path], None]:
    def to_onnx(path: Path, _calibration: list[Feed], file: Path) -> None:
        command = [sys.executable, "-m", "tf2onnx.convert", option, str(path), "--output", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "no output").splitlines()[-1])

    return to_onnx


def _torch_export_to_onnx(path: Path, _calibration: list[Feed], file: Path) -> None:
    import torch

    torch.onnx.export(torch.export.load(path), (), str(file))


def _torch_script_to_onnx(path: Path, calibration: list[Feed], file: Path) -> None:
    import torch

    _need(calibration)
    arguments = [a.item() if not a.ndim else torch.from_numpy(a) for a in calibration[0].values()]
    torch.onnx.export(
        torch.jit.load(path, map_location="cpu").eval(), tuple(arguments), str(file), dynamo=False
    )


def _onnx_to_onnx(path: Path, _calibration: list[Feed], file: Path) -> None:
    shutil.copy(path, file)


def _sklearn_to_onnx(path: Path, calibration: list[Feed], file: Path) -> None:
    import skl2onnx
    import skops.io

    estimator = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    (x,) = calibration[0].values()
    file.write_bytes(skl2onnx.to_onnx(estimator, x.astype(np.float32)).SerializeToString())


def _onnx_fp16(plain: Path, _calibration: list[Feed], file: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(plain)), file)


def _onnx_dynamic(plain: Path, _calibration: list[Feed], file: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(plain, file)


def _onnx_static(plain: Path, calibration: list[Feed], file: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(_named_as(plain, calibration))

        def get_next(self) -> Feed | None:
            return next(self._left, None)

    _need(calibration)
    prepared = plain.with_name("prepared.onnx")
    try:
        quant_pre_process(str(plain), str(prepared))
    except Exception:  # noqa: BLE001  # of any kind; its message says to leave out the symbolic shapes
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(file), Reader())


def _named_as(plain: Path, calibration: list[Feed]) -> list[Feed]:
    import onnxruntime

    from tests.models.engines import order_inputs

    names = [
        v.name for v in onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"]).get_inputs()
    ]
    return [dict(zip(names, order_inputs(names, feed), strict=True)) for feed in calibration]


_QUANTIZERS = {"fp16": _onnx_fp16, "int8-dynamic": _onnx_dynamic, "int8": _onnx_static}


# OpenVINO


def _to_openvino(open_model: Callable[[Path, list[Feed]], Any]) -> Maker:
    def make(path: Path, precision: str, calibration: list[Feed], out: Path) -> Path:
        import openvino

        file = out / "model.xml"
        model = open_model(path, calibration)
        if precision == "int8":
            import nncf

            _need(calibration)
            names = [next(iter(port.names)) for port in model.inputs if port.names]
            model = nncf.quantize(model, nncf.Dataset(_ordered(names, calibration)))
        openvino.save_model(model, file, compress_to_fp16=precision == "fp16")
        return file

    return make


def _ordered(names: list[str], calibration: list[Feed]) -> list[Any]:
    from tests.models.engines import order_inputs

    found = [order_inputs(names, feed) if names else list(feed.values()) for feed in calibration]
    return [arrays[0] if len(arrays) == 1 else arrays for arrays in found]


def _openvino_file(path: Path, _calibration: list[Feed]) -> Any:
    import openvino

    return openvino.convert_model(path)


def _openvino_keras(path: Path, _calibration: list[Feed]) -> Any:
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:  # given the model itself, it cannot trace Keras 3
        _load_keras(path).export(folder)
        return openvino.convert_model(folder)


def _openvino_torch(path: Path, _calibration: list[Feed]) -> Any:
    import openvino
    import torch

    return openvino.convert_model(torch.export.load(path))


def _openvino_script(path: Path, calibration: list[Feed]) -> Any:
    import openvino
    import torch

    _need(calibration)
    example = tuple(torch.from_numpy(np.asarray(array)) for array in calibration[0].values())
    return openvino.convert_model(torch.jit.load(path, map_location="cpu").eval(), example_input=example)


def _need(calibration: list[Feed]) -> None:
    if not calibration:
        raise NoToolError("no calibration samples: the inputs have no batch axis in front")


#: (kind of source, format) to what makes it. What is not here, no installed tool makes.
MAKERS: dict[tuple[str, str], Maker] = {
    ("keras", "tflite"): _tensorflow_to_tflite(_from_keras),
    ("keras2", "tflite"): _tensorflow_to_tflite(_from_keras),
    ("savedmodel", "tflite"): _tensorflow_to_tflite(_from_saved_model),
    ("tflite", "tflite"): _quantize_tflite,
    ("torch-export", "tflite"): _torch_export_to_tflite,
    ("keras", "onnx"): _then_quantize(_keras_to_onnx),
    ("keras2", "onnx"): _then_quantize(_keras2_to_onnx),
    ("savedmodel", "onnx"): _then_quantize(_by_tf2onnx("--saved-model")),
    ("tflite", "onnx"): _then_quantize(_by_tf2onnx("--tflite")),
    ("torch-export", "onnx"): _then_quantize(_torch_export_to_onnx),
    ("torchscript", "onnx"): _then_quantize(_torch_script_to_onnx),
    ("onnx", "onnx"): _then_quantize(_onnx_to_onnx),
    ("sklearn", "onnx"): _then_quantize(_sklearn_to_onnx),
    ("keras", "openvino"): _to_openvino(_openvino_keras),
    ("keras2", "openvino"): _to_openvino(_openvino_keras),
    ("savedmodel", "openvino"): _to_openvino(_openvino_file),
    ("tflite", "openvino"): _to_openvino(_openvino_file),
    ("onnx", "openvino"): _to_openvino(_openvino_file),
    ("torch-export", "openvino"): _to_openvino(_openvino_torch),
    ("torchscript", "openvino"): _to_openvino(_openvino_script),
}


def make(kind: str, path: Path, format_: str, precision: str, calibration: list[Feed], out: Path) -> Path:
    """Make an artifact as the tool's documentation says.

    Raises:
        NoToolError: No installed tool claims to.
        Exception: Whatever the tool raises.
    """
    maker = MAKERS.get((kind, format_))
    if maker is None:
        raise NoToolError(f"no installed tool makes {format_} of {kind}")
    return maker(path, precision, calibration, out)


def _do_make(task: dict[str, Any]) -> dict[str, Any]:
    out = Path(task["out"])
    calibration = load_feeds(Path(task["calibration"]))
    started = time.perf_counter()
    try:
        file = make(task["kind"], Path(task["model"]), task["format"], task["precision"], calibration, out)
    except NoToolError as error:
        return {"status": "no-tool", "reason": str(error), "time_s": 0.0}
    return {"status": "made", "reason": "", "time_s": time.perf_counter() - started, "file": str(file)}


def _do_run(task: dict[str, Any]) -> dict[str, Any]:
    from tests.models.engines import ENGINES, SOURCES

    run = {**SOURCES, **{f"made-{k}": v for k, v in ENGINES.items()}}[task["engine"]](Path(task["model"]))
    answers = [run(feed) for feed in load_feeds(Path(task["feeds"]))]
    stacked = {f"{index:03d}": np.stack(column) for index, column in enumerate(zip(*answers, strict=True))}
    save_arrays(Path(task["answers"]), stacked)
    return {"status": "ran", "reason": ""}


def main(task_path: Path) -> None:
    """Do the task and write its result beside it."""
    task = json.loads(task_path.read_text(encoding="utf-8"))
    try:
        result = {"make": _do_make, "run": _do_run}[task["do"]](task)
    except Exception as error:  # noqa: BLE001  # whatever a foreign tool raises is what this measures
        result = {"status": "failed", "reason": _first_line(error)}
    task_path.with_suffix(".result").write_text(json.dumps(result), encoding="utf-8")


#: Words of the line, among a tool's pages, that says what it was.
_TELLING = (
    "error:",
    "flex ops:",
    "not supported",
    "conversion is failed",
    "unconverted operation",
    "no conversion rule",
)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in _TELLING)]
    return f"{type(error).__name__}: {(telling or lines or ['no message'])[0]}"[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
