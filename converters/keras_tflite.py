"""Keras, 3 and 2, and SavedModel to TFLite, by TensorFlow's own converter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.tflite_checks import check_precision, refuse_joint_outputs
from edgekit.manifest import Recipe
from edgekit.sources.keras import KerasSource
from edgekit.sources.keras2 import Keras2Source
from edgekit.sources.signatures import DEFAULT_SIGNATURE
from edgekit.streams import Samples
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["KerasToTflite", "saved_model_folder", "signature_of"]

_KERAS = {"keras": KerasSource, "keras2": Keras2Source}
#: What TensorFlow says of operators that only its own kernels have, or nobody.
_LACKING = re.compile(r"(?:Flex|Select|Custom) ops: (.+)")
#: What TensorFlow says of a recurrent layer whose state has no fixed size: its lists cannot become TFLite's loops.
_LISTS = ("TensorListReserve", "element_shape to be static", "Lowering tensor list ops is failed")


def saved_model_folder(source: SourceModel) -> Path:
    """Return the source as a SavedModel: itself, or a Keras file's export."""
    opens = _KERAS.get(source.kind)
    return opens(source.path, source.options).saved if opens is not None else source.path


def signature_of(source: SourceModel) -> str:
    """Return the signature that the source's specs belong to."""
    if source.kind != "savedmodel":
        return DEFAULT_SIGNATURE
    from edgekit.sources.keras import SavedModelSource

    return SavedModelSource(source.path, source.options).key


class KerasToTflite(Converter):
    """TFLite with built-in operators only: a model that needs Flex operators is refused, not shipped broken.

    A recurrent layer over a free batch needs lists of tensors of unknown size, which only Flex operators have;
    with a batch of one it becomes a loop of TFLite's own, whatever its time axis. So the batch is fixed then.
    """

    sources = ("keras", "keras2", "savedmodel")
    format = "tflite"
    precisions = ("fp32", "fp16", "int8-dynamic", "int8", "int16x8")
    environment = "tensorflow"
    needs = ("tensorflow", "keras")
    tools = ("tensorflow",)

    def __init__(self) -> None:
        self._one: dict[Path, Path] = {}
        self._signature = DEFAULT_SIGNATURE

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write a `.tflite` with float32 inputs and outputs, whatever the precision."""
        saved, path = saved_model_folder(source), folder / "model.tflite"
        self._signature = signature_of(source)
        try:
            model = self._convert_one(self._one.get(saved, saved), recipe, calibration)
        except Exception as error:
            if saved in self._one or not _needs_one(source, error):
                raise
            narrowed = _with_batch_of_one(source)
            model = self._convert_one(narrowed, recipe, calibration)
            self._one[saved] = narrowed
        path.write_bytes(model)
        check_precision(path, recipe.precision)
        if recipe.precision in ("int8", "int16x8"):
            refuse_joint_outputs(path)
        return path

    def inputs(self, source: SourceModel, recipe: Recipe) -> tuple[TensorSpec, ...]:  # noqa: ARG002
        """Return the inputs, the batch fixed at one where a recurrent layer needed that."""
        return _one_each(source.inputs) if self._one else source.inputs

    def reason(self, error: Exception) -> str:
        """Return the line that tells why, out of the converter's pages."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lacking = [found[1] for line in lines if (found := _LACKING.search(line))]
        if lacking:
            return f"it needs operators that TFLite does not have: {', '.join(dict.fromkeys(lacking))[:300]}"
        if any(words in str(error) for words in _LISTS):
            return "a recurrent layer over a free batch or time needs operators that TFLite does not have: TensorList"
        telling = [line for line in lines if "not a tflite op" in line or "error:" in line]
        line = (telling or lines or ["no reason given"])[0]
        return re.sub(r"^.*error: (loc\(.*\): )?", "", line)[:300]

    def _convert_one(self, saved_model: Path, recipe: Recipe, calibration: Samples) -> bytes:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved_model), signature_keys=[self._signature]
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if recipe.precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if recipe.precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        elif recipe.precision in ("int8", "int16x8"):
            converter.target_spec.supported_ops = [_integer_operators(tf, recipe.precision)]
            converter.representative_dataset = _samples(calibration)
        model: bytes = converter.convert()
        return model


def _integer_operators(tf: Any, precision: str) -> Any:
    sets = tf.lite.OpsSet
    wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    return wide if precision == "int16x8" else sets.TFLITE_BUILTINS_INT8


def _samples(calibration: Samples) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: iter(calibration)


def _needs_one(source: SourceModel, error: Exception) -> bool:
    free = any(spec.shape[:1] == (-1,) for spec in source.inputs)
    return source.kind in _KERAS and free and any(words in str(error) for words in _LISTS)


def _one_each(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        msgspec.structs.replace(spec, shape=(1, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape)
        for spec in inputs
    )


def _with_batch_of_one(source: SourceModel) -> Path:
    """Return a SavedModel of a Keras model whose batch is one; only Keras can trace it anew."""
    folder = Path(tempfile.mkdtemp()) / "saved_model"
    _KERAS[source.kind](source.path, source.options).export(folder, _one_each(source.inputs))
    return folder
