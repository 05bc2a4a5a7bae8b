"""ONNX float32 to OpenVINO IR, fp32 and fp16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.converters.base import Converted, Converter, SourceModel
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxToOpenVino", "save_ir"]


def save_ir(model: Any, folder: Path, *, half: bool) -> tuple[str, tuple[str, ...]]:
    """Write an OpenVINO model; return the file to open and all files.

    Nodes are named by position (OpenVINO numbers new ones by a counter of the whole process), and runtime
    information that names this run (paths, command lines) is dropped, so that bytes are stable.
    """
    import openvino as ov

    folder.mkdir()
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{i}")
    for key in ("conversion_parameters", "Runtime_version", "nncf"):
        if model.has_rt_info([key]):
            model.set_rt_info("", [key])
    path = folder / "model.xml"
    ov.save_model(model, str(path), compress_to_fp16=half)
    return str(path), (str(path), str(path.with_suffix(".bin")))


class OnnxToOpenVino(Converter):
    """OpenVINO IR; float16 keeps weights in half precision and float32 inputs and outputs."""

    sources = ("onnx",)
    format = "openvino"
    precisions = ("fp32", "fp16")
    environment = "onnx"
    needs = ("openvino",)

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Mapping[str, np.ndarray] | None,  # noqa: ARG002
        out: Path,
    ) -> Iterator[Converted]:
        """Make one IR per recipe."""
        import openvino as ov

        for recipe in recipes:
            try:
                model = ov.convert_model(str(source.path))
            except Exception as error:  # OpenVINO's front ends raise several unrelated types
                raise ConversionError(f"OpenVINO cannot read the ONNX model: {str(error)[:300]}") from error
            inputs = _freeze(model, source) if recipe.options["static"] else source.inputs
            path, files = save_ir(
                model, out / f"openvino-{recipe.precision}", half=recipe.precision == "fp16"
            )
            yield Converted(
                path=path,
                files=files,
                inputs=inputs,
                outputs=source.outputs,
                tools={"openvino": version("openvino")},
            )


def _freeze(model: Any, source: SourceModel) -> tuple[TensorSpec, ...]:
    """Give the model a batch of one, as accelerators without dynamic shapes need; return the narrowed inputs."""
    narrowed = tuple(
        msgspec.structs.replace(spec, shape=(1, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape)
        for spec in source.inputs
    )
    for spec in narrowed:
        if -1 in spec.shape:
            raise ConversionError(
                f"the target takes fixed shapes only, and input {spec.name!r} has free sizes beyond the batch",
                got=list(spec.shape),
                hint="Export the model with fixed sizes.",
            )
    model.reshape({spec.name: list(spec.shape) for spec in narrowed})
    return narrowed
