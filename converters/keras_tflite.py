"""Keras 3 and SavedModel to TFLite, by TensorFlow's own converter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.base import Converted, Converter, SourceModel
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources import KerasSource

if TYPE_CHECKING:
    import numpy as np

__all__ = ["KerasToTflite", "saved_model_folder"]


def saved_model_folder(source: SourceModel) -> Path:
    """Return the source as a SavedModel: itself, or a Keras file's export."""
    return source.path if source.kind == "savedmodel" else KerasSource(source.path).saved


class KerasToTflite(Converter):
    """TFLite with built-in operators only: a model that needs Flex operators is refused, not shipped broken."""

    sources = ("keras", "savedmodel")
    format = "tflite"
    precisions = ("fp32", "fp16", "int8-dynamic", "int8")
    environment = "tensorflow"
    needs = ("tensorflow", "keras")

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Mapping[str, np.ndarray] | None,
        out: Path,
    ) -> Iterator[Converted]:
        """Make one `.tflite` per recipe; float32 inputs and outputs whatever the precision."""
        folder = saved_model_folder(source)
        for recipe in recipes:
            model = self._convert_one(folder, recipe, calibration)
            path = out / f"tflite-{recipe.precision}" / "model.tflite"
            path.parent.mkdir()
            path.write_bytes(model)
            yield Converted(
                path=str(path),
                files=(str(path),),
                inputs=source.inputs,
                outputs=source.outputs,
                tools={"tensorflow": version("tensorflow")},
            )

    def _convert_one(
        self, folder: Path, recipe: Recipe, calibration: Mapping[str, np.ndarray] | None
    ) -> bytes:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        self._set_precision(tf, converter, recipe, calibration)
        try:
            model: bytes = converter.convert()
        except (
            Exception
        ) as error:  # the converter raises bare Exception, RuntimeError and its own ConverterError
            raise ConversionError(
                f"TensorFlow cannot make tflite-{recipe.precision}: {_essence(str(error))}"
            ) from error
        return model

    def _set_precision(
        self, tf: Any, converter: Any, recipe: Recipe, calibration: Mapping[str, np.ndarray] | None
    ) -> None:
        if recipe.precision == "fp32":
            return
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if recipe.precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        elif recipe.precision == "int8":
            if calibration is None:
                raise ConversionError("tflite-int8 needs calibration data", hint="Give --calibration.")
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = _samples(calibration)


def _samples(calibration: Mapping[str, np.ndarray]) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    n = len(next(iter(calibration.values())))

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for i in range(n):
            yield {name: array[i : i + 1] for name, array in calibration.items()}

    return generate


def _essence(text: str) -> str:
    """Return the line that tells why, out of the converter's pages."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Flex ops:" in line or "not a tflite op" in line or "error:" in line]
    line = (telling or lines or ["no reason given"])[0]
    return re.sub(r"^.*error: loc\(.*\): ", "", line)[:300]
