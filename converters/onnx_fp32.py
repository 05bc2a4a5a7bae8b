"""An ONNX source to the canonical ONNX that goes into bundles."""

from __future__ import annotations

from pathlib import Path

from edgekit.canonical import canonicalise, fold_constants
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_static import fix_sizes, save_float
from edgekit.manifest import Recipe
from edgekit.opset import lower, opset_of
from edgekit.sources.onnx_graph import read_model
from edgekit.streams import Samples

__all__ = ["OnnxToOnnx"]


class OnnxToOnnx(Converter):
    """The user's ONNX, renamed by position, its opset and IR version lowered to what the target reads.

    Sizes that the user fixed are fixed in the file too. Weights outside the file are never held in memory.
    """

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
        """Write one `.onnx` in canonical form, and its weights beside it where one file cannot hold them."""
        from onnx import inliner

        model = read_model(source.path, weights=False)
        if opset_of(model) > int(recipe.options["opset"]):
            if model.functions:
                model = inliner.inline_local_functions(model)
            model.graph.CopyFrom(fold_constants(model.graph))
            model = lower(model, int(recipe.options["opset"]))
        if source.options.input_shapes:
            fix_sizes(model, source.inputs)
        canonical = canonicalise(model, ir_version=int(recipe.options["ir"]))
        return save_float(canonical, source, recipe, folder, source.path.parent)
