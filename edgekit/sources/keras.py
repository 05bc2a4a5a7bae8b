"""Keras 3 files and SavedModel folders, in TensorFlow."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.sources.keras_config import code_in, custom_in
from edgekit.sources.signatures import DEFAULT_SIGNATURE, choose_signature
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "KerasSource",
    "SavedModelSource",
    "load_custom_objects",
    "named_outputs",
    "own_names",
    "refuse_code",
    "refuse_unbuilt",
    "tensorflow",
]


def tensorflow() -> Any:
    """Return TensorFlow, kept to the CPU: the reference is the CPU's."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
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
    """One signature of a SavedModel: the one asked for, else `serving_default`, else the only one."""

    packages = ("tensorflow",)
    environment = "tensorflow"
    heeds = ("signature",)

    def __init__(self, path: Path, options: SourceOptions) -> None:
        tf = tensorflow()
        try:
            self.module = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InvalidFileError(
                f"{path.name} is not a readable SavedModel: {first_line(error)}"
            ) from error
        self.key = choose_signature(sorted(self.module.signatures), options.signature, path.name)
        self.signature = self.module.signatures[self.key]
        self.inputs = _specs(self.signature.structured_input_signature[1])
        self.outputs = _specs(self.signature.structured_outputs)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the signature's answers."""
        tf = tensorflow()
        answers = self.signature(**{name: tf.constant(array) for name, array in feed.items()})
        return {spec.name: answers[spec.name].numpy() for spec in self.outputs}


class KerasSource(Source):
    """A Keras 3 `.keras` file, under the names of the serving signature that it exports.

    Attributes:
        model: The Keras model.
        saved: Its export, a SavedModel with the one signature `serving_default`.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "keras")
    environment = "tensorflow"
    heeds = ("custom_objects", "trust_pickle")

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.model, self.saved = _load_keras(path, options.custom_objects, options.trust_pickle)
        signature = SavedModelSource(self.saved, SourceOptions())
        self.inputs, self.outputs = signature.inputs, signature.outputs

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's answers, in inference mode: Keras itself answers, not what it exported."""
        tf = tensorflow()
        answers = self.answer({name: tf.constant(array) for name, array in feed.items()})
        return {spec.name: answers[spec.name].numpy() for spec in self.outputs}

    def answer(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's output tensors by name, for input tensors by name."""
        import keras

        if isinstance(self.model, keras.Sequential):  # it has one input, and no structure of inputs
            given: Any = feed[self.inputs[0].name]
        else:
            only = feed[self.inputs[0].name] if len(self.inputs) == 1 else None
            given = keras.tree.map_structure(
                lambda tensor: feed[tensor.name] if only is None else only, self.model.input
            )
        return named_outputs(self.model(given, training=False))

    def export(self, folder: Path, inputs: Sequence[TensorSpec]) -> None:
        """Write a SavedModel of the model, traced anew for inputs of other shapes, its variables made constants.

        Args:
            folder: Where to.
            inputs: All of them, by the model's own names; -1 where a size is free.
        """
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        tf = tensorflow()
        takes = [
            tf.TensorSpec([None if n == -1 else n for n in spec.shape], spec.dtype, name=spec.name)
            for spec in inputs
        ]

        names = [spec.name for spec in self.outputs]

        def answer(*tensors: Any) -> list[Any]:
            answers = self.answer({spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True)})
            return [answers[name] for name in names]

        traced = tf.function(answer, input_signature=takes).get_concrete_function()
        # TensorFlow's TFLite converter does not freeze variables that a loop reads
        frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)

        def serve(*tensors: Any) -> dict[str, Any]:
            return dict(zip(names, frozen(*tensors), strict=True))

        signature = tf.function(serve, input_signature=takes)
        tf.saved_model.save(tf.Module(), str(folder), signatures={DEFAULT_SIGNATURE: signature})


def named_outputs(answers: Any) -> dict[str, Any]:
    """Return a model's outputs by the names that Keras 3 exports them under."""
    if isinstance(answers, dict):
        return dict(answers)
    flat = answers if isinstance(answers, (list, tuple)) else [answers]
    return {f"output_{i}": value for i, value in enumerate(flat)}


@lru_cache(maxsize=1)
def _load_keras(path: Path, custom_objects: str, trust: bool) -> tuple[Any, Path]:
    """Return a Keras model and its SavedModel, exported once for all converters of this process."""
    tensorflow()
    import keras

    config = _config(path)
    refuse_code(path.name, config, trust=trust)
    own = load_custom_objects(custom_objects)
    try:
        model = keras.saving.load_model(path, compile=False, custom_objects=own, safe_mode=not trust)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        lacking = custom_in(config, own) or own_names(error)
        raise _unreadable(path.name, lacking, first_line(error)) from error
    refuse_unbuilt(model)
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    model.export(str(folder), format="tf_saved_model", verbose=False)
    return model, folder


def _config(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise InvalidFileError(f"Keras cannot read {path.name}: {first_line(error)}") from error


def refuse_code(name: str, config: object, *, trust: bool) -> None:
    """Refuse a model whose configuration holds Python code, unless the user trusts it.

    Raises:
        InvalidFileError: Naming the layers.
    """
    layers = code_in(config)
    if layers and not trust:
        raise InvalidFileError(
            f"{name} holds Python code that would run on loading",
            got="in " + ", ".join(layers),
            hint="Write the Lambda as a layer of your own and give --custom-objects, or give --trust-pickle.",
        )


def refuse_unbuilt(model: Any) -> None:
    """Refuse a model that knows no shape of its inputs."""
    if not model.built or not model.inputs:
        raise ConversionError(
            "this Keras model has no input shape", hint="Call it once, or add an Input, and save it again."
        )


def own_names(error: BaseException) -> list[str]:
    """Return the classes and functions that Keras, 3 or 2, said it did not find."""
    pattern = r"(?:Could not locate (?:class|function)|Unknown [\w ]+:) '(\w[\w>]*)'"
    return [name for name in dict.fromkeys(re.findall(pattern, str(error))) if name != "function"]


def _unreadable(name: str, lacking: list[str], said: str) -> InvalidFileError:
    if not lacking:
        return InvalidFileError(f"Keras cannot read {name}: {said}")
    return InvalidFileError(
        f"Keras cannot read {name}: it needs classes or functions of your own: {', '.join(lacking)}",
        hint="Give the module that defines them with --custom-objects.",
    )


def load_custom_objects(path: str) -> dict[str, Any]:
    """Import the user's own module and return its classes and functions by name.

    Args:
        path: Of a Python file; empty for none.

    Raises:
        UsageError: There is no such file, or it holds neither classes nor functions.
        ConversionError: It does not import.
    """
    if not path:
        return {}
    name = "edgekit_custom_objects"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"--custom-objects: {path} is not a Python file", expected="a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code raises what it likes
        raise ConversionError(f"{path} does not import: {type(error).__name__}: {error}") from error
    # what the module itself imports is not the user's: a Keras 3 layer in a Keras 2 model would be wrong
    own = {
        key: value
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name
    }
    if not own:
        raise UsageError(f"--custom-objects: {path} defines neither classes nor functions")
    return own
