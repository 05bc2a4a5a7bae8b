"""Is what `edgekit profile` says true: its median beside a bare loop, OpenVINO's benchmark_app and ONNX Runtime's own.

    python benchmarks/profile_honesty.py [--rounds 7] [--seconds 2] [--calm-below LOAD] [--write]

Three small models (the reference CNN as TFLite, ONNX and OpenVINO) beside a bare loop of the same runtime with the same
options; one of 5 ms and more, as ONNX and OpenVINO, also beside `benchmark_app` (from OpenVINO's wheel: one infer
request, hint latency, the same thread) and beside ONNX Runtime's own two ways: the `model_run` events of its profiler,
and `timeit` as in its transformers benchmark. Every side is a fresh process with a warm-up; sides take turns, in an order
that changes from round to round, and what is printed is the median over the rounds of the ratio within a round, with
its 95 % interval by order statistics, for the medians and for the quickest calls, which a busy machine disturbs least.
What the profiler for `--ops` costs is printed as `profile` names it.
`--write` puts the section into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import Bundle, open_bundle, write_bundle
from edgekit.op_table import OpTable
from edgekit.process import python_command
from edgekit.profiling import Probes, profile_bundle
from edgekit.runtimes import get_runtime
from edgekit.timing import order_interval

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEADING = "## What profile says, beside others"
BOUND = 0.03
WARM_UP_S = 0.5
ARTIFACTS = {"litert": "tflite-fp32", "onnxruntime": "onnx-fp32", "openvino": "openvino-fp32"}


class Times(NamedTuple):
    """Of single calls, in ms."""

    p50: float
    least: float


class Case(NamedTuple):
    """One model in one runtime, with its sides."""

    name: str
    bundle: Bundle
    runtime: str
    sides: tuple[str, ...]


def main() -> None:
    """Measure all cases, or be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--calm-below", type=float, default=1e9, metavar="LOAD", help="wait for such a load before each round"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "MODEL", "INPUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side, model, data = given.side
        print(json.dumps(SIDES[side](Path(model), np.load(data), given.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        lines = [line for case in cases(Path(folder)) for line in measure(case, Path(folder), given)]
    text = section(lines, given, load)
    print(text)
    if given.write:
        write(text)


def measure(case: Case, folder: Path, given: argparse.Namespace) -> list[str]:
    """Return the rows of one case."""
    seen: dict[str, list[Times]] = {side: [] for side in ("profile", *case.sides)}
    verdicts = []
    data = folder / f"{case.name}.npy"
    np.save(data, next(iter(case.bundle.golden().inputs.values()))[:1])
    path = case.bundle.model_files(ARTIFACTS[case.runtime]).path
    order = list(seen)
    for round_ in range(given.rounds):
        while os.getloadavg()[0] > given.calm_below:
            time.sleep(5)
        for side in order:
            if side == "profile":
                times, verdict = profiled(case, given.seconds)
                verdicts.append(verdict)
            else:
                times = beside(side, path, data, given.seconds)
            seen[side].append(times)
        order = [*order[1:], order[0]]
        told = {side: f"{times[-1].p50:.4f}" for side, times in seen.items()}
        print(f"{case.name} {case.runtime}, round {round_ + 1}: {told}", file=sys.stderr)
    ops = cost_of_ops(case, given.seconds)
    rows = [row(case, side, seen, verdicts) for side in case.sides]
    return [*rows, f"| {case.name} | {case.runtime} | its own `--ops` run | | | {ops} | | |"] if ops else rows


def row(case: Case, side: str, seen: dict[str, list[Times]], verdicts: Sequence[str]) -> str:
    """Return one row: both medians, and the ratios of medians and of quickest calls."""
    pairs = list(zip(seen["profile"], seen[side], strict=True))
    medians = ratio([ours.p50 / theirs.p50 for ours, theirs in pairs])
    least = ratio([ours.least / theirs.least for ours, theirs in pairs])
    ours, theirs = (statistics.median(times.p50 for times in seen[each]) for each in ("profile", side))
    stable = sum(each == "stable" for each in verdicts)
    return (
        f"| {case.name} | {case.runtime} | {side} | {ours:.4f} | {theirs:.4f} | {medians} | {least} | "
        f"{stable} of {len(verdicts)} |"
    )


def ratio(values: Sequence[float]) -> str:
    """Return the median of ratios with its interval, and what it says of the bound."""
    ordered, middle = sorted(values), statistics.median(values)
    ranks = order_interval(len(ordered), 50.0)
    if ranks is None:
        return f"{middle:.3f}, too few rounds"
    low, high = (ordered[rank - 1] for rank in ranks)
    within = low >= 1 - BOUND and high <= 1 + BOUND
    beyond = high < 1 - BOUND or low > 1 + BOUND
    verdict = "within" if within else "**beyond**" if beyond else "not decided"
    return f"{middle:.3f} ({low:.3f} to {high:.3f}), {verdict}"


def profiled(case: Case, seconds: float) -> tuple[Times, str]:
    """Return what `edgekit profile` gives, and its verdict."""
    report = profile_bundle(
        case.bundle, runtimes=[case.runtime], artifact=ARTIFACTS[case.runtime], threads=[1], seconds=seconds
    )
    sample = report.measurements[0].sample
    assert sample is not None
    return Times(sample.latency.percentiles["p50"], sample.latency.min), sample.stability.verdict


def cost_of_ops(case: Case, seconds: float) -> str:
    """Return what the operators' profiler adds to a call, as the report names it; nothing where there is none."""
    if get_runtime(case.runtime).no_op_times:
        return ""
    report = profile_bundle(
        case.bundle,
        runtimes=[case.runtime],
        artifact=ARTIFACTS[case.runtime],
        threads=[1],
        seconds=seconds,
        probes=Probes(top_ops=1),
    )
    table = report.measurements[0].ops
    assert isinstance(table, OpTable), table
    return f"{1 + table.cost:.2f} × a call without ({table.plain_p50_ms:.4f} → {table.profiled_p50_ms:.4f})"


def beside(side: str, model: Path, data: Path, seconds: float) -> Times:
    """Return the times of another side, taken in a process of its own."""
    if side == "benchmark_app":
        return benchmark_app(model, data.parent, seconds)
    command = python_command(__file__, "--seconds", str(seconds), "--side", side, str(model), str(data))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=data.parent)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
    return Times(*json.loads(done.stdout.splitlines()[-1]))


def benchmark_app(model: Path, folder: Path, seconds: float) -> Times:
    """Return what OpenVINO's own tool tells.

    It takes no -nthreads beside a hint, and says that this is its own limitation: the thread goes in by a configuration.
    """
    config = folder / "benchmark_app.json"
    config.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": "1"}}), encoding="utf-8")
    tool = Path(sys.executable).with_name("benchmark_app")
    words = [
        str(tool), "-m", str(model), "-d", "CPU", "-hint", "latency", "-api", "sync", "-nireq", "1",
        "-t", str(max(1, round(seconds))), "-load_config", str(config), "-inference_only",
    ]  # fmt: skip
    if str(model).endswith(".xml"):
        words += ["-data_shape", "[" + ",".join(map(str, np.load(folder / "large.npy").shape)) + "]"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    told = [re.search(rf"{name}:\s+([\d.]+) ms", done.stdout) for name in ("Median", "Min")]
    threads = re.search(r"INFERENCE_NUM_THREADS: (\d+)", done.stdout)
    found = [float(each[1]) for each in told if each]
    if len(found) != 2 or threads is None or threads[1] != "1":
        sys.exit(f"benchmark_app failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return Times(*found)


def loop(call: Callable[[], object], seconds: float) -> Times:
    """Return the times of a call, after a warm-up."""
    until = perf_counter_ns() + int(WARM_UP_S * 1e9)
    while perf_counter_ns() < until:
        call()
    times = []
    until = perf_counter_ns() + int(seconds * 1e9)
    now = 0
    while now < until:
        begin = perf_counter_ns()
        call()
        now = perf_counter_ns()
        times.append(now - begin)
    return Times(statistics.median(times) / 1e6, min(times) / 1e6)


def bare_litert(model: Path, x: np.ndarray, seconds: float) -> Times:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(model), num_threads=1)
    source = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(source, x.shape)
    interpreter.allocate_tensors()
    target = interpreter.get_output_details()[0]["index"]

    def call() -> object:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return loop(call, seconds)


def onnx_session(model: Path, prefix: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if prefix:
        options.enable_profiling, options.profile_file_prefix = True, prefix
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def bare_onnxruntime(model: Path, x: np.ndarray, seconds: float) -> Times:
    session = onnx_session(model)
    feed = {session.get_inputs()[0].name: x}
    return loop(lambda: session.run(None, feed), seconds)


def timeit_onnxruntime(model: Path, x: np.ndarray, seconds: float) -> Times:
    """Time as onnxruntime/transformers/benchmark_helper.py does: `timeit.repeat` of single calls."""
    session = onnx_session(model)
    feed = {session.get_inputs()[0].name: x}

    def call() -> object:
        return session.run(None, feed)

    once_s = statistics.median(timeit.repeat(call, number=1, repeat=max(3, int(WARM_UP_S / 0.005))))
    times_s = timeit.repeat(call, number=1, repeat=max(10, int(seconds / once_s)))
    return Times(1e3 * statistics.median(times_s), 1e3 * min(times_s))


def events_onnxruntime(model: Path, x: np.ndarray, seconds: float) -> Times:
    """Return the `model_run` events of ONNX Runtime's own trace, which counts its operators meanwhile."""
    session = onnx_session(model, "trace")
    feed = {session.get_inputs()[0].name: x}
    warm = 20
    for _ in range(warm):
        session.run(None, feed)
    until = perf_counter_ns() + int(seconds * 1e9)
    while perf_counter_ns() < until:
        session.run(None, feed)
    trace = Path(session.end_profiling())
    events = json.loads(trace.read_text(encoding="utf-8"))
    trace.unlink()
    times_us = [e["dur"] for e in events if e["name"] == "model_run"][warm:]
    return Times(statistics.median(times_us) / 1e3, min(times_us) / 1e3)


def bare_openvino(model: Path, x: np.ndarray, seconds: float) -> Times:
    import openvino

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(model), "CPU", config)
    request = compiled.create_infer_request()
    tensor = openvino.Tensor(compiled.input(0).get_element_type(), list(x.shape))
    request.set_input_tensor(tensor)
    view = tensor.data

    def call() -> object:
        view[...] = x
        request.infer(share_outputs=True)
        return request.get_output_tensor(0).data

    return loop(call, seconds)


SIDES: dict[str, Callable[[Path, np.ndarray, float], Times]] = {
    "bare loop, litert": bare_litert,
    "bare loop, onnxruntime": bare_onnxruntime,
    "bare loop, openvino": bare_openvino,
    "ONNX Runtime's trace": events_onnxruntime,
    "ONNX Runtime's timeit": timeit_onnxruntime,
}


def cases(folder: Path) -> list[Case]:
    """Return the reference CNN in three runtimes, and the large network in two."""
    small, big = reference(folder), large(folder / "large")
    own = ("ONNX Runtime's trace", "ONNX Runtime's timeit")
    return [
        *(Case("reference CNN", small, name, (f"bare loop, {name}",)) for name in ARTIFACTS),
        Case("large", big, "onnxruntime", ("bare loop, onnxruntime", *own)),
        Case("large", big, "openvino", ("bare loop, openvino", "benchmark_app")),
    ]


def reference(folder: Path) -> Bundle:
    """Return the reference CNN in float32 for all three runtimes; trained where need be."""
    from tests.corpus import reference_cnn

    cnn, out = reference_cnn(), folder / "reference"
    formats = [word for each in ("tflite", "onnx", "openvino") for word in ("--format", each)]
    command = python_command(
        "-m", "edgekit", "convert", str(cnn.model), "--target", "x86-64", "-o", str(out), *formats,
        "--precision", "fp32", "--eval", str(cnn.evaluation),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the reference CNN could not be converted:\n{done.stdout}{done.stderr}")
    return open_bundle(out)


def large(out: Path) -> Bundle:
    """Write a bundle of a convolutional network of some 0.6 G multiplications, as ONNX and as OpenVINO."""
    import onnx
    import openvino
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.golden import GoldenSet, encode_golden
    from edgekit.manifest import (
        Artifact,
        GateResult,
        Golden,
        GoldenTolerance,
        Manifest,
        Plan,
        Recipe,
        SourceInfo,
    )
    from edgekit.tensors import TensorSpec

    rng = np.random.default_rng(0)
    weights, nodes, at = [], [], "image"
    for index, (channels, filters) in enumerate(((3, 64), (64, 96), (96, 112))):
        kernel = (rng.standard_normal((filters, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes.append(helper.make_node("Conv", [at, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        at = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["pooled"]))
    shape = (1, 3, 64, 64)
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, (1, 112, 1, 1))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = out.with_suffix(".made")
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    openvino.save_model(
        openvino.convert_model(folder / "model.onnx"), folder / "model.xml", compress_to_fp16=False
    )
    x = rng.random((4, *shape[1:]), np.float32)
    session = onnx_session(folder / "model.onnx")
    y = np.concatenate([session.run(None, {"image": x[i : i + 1]})[0] for i in range(4)])
    inputs, outputs = (
        (TensorSpec("image", "float32", shape),),
        (TensorSpec("pooled", "float32", (1, 112, 1, 1)),),
    )
    made = {"onnx-fp32": ("model.onnx",), "openvino-fp32": ("model.xml", "model.bin")}
    paths = {name: tuple(f"artifacts/{name}/{each}" for each in names) for name, names in made.items()}
    manifest = Manifest(
        name="large",
        version=1,
        task="other",
        source=SourceInfo("onnx", "0" * 64),
        inputs=inputs,
        outputs=outputs,
        artifacts={
            name: Artifact(
                name.partition("-")[0], "fp32", each[0], each, inputs, outputs, Recipe((), "fp32"), GateResult("accepted", ())
            )
            for name, each in paths.items()
        },
        plan=Plan("x86-64", "onnx-fp32", "onnxruntime"),
        golden=Golden(4, "synthetic", {name: GoldenTolerance(1e-2) for name in made}),
        files={},
    )  # fmt: skip
    files: dict[str, Path | bytes] = {
        path: folder / Path(path).name for each in paths.values() for path in each
    }
    files["golden.npz"] = encode_golden(GoldenSet({"image": x}, {"pooled": y}, "synthetic"))
    return write_bundle(out, manifest, files)


def section(lines: Sequence[str], given: argparse.Namespace, load: float) -> str:
    """Return the section of docs/benchmarks.md."""
    import onnxruntime
    import openvino

    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [
        f"Python {platform.python_version()}", f"ONNX Runtime {onnxruntime.__version__}",
        f"OpenVINO {openvino.__version__.split('-')[0]}", get_runtime("litert").version(),
    ]  # fmt: skip
    machine = f"{cpu[1] if cpu else platform.machine()} ({os.cpu_count()} cores), {platform.system()} {platform.release()}"
    command = f"python benchmarks/profile_honesty.py --rounds {given.rounds} --seconds {given.seconds:g}"
    return f"""{HEADING}

{machine}, {", ".join(versions)}; `{command}`, load {load:.1f} before and {os.getloadavg()[0]:.1f} after.
One thread; medians of single calls in ms; each side a fresh process, in turns; the ratio is the median over the rounds,
with its 95 % interval; what the interval does not settle is not decided.

| model | runtime | beside | profile | the other | ratio of medians (bound 0.97 to 1.03) | ratio of quickest calls | called stable |
|---|---|---|---:|---:|---|---|---|
{chr(10).join(lines)}
"""


def write(text: str) -> None:
    """Put the section into the page, in place of the one that is there."""
    page = PAGE.read_text(encoding="utf-8")
    start = page.find(HEADING)
    if start < 0:
        page = f"{page.rstrip()}\n\n{text}"
    else:
        end = page.find("\n## ", start + 1)
        page = page[:start] + text + ("" if end < 0 else page[end:])
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
