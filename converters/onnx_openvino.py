"""ONNX float32 to OpenVINO IR, fp32 and fp16."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from edgekit.converters.base import Converter, SourceModel
from edgekit.manifest import Recipe
from edgekit.streams import Samples
from edgekit.tensors import TensorSpec

__all__ = ["OnnxToOpenVino", "save_ir"]

#: A larger file is not read a second time, whole.
_MOST_BYTES = 1 << 28


def save_ir(model: Any, folder: Path, *, half: bool, named: Collection[str] = ()) -> Path:
    """Write an OpenVINO model as `model.xml` and `model.bin`; return the file to open.

    Nodes are named by position (OpenVINO numbers new ones by a counter of the whole process), and runtime
    information that names this run (paths, command lines) is dropped, so that bytes are stable.

    Args:
        model: An OpenVINO model.
        folder: An empty folder.
        half: Store weights as float16.
        named: Names that nodes keep, since an earlier artifact gave them by position already.
    """
    import openvino as ov

    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() not in named and node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{'New' if named else ''}{node.get_type_name()}_{i}")
    for key in ("conversion_parameters", "Runtime_version", "nncf"):
        if model.has_rt_info([key]):
            model.set_rt_info("", [key])
    path = folder / "model.xml"
    ov.save_model(model, str(path), compress_to_fp16=half)
    return path


class OnnxToOpenVino(Converter):
    """OpenVINO IR; float16 keeps weights in half precision and float32 inputs and outputs."""

    sources = ("onnx",)
    format = "openvino"
    precisions = ("fp32", "fp16")
    environment = "onnx"
    needs = ("openvino",)
    tools = ("openvino",)

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one IR, with a batch of one where the target takes fixed shapes only."""
        model = _read(source.path)
        _part_names(model, source.inputs)
        _keep_inputs(model, source.inputs)
        if recipe.options["static"]:
            model.reshape({spec.name: list(spec.shape) for spec in self.inputs(source, recipe)})
        return save_ir(model, folder, half=recipe.precision == "fp16")


def _read(path: Path) -> Any:
    """Return the model; of a file OpenVINO 2026.4 does not take every operator that it takes of the same bytes."""
    import openvino as ov

    try:
        return ov.convert_model(str(path))
    except RuntimeError:
        if path.stat().st_size > _MOST_BYTES:
            raise
        try:
            return ov.Core().read_model(io.BytesIO(path.read_bytes()))
        except RuntimeError:
            pass  # outside weights, say: what the file's own reading said is the reason
        raise


def _part_names(model: Any, inputs: Sequence[TensorSpec]) -> None:
    """Put something between an input and the output that it is: OpenVINO gives a tensor that is both one name."""
    from openvino import opset13

    given_names = {node.get_friendly_name(): node.get_friendly_name() for node in model.get_parameters()}
    if len(given_names) == len(inputs):  # behind an old Dropout the input has the output's name alone
        given_names = dict(zip(given_names, [spec.name for spec in inputs], strict=True))
    for result in model.get_results():
        given = result.input_value(0).get_node()
        own = given_names.get(given.get_friendly_name(), given.get_friendly_name())
        others = result.output(0).get_names() - {own}
        if given.get_type_name() != "Parameter" or not others:
            continue
        # a shape of the input itself: what is known to do nothing is taken out again, and the names become one
        same = opset13.reshape(given, opset13.shape_of(given), special_zero=False)
        given.set_friendly_name(own)
        given.output(0).set_names({own})
        same.output(0).set_names(others)
        result.input(0).replace_source_output(same.output(0))


def _keep_inputs(model: Any, inputs: Sequence[TensorSpec]) -> None:
    """Put back the inputs that OpenVINO dropped since no operator reads them: the bundle has all of them."""
    import numpy as np
    from openvino import PartialShape, Type
    from openvino.op import Parameter

    there = {name for port in model.inputs for name in port.get_names()}
    for spec in inputs:
        if spec.name not in there:
            kind = Type.string if spec.dtype == "bytes" else Type(np.dtype(spec.dtype))
            lost = Parameter(kind, PartialShape(list(spec.shape)))
            lost.set_friendly_name(spec.name)
            lost.output(0).set_names({spec.name})
            model.add_parameters([lost])
