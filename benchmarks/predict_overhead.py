"""What `edgekit.load(bundle).predict` costs over the native call of the same model, the monitor on.

    python benchmarks/predict_overhead.py [BUNDLE]… [--runtime R]… [--rounds N] [--calls N]

Without BUNDLE: one of the small models that the tests carry, whose native call is short, so that what is added shows,
and the reference CNN (28 x 28 digits), converted here for x86-64 at fp32. Both sides run the same file with the same
options and the same input, in turns within one process: a block of native calls, a block of `Session.run`, a block of
`predict`, in another order each round. A block counts by its median call. What is added is the median over the rounds of
the difference of neighbouring blocks, with a 95 % bootstrap interval of that median, in microseconds; the budget is 10.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import EdgeKitError
from edgekit.model import Model, load
from edgekit.process import python_command
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


@dataclass(frozen=True)
class Added:
    """What a side costs over the native call.

    Attributes:
        median_us: Of the rounds' differences, in µs.
        low_us: Lower end of its 95 % bootstrap interval.
        high_us: Upper end.
    """

    median_us: float
    low_us: float
    high_us: float

    def __str__(self) -> str:
        return f"{self.median_us:+.2f} [{self.low_us:+.2f}, {self.high_us:+.2f}]"

    @property
    def verdict(self) -> str:
        """What that says of the budget: a doubt is a doubt."""
        if self.high_us <= BUDGET_US:
            return "within"
        return "OVER" if self.low_us > BUDGET_US else "undecided: run it again, at rest"


def added(side: Sequence[float], native: Sequence[float], resamples: int = 2000) -> Added:
    """Return what a side costs over the native call, from the medians of blocks that ran side by side, in µs."""
    differences = np.asarray(side) - np.asarray(native)
    random = np.random.default_rng(0)
    drawn = np.median(random.choice(differences, (resamples, len(differences))), axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Added(float(np.median(differences)), float(low), float(high))


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
        order = list(sides)
        for round_ in range(rounds + 1):
            order.append(order.pop(0))
            for side in order:
                took = block_us(sides[side], x, calls)
                if round_:  # the first round warms up
                    blocks[side].append(took)
        native, predict = (statistics.median(blocks[side]) for side in ("native", "predict"))
        cost = added(blocks["predict"], blocks["native"])
        return (
            f"{model.name:<8} {get_runtime(runtime).version():<23} {model.plan.artifact:<14} {native:8.2f} {predict:8.2f}"
            f"  {added(blocks['run'], blocks['native'])!s:<24} {cost!s:<24} {cost.verdict}"
        )


def measure_or_say(bundle: Bundle, runtime: str, state: Path, rounds: int, calls: int) -> str:
    """Return one row of the table, or why there is none."""
    try:
        return measure(bundle, runtime, state, rounds, calls)
    except EdgeKitError as error:
        return f"{bundle.manifest.name:<8} {runtime:<23} not measured: {error}"


def small_bundle(folder: Path) -> Bundle:
    """Return a bundle of the tests' classifier: 8 x 8 pixels, four classes."""
    from tests.runtimes.bundles import write_tiny

    return write_tiny(folder / "tiny", ("tflite-fp32", "onnx-fp32", "openvino-fp32"))


def reference_bundle(folder: Path) -> Bundle:
    """Return the reference CNN, which is trained once per checkout, at fp32 in every format."""
    from tests.corpus import reference_cnn

    cnn = reference_cnn()
    words = ["--eval", cnn.evaluation, "--precision", "fp32", "--target", "x86-64", "--name", "digits"]
    command = python_command("-m", "edgekit", "convert", cnn.model, "-o", folder / "digits", *words)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the reference CNN could not be converted: {done.stderr}")
    return open_bundle(folder / "digits")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="*", type=Path)
    parser.add_argument("--runtime", action="append", choices=NATIVE)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=300)
    given = parser.parse_args()
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    with tempfile.TemporaryDirectory() as folder:
        bundles = [open_bundle(each) for each in given.bundle]
        bundles = bundles or [small_bundle(Path(folder)), reference_bundle(Path(folder))]
        print(
            f"{cpu.partition(': ')[2] or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"Python {platform.python_version()}, numpy {np.__version__}; microseconds, one thread, batch 1, "
            f"{given.rounds} rounds of {given.calls} calls"
        )
        print(
            f"{'model':<8} {'runtime':<23} {'artifact':<14}   native  predict  "
            f"{'run adds, 95 %':<24} {'predict adds, 95 %':<24}"
        )
        for bundle in bundles:
            for runtime in given.runtime or NATIVE:
                state = Path(folder) / "state"
                print(measure_or_say(bundle, runtime, state, given.rounds, given.calls), flush=True)
        print(f"load {os.getloadavg()[0]:.1f} at the end; budget: predict adds at most {BUDGET_US:g}")


if __name__ == "__main__":
    main()
