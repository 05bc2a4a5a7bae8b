"""Keras, 3 and 2, and SavedModel to ONNX, by tf2onnx from the serving signature."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgekit.canonical import canonicalise
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.keras_tflite import saved_model_folder, signature_of
from edgekit.converters.onnx_static import save_float
from edgekit.manifest import Recipe
from edgekit.streams import Samples

__all__ = ["KerasToOnnx"]


class KerasToOnnx(Converter):
    """ONNX float32 in canonical form, under the source's own input and output names."""

    sources = ("keras", "keras2", "savedmodel")
    format = "onnx"
    precisions = ("fp32",)
    environment = "tensorflow"
    needs = ("tensorflow", "keras", "tf2onnx", "onnx")
    tools = ("tensorflow", "tf2onnx", "onnx")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        model = self._convert_one(saved_model_folder(source), source, recipe)
        return save_float(model, source, recipe, folder)

    def _convert_one(self, folder: Path, source: SourceModel, recipe: Recipe) -> Any:
        import tensorflow as tf
        import tf2onnx

        module = tf.saved_model.load(str(folder))
        signature = module.signatures[signature_of(source)]
        specs = signature.structured_input_signature[1]
        names = [spec.name for spec in source.inputs]

        def forward(*tensors: Any) -> list[Any]:
            answers = signature(**dict(zip(names, tensors, strict=True)))
            return [answers[spec.name] for spec in source.outputs]

        takes = [tf.TensorSpec(specs[n].shape, specs[n].dtype, name=n) for n in names]
        model, _ = tf2onnx.convert.from_function(
            tf.function(forward, input_signature=takes),
            input_signature=takes,
            opset=int(recipe.options["opset"]),
        )
        _drop_folded_constants(model.graph, names)
        return canonicalise(
            model,
            inputs=names,
            outputs=[spec.name for spec in source.outputs],
            ir_version=int(recipe.options["ir"]),
        )


def _drop_folded_constants(graph: Any, names: Collection[str]) -> None:
    """Remove inputs beside `names` that nothing reads.

    A constant that a Keras layer captured, such as the mean of a Normalization, is an input to tf2onnx; it stays
    one after its value was folded into the graph.
    """
    read = {value for node in graph.node for value in node.input}
    kept = [value for value in graph.input if value.name in names or value.name in read]
    del graph.input[:]
    graph.input.extend(kept)
