"""The time of making every format of the reference CNN, beside the native tools run by hand; and each worker's memory.

    python benchmarks/convert_time.py [--repeats N]

What a Raspberry Pi 4 gets (TFLite fp32, int8-dynamic and int8; ONNX fp32 and int8) and OpenVINO fp32, fp16 and int8,
from one `.keras` file and 200 calibration digits. EdgeKit's side is the converting of `edgekit convert --jobs 2`: from
an empty process, through its workers started cold, to the last file; without the gate. The other side is one empty
process that calls TensorFlow Lite's converter, tf2onnx, ONNX Runtime's quantizer, OpenVINO's converter and NNCF one
after the other, as their documentation has it. In turns; medians. Budget: 1.15 ×.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.converters import CONVERTERS, get_converter
from edgekit.devices import load_profile
from edgekit.factory import Factory, Product
from edgekit.manifest import Recipe
from edgekit.process import WorkerLimits, python_command
from edgekit.recipes import recipe_for, wanted_artifacts
from edgekit.tasks import Described
from tests.corpus import ReferenceCnn, reference_cnn

BUDGET, JOBS, KIND = 1.15, 2, "keras"
#: Profile to what is made for it.
WANTED: dict[str, dict[str, tuple[str, ...]]] = {
    "raspberry-pi-4": {"tflite": ("fp32", "int8-dynamic", "int8"), "onnx": ("fp32", "int8")},
    "x86-64": {"openvino": ("fp32", "fp16", "int8")},
}
TOOLS = ("tensorflow", "tf2onnx", "onnxruntime", "openvino", "nncf")


# EdgeKit


def recipes(samples: int) -> dict[str, Recipe]:
    """Return the recipe that each artifact's ladder begins with, by the artifact's name."""
    table = {name: get_converter(name) for name in CONVERTERS}
    found = {}
    for target, formats in WANTED.items():
        profile = load_profile(target)
        for format_, precisions in formats.items():
            wanted = wanted_artifacts(
                profile, KIND, table, formats=[format_], precisions=precisions, calibrated=True
            )
            found |= {
                w.name: recipe_for(profile, w.routes[0], w.format, w.precision, samples) for w in wanted
            }
    return found


def run_edgekit(cnn: ReferenceCnn, folder: Path) -> dict[str, float]:
    """Make everything; return the peak memory of each artifact's worker in MiB."""
    source = msgspec.json.decode((folder.parent / "described.json").read_bytes(), type=Described)
    profile = load_profile("raspberry-pi-4")
    factory = Factory(folder, WorkerLimits(), JOBS)
    try:
        with np.load(cnn.calibration) as data:
            calibration = {"image": data["image"]}
        made = factory.make(
            KIND, cnn.model, source, recipes(len(calibration["image"])),
            lambda route, format_: recipe_for(profile, route, format_, "fp32", 0),
            factory.store_calibration(calibration),
            lambda _what, _done, _all: None,
        )  # fmt: skip
    finally:
        factory.close()
    for name, result in made.items():
        if not isinstance(result, Product):
            sys.exit(f"{name}: {result}")
    return {name: result.peak_mib for name, result in made.items() if isinstance(result, Product)}


def describe(cnn: ReferenceCnn, folder: Path) -> None:
    """Write what the command knows of the source before it converts."""
    with tempfile.TemporaryDirectory() as scratch:
        factory = Factory(Path(scratch), WorkerLimits(), 1)
        try:
            described = factory.describe(KIND, cnn.model)
        finally:
            factory.close()
    (folder / "described.json").write_bytes(msgspec.json.encode(described))


# The native tools


def run_native(cnn: ReferenceCnn, folder: Path) -> dict[str, float]:
    """Make the same by hand; return this process's peak memory in MiB."""
    with np.load(cnn.calibration) as data:
        images = data["image"]
    saved = native_tflite(cnn, images, folder)
    native_onnx(saved, images, folder)
    native_openvino(images, folder)
    return {"all": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0}


def native_tflite(cnn: ReferenceCnn, images: np.ndarray, folder: Path) -> str:
    """Write three TFLite files; return the SavedModel that they come from."""
    import keras
    import tensorflow as tf

    saved = str(folder / "saved")
    keras.saving.load_model(cnn.model).export(saved, format="tf_saved_model", verbose=False)

    def samples() -> Iterator[list[np.ndarray]]:
        for image in images:
            yield [image[None]]

    for precision in ("fp32", "int8-dynamic", "int8"):
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        if precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "int8":
            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        (folder / f"{precision}.tflite").write_bytes(converter.convert())
    return saved


def native_onnx(saved: str, images: np.ndarray, folder: Path) -> None:
    """Write ONNX, and int8 by ONNX Runtime's quantizer."""
    import tensorflow as tf
    import tf2onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    module = tf.saved_model.load(saved)  # its variables live as long as it does
    signature = module.signatures["serving_default"]
    (name, spec), *_ = signature.structured_input_signature[1].items()
    takes = [tf.TensorSpec(spec.shape, spec.dtype, name=name)]
    forward = tf.function(lambda x: signature(**{name: x}), input_signature=takes)
    tf2onnx.convert.from_function(
        forward, input_signature=takes, opset=17, output_path=str(folder / "fp32.onnx")
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._feeds = iter([{name: image[None]} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    quant_pre_process(str(folder / "fp32.onnx"), str(folder / "prepared.onnx"))
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / "int8.onnx"), Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def native_openvino(images: np.ndarray, folder: Path) -> None:
    """Write three OpenVINO models from the ONNX file."""
    import nncf
    import openvino as ov

    model = ov.convert_model(str(folder / "fp32.onnx"))
    name = model.inputs[0].any_name
    ov.save_model(model, str(folder / "fp32.xml"), compress_to_fp16=False)
    ov.save_model(model, str(folder / "fp16.xml"), compress_to_fp16=True)
    samples = nncf.Dataset([{name: image[None]} for image in images])
    quantized = nncf.quantize(model, samples, subset_size=len(images))
    ov.save_model(quantized, str(folder / "int8.xml"), compress_to_fp16=False)


# In turns

SIDES = {"edgekit": run_edgekit, "native": run_native}


def run_timed(side: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Run one side in an empty process; return its seconds and peaks in MiB."""
    folder.mkdir()
    command = python_command(str(Path(__file__).resolve()), "--child", side, str(folder))
    # nothing may be known from another round
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{side} failed: {done.stderr[-2000:]}")
    peaks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds, peaks


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    cnn = reference_cnn()
    if given.child:
        side, folder = given.child
        print(json.dumps(SIDES[side](cnn, Path(folder))))
        return
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    print(
        f"{cpu.partition(': ')[2] or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"Python {platform.python_version()}, " + ", ".join(f"{tool} {version(tool)}" for tool in TOOLS))
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        describe(cnn, Path(scratch))
        for repeat in range(given.repeats + 1):
            for side in SIDES:
                seconds, peaks[side] = run_timed(side, Path(scratch) / f"{side}{repeat}")
                if repeat:  # the first fills the page cache
                    times[side].append(seconds)
    for side, seen in times.items():
        print(f"{side:<8} median {statistics.median(seen):.1f} s ({min(seen):.1f} to {max(seen):.1f})")
    ratios = [ours / theirs for ours, theirs in zip(times["edgekit"], times["native"], strict=True)]
    print(
        f"edgekit over native: {statistics.median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f}, "
        f"{given.repeats} pairs; budget {BUDGET} ×), load {os.getloadavg()[0]:.1f}"
    )
    for name, peak in peaks["edgekit"].items():
        print(f"peak memory of the worker behind {name:<22} {peak:6.0f} MiB")
    print(f"peak memory of the native process{'':<24} {peaks['native']['all']:6.0f} MiB")


if __name__ == "__main__":
    main()
