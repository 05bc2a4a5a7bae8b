"""Who reads what: kind of source to the function that surveys it, in a worker."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.check.survey import Surveyed
from edgekit.sources.base import SourceOptions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SURVEYORS", "survey"]

#: Kind to function of (path, options, newest opset that the target reads).
SURVEYORS = {
    "keras": "edgekit.check.tensorflow_graph:survey_keras",
    "keras2": "edgekit.check.tensorflow_graph:survey_keras2",
    "savedmodel": "edgekit.check.tensorflow_graph:survey_savedmodel",
    "onnx": "edgekit.check.onnx_graph:survey",
    "tflite": "edgekit.check.tflite_graph:survey",
    "torch-export": "edgekit.check.torch_graph:survey_program",
    "torchscript": "edgekit.check.torch_graph:survey_script",
    "sklearn": "edgekit.check.sklearn_steps:survey",
}


def survey(kind: str, path: Path, options: SourceOptions, opset: int) -> Surveyed:
    """Read a source without converting it.

    Args:
        kind: What `edgekit.sources.identify` says.
        path: The source.
        options: What the user said about it.
        opset: The newest ONNX opset that the target reads.
    """
    if kind not in SURVEYORS:
        return _described(kind, path, options)
    module, _, name = SURVEYORS[kind].partition(":")
    read: Callable[[Path, SourceOptions, int], Surveyed] = getattr(import_module(module), name)
    return read(path, options, opset)


def _described(kind: str, path: Path, options: SourceOptions) -> Surveyed:
    """Return what opening a source tells, where nobody reads its operators."""
    from edgekit.sources import open_source

    source = open_source(kind, path, options)
    note = f"the operators of a source of the kind {kind} are not looked at: only its conversion tells"
    return Surveyed(
        "", source.inputs, source.outputs, (), quantized=source.quantized, notes=(*source.notes, note)
    )
