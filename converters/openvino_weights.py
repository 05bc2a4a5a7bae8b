"""OpenVINO IR float32 to int8 weights; arithmetic and activations stay float."""

from __future__ import annotations

from pathlib import Path

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_openvino import save_ir
from edgekit.converters.openvino_layers import names_of
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OpenVinoToWeights"]


class OpenVinoToWeights(Converter):
    """Weights of layers and tables in int8, a scale for each channel, by NNCF; for models too large for memory.

    It goes by `int8-dynamic`, the precision without calibration: whether a plugin quantizes activations as it runs
    is its own affair.
    """

    sources = ("openvino",)
    format = "openvino"
    precisions = ("int8-dynamic",)
    environment = "onnx"
    needs = ("openvino", "nncf")
    tools = ("nncf", "openvino")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,  # noqa: ARG002
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write the IR."""
        import nncf
        import openvino as ov

        model = ov.Core().read_model(str(source.path))
        named = names_of(model)
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        path = save_ir(compressed, folder, half=False, named=named)
        if path.with_suffix(".bin").stat().st_size >= source.path.with_suffix(".bin").stat().st_size:
            raise ConversionError("no layer of the model has weights that integers could hold")
        return path
