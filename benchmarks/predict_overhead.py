"""What `edgekit.load(bundle).predict` costs over the native call of the same model, the monitor on.

    python benchmarks/predict_overhead.py [BUNDLE] [--runtime R]… [--rounds N]

Without BUNDLE it makes one of the small models that the tests carry: their native call is short, so that what
is added shows. Both sides run the same file with the same options and the same input, in turns within one
process: a block of native calls, a block of `Session.run`, a block of `predict`, and so on. The median over
all blocks of the median within a block is printed, in microseconds; the budget is 10 over the native call.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import EdgeKitError
from edgekit.model import Model, load
from edgekit.runtimes import get_runtime
from edgekit.tensors import sample_shape

BUDGET_US = 10.0


def native_litert(model: Model, path: Path) -> Callable[[np.ndarray], Any]:
    """Return the calls that LiteRT's own documentation shows."""
    from edgekit.runtimes import litert

    interpreter = litert._library().module.Interpreter(  # noqa: SLF001  the same library, bare
        model_path=str(path), num_threads=model.plan.threads or None
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def call(x: np.ndarray) -> Any:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return call


def native_onnxruntime(model: Model, path: Path) -> Callable[[np.ndarray], Any]:
    """Return `InferenceSession.run`, with the options that EdgeKit sets."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = model.plan.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def native_openvino(model: Model, path: Path) -> Callable[[np.ndarray], Any]:
    """Return the quicker of the documented calls: one infer request, memory shared both ways."""
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **model.plan.options}
    if model.plan.threads:
        config["INFERENCE_NUM_THREADS"] = model.plan.threads
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    name = request.model_inputs[0].any_name

    def call(x: np.ndarray) -> Any:
        request.infer({name: x}, share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return call


NATIVE = {"litert": native_litert, "onnxruntime": native_onnxruntime, "openvino": native_openvino}


def block_us(call: Callable[[np.ndarray], Any], x: np.ndarray, n: int) -> float:
    """Return the median of n calls in µs."""
    times = []
    for _ in range(n):
        begin = perf_counter()
        call(x)
        times.append(perf_counter() - begin)
    return statistics.median(times) * 1e6


def measure(bundle: Bundle, runtime: str, state: Path, rounds: int, calls: int) -> str:
    """Return one row of the table."""
    with load(bundle, runtime=runtime, threads=1, state_dir=state) as model:
        path = bundle.model_files(model.plan.artifact).path
        spec = model.inputs[0]
        x = np.random.default_rng(0).random(sample_shape(spec)).astype(spec.dtype)
        sides: dict[str, Callable[[np.ndarray], Any]] = {
            "native": NATIVE[runtime](model, path),
            "run": lambda x: model.session.run({spec.name: x}),
            "predict": model.predict,
        }
        blocks: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):
            for side, call in sides.items():
                took = block_us(call, x, calls)
                if round_:  # the first round warms up
                    blocks[side].append(took)
        native, run, predict = (statistics.median(blocks[side]) for side in sides)
        added = statistics.median(p - n for p, n in zip(blocks["predict"], blocks["native"], strict=True))
        version = get_runtime(runtime).version()
        verdict = "within" if added <= BUDGET_US else "OVER"
        return (
            f"{version:<24} {model.plan.artifact:<14} {native:8.2f} {run:8.2f} {predict:8.2f} "
            f"{run - native:+8.2f} {added:+8.2f}  {verdict}"
        )


def measure_or_say(bundle: Bundle, runtime: str, state: Path, rounds: int, calls: int) -> str:
    """Return one row of the table, or why there is none."""
    try:
        return measure(bundle, runtime, state, rounds, calls)
    except EdgeKitError as error:
        return f"{runtime:<24} not measured: {error}"


def small_bundle(folder: Path) -> Bundle:
    """Return a bundle of the tests' classifier: 8 x 8 pixels, four classes."""
    from tests.runtimes.bundles import write_tiny

    return write_tiny(folder / "tiny", ("tflite-fp32", "onnx-fp32", "openvino-fp32"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--runtime", action="append", choices=NATIVE)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    given = parser.parse_args()
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    print(
        f"{cpu.partition(': ')[2] or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"Python {platform.python_version()}, numpy {np.__version__}; microseconds, one thread, batch 1")
    print(f"{'runtime':<24} {'artifact':<14}   native      run  predict  run-nat pred-nat")
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(given.bundle) if given.bundle else small_bundle(Path(folder))
        for runtime in given.runtime or NATIVE:
            print(measure_or_say(bundle, runtime, Path(folder) / "state", given.rounds, given.calls))


if __name__ == "__main__":
    main()
