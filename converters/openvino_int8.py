"""OpenVINO IR float32 to static int8, by NNCF's post-training quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.converters.base import Converter, Rung, SourceModel
from edgekit.converters.onnx_openvino import save_ir
from edgekit.converters.openvino_equalise import equalise, find_exponents, recall, remember
from edgekit.converters.openvino_layers import has_attention, layer_ratios, mixed_joints, names_of, worthless
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OpenVinoToInt8"]

#: Calibration method to what NNCF calls it.
_RANGES = {"minmax": "MINMAX", "percentile": "MEAN_QUANTILE", "mse": "HISTOGRAM", "mean": "MEAN_MINMAX"}


class OpenVinoToInt8(Converter):
    """FakeQuantize by NNCF, for the device the recipe names (`device`: `CPU`, `NPU`, …).

    Channels that no one scale suits are equalised. Joints of tensors that no one scale suits, and operators that
    integers are not worth for, stay in float. A model with attention is quantized by NNCF's rules for transformers.
    Options: `reduce_range` (7-bit weights, for x86 without VNNI); from the ladder: `bias_correction`
    (`full`, else NNCF's fast one), `asymmetric` (activations with zero points of their own).
    """

    sources = ("openvino",)
    format = "openvino"
    precisions = ("int8",)
    environment = "onnx"
    needs = ("openvino", "nncf")
    tools = ("nncf", "openvino")
    rungs = (
        Rung("minmax"),
        # each alone helps less, and an attempt costs more than full correction does
        Rung("mse", {"bias_correction": "full", "asymmetric": True}),
        Rung("percentile", {"bias_correction": "full"}),
        Rung("mean"),
    )
    keeps_float = True

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write the int8 IR; layers keep the float IR's names."""
        import nncf
        import openvino as ov

        model = ov.Core().read_model(str(source.path))
        named = names_of(model)
        for layer in recipe.float_layers:
            if layer not in named:
                raise ConversionError(f"the model has no layer {layer!r} to keep in float")
        exponents = find_exponents(model, calibration, recipe.float_layers)
        put_in = equalise(model, exponents)
        kept = sorted({*recipe.float_layers, *put_in, *mixed_joints(model, calibration), *worthless(model)})
        quantized = nncf.quantize(
            model,
            nncf.Dataset(calibration),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED if recipe.options.get("asymmetric") else None,
            target_device=nncf.TargetDevice[str(recipe.options["device"])],
            fast_bias_correction=recipe.options.get("bias_correction") != "full",
            model_type=nncf.ModelType.TRANSFORMER if has_attention(model) else None,
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            advanced_parameters=_parameters(recipe),
        )
        _write_squares(quantized)
        remember(quantized, exponents)
        return save_ir(quantized, folder, half=False, named={*named, *put_in})

    def layers(self, source: SourceModel, recipe: Recipe, made: Path, samples: Samples) -> dict[str, float]:  # noqa: ARG002
        """Return each layer's own ratio: what it makes in integers of the float network's values."""
        import openvino as ov

        core = ov.Core()
        exact, quantized = (core.read_model(str(path)) for path in (source.path, made))
        equalise(exact, recall(quantized))  # to compare like with like
        return layer_ratios(exact, quantized, samples)


def _write_squares(model: Any) -> None:
    """Write a product of a value with itself as a power, in place.

    OpenVINO's CPU plugin (2026.4) carries the scale of an integer layer through such a product once, where it
    belongs there twice, and answers nearly nothing.
    """
    import numpy as np
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Multiply" and node.input_value(0) == node.input_value(1):
            two = opset13.constant(np.float32(2.0))
            square = opset13.power(node.input_value(0), two)
            square.set_friendly_name(node.get_friendly_name())
            names = node.output(0).get_names()
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(square.output(0))
            square.output(0).set_names(names)


def _parameters(recipe: Recipe) -> Any:
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    method = recipe.calibration or "minmax"
    if method not in _RANGES:
        raise ConversionError(f"unknown calibration {method!r}", expected="one of " + ", ".join(_RANGES))
    # products of 8-bit values saturate on a CPU without VNNI, in every layer and not in the first alone
    overflow = OverflowFix.ENABLE if recipe.options.get("reduce_range") else OverflowFix.DISABLE
    parameters = AdvancedQuantizationParameters(overflow_fix=overflow)
    # the mean of the samples' extremes, NNCF's own default, cuts off what any one sample holds beyond it
    parameters.activations_range_estimator_params = getattr(RangeEstimatorParametersSet, _RANGES[method])
    # equalisation has done what SmoothQuant would do in transformers, and where it is needed alone
    parameters.smooth_quant_alphas = AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    return parameters
