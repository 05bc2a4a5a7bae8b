"""OpenVINO IR float32 to static int8, by NNCF's post-training quantization."""

from __future__ import annotations

from pathlib import Path

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_openvino import save_ir
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OpenVinoToInt8"]


class OpenVinoToInt8(Converter):
    """FakeQuantize by NNCF, for the device the recipe names (`device`: `CPU`, `NPU`, …)."""

    sources = ("openvino",)
    format = "openvino"
    precisions = ("int8",)
    environment = "onnx"
    needs = ("openvino", "nncf")
    tools = ("nncf", "openvino")

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write the int8 IR."""
        import nncf
        import openvino as ov

        model = nncf.quantize(
            ov.Core().read_model(str(source.path)),
            nncf.Dataset(calibration),
            subset_size=len(calibration),
            target_device=nncf.TargetDevice[str(recipe.options["device"])],
            fast_bias_correction=bool(recipe.options["fast_bias_correction"]),
        )
        return save_ir(model, folder, half=False)
