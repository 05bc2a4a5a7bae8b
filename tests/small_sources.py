"""One small model as a file of every kind of source, made once per checkout: `python tests/small_sources.py FOLDER`.

A dense network of 8 inputs and 3 classes; the scikit-learn one is a forest on the same numbers.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.corpus import corpus_folder, made_once

__all__ = ["SMALL", "small_source"]

#: Kind of source to the file's name.
SMALL = {
    "keras": "small.keras",
    "keras2": "small.h5",
    "savedmodel": "small_saved_model",
    "onnx": "small.onnx",
    "tflite": "small.tflite",
    "torch-export": "small.pt2",
    "torchscript": "small.pt",
    "sklearn": "small.skops",
}
_VERSION = 1


def small_source(kind: str) -> Path:
    """Return the small model as a source of one kind."""
    return _folder() / SMALL[kind]


@cache
def _folder() -> Path:
    folder = corpus_folder() / f"small-sources-{_VERSION}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            for part in ("tensorflow", "torch", "sklearn"):  # not all get on in one process
                words = [sys.executable, "-m", "tests.small_sources", str(unfinished), part]
                subprocess.run(words, check=True, cwd=Path(__file__).parent.parent, capture_output=True)
    return folder


def _make_tensorflow(folder: Path) -> None:
    import keras
    import tensorflow as tf
    import tf2onnx
    import tf_keras

    keras.utils.set_random_seed(0)
    layers: list[Any] = [
        keras.layers.Input((8,), name="x"),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(3, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.save(folder / SMALL["keras"])
    model.export(str(folder / SMALL["savedmodel"]), format="tf_saved_model", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / SMALL["savedmodel"]))
    (folder / SMALL["tflite"]).write_bytes(converter.convert())
    function = tf.function(lambda x: model(x, training=False))
    signature = [tf.TensorSpec((None, 8), tf.float32, name="x")]
    tf2onnx.convert.from_function(
        function, input_signature=signature, opset=17, output_path=str(folder / SMALL["onnx"])
    )
    old = tf_keras.Sequential(
        [
            tf_keras.layers.Input((8,), name="x"),
            tf_keras.layers.Dense(16, activation="relu"),
            tf_keras.layers.Dense(3, activation="softmax"),
        ]
    )
    old.save(folder / SMALL["keras2"])


def _make_torch(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3), torch.nn.Softmax(1)
    )
    example = torch.zeros(2, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(folder / SMALL["torch-export"]))
    torch.jit.save(torch.jit.trace(model, example), str(folder / SMALL["torchscript"]))


def _make_sklearn(folder: Path) -> None:
    import numpy as np
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(0)
    x = random.random((200, 8)).astype(np.float32)
    forest = RandomForestClassifier(5, max_depth=4, random_state=0).fit(
        x, (x.sum(axis=1) * 3 / 8).astype(int)
    )
    skops.io.dump(forest, folder / SMALL["sklearn"])


if __name__ == "__main__":
    {"tensorflow": _make_tensorflow, "torch": _make_torch, "sklearn": _make_sklearn}[sys.argv[2]](
        Path(sys.argv[1])
    )
