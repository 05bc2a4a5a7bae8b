"""SavedModel to OpenVINO IR without a format between, fp32 and fp16."""

from __future__ import annotations

from pathlib import Path

from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_openvino import OnnxToOpenVino, save_ir
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.signatures import DEFAULT_SIGNATURE
from edgekit.streams import Samples

__all__ = ["SavedModelToOpenVino"]


class SavedModelToOpenVino(OnnxToOpenVino):
    """By OpenVINO's own reader, which needs no TensorFlow and takes the default signature only."""

    sources = ("savedmodel",)

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one IR, under the names of the signature."""
        import openvino as ov

        signature = source.options.signature or DEFAULT_SIGNATURE
        if signature != DEFAULT_SIGNATURE:
            raise ConversionError(f"OpenVINO reads {DEFAULT_SIGNATURE} alone", got=signature)
        model = ov.convert_model(str(source.path))
        for ports, specs in ((model.inputs, source.inputs), (model.outputs, source.outputs)):
            found = sorted(name for port in ports for name in port.get_names())
            wanted = sorted(spec.name for spec in specs)
            if found != wanted:
                raise ConversionError("OpenVINO reads another signature", got=found, expected=wanted)
        if recipe.options["static"]:
            model.reshape({spec.name: list(spec.shape) for spec in self.inputs(source, recipe)})
        return save_ir(model, folder, half=recipe.precision == "fp16")
