"""What ONNX Runtime and OpenVINO do with ONNX's own node tests: `python -m tests.models.bare_nodes FORMAT OUT.json`.

A test that kills its process is known by having been started and not finished; the next child goes on behind it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus import ROOT
from tests.models.feeds import Feed
from tests.models.nodes import NodeCase, agrees, node_cases

__all__ = ["NodeResult", "main", "run_node", "run_nodes", "run_onnxruntime", "run_openvino"]

TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class NodeResult:
    """What became of one test: `right`, `wrong`, `failed` or, of EdgeKit, `refused`, and the first line of why."""

    verdict: str
    reason: str


#: What is done with one test for one format.
Runner = Callable[[str, NodeCase], NodeResult]


def run_nodes(format_: str, module: str = "tests.models.bare_nodes") -> dict[str, NodeResult]:
    """Run every node test for a format, `onnx` or `openvino`, in children that are `module`; results by test."""
    found: dict[str, NodeResult] = {}
    names = [case.name for case in node_cases()]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "results.jsonl"
        while len(found) < len(names):
            lines.write_bytes(b"")
            how = _child(module, format_, len(found), lines)
            done = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
            found.update({entry["name"]: NodeResult(entry["verdict"], entry["reason"]) for entry in done})
            if len(found) < len(names):
                found[names[len(found)]] = NodeResult("failed", how)
    return found


def _child(module: str, format_: str, start: int, lines: Path) -> str:
    command = [sys.executable, "-m", module, "--child", format_, str(start), str(lines)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        return "stopped at the time limit"
    return f"the process died with code {done.returncode}"


def _run_from(run: Runner, format_: str, start: int, lines: Path) -> None:
    with lines.open("a", encoding="utf-8") as stream:
        for case in node_cases()[start:]:
            found = run(format_, case)
            stream.write(json.dumps({"name": case.name, **vars(found)}) + "\n")
            stream.flush()


def run_node(format_: str, case: NodeCase) -> NodeResult:
    """Return what a runtime makes of one test in this process."""
    if case.feeds is None:
        return NodeResult("failed", "an input is a sequence or an optional, not an array")
    run = {"onnx": run_onnxruntime, "openvino": run_openvino}[format_]
    try:
        right = agrees(case, run(case.model.SerializeToString(), case.feeds))
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is what this measures
        return NodeResult("failed", _reason(error))
    return NodeResult("right", "") if right else NodeResult("wrong", "the answer is not the test's")


def _reason(error: Exception) -> str:
    """Return the last line of an error, without the C++ signature that ONNX Runtime puts in front of its words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = re.sub(r"/onnxruntime_src/.*?\) (?=[A-Z])", "", lines[-1] if lines else "no message")
    return f"{type(error).__name__}: {words}"[:300]


def run_onnxruntime(model: bytes | Path, feeds: Feed) -> list[Any]:
    """Return the outputs of an ONNX model, its file or what is in it, in the model's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def run_openvino(model: bytes | Path, feeds: Feed) -> list[Any]:
    """Return the outputs of a model, a file or the ONNX that is in one, in the model's order."""
    import io

    import openvino

    core = openvino.Core()
    network = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else model)
    request = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    # it drops inputs that nobody reads, and one that an Identity follows has that one's name too
    given = {name: port for port in request.model_inputs for name in port.names if name in feeds}
    request.infer({name: _tensor(feeds[name], port) for name, port in given.items()})
    return [_typed(request.get_output_tensor(index)) for index in range(len(request.model_outputs))]


def _tensor(array: np.ndarray, port: Any) -> Any:
    """Return an input; OpenVINO takes the types that numpy has only by extension as bytes of a named type."""
    import openvino

    if array.dtype.name in _EXTENDED.values():
        tensor = openvino.Tensor(port.get_element_type(), openvino.Shape(array.shape))
        tensor.data[...] = array.view(tensor.data.dtype)
        return tensor
    return openvino.Tensor(np.array(array, order="C"))  # of a scalar np.ascontiguousarray makes a vector


def _typed(tensor: Any) -> np.ndarray:
    """Return an output, copied; one of a type that numpy has only by extension as that type."""
    import ml_dtypes

    name = tensor.element_type.get_type_name()
    if tensor.element_type.bitwidth < 8 and name != "boolean":
        raise TypeError(f"the output is of type {name}, several values in a byte, which numpy cannot hold")
    copied = np.array(tensor.data)
    return copied.view(getattr(ml_dtypes, _EXTENDED[name])) if name in _EXTENDED else copied


#: OpenVINO's types of whole bytes that numpy does not have itself, by their names there.
_EXTENDED = {
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e8m0": "float8_e8m0fnu",
}


def main(arguments: list[str], run: Runner = run_node, module: str = "tests.models.bare_nodes") -> None:
    """Run as the child of `run_nodes`, or write all results to a file and print how many there are of each."""
    if arguments[0] == "--child":
        _run_from(run, arguments[1], int(arguments[2]), Path(arguments[3]))
        return
    found = run_nodes(arguments[0], module)
    rows = {name: [result.verdict, result.reason] for name, result in found.items()}
    Path(arguments[1]).write_text(json.dumps(rows, indent=0), encoding="utf-8")
    print(dict(Counter(result.verdict for result in found.values())))


if __name__ == "__main__":
    main(sys.argv[1:])
