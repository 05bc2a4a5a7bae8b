"""Keras 3 and SavedModel to TFLite, by TensorFlow's own converter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.base import Converter, SourceModel
from edgekit.manifest import Recipe
from edgekit.sources.keras import KerasSource
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["KerasToTflite", "saved_model_folder"]


def saved_model_folder(source: SourceModel) -> Path:
    """Return the source as a SavedModel: itself, or a Keras file's export."""
    return source.path if source.kind == "savedmodel" else KerasSource(source.path, source.options).saved


class KerasToTflite(Converter):
    """TFLite with built-in operators only: a model that needs Flex operators is refused, not shipped broken."""

    sources = ("keras", "savedmodel")
    format = "tflite"
    precisions = ("fp32", "fp16", "int8-dynamic", "int8")
    environment = "tensorflow"
    needs = ("tensorflow", "keras")
    tools = ("tensorflow",)

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write a `.tflite` with float32 inputs and outputs, whatever the precision."""
        path = folder / "model.tflite"
        path.write_bytes(self._convert_one(saved_model_folder(source), recipe, calibration))
        return path

    def reason(self, error: Exception) -> str:
        """Return the line that tells why, out of the converter's pages."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [
            line for line in lines if "Flex ops:" in line or "not a tflite op" in line or "error:" in line
        ]
        line = (telling or lines or ["no reason given"])[0]
        return re.sub(r"^.*error: loc\(.*\): ", "", line)[:300]

    def _convert_one(self, saved_model: Path, recipe: Recipe, calibration: Samples) -> bytes:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved_model), signature_keys=["serving_default"]
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if recipe.precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if recipe.precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        elif recipe.precision == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = _samples(calibration)
        model: bytes = converter.convert()
        return model


def _samples(calibration: Samples) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: iter(calibration)
