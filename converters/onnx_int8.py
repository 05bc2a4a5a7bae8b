"""ONNX float32 to static int8 (QDQ), by ONNX Runtime's quantizer, as the target's kernels want it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.calibration import Range
from edgekit.canonical import save_canonical, sort_nodes
from edgekit.converters.base import Converter, Rung, SourceModel
from edgekit.converters.onnx_bias import correct_biases
from edgekit.converters.onnx_equalise import equalise, equalise_like
from edgekit.converters.onnx_layers import layer_ratios
from edgekit.converters.onnx_policy import Choice, candidates, choose
from edgekit.converters.onnx_prepare import Prepared, prepare
from edgekit.converters.onnx_ranges import ranges
from edgekit.converters.onnx_tables import store_rows
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OnnxToInt8"]


class OnnxToInt8(Converter):
    """QuantizeLinear/DequantizeLinear pairs around float operators, per-channel weights.

    ONNX Runtime's quantizer writes them. Which layers and tensors are worth it (`onnx_policy`), the ranges
    (`onnx_ranges`) and the biases (`onnx_bias`) are decided here.

    Options of the recipe, from the target's profile: `activation` (`uint8` or `int8`), `symmetric_activations`
    (activations with zero point 0, as TensorRT needs), `reduce_range` (7-bit weights, for x86 without VNNI,
    where u8×s8 products saturate), `per_channel`; from the ladder: `bias_correction` (`fast`: every layer on
    float inputs; `full`: one after the other, on the inputs that the layers before leave), `equalise` (outlier
    channels of normalisations go into the weights behind them).
    """

    sources = ("onnx",)
    format = "onnx"
    precisions = ("int8",)
    environment = "onnx"
    needs = ("onnx", "onnxruntime")
    tools = ("onnxruntime", "onnx")
    rungs = (
        Rung("minmax"),
        Rung("mse"),
        Rung("percentile"),
        Rung("mse", {"bias_correction": "full"}),
        Rung("minmax", {"bias_correction": "full"}),
        Rung("minmax", {"equalise": True, "bias_correction": "full"}),
    )
    keeps_float = True

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write one `.onnx`; its names derive from the canonical ones, so its bytes are stable."""
        path = folder / "model.onnx"
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            prepared = _ready(source.path, recipe, calibration, Path(scratch))
        model = quantize(prepared, recipe, calibration)
        correction = str(recipe.options.get("bias_correction", ""))
        if correction:
            correct_biases(prepared, model, calibration, sequential=_sequential(correction))
        store_rows(model)
        model.producer_name, model.producer_version = "edgekit", ""
        save_canonical(model, str(path))
        return path

    def layers(self, source: SourceModel, recipe: Recipe, made: Path, samples: Samples) -> dict[str, float]:
        """Return each layer's own ratio: what it makes in integers of the float network's values."""
        import onnx

        with tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(source.path, Path(scratch))
        quantized = onnx.load(str(made))
        if recipe.options.get("equalise"):
            prepared = equalise_like(prepared, quantized)
        return layer_ratios(prepared, quantized, samples)


def _ready(path: Path, recipe: Recipe, samples: Samples, scratch: Path) -> Prepared:
    """Return the float model as the recipe quantizes it."""
    prepared = prepare(path, scratch)
    if not recipe.options.get("equalise"):
        return prepared
    equalised = equalise(prepared, samples)
    if equalised is None:
        raise ConversionError("equalise: the model has no channels that it would make more alike")
    return equalised


def _sequential(correction: str) -> bool:
    if correction not in ("fast", "full"):
        raise ConversionError(f"unknown bias correction {correction!r}", expected="fast or full")
    return correction == "full"


def quantize(prepared: Prepared, recipe: Recipe, calibration: Samples) -> Any:
    """Return the model in integers where it is worth it.

    Args:
        prepared: The float model; it is not changed.
        recipe: What to make.
        calibration: Inputs by name.

    Raises:
        ConversionError: No layer can be quantized, or the recipe keeps one that is not there.
    """
    names = {node.name for node in prepared.model.graph.node}
    for layer in recipe.float_layers:
        if layer not in names:
            raise ConversionError(f"the model has no layer {layer!r} to keep in float")
    symmetric = bool(recipe.options["symmetric_activations"])
    method = recipe.calibration or "minmax"
    tensors = candidates(prepared)
    if not tensors:
        raise ConversionError("no layer of the model has weights that integers could hold")
    found = ranges(prepared, tensors, calibration, method, symmetric=symmetric)
    choice = choose(prepared, found, recipe.float_layers)
    return _write_pairs(prepared, choice, found, recipe)


def _write_pairs(prepared: Prepared, choice: Choice, found: Mapping[str, Range], recipe: Recipe) -> Any:
    """Let ONNX Runtime's quantizer write the pairs of quantize and dequantize."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    class Chosen(QDQQuantizer):  # type: ignore[misc]  # the library has no types
        def _is_tensor_quantizable(self, tensor_name: str) -> bool:
            return tensor_name not in choice.floats and bool(super()._is_tensor_quantizable(tensor_name))

    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    options = recipe.options
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in found.items()
    }
    with _quiet():
        result: Any = Chosen(
            model,
            bool(options["per_channel"]),
            bool(options["reduce_range"]),
            QuantType.QInt8,
            QuantType.QInt8 if options["activation"] == "int8" else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            sorted(choice.layers),
            [],
            sorted({node.op_type for node in model.graph.node if node.name in choice.layers}),
            {
                "ActivationSymmetric": bool(options["symmetric_activations"]),
                "WeightSymmetric": True,
                # TensorRT wants biases in float; so does every other reader
                "QuantizeBias": not options["symmetric_activations"],
            },
        ).quantize_model()
    del result.graph.value_info[:]
    sort_nodes(result.graph)
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice out of the log: each node without a rule is a line."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
