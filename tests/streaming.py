"""Reads calibration data and converts with it, in a process of its own; prints the peak memory of each part in MiB.

    python -m tests.streaming CONVERTER MODEL DATA SIZE WARM-UP SCRATCH

MODEL and WARM-UP (a few samples like those of DATA) first go through everything, so that what the framework, the
model and one sample need is not counted; what DATA needs beyond that is.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from edgekit.data import read_data
from edgekit.tensors import TensorSpec

__all__ = ["STEPS", "specs"]

#: What a sample is: (pixel / 255 - 0.5) / 0.5.
STEPS = [{"kind": "image", "input": "image", "scale": 1 / 255, "mean": [0.5], "std": [0.5]}]
FORMATS = {"onnx-int8": "onnx", "openvino-int8": "openvino", "keras-tflite": "tflite"}
KINDS = {"onnx-int8": "onnx", "openvino-int8": "openvino", "keras-tflite": "keras"}


def specs(size: int) -> tuple[TensorSpec, TensorSpec]:
    """Return the model's input and output."""
    return TensorSpec("image", "float32", (-1, size, size, 3), "NHWC"), TensorSpec(
        "scores", "float32", (-1, 4)
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _work(name: str, model: Path, data: Path, size: int, scratch: Path) -> float:
    """Return the peak after reading, having converted as well."""
    from edgekit.converters import get_converter
    from edgekit.converters.base import SourceModel
    from edgekit.devices import load_profile
    from edgekit.recipes import recipe_for

    takes, gives = specs(size)
    dataset = read_data(data, [takes], preprocess=STEPS, scratch=scratch / "samples")
    assert dataset.stream is not None
    read = _peak_mib()
    out = scratch / "made"
    out.mkdir()
    recipe = recipe_for(load_profile("x86-64"), (name,), FORMATS[name], "int8", dataset.n)
    source = SourceModel(KINDS[name], model, (takes,), (gives,))
    get_converter(name).make(source, recipe, dataset.stream, out)
    return read


def main() -> None:
    """Print the peaks after the warm-up, after reading, and after converting."""
    name, model, data, size, few, scratch = sys.argv[1:]
    for part in ("few", "all"):
        (Path(scratch) / part).mkdir()
    _work(name, Path(model), Path(few), int(size), Path(scratch) / "few")
    before = _peak_mib()
    read = _work(name, Path(model), Path(data), int(size), Path(scratch) / "all")
    print(before, read, _peak_mib())


if __name__ == "__main__":
    main()
