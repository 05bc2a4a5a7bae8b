"""Write a net that is the reference CNN in float and none in eight bits, and both as TFLite.

The units of the last hidden layer are multiplied by factors that span three orders of magnitude, and the next
layer's weights divided by them: ReLU lets positive factors through, so the function is the same. One scale for
the whole activation leaves the small units no steps.

Usage: outlier_net.py MODEL CALIBRATION OUT FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

FACTOR = 1000.0


def rescale(model: Any) -> None:
    """Multiply one hidden unit, the one that reacts most, by `FACTOR`; undo it behind."""
    hidden, last = model.layers[-2:]
    weights, bias = hidden.get_weights()
    behind, shift = last.get_weights()
    unit = int(np.abs(weights).sum(axis=0).argmax())
    weights[:, unit] *= FACTOR
    bias[unit] *= FACTOR
    behind[unit] /= FACTOR
    hidden.set_weights([weights, bias])
    last.set_weights([behind, shift])


def write_tflite(saved: str, images: np.ndarray, path: Path, *, integers: bool) -> None:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    if integers:

        def samples() -> Iterator[list[np.ndarray]]:
            for image in images:
                yield [image[None]]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = samples
    path.write_bytes(converter.convert())


def main() -> None:
    source, calibration, out, folder = map(Path, sys.argv[1:])
    folder.mkdir()
    model = keras.saving.load_model(source)
    rescale(model)
    model.save(out)
    saved = str(folder / "saved")
    model.export(saved, format="tf_saved_model", verbose=False)
    with np.load(calibration) as data:
        images = data["image"]
    write_tflite(saved, images, folder / "fp32.tflite", integers=False)
    write_tflite(saved, images, folder / "int8.tflite", integers=True)


if __name__ == "__main__":
    main()
