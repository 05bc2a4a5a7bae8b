"""ONNX float32 to float16 inside, float32 at the edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.canonical import canonicalise, save_canonical
from edgekit.converters.base import Converted, Converter, SourceModel
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxToFp16"]


class OnnxToFp16(Converter):
    """Weights and arithmetic in float16; inputs and outputs stay as they were."""

    sources = ("onnx",)
    format = "onnx"
    precisions = ("fp16",)
    environment = "onnx"
    needs = ("onnx", "onnxruntime")

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Mapping[str, np.ndarray] | None,  # noqa: ARG002
        out: Path,
    ) -> Iterator[Converted]:
        """Make the one fp16 model."""
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        for recipe in recipes:
            try:
                model = convert_float_to_float16(onnx.load(str(source.path)), keep_io_types=True)
            except (ValueError, RuntimeError, KeyError) as error:
                raise ConversionError(
                    f"ONNX Runtime's tools cannot make onnx-fp16: {str(error)[:300]}"
                ) from error
            path = out / f"onnx-{recipe.precision}" / "model.onnx"
            path.parent.mkdir()
            save_canonical(canonicalise(model), str(path))
            yield Converted(
                path=str(path),
                files=(str(path),),
                inputs=source.inputs,
                outputs=source.outputs,
                tools={name: version(name) for name in ("onnx", "onnxruntime")},
            )
