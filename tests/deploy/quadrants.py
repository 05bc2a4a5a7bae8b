"""A real bundle for a loopback device: four by four pictures, classified by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle, write_bundle
from edgekit.detect import detect
from edgekit.manifest import Plan
from tests.bundle_samples import artifact, files, golden, manifest

#: This machine, which is the device too.
HERE = detect().profile_id


def quadrants_onnx() -> bytes:
    """Return the network whose answers `tests.bundle_samples.samples` has: a softmax of the quadrants' sums."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, floats = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    weights = np.zeros((4, 4, 3), np.float32)
    weights[:2, :2, 0] = weights[2:, :2, 1] = weights[:2, 2:, 2] = 2.0
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "quadrants",
        [helper.make_tensor_value_info("image", floats, ["n", 4, 4, 1])],
        [helper.make_tensor_value_info("probabilities", floats, ["n", 3])],
        [numpy_helper.from_array(weights.reshape(16, 3), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def quadrants(out: Path, *, more: bytes = b"more", target: str = HERE, **changes: Any) -> Path:
    """Write the bundle and return its folder.

    Args:
        out: Where to.
        more: Content of a second file of the artifact.
        target: The device that it is for.
        changes: Of the manifest.
    """
    chosen = golden()
    plan = Plan(target, "onnx-fp32", "onnxruntime", ("CPUExecutionProvider",))
    names = {"onnx-fp32": artifact("onnx-fp32"), "tflite-fp32": artifact("tflite-fp32")}
    made = manifest(chosen, tuple(names), plan=plan, artifacts=names, **changes)
    contents = files(chosen, made) | {
        "artifacts/onnx-fp32/model.onnx": quadrants_onnx(),
        "artifacts/onnx-fp32/weights.bin": more,
    }
    bundle: Bundle = write_bundle(out, made, contents)
    return bundle.root
