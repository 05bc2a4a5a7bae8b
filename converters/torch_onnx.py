"""A `torch.export` program to ONNX, by torch's own exporters."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from edgekit.canonical import canonicalise, fold_constants
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_static import save_float
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.opset import lower, opset_of
from edgekit.sources.base import first_line
from edgekit.sources.onnx_graph import read_model
from edgekit.sources.torch import TorchExportSource, example, program_arguments
from edgekit.streams import Samples

__all__ = ["TorchToOnnx", "export_traced", "finish"]

#: The oldest opset that the exporter has operators for; EdgeKit lowers what it makes, operator by operator, or
#: refuses it, where torch would keep the higher opset and say so in its log.
_EXPORTED_OPSET = 18
#: The newest opset of the exporter that traces.
_TRACED_OPSET = 20


class TorchToOnnx(Converter):
    """By the exporter that translates programs; where that one fails, by the older one.

    Dynamic sizes stay as the program declares them.
    """

    sources = ("torch-export",)
    format = "onnx"
    precisions = ("fp32",)
    environment = "torch"
    needs = ("torch", "onnx", "onnxscript")
    tools = ("torch", "onnxscript", "onnx")
    extra = "torch"

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        program = TorchExportSource(source.path, source.options).program
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            file = Path(scratch) / "exported.onnx"
            try:
                _export_program(program, file)
                return finish(file, source, recipe, folder)
            except Exception as newer:  # noqa: BLE001  # whatever it was, the older exporter is tried, and told of
                return _trace_program(program, newer, source, recipe, file, folder)


def _trace_program(
    program: Any, newer: Exception, source: SourceModel, recipe: Recipe, file: Path, folder: Path
) -> Path:
    """Make the artifact by the older exporter; `newer` is why the other one did not."""
    import torch

    try:
        # neither the program (which goes to the newer exporter, whatever is asked for) nor its module (which cannot
        # be switched to evaluation, as the older one insists) is taken: what tracing makes of the module is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every size that is compared: parity tells
            traced = torch.jit.trace(_flat(program), example(source.inputs))
        export_traced(traced, source, recipe, file)
        return finish(file, source, recipe, folder)
    except Exception as error:
        raise ConversionError(
            f"torch cannot export the program: {first_line(newer)}; the older exporter: {first_line(error)}"
        ) from error


def _flat(program: Any) -> Any:
    """Return a module that takes a program's inputs one after the other, and returns a tuple of its outputs."""
    import torch
    from torch.utils import _pytree

    class Flat(torch.nn.Module):  # type: ignore[misc]  # torch comes untyped
        def __init__(self) -> None:
            super().__init__()
            self.inner = program.module()

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            args, kwargs = program_arguments(program, tensors)
            return tuple(_pytree.tree_leaves(self.inner(*args, **kwargs)))

    return Flat()


def _export_program(program: Any, file: Path) -> None:
    import torch

    torch.onnx.export(
        program,
        (),
        str(file),
        dynamo=True,
        opset_version=_EXPORTED_OPSET,
        external_data=True,  # so that the weights are held once; they go into one file again
        optimize=True,
        verbose=False,
    )


def export_traced(module: Any, source: SourceModel, recipe: Recipe, file: Path) -> None:
    """Export TorchScript, with the free sizes of its inputs and outputs left free.

    Args:
        module: Takes tensors only, and returns them.
        source: Its specs, in the order of the inputs.
        recipe: Says the opset.
        file: Where to write.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it is deprecated, says so at length, and nothing else takes TorchScript
        torch.onnx.export(
            module,
            example(source.inputs),
            str(file),
            dynamo=False,
            opset_version=min(int(recipe.options["opset"]), _TRACED_OPSET),
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in source.outputs],
            dynamic_axes={
                spec.name: {axis: f"{spec.name}_{axis}" for axis, size in enumerate(spec.shape) if size == -1}
                for spec in (*source.inputs, *source.outputs)
            },
            verbose=False,
        )


def finish(file: Path, source: SourceModel, recipe: Recipe, folder: Path) -> Path:
    """Write what an exporter made in canonical form, for the opset and IR version of the recipe, as one file.

    Args:
        file: What the exporter wrote.
        source: Its specs give the names.
        recipe: Says opset and IR version.
        folder: The artifact's.
    """
    import onnx

    model, opset = read_model(file, weights=False), int(recipe.options["opset"])
    if opset_of(model) > opset:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model.graph.CopyFrom(fold_constants(model.graph))
        model = lower(model, opset)
    canonical = canonicalise(
        model,
        inputs=[spec.name for spec in source.inputs],
        outputs=[spec.name for spec in source.outputs],
        ir_version=int(recipe.options["ir"]),
    )
    return save_float(canonical, source, recipe, folder, file.parent)
