"""Keras 2 files, `.h5` and `.hdf5`, in Keras 3 or in `tf_keras`, by which of them wrote the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError
from edgekit.sources.base import SourceOptions, first_line
from edgekit.sources.keras import (
    KerasSource,
    SavedModelSource,
    load_custom_objects,
    named_outputs,
    own_names,
    refuse_code,
    refuse_unbuilt,
    tensorflow,
)
from edgekit.sources.keras_config import layers_in
from edgekit.sources.signatures import DEFAULT_SIGNATURE

__all__ = ["Keras2Source", "readers"]

#: Classes of a configuration that are Keras 2's, beside the layers that it exports.
_MODELS = ("Functional", "Model", "Sequential", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")


def readers(written_by: str) -> tuple[str, str]:
    """Return the libraries that may read a file, the one that knows its meaning first.

    Keras 3 reads most Keras 2 files, and some of them wrongly without a word: `hard_sigmoid`, the gate of every
    LSTM and GRU of Keras 2.0, is clip(0.2 x + 0.5, 0, 1) in Keras 2 and clip(x / 6 + 0.5, 0, 1) in Keras 3.

    Args:
        written_by: The version of Keras that wrote the file, empty where it does not say.
    """
    major = written_by.partition(".")[0]
    return ("keras", "tf_keras") if major.isdigit() and int(major) >= 3 else ("tf_keras", "keras")


class Keras2Source(KerasSource):
    """A whole model in HDF5, under the names that `.keras` would have: its input layers', and `output_0…`."""

    packages = ("tensorflow", "keras", "tf-keras")

    def __init__(self, path: Path, options: SourceOptions) -> None:
        loaded = _load(path, options.custom_objects, options.trust_pickle)
        self.reader, self.model, self.saved = loaded
        self.notes = (f"read by {self.reader}",)
        signature = SavedModelSource(self.saved, SourceOptions())
        self.inputs, self.outputs = signature.inputs, signature.outputs

    def answer(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's output tensors by name, for input tensors by name."""
        return super().answer(feed) if self.reader == "keras" else _answer(self.model, feed)


@lru_cache(maxsize=1)
def _load(path: Path, custom_objects: str, trust: bool) -> tuple[str, Any, Path]:
    """Return which library read the file, the model, and its SavedModel, exported once for this process."""
    config, written_by = _read_config(path)
    refuse_code(path.name, config, trust=trust)
    tensorflow()
    own = load_custom_objects(custom_objects)
    faults: dict[str, Exception] = {}
    for reader in readers(written_by):
        try:
            model = _READERS[reader](path, own, trust)
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            IndexError,
            NotImplementedError,
        ) as error:
            faults[reader] = error
            continue
        refuse_unbuilt(model)
        folder = Path(tempfile.mkdtemp()) / "saved_model"
        _export(reader, model, folder)
        return reader, model, folder
    raise _unreadable(path.name, config, own, faults)


def _read_config(path: Path) -> tuple[object, str]:
    """Return a file's model configuration and the version of Keras that wrote it; this loads nothing.

    Raises:
        InvalidFileError: It is no HDF5 file, or holds weights only.
    """
    import h5py  # type: ignore[import-untyped]

    try:
        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            weights = (
                "layer_names" in file.attrs or "layers" in file or "_layer_checkpoint_dependencies" in file
            )
    except OSError as error:
        raise InvalidFileError(f"{path.name} is not a readable HDF5 file: {first_line(error)}") from error
    if config is None:
        raise InvalidFileError(
            f"{path.name} holds weights only, no model" if weights else f"{path.name} holds no Keras model",
            hint="Build the model in Keras, load these weights, and save it whole: model.save('model.keras').",
        )
    try:
        return json.loads(_text(config)), _text(version)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"the model's configuration in {path.name} is not JSON: {error}") from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _by_keras(path: Path, own: Mapping[str, Any], trust: bool) -> Any:
    import keras

    return keras.saving.load_model(str(path), compile=False, custom_objects=own, safe_mode=not trust)


def _by_tf_keras(path: Path, own: Mapping[str, Any], trust: bool) -> Any:  # noqa: ARG001  one of a table of readers
    import tf_keras

    return tf_keras.models.load_model(str(path), compile=False, custom_objects=own)


_READERS: dict[str, Callable[[Path, Mapping[str, Any], bool], Any]] = {
    "keras": _by_keras,
    "tf_keras": _by_tf_keras,
}


def _unreadable(
    name: str, config: object, own: Mapping[str, Any], faults: Mapping[str, Exception]
) -> InvalidFileError:
    import tf_keras

    lacking = layers_in(config, lambda kind: hasattr(tf_keras.layers, kind) or kind in {*_MODELS, *own})
    lacking = lacking or list(dict.fromkeys(word for error in faults.values() for word in own_names(error)))
    if lacking:
        return InvalidFileError(
            f"Keras cannot read {name}: it needs classes or functions of your own: {', '.join(lacking)}",
            hint="Give the module that defines them with --custom-objects.",
        )
    said = "; ".join(f"{reader}: {first_line(error)}" for reader, error in faults.items())
    return InvalidFileError(f"neither Keras 2 nor Keras 3 can read {name}: {said}")


def _export(reader: str, model: Any, folder: Path) -> None:
    """Write a SavedModel under the names that a Keras 3 export has."""
    if reader == "keras":
        model.export(str(folder), format="tf_saved_model", verbose=False)
        return
    tf = tensorflow()
    takes = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]

    def serve(*tensors: Any) -> dict[str, Any]:
        return _answer(model, dict(zip(model.input_names, tensors, strict=True)))

    module = tf.Module()
    module.model = model  # its variables are saved with it
    signature = tf.function(serve, input_signature=takes)
    tf.saved_model.save(module, str(folder), signatures={DEFAULT_SIGNATURE: signature})


def _answer(model: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Keras 2 model's answers by output name."""
    tensors = [feed[name] for name in model.input_names]
    return named_outputs(model(tensors if len(tensors) > 1 else tensors[0], training=False))
