"""What a probe's child does: import one runtime, open a tiny model in it, run it once, and say so step by step.

Started by `edgekit.probe`. Every line that it writes is one JSON object on the descriptor given: the steps as they
begin, then the answer. A native library that ends the process leaves the last step that was begun.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.errors import EdgeKitError
from edgekit.runtimes import ModelFiles, Runtime, SessionOptions, get_runtime
from edgekit.tensors import TensorSpec

__all__ = ["MODELS", "STEPS", "expected", "main", "model_files", "tried"]

#: The steps in their order, as a message ends that tells where it went wrong.
STEPS = (
    "it was started",
    "it was imported",
    "its devices were listed",
    "it opened a model",
    "it ran a model",
)

#: Format to the tiny model's file beside the runtimes: a convolution, a pooling, a dense layer, a softmax.
MODELS = {"tflite": "probe.tflite", "onnx": "probe.onnx", "openvino": "probe.xml"}

#: What the model makes of the ramp 0/64, 1/64 … 63/64, as numpy computes it (tests/runtimes/make_artifacts.py).
_ANSWER = (0.2354998, 0.2396253, 0.2689445, 0.2559304)
#: An accelerator may compute in half precision.
_TOLERANCE = 5e-3


def model_files(form: str) -> ModelFiles:
    """Return the tiny model in a format."""
    import edgekit.runtimes

    return ModelFiles(
        Path(edgekit.runtimes.__file__).with_name(MODELS[form]),
        (TensorSpec("image", "float32", (-1, 8, 8, 1), "NHWC"),),
        (TensorSpec("probabilities", "float32", (-1, 4)),),
    )


def expected(answer: Any) -> bool:
    """Tell whether probabilities, float32 [1, 4], are what the tiny model gives for the ramp."""
    import numpy as np

    return answer.shape == (1, 4) and bool(np.allclose(answer, _ANSWER, rtol=0, atol=_TOLERANCE))


def tried(runtime: Runtime, begin: Callable[[str], None]) -> dict[str, Any]:
    """Take a runtime through all steps.

    Args:
        runtime: The runtime.
        begin: Is told each step as it begins.

    Returns:
        `version` and `providers`, and where it computed something else than it should, `problem`.
    """
    import numpy as np

    begin(STEPS[1])
    answer: dict[str, Any] = {"version": runtime.version()}
    begin(STEPS[2])
    answer["providers"] = runtime.providers()
    begin(STEPS[3])
    session = runtime.load(model_files(runtime.formats[0]), SessionOptions(threads=1))
    begin(STEPS[4])
    image = (np.arange(64, dtype=np.float32) / 64).reshape(1, 8, 8, 1)
    found = session.run({"image": image})["probabilities"]
    if not expected(found):
        values = ", ".join(f"{value:.3g}" for value in np.ravel(found)[:4])
        answer["problem"] = f"it computed a wrong answer for a model of four layers: {values}"
    return answer


def _answer(name: str, begin: Callable[[str], None]) -> dict[str, Any]:
    try:
        return tried(get_runtime(name), begin)
    except EdgeKitError as error:
        detail = error.got if error.got is not None else ""
        return {"problem": f"{error.what}: {detail}" if detail else error.what}
    except Exception as error:  # noqa: BLE001  whatever a broken package raises is the answer
        return {"problem": f"{type(error).__name__}: {error}"}


def main(name: str, descriptor: int) -> None:
    """Probe a runtime, write to the descriptor, and end without the library's own farewell."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer; no file of it is wanted

    def say(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    say({"step": STEPS[0]})
    answer = _answer(name, lambda step: say({"step": step}))
    say({"finding": answer})
    sys.stderr.flush()
    os._exit(0)
