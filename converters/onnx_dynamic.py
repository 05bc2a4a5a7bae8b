"""ONNX float32 to int8 weights: integer matrix products that measure their input as they run; no calibration."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_prepare import prepare
from edgekit.converters.onnx_tables import store_channels, store_rows
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxToDynamic"]


class OnnxToDynamic(Converter):
    """Weights in int8, a scale for each channel, inputs and outputs in float32.

    Matrix products and LSTMs run in integers. Convolutions, whose integer kernel for inputs of unknown range is slow
    and takes one scale for all channels, and lookup tables dequantize their weights and compute in float.

    Options: `reduce_range`, as for static int8.
    """

    sources = ("onnx",)
    format = "onnx"
    precisions = ("int8-dynamic",)
    environment = "onnx"
    needs = ("onnx", "onnxruntime")
    tools = ("onnxruntime", "onnx")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            model = prepare(source.path, Path(scratch), biases=False).model
            model = _integer_products(model, reduce_range=bool(recipe.options.get("reduce_range", False)))
        store_channels(model)
        store_rows(model)
        if not any(tensor.data_type in (2, 3) and tensor.dims for tensor in model.graph.initializer):
            raise ConversionError("no layer of the model has weights that integers could hold")
        path = folder / "model.onnx"
        save_canonical(canonicalise(model), str(path))
        return path


def _integer_products(model: onnx.ModelProto, *, reduce_range: bool) -> Any:
    import onnx
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    with _quiet():
        return ONNXQuantizer(
            changed,
            True,  # a scale for each channel
            reduce_range,
            QuantizationMode.IntegerOps,
            False,  # no static ranges
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            [],
            [],
            ["MatMul", "LSTM"],
            {"MatMulConstBOnly": True, "WeightSymmetric": True},
        ).quantize_model()


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
