"""ONNX files, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InvalidFileError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxSource"]

_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "bytes",
}


class OnnxSource(Source):
    """An ONNX model, run by ONNX Runtime without graph optimisations."""

    packages = ("onnx", "onnxruntime")
    environment = "onnx"

    def __init__(self, path: Path, options: SourceOptions) -> None:  # noqa: ARG002
        import onnxruntime as ort

        quiet = ort.SessionOptions()
        quiet.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        quiet.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise InvalidFileError(f"ONNX Runtime cannot read {path.name}: {first_line(error)}") from error
        self.inputs = tuple(self._spec(node) for node in self.session.get_inputs())
        self.outputs = tuple(self._spec(node) for node in self.session.get_outputs())

    def _spec(self, node: Any) -> TensorSpec:
        dtype = _ONNX_DTYPES.get(node.type) or node.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
        return TensorSpec(name=node.name, dtype=dtype, shape=shape)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the graph's answers."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self.session.run(names, dict(feed)), strict=True))
