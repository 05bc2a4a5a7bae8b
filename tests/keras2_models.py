"""Write Keras 2 and Keras 3 models in HDF5, good ones and such as must be refused.

Usage: keras2_models.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import h5py  # type: ignore[import-untyped]  # noqa: E402  after the filter: TensorFlow's imports warn
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tf_keras  # noqa: E402

CUSTOM = """
import os
import pathlib

import keras
import tf_keras
from tf_keras.layers import Dense

pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))


class Twice(tf_keras.layers.Layer):
    def call(self, x):
        return 2.0 * x


class Thrice(keras.layers.Layer):
    def call(self, x):
        return 3.0 * x
"""


def custom(folder: Path) -> dict[str, Any]:
    path = folder / "own.py"
    path.write_text(CUSTOM)
    names: dict[str, Any] = {"__file__": str(path), "__name__": "own"}
    exec(compile(CUSTOM, str(path), "exec"), names)
    return names


def main() -> None:
    folder = Path(sys.argv[1])
    own = custom(folder)
    layers, model, seen = tf_keras.layers, tf_keras.Model, tf_keras.Input
    tf_keras.utils.set_random_seed(0)

    b, a = seen((3,), name="b"), seen((2,), name="a")
    both = layers.Subtract(name="sub")([layers.Dense(2, name="d")(b), a])
    model([b, a], [both, *[layers.Dense(1, name=f"o{i}")(both) for i in range(10)]]).save(folder / "many.h5")

    x = seen((4,), name="x")
    gate = layers.Dense(3, activation="hard_sigmoid", name="gate")
    net = model(x, gate(x))
    gate.set_weights([np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)])
    net.save(folder / "hard_sigmoid.hdf5")

    x = seen((4,), name="x")
    model(x, layers.Lambda(lambda v: v + 1.0, name="plus_one")(x)).save(folder / "lambda.h5")
    x = seen((4,), name="x")
    model(x, own["Twice"]()(x)).save(folder / "custom.h5")
    net.save_weights(folder / "weights.h5")

    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    keras.Model(x, keras.layers.Dense(2, activation="hard_sigmoid")(x)).save(folder / "three.h5")
    x = keras.Input((4,), name="x")
    keras.Model(x, own["Thrice"]()(x)).save(folder / "custom.keras")
    x = keras.Input((4,), name="x")
    keras.Model(x, keras.layers.Lambda(lambda v: v + 1.0, name="plus_one")(x)).save(folder / "lambda.keras")
    net.save_weights(folder / "three.weights.h5")

    with h5py.File(folder / "not_json.h5", "w") as file:
        file.attrs["model_config"] = "{"
    with h5py.File(folder / "nothing.h5", "w") as file:
        file["data"] = np.zeros(3)
    with h5py.File(folder / "unknown.h5", "w") as file:
        layer = {"class_name": "Mystery", "config": {"name": "mystery"}}
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
        )
        file.attrs["keras_version"] = "2.4.0"


if __name__ == "__main__":
    main()
