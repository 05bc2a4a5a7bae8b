"""ONNX files, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InvalidFileError, UsageError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.sources.onnx_graph import data_size, external_files, precision_of, read_model, tensors
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxSource", "narrow"]

_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "bytes",
}
#: From this many bytes of weights on, ONNX Runtime keeps no second, rearranged copy of them.
_LARGE = 1 << 28


class OnnxSource(Source):
    """An ONNX model, run by ONNX Runtime without graph optimisations.

    `input_shapes` fixes sizes that the file leaves free.
    """

    packages = ("onnx", "onnxruntime")
    environment = "onnx"
    heeds = ("input_shapes", "requantize")

    def __init__(self, path: Path, options: SourceOptions) -> None:
        import onnxruntime as ort

        model = read_model(path, weights=False)
        self.quantized = precision_of(model)
        self.files = tuple(str(file) for file in external_files(model, path))
        self.notes = (f"the source is quantized already: {self.quantized}",) if self.quantized else ()
        quiet = ort.SessionOptions()
        quiet.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        quiet.log_severity_level = 3
        if sum(map(data_size, tensors(model))) >= _LARGE:
            quiet.add_session_config_entry("session.disable_prepacking", "1")
            quiet.enable_cpu_mem_arena = False
        del model
        try:
            self.session = ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise InvalidFileError(f"ONNX Runtime cannot read {path.name}: {first_line(error)}") from error
        declared = tuple(self._spec(node) for node in self.session.get_inputs())
        self.inputs = narrow(declared, options.input_shapes)
        self.outputs = tuple(self._spec(node) for node in self.session.get_outputs())

    def _spec(self, node: Any) -> TensorSpec:
        plain = node.type[len("tensor(") : -1] if node.type.startswith("tensor(") else node.type
        dtype = _ONNX_DTYPES.get(node.type, plain)
        shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
        return TensorSpec(name=node.name, dtype=dtype, shape=shape)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the graph's answers."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self.session.run(names, dict(feed)), strict=True))


def narrow(declared: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """Return inputs with the user's sizes where the model leaves them free.

    Raises:
        UsageError: A shape is given for no input, or contradicts the model's own.
    """
    names = [spec.name for spec in declared]
    for name in shapes:
        if name not in names:
            raise UsageError(f"--input-shape: the model has no input {name!r}", expected=", ".join(names))
    return tuple(_narrowed(spec, tuple(shapes.get(spec.name, spec.shape))) for spec in declared)


def _narrowed(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    import msgspec

    fits = len(shape) == len(spec.shape) and all(
        own in (-1, size) for own, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--input-shape: {spec.name} cannot take this shape",
            got=list(shape),
            expected=f"{list(spec.shape)}, a size where that has -1",
        )
    return msgspec.structs.replace(spec, shape=shape)
