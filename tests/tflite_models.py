"""Write SavedModels, Keras models and TFLite files in which conversion to TFLite goes wrong in known ways.

Usage: tflite_models.py FOLDER REFERENCE_CNN
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import keras  # noqa: E402  after the filter: TensorFlow's imports warn
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def depthwise(source: Path, out: Path) -> None:
    """Put a depthwise layer into the reference CNN that changes nothing in float.

    One of its channels has a weight of 100, the others weights of 0.1 to 0.35, and the convolution before it
    makes up for that: with one scale for all, every weight but one rounds to zero.
    """
    layers, model = keras.layers, keras.saving.load_model(source, compile=False)
    first, images = model.layers[0], np.load(source.parent / "calibration.npz")["image"]
    least = int(first(images[:64]).numpy().max(axis=(0, 1, 2)).argmin())
    factors = np.random.default_rng(0).uniform(0.1, 0.35, first.filters).astype(np.float32)
    factors[least] = 100.0
    x = keras.Input(model.inputs[0].shape[1:], name="image")
    scaled = layers.Conv2D.from_config(first.get_config() | {"name": "scaled"})
    deep = layers.DepthwiseConv2D(3, padding="same", use_bias=True, name="deep")
    y = deep(scaled(x))
    for layer in model.layers[1:]:
        y = layer(y)
    weights, bias = first.get_weights()
    scaled.set_weights([weights / factors, bias / factors])
    kernel = np.zeros((3, 3, first.filters, 1), np.float32)
    kernel[1, 1, :, 0] = factors
    deep.set_weights([kernel, np.zeros(first.filters, np.float32)])
    keras.Model(x, y).save(out)


def boxes_and_scores(out: Path) -> None:
    """Write a head whose one output holds boxes, up to 640, and scores, up to 1."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((16,), name="x")
    hidden = layers.Dense(32, activation="relu")(x)
    boxes = layers.Rescaling(640.0)(layers.Dense(40, activation="sigmoid")(hidden))
    scores = layers.Dense(30, activation="sigmoid")(hidden)
    both = layers.Concatenate(axis=-1)([layers.Reshape((10, 4))(boxes), layers.Reshape((10, 3))(scores)])
    keras.Model(x, both).save(out)


def loud_input(out: Path) -> None:
    """Write a classifier that does not heed its first input, and its data, in which that one is a thousand times the others.

    Whoever quantizes all inputs of a sample by one scale, as it runs, leaves nothing of the others.
    """
    layers, random = keras.layers, np.random.default_rng(0)
    x = keras.Input((64,), name="x")
    hidden = layers.Dense(64, use_bias=False, activation="relu")
    head = layers.Dense(4, use_bias=False, activation="softmax", name="probabilities")
    model = keras.Model(x, head(hidden(x)))
    kernel = random.standard_normal((64, 64))
    kernel[0] = 0.0
    hidden.set_weights([kernel])
    head.set_weights([0.3 * random.standard_normal((64, 4))])
    rows = random.standard_normal((2000, 64)).astype(np.float32)
    rows[:, 0] = random.choice([-3000.0, 3000.0], len(rows))
    model.save(out)
    np.savez(out.with_suffix(".npz"), x=rows, y=model.predict(rows, verbose=0).argmax(axis=-1))


def functions() -> tuple[Any, dict[str, Any]]:
    """Return a module and its functions: two that TFLite can have, and one that it has no operator for."""
    module, x = tf.Module(), [tf.TensorSpec([None, 3], tf.float32, name="x")]
    module.double = tf.function(lambda x: {"y": 2.0 * x}, input_signature=x)
    module.triple = tf.function(lambda x: {"y": 3.0 * x}, input_signature=x)
    module.flex = tf.function(lambda x: {"y": tf.math.sinh(x) + 1.0}, input_signature=x)
    return module, {"double": module.double, "triple": module.triple, "flex": module.flex}


def recurrent(kind: str, out: Path) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((None, 6), name="x")
    cell = {"lstm": layers.LSTM, "gru": layers.GRU}[kind]
    masked = layers.Masking()(x)
    both = layers.Bidirectional(cell(8, return_sequences=True))(masked)
    keras.Model(x, layers.Dense(3)(both)).save(out)


def main() -> None:
    folder, cnn = Path(sys.argv[1]), Path(sys.argv[2])
    depthwise(cnn, folder / "depthwise.keras")
    boxes_and_scores(folder / "boxes.keras")
    loud_input(folder / "loud.keras")
    for kind in ("lstm", "gru"):
        recurrent(kind, folder / f"{kind}.keras")
    module, known = functions()
    several = {name: known[name] for name in ("double", "triple")}
    tf.saved_model.save(module, str(folder / "several"), signatures=several)
    tf.saved_model.save(module, str(folder / "only"), signatures={"triple": known["triple"]})
    tf.saved_model.save(module, str(folder / "flex"), signatures={"serving_default": known["flex"]})
    keras.saving.load_model(cnn, compile=False).export(
        str(folder / "cnn"), format="tf_saved_model", verbose=False
    )
    with_flex = tf.lite.TFLiteConverter.from_saved_model(str(folder / "flex"))
    with_flex.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    (folder / "flex.tflite").write_bytes(with_flex.convert())
    two = tf.lite.TFLiteConverter.from_saved_model(
        str(folder / "several"), signature_keys=["double", "triple"]
    )
    (folder / "several.tflite").write_bytes(two.convert())


if __name__ == "__main__":
    main()
