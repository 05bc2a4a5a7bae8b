"""TFLite float32 to every quantized precision, by the LiteRT quantizer."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from edgekit.converters.base import Converter, Rung, SourceModel
from edgekit.converters.tflite_bias import correct_biases
from edgekit.converters.tflite_checks import check_precision
from edgekit.converters.tflite_layers import layer_ratios, mixed_scales
from edgekit.converters.tflite_ranges import Range, observe
from edgekit.manifest import Option, Recipe
from edgekit.sources.tflite_graph import read_graph
from edgekit.streams import Samples

__all__ = ["TfliteToQuantized"]

_STATIC = {"int8": 8, "int16x8": 16}
#: Operators whose weights a clipping range may suit better than their extremes.
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")


class TfliteToQuantized(Converter):
    """Inputs and outputs stay float32; what the quantizer does not know stays float inside.

    Options of a recipe, all but the first for static precisions: `weight_only` (int8-dynamic: weights are
    dequantized and the arithmetic is float, for large models that need the size and not the speed; the ladder
    takes it where integer arithmetic loses too much),
    `per_channel` (default true), `weights` (`octav` clips them too), `bias_correction`.
    """

    sources = ("tflite",)
    format = "tflite"
    precisions = ("fp16", "int8-dynamic", "int8", "int16x8")
    environment = "litert"
    needs = ("ai_edge_litert", "litert_quantizer")
    tools = ("litert-quantizer", "ai-edge-litert")
    rungs = (
        Rung("minmax"),
        Rung("percentile"),
        Rung("mse", {"weights": "octav"}),
        # with 16-bit activations there is next to no shift to take back, and the kernels are slow
        Rung("mse", {"weights": "octav", "bias_correction": True}, precisions=("int8",)),
    )
    careful: ClassVar[Mapping[str, Sequence[Mapping[str, Option]]]] = {
        "int8-dynamic": ({"weight_only": True},)
    }
    choices = ("weight_only", "per_channel")
    keeps_float = True

    def __init__(self) -> None:
        self._seen: dict[tuple[Path, str, int], dict[str, Range]] = {}

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write one `.tflite`."""
        path = folder / "model.tflite"
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            plain = prepare(source.path, Path(scratch))
            ranges = self._ranges(source.path, plain, recipe, calibration)
            path.write_bytes(_quantize(plain, recipe, ranges))
            if recipe.options.get("bias_correction") and ranges is not None:
                correct_biases(plain, path, calibration)
        check_precision(path, recipe.precision)
        return path

    def layers(self, source: SourceModel, recipe: Recipe, made: Path, samples: Samples) -> dict[str, float]:  # noqa: ARG002
        """Return the signal-to-noise ratio of each quantized operator's output, by that tensor's name."""
        with tempfile.TemporaryDirectory() as scratch:
            return layer_ratios(prepare(source.path, Path(scratch)), made, samples)

    def _ranges(
        self, path: Path, plain: Path, recipe: Recipe, calibration: Samples
    ) -> dict[str, Range] | None:
        """Return the ranges of a static recipe, seen once for each source, method and width."""
        bits = _STATIC.get(recipe.precision)
        if bits is None:
            return None
        method = recipe.calibration or "minmax"
        key = (path, method, bits if method == "mse" else 0)
        if key not in self._seen:
            self._seen[key] = observe(plain, calibration, method, (1 << bits) - 1)
        return self._seen[key]


def prepare(path: Path, folder: Path) -> Path:
    """Return the model with a name of its own for every tensor, which the quantizer wants; most have that."""
    graph = read_graph(path)
    names = [tensor.name for subgraph in graph.subgraphs for tensor in subgraph.tensors]
    if len(set(names)) == len(names):
        return path
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    taken: set[bytes] = set()
    for tensor in (tensor for subgraph in model.subgraphs for tensor in subgraph.tensors):
        name, number = tensor.name or b"tensor", 1
        while tensor.name in taken or not tensor.name:
            number += 1
            tensor.name = name + f"#{number}".encode()
        taken.add(tensor.name)
    renamed = folder / "renamed.tflite"
    renamed.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return renamed


def _quantize(path: Path, recipe: Recipe, ranges: Mapping[str, Range] | None) -> bytes:
    import numpy as np
    from litert_quantizer import quantizer

    made = quantizer.Quantizer(str(path))
    kept = [*recipe.float_layers, *(mixed_scales(read_graph(path), ranges) if ranges is not None else ())]
    for step in quantization_steps(recipe, kept):
        made.update_quantization_recipe(*step)
    graph = read_graph(path)
    ranks = {tensor.name: len(tensor.shape) for tensor in graph.subgraphs[0].tensors}
    seen = None if ranges is None else {
        name: {
            "min": np.full((1,) * ranks[name], low, np.float32),
            "max": np.full((1,) * ranks[name], high, np.float32),
        }
        for name, (low, high) in ranges.items()
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LiteRT's advice on its own internals
        result = made.quantize(seen, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def quantization_steps(recipe: Recipe, kept: Sequence[str]) -> list[tuple[str, Any, Any, str]]:
    """Return the quantizer's configuration: scope, operator, how, and by which algorithm; later ones win.

    Args:
        recipe: What to make.
        kept: Names of the tensors whose operators stay float.
    """
    from litert_quantizer import qtyping

    operator = qtyping.TFLOperationName
    weights, algorithm = (
        _config(recipe),
        "float_casting" if recipe.precision == "fp16" else "min_max_uniform_quantize",
    )
    steps: list[tuple[str, Any, Any, str]] = [(".*", operator.ALL_SUPPORTED, weights, algorithm)]
    if recipe.options.get("weights") == "octav" and recipe.precision in _STATIC:
        steps += [(".*", operator[name], weights, "OCTAV") for name in _WEIGHTED]
    steps += [(".*", side, None, "no_quantize") for side in (operator.INPUT, operator.OUTPUT)]
    scopes = dict.fromkeys(f"(^|;){re.escape(name)};?$" for name in kept)
    return [*steps, *((scope, operator.ALL_SUPPORTED, None, "no_quantize") for scope in scopes)]


def _config(recipe: Recipe) -> Any:
    from litert_quantizer import qtyping

    half = recipe.precision == "fp16"
    per_channel = recipe.options.get("per_channel", True)
    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    weights = qtyping.TensorQuantizationConfig(
        num_bits=16 if half else 8,
        symmetric=True,
        granularity=granularity,
        dtype=qtyping.TensorDataType.FLOAT if half else qtyping.TensorDataType.INT,
    )
    bits = _STATIC.get(recipe.precision)
    activations = (
        None if bits is None else qtyping.TensorQuantizationConfig(num_bits=bits, symmetric=bits == 16)
    )
    float_arithmetic = half or (bits is None and bool(recipe.options.get("weight_only")))
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT
        if float_arithmetic
        else qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=float_arithmetic,
    )
