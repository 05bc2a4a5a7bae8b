"""OpenVINO IR float32 to int8 weights; arithmetic and activations stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_openvino import save_ir
from edgekit.converters.openvino_layers import names_of
from edgekit.errors import ConversionError
from edgekit.manifest import Option, Recipe
from edgekit.streams import Samples

__all__ = ["OpenVinoToWeights"]


class OpenVinoToWeights(Converter):
    """Weights of layers and tables in int8, a scale for each channel, by NNCF; for models too large for memory.

    It goes by `int8-dynamic`, the precision without calibration: whether a plugin quantizes activations as it runs
    is its own affair. Option of a recipe: `zero_points`, where each channel's range need not lie evenly around zero.
    """

    sources = ("openvino",)
    format = "openvino"
    precisions = ("int8-dynamic",)
    environment = "onnx"
    needs = ("openvino", "nncf")
    tools = ("nncf", "openvino")
    careful: ClassVar[Mapping[str, Sequence[Mapping[str, Option]]]] = {
        "int8-dynamic": ({"zero_points": True},)
    }
    choices = ("zero_points",)

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write the IR."""
        import nncf
        import openvino as ov

        model = ov.Core().read_model(str(source.path))
        named = names_of(model)
        modes = nncf.CompressWeightsMode
        mode = modes.INT8_ASYM if recipe.options.get("zero_points") else modes.INT8_SYM
        compressed = nncf.compress_weights(model, mode=mode)
        path = save_ir(compressed, folder, half=False, named=named)
        if path.with_suffix(".bin").stat().st_size >= source.path.with_suffix(".bin").stat().st_size:
            raise ConversionError("no layer of the model has weights that integers could hold")
        return path
