"""An ONNX source to the canonical ONNX that goes into bundles."""

from __future__ import annotations

from pathlib import Path

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters.base import Converter, SourceModel
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OnnxToOnnx"]


class OnnxToOnnx(Converter):
    """The user's ONNX, renamed by position; refused where its opset is newer than the target reads."""

    sources = ("onnx-source",)
    format = "onnx"
    precisions = ("fp32",)
    environment = "onnx"
    needs = ("onnx",)
    tools = ("onnx",)

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        import onnx

        model = onnx.load(str(source.path))
        most = int(recipe.options["opset"])
        opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        if opset > most:
            raise ConversionError(
                "the model's opset is newer than the target's runtime reads",
                got=opset,
                expected=f"at most {most}",
            )
        path = folder / "model.onnx"
        save_canonical(canonicalise(model, ir_version=int(recipe.options["ir"])), str(path))
        return path
