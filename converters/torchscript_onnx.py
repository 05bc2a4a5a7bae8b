"""TorchScript to ONNX, by torch's older exporter: the newer one takes no TorchScript."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.torch_onnx import export_traced, finish
from edgekit.manifest import Recipe
from edgekit.sources.torch import TorchScriptSource
from edgekit.streams import Samples

__all__ = ["TorchScriptToOnnx"]


class TorchScriptToOnnx(Converter):
    """ONNX in canonical form; sizes that the user left free stay free."""

    sources = ("torchscript",)
    format = "onnx"
    precisions = ("fp32",)
    environment = "torch"
    needs = ("torch", "onnx")
    tools = ("torch", "onnx")
    extra = "torch"

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        module = TorchScriptSource(source.path, source.options).module
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            file = Path(scratch) / "exported.onnx"
            export_traced(module, source, recipe, file)
            return finish(file, source, recipe, folder)
