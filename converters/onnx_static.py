"""Where float32 ONNX is written: with fixed sizes for a target that takes no others.

ONNX Runtime folds what hangs on sizes that are fixed (shapes, and what is computed from them) before it hands nodes
to a provider, so that an accelerator's compiler sees none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.canonical import save_canonical
from edgekit.converters.base import SourceModel, frozen
from edgekit.manifest import Recipe
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["fix_sizes", "freeze", "save_float"]


def save_float(
    model: onnx.ModelProto, source: SourceModel, recipe: Recipe, folder: Path, weights: Path | None = None
) -> Path:
    """Write a canonical float32 model into `folder`; return the file.

    Args:
        model: Canonical, under the names of the source's inputs; it may be changed.
        source: Says what the inputs take.
        recipe: With the option `static`, every input's size is fixed, the batch at one.
        folder: The artifact's.
        weights: Where weights lie that are outside of the model.

    Raises:
        ConversionError: Sizes must be fixed, and an input has free ones beyond the batch.
    """
    if recipe.options.get("static"):
        freeze(model, frozen(source.inputs))
    path = folder / "model.onnx"
    save_canonical(model, str(path), weights)
    return path


def freeze(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Fix the sizes of inputs, and of outputs as far as they follow, in place."""
    import onnx

    fix_sizes(model, inputs)
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in free.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(free, data_prop=True).graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        if found.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(_named(found, value))


def _named(found: onnx.ValueInfoProto, declared: onnx.ValueInfoProto) -> onnx.TensorShapeProto:
    """Return the inferred shape, its free sizes called as before: inference numbers them by what it met."""
    shape = found.type.tensor_type.shape
    before = declared.type.tensor_type.shape.dim
    for axis, size in enumerate(shape.dim):
        if not size.HasField("dim_value"):
            size.Clear()
            if axis < len(before):
                size.CopyFrom(before[axis])
    return shape


def fix_sizes(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Write sizes into the graph's inputs, in place; what was inferred from free ones goes."""
    given = {spec.name: spec.shape for spec in inputs}
    del model.graph.value_info[:]
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False):
            if size >= 0:
                dimension.dim_value = size
