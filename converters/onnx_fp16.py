"""ONNX float32 to float16 inside, float32 at the edges."""

from __future__ import annotations

from pathlib import Path

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters.base import Converter, SourceModel
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["OnnxToFp16"]


class OnnxToFp16(Converter):
    """Weights and arithmetic in float16; inputs and outputs stay as they were."""

    sources = ("onnx",)
    format = "onnx"
    precisions = ("fp16",)
    environment = "onnx"
    needs = ("onnx", "onnxruntime")
    tools = ("onnxruntime", "onnx")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,  # noqa: ARG002
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(onnx.load(str(source.path)), keep_io_types=True)
        path = folder / "model.onnx"
        save_canonical(canonicalise(model), str(path))
        return path
