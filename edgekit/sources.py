"""Source models: what kind a file is, what it takes and gives, and what it answers in its own framework.

`identify` looks at bytes and imports nothing; everything else imports a framework and runs in a worker.
"""

from __future__ import annotations

import abc
import hashlib
import re
import tempfile
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SOURCES", "Source", "hash_source", "identify", "open_source"]

_NOT_YET = {
    ".h5": "Keras 2 files",
    ".hdf5": "Keras 2 files",
    ".tflite": "TFLite sources",
    ".pt2": "PyTorch programs",
    ".pt": "TorchScript files",
    ".pth": "PyTorch state dicts",
    ".skops": "scikit-learn models",
    ".pkl": "pickles",
    ".pb": "frozen graphs",
}


def identify(path: Path) -> str:
    """Return the kind of source at `path`: `keras`, `savedmodel` or `onnx`.

    Raises:
        UsageError: Nothing is there.
        InvalidFileError: The kind is not supported, or the file is not what its name says.
    """
    if not path.exists():
        raise UsageError(
            f"no model at {path}", expected="a .keras file, a SavedModel folder or an .onnx file"
        )
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise InvalidFileError(f"{path} is not a SavedModel", expected="a saved_model.pb in the folder")
    suffix = path.suffix.lower()
    if suffix in _NOT_YET:
        raise InvalidFileError(
            f"{path.name}: {_NOT_YET[suffix]} are not supported yet",
            expected="a .keras file, a SavedModel folder or an .onnx file",
            hint=_how_to_save(suffix),
        )
    if suffix == ".keras":
        return _identify_keras(path)
    if suffix == ".onnx":
        return "onnx"
    raise InvalidFileError(
        f"{path.name} is of no known kind", expected="a .keras file, a SavedModel folder or an .onnx file"
    )


def _how_to_save(suffix: str) -> str:
    if suffix in (".pt", ".pt2", ".pth"):
        return "Export the model with torch.onnx.export(model, inputs, 'model.onnx')."
    return "Save a Keras model with model.save('model.keras')."


def _identify_keras(path: Path) -> str:
    wanted = {"config.json", "model.weights.h5", "metadata.json"}
    try:
        with zipfile.ZipFile(path) as archive:
            missing = wanted - set(archive.namelist())
    except zipfile.BadZipFile as error:
        with path.open("rb") as stream:
            start = stream.read(16)
        raise InvalidFileError(
            f"{path.name} is not a Keras 3 file",
            got=f"a file that starts with {start!r}",
            expected="a zip archive",
            hint="Save the model with model.save('model.keras').",
        ) from error
    if missing:
        raise InvalidFileError(f"{path.name} is not a Keras 3 file: {min(missing)} is missing in it")
    return "keras"


def hash_source(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's sorted (path, hash) lines, in hexadecimal."""
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    lines = sorted(
        f"{file.relative_to(path).as_posix()}\0{hash_source(file)}\n"
        for file in path.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Source(abc.ABC):
    """A source model opened in its own framework.

    Attributes:
        inputs: Canonical specs.
        outputs: Canonical specs.
        tools: Versions of what reads it.
    """

    packages: ClassVar[tuple[str, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def tools(self) -> dict[str, str]:
        """Return the version of every package that reads this source."""
        return {name: version(name) for name in self.packages}

    @abc.abstractmethod
    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's answers to a batch, arrays by canonical output name."""


def _tensorflow() -> Any:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the reference is the CPU's
    return tf


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `output_10` behind `output_9`: a signature has no order of its own."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _specs(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=name,
            dtype="bytes" if t.dtype.name == "string" else t.dtype.name,
            shape=tuple(-1 if size is None else int(size) for size in t.shape),
            layout="NHWC" if len(t.shape) == 4 else "",
        )
        for name, t in sorted(tensors.items(), key=lambda item: _in_order(item[0]))
    )


class SavedModelSource(Source):
    """A SavedModel's `serving_default` signature."""

    packages = ("tensorflow",)

    def __init__(self, path: Path) -> None:
        tf = _tensorflow()
        try:
            self.module = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InvalidFileError(
                f"{path.name} is not a readable SavedModel: {_first_line(error)}"
            ) from error
        if "serving_default" not in self.module.signatures:
            raise ConversionError(
                f"{path.name} has no 'serving_default' signature", got=sorted(self.module.signatures)
            )
        self.signature = self.module.signatures["serving_default"]
        self.inputs = _specs(self.signature.structured_input_signature[1])
        self.outputs = _specs(self.signature.structured_outputs)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the signature's answers."""
        tf = _tensorflow()
        answers = self.signature(**{name: tf.constant(array) for name, array in feed.items()})
        return {spec.name: answers[spec.name].numpy() for spec in self.outputs}


class KerasSource(Source):
    """A Keras 3 `.keras` file, under the names of the serving signature that it exports."""

    packages = ("tensorflow", "keras")

    def __init__(self, path: Path) -> None:
        self.model, self.saved = _load_keras(path)
        signature = SavedModelSource(self.saved)
        self.inputs, self.outputs = signature.inputs, signature.outputs

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's answers, in inference mode: Keras itself answers, not what it exported."""
        import keras

        if isinstance(self.model, keras.Sequential):  # it has one input, and no structure of inputs
            given: Any = feed[self.inputs[0].name]
        else:
            only = feed[self.inputs[0].name] if len(self.inputs) == 1 else None
            given = keras.tree.map_structure(
                lambda tensor: feed[tensor.name] if only is None else only, self.model.input
            )
        answers = self.model(given, training=False)
        if not isinstance(answers, dict):
            flat = answers if isinstance(answers, (list, tuple)) else [answers]
            answers = {f"output_{i}": value for i, value in enumerate(flat)}
        return {spec.name: keras.ops.convert_to_numpy(answers[spec.name]) for spec in self.outputs}


@lru_cache(maxsize=1)
def _load_keras(path: Path) -> tuple[Any, Path]:
    """Return a Keras model and its SavedModel, exported once for all converters of this process."""
    _tensorflow()
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidFileError(
            f"Keras cannot read {path.name}: {_first_line(error)}",
            hint="Custom layers and Lambda code are not supported; Keras 3 must load the file by itself.",
        ) from error
    if not model.built:
        raise ConversionError(
            "this Keras model has no input shape", hint="Call it once, or add an Input, and save it again."
        )
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    model.export(str(folder), format="tf_saved_model", verbose=False)
    return model, folder


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

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise InvalidFileError(f"ONNX Runtime cannot read {path.name}: {_first_line(error)}") from error
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


#: Kind to class.
SOURCES: dict[str, type[KerasSource | SavedModelSource | OnnxSource]] = {
    "keras": KerasSource,
    "savedmodel": SavedModelSource,
    "onnx": OnnxSource,
}


def open_source(kind: str, path: Path) -> Source:
    """Open a source in its framework; in a worker only."""
    return SOURCES[kind](path)
