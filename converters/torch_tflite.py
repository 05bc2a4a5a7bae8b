"""A `torch.export` program to TFLite float32, by litert-torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from edgekit.converters.base import Converter, SourceModel
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.signatures import DEFAULT_SIGNATURE
from edgekit.sources.torch import TorchExportSource, example, program_arguments
from edgekit.streams import Samples
from edgekit.tensors import TensorSpec

__all__ = ["TorchToTflite"]

#: Nothing that is imported here may look for models elsewhere.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


class TorchToTflite(Converter):
    """TFLite of fixed shapes: the batch is one. Another size that is left free is refused.

    Axes keep the program's order: an image stays NCHW.
    """

    sources = ("torch-export",)
    format = "tflite"
    precisions = ("fp32",)
    environment = "torch"
    needs = ("torch", "litert_torch", "ai_edge_litert")
    tools = ("torch", "litert-torch", "litert-converter")
    extra = "torch"

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.tflite` under the program's own names."""
        specs = self.inputs(source, recipe)
        for spec in specs:
            if -1 in spec.shape:
                raise ConversionError(
                    f"TFLite made by litert-torch has fixed shapes, and {spec.name} has free ones beside its batch",
                    got=list(spec.shape),
                    hint="Export the program with these sizes fixed.",
                )
        os.environ.update(dict.fromkeys(_OFFLINE, "1"))
        import litert_torch

        program = TorchExportSource(source.path, source.options).program
        args, kwargs = program_arguments(program, example(specs))
        made = litert_torch.convert(program.module(), args, kwargs or None)
        path = folder / "model.tflite"
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            file = Path(scratch) / "made.tflite"
            made.export(str(file))
            path.write_bytes(_with_names(file, source))
        return path

    def inputs(self, source: SourceModel, recipe: Recipe) -> tuple[TensorSpec, ...]:  # noqa: ARG002
        """Return the inputs with a batch of one."""
        return tuple(
            msgspec.structs.replace(spec, shape=(1, *spec.shape[1:])) if spec.shape[:1] == (-1,) else spec
            for spec in source.inputs
        )


def _with_names(file: Path, source: SourceModel) -> bytes:
    """Return the model with its one signature under canonical names; litert-torch calls its inputs `args_0`, …."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(file))
    (signature,) = model.signatureDefs
    signature.signatureKey = DEFAULT_SIGNATURE.encode()
    _rename(signature.inputs, list(model.subgraphs[0].inputs), [spec.name for spec in source.inputs])
    _rename(signature.outputs, list(model.subgraphs[0].outputs), [spec.name for spec in source.outputs])
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _rename(entries: Any, tensors: list[int], names: list[str]) -> None:
    """Name each entry of a signature by the place of its tensor among the graph's inputs or outputs."""
    if len(tensors) != len(names):
        raise ConversionError(
            "litert-torch left out inputs or outputs of the program", got=len(tensors), expected=len(names)
        )
    for entry in entries:
        entry.name = names[tensors.index(entry.tensorIndex)].encode()
