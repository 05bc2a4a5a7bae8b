"""Train the two small networks of `tests.broken_subjects`: `python -m tests.broken_nets NAME OUT_DIR`.

Both look at the digits of the reference CNN. OUT_DIR then holds `model.keras` (input `image` float32
[N, 28, 28, 1] in [0, 1], output `output_0`), `calibration.npz` (400 training digits) and `eval.npz` (the 1,000 held
out, with what they are labelled with under `y`).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus import EXAMPLES

__all__ = ["digits", "measurements"]

EPOCHS = {"regression": 12, "embedding": 8}
EMBEDDING = 16
#: A mean error in shares of the labels' range, and a share of right neighbours.
LEAST = {"regression": 0.03, "embedding": 0.9}


def digits() -> Any:
    """Return the digits as `examples/corpus.py` splits them: `train_x`, `train_y`, `test_x`, `test_y`."""
    spec = importlib.util.spec_from_file_location("corpus_of_examples", EXAMPLES / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    return corpus.load_digits(0)


def measurements(images: np.ndarray) -> np.ndarray:
    """Return what the regression answers, float32 [N, 2]: ink in percent of the canvas, and slant in degrees.

    The slant is that of the ink's principal axis against the vertical, from its second moments.

    Args:
        images: float32 [N, 28, 28, 1], in [0, 1].
    """
    ink = images[..., 0].astype(np.float64)
    whole = ink.sum(axis=(1, 2))
    y, x = np.mgrid[: ink.shape[1], : ink.shape[2]]

    def moment(values: np.ndarray) -> np.ndarray:
        mean: np.ndarray = (ink * values).sum(axis=(1, 2)) / whole
        return mean

    dx = x[None] - moment(x)[:, None, None]
    dy = y[None] - moment(y)[:, None, None]
    slant = np.degrees(np.arctan2(-moment(dx * dy), moment(dy * dy)))
    return np.stack([100.0 * whole / ink[0].size, slant], axis=1).astype(np.float32)


def build(outputs: int) -> Any:
    """Return an untrained network of two convolutions and two dense layers."""
    import keras
    from keras import layers

    image = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(image)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(24, 3, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(48, activation="relu")(x)
    return keras.Model(image, layers.Dense(outputs, name="output_0")(x))


def train_regression(data: Any) -> tuple[Any, np.ndarray]:
    """Return the network, its last layer in the targets' units, and the labels of the digits held out."""
    import keras

    wanted, labels = measurements(data.train_x), measurements(data.test_x)
    mean, spread = wanted.mean(axis=0), wanted.std(axis=0)
    model = build(2)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="mse")
    model.fit(data.train_x, (wanted - mean) / spread, batch_size=64, epochs=EPOCHS["regression"], verbose=2)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * spread, bias * spread + mean])
    off = np.abs(model.predict(data.test_x, verbose=0) - labels).mean(axis=0) / np.ptp(labels, axis=0)
    print(f"mean errors {off} of the labels' ranges {np.ptp(labels, axis=0)}")
    if off.max() > LEAST["regression"]:
        sys.exit("training went wrong")
    return model, labels


def train_embedding(data: Any) -> tuple[Any, np.ndarray]:
    """Return a network whose outputs are what a classifier of digits looks at, and the digits held out."""
    import keras

    model = build(EMBEDDING)
    head = keras.layers.Dense(10)(model.output)
    whole = keras.Model(model.input, head)
    whole.compile(
        optimizer=keras.optimizers.Adam(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    whole.fit(data.train_x, data.train_y, batch_size=64, epochs=EPOCHS["embedding"], verbose=2)
    vectors = model.predict(data.test_x, verbose=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    found = float((data.test_y[near.argmax(axis=1)] == data.test_y).mean())
    print(f"the nearest is of the same digit for {found:.3f}")
    if found < LEAST["embedding"]:
        sys.exit("training went wrong")
    return model, data.test_y.astype(np.int64)


def main() -> None:
    """Train one network and save it with its data."""
    import keras

    name, out = sys.argv[1], Path(sys.argv[2])
    keras.utils.set_random_seed(0)
    data = digits()
    model, labels = {"regression": train_regression, "embedding": train_embedding}[name](data)
    model.save(out / "model.keras")
    np.savez_compressed(out / "calibration.npz", image=data.train_x[:400])
    np.savez_compressed(out / "eval.npz", image=data.test_x, y=labels)


if __name__ == "__main__":
    main()
