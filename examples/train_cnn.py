"""Train the reference CNN on real digits, in about half a minute on two cores.

    python examples/train_cnn.py OUT_DIR [--seed 0]

OUT_DIR then holds `digits.keras`; `calibration.npz` (200 training digits), `eval.npz` (the 1,000 held out,
with labels) and `noisy.npz` (the same under sensor noise), whose arrays bear the name of the model's input;
and `labels.txt`, one class name a line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import DigitSplit, load_digits, noisy

if TYPE_CHECKING:
    import numpy as np

PARAMETERS = 241_546
LEAST_ACCURACY = 0.975
EPOCHS = 6
BATCH = 64
CALIBRATION_DIGITS = 200
NOISE_SIGMA = 0.35


def main() -> None:
    """Train, say what came out, and save it with the data that its conversion needs."""
    parser = argparse.ArgumentParser(description="Train the reference CNN on real digits.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder for the model and its data")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes would bury the progress

    digits = load_digits(options.seed)
    began = time.perf_counter()
    model = train(digits, options.seed)
    accuracy = score(model, digits.test_x, digits.test_y)
    print(f"held-out accuracy {accuracy:.2%} on {len(digits.test_y)}, in {time.perf_counter() - began:.0f} s")
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"training went wrong: accuracy {accuracy:.2%}, expected {LEAST_ACCURACY:.1%} or more.")
    save(model, digits, options.out, options.seed)


def train(digits: DigitSplit, seed: int) -> Any:
    """Return the trained network: three 3×3 convolutions, two poolings, two dense layers."""
    import keras

    keras.utils.set_random_seed(seed)
    model = build()
    images, labels = with_shifted_copies(digits, seed)
    steps = EPOCHS * -(-len(images) // BATCH)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=1 if sys.stdout.isatty() else 2)
    return model


def build() -> Any:
    """Return the untrained network; valid padding everywhere, 241,546 parameters."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(128, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits",
    )
    assert model.count_params() == PARAMETERS
    return model


def with_shifted_copies(digits: DigitSplit, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training digits and three copies of them, each image moved by up to 2 pixels each way."""
    import numpy as np

    rng = np.random.default_rng(seed)
    copies = [digits.train_x]
    for _ in range(3):
        padded = np.pad(digits.train_x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        corners = rng.integers(0, 5, (len(padded), 2))
        copies.append(
            np.stack([image[y : y + 28, x : x + 28] for image, (y, x) in zip(padded, corners, strict=True)])
        )
    return np.concatenate(copies), np.tile(digits.train_y, 4)


def score(model: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose most probable class is the label."""
    return float((model.predict(images, batch_size=256, verbose=0).argmax(axis=1) == labels).mean())


def save(model: Any, digits: DigitSplit, out: Path, seed: int) -> None:
    """Write the model and the data that its conversion and the demo need."""
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    model.save(out / "digits.keras")
    np.savez_compressed(out / "calibration.npz", image=digits.train_x[:CALIBRATION_DIGITS])
    np.savez_compressed(out / "eval.npz", image=digits.test_x, y=digits.test_y)
    blurred = noisy(digits.test_x, NOISE_SIGMA, seed)
    np.savez_compressed(out / "noisy.npz", image=blurred, y=digits.test_y)
    (out / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8")
    print(f"under sensor noise {score(model, blurred, digits.test_y):.2%}; saved in {out}/")


if __name__ == "__main__":
    main()
