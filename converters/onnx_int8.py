"""ONNX float32 to static int8 (QDQ), by ONNX Runtime's quantizer, as the target's kernels want it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters.base import Converter, SourceModel
from edgekit.manifest import Recipe
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxToInt8"]


class OnnxToInt8(Converter):
    """QuantizeLinear/DequantizeLinear pairs around float operators, per-channel weights, min-max calibration.

    Options of the recipe, from the target's profile: `activation` (`uint8` or `int8`), `symmetric_activations`
    (activations with zero point 0, as TensorRT needs), `reduce_range` (7-bit weights, for x86 without VNNI,
    where u8×s8 products saturate), `per_channel`.
    """

    sources = ("onnx",)
    format = "onnx"
    precisions = ("int8",)
    environment = "onnx"
    needs = ("onnx", "onnxruntime", "sympy")
    tools = ("onnxruntime", "onnx")

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write one `.onnx` in canonical form."""
        path = folder / "model.onnx"
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            model = self._quantize(source.path, recipe, calibration, Path(scratch))
        save_canonical(canonicalise(model), str(path))
        return path

    def _quantize(self, path: Path, recipe: Recipe, calibration: Samples, scratch: Path) -> Any:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, quantized = scratch / "prepared.onnx", scratch / "quantized.onnx"
        options = recipe.options
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if options["activation"] == "int8" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=bool(options["per_channel"]),
            reduce_range=bool(options["reduce_range"]),
            extra_options={
                "ActivationSymmetric": bool(options["symmetric_activations"]),
                "WeightSymmetric": True,
                # TensorRT wants biases in float; so does every other reader
                "QuantizeBias": not options["symmetric_activations"],
            },
        )
        return onnx.load(str(quantized))


class _Reader:
    """Feeds calibration samples one at a time, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, calibration: Samples) -> None:
        self._samples = calibration
        self._n = len(calibration)
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self._next >= self._n:
            return None
        i = self._next
        self._next += 1
        return self._samples[i]

    def __len__(self) -> int:
        return self._n

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._n = start_index, end_index
