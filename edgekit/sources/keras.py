"""Keras 3 files and SavedModel folders, in TensorFlow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError, InvalidFileError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["KerasSource", "SavedModelSource"]


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
    environment = "tensorflow"

    def __init__(self, path: Path, options: SourceOptions) -> None:  # noqa: ARG002
        tf = _tensorflow()
        try:
            self.module = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InvalidFileError(
                f"{path.name} is not a readable SavedModel: {first_line(error)}"
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
    environment = "tensorflow"

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.model, self.saved = _load_keras(path)
        signature = SavedModelSource(self.saved, options)
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
            f"Keras cannot read {path.name}: {first_line(error)}",
            hint="Custom layers and Lambda code are not supported; Keras 3 must load the file by itself.",
        ) from error
    if not model.built:
        raise ConversionError(
            "this Keras model has no input shape", hint="Call it once, or add an Input, and save it again."
        )
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    model.export(str(folder), format="tf_saved_model", verbose=False)
    return model, folder
