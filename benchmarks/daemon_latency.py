"""What the daemon adds to a model's own time: JSON and binary, Unix socket and TCP, small and large tensors.

    python benchmarks/daemon_latency.py [--requests 1000] [--rounds 5]

Two ONNX models made on the spot: a network of the reference CNN's shape with random weights (3 KB in, 40 bytes
out, about 0.1 ms) and an identity (602 KB in and out). Monitor and metrics are on, one thread, no spinning. Each
round measures every way in turn, each followed by the bare call in this process on the server's core at the pace
of the requests; the median over the rounds of the p50 is printed. Server and client are on one core and on two.
Budgets, binary: 1.6 x on the Unix socket and 1.8 x on TCP for the small model, 350 us added for the large one.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from http_roundtrip import WARM_UP, core_sets, infer_request, paced_us, print_machine, served
from onnx import TensorProto, helper, numpy_helper
from predict_overhead import native_onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import Bundle, write_bundle
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
from edgekit.model import Model, load
from edgekit.monitor.reference import build_reference, encode_references
from edgekit.tensors import TensorSpec

NAME = "onnx-fp32"


def main() -> None:
    """Print one row for each model, placement, way to connect and form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for make in (small, large):
            bundle = make(folder / make.__name__)
            with load(bundle, runtime="onnxruntime", threads=1, monitor=False) as model:
                print_machine(model)
                requests = given.requests if make is small else max(200, given.requests // 5)
                for cores in core_sets():
                    measure(bundle, model, cores, folder, requests, given.rounds)


def measure(
    bundle: Bundle, model: Model, cores: list[set[int]], folder: Path, requests: int, rounds: int
) -> None:
    """Print the rows of one model on one placement: the server's cores first, the client's second."""
    x = np.random.default_rng(1).random([1, *model.inputs[0].shape[1:]], np.float32)
    bare = native_onnxruntime(model, bundle.model_files(NAME).path)
    forms = {"binary": infer_request(model, x)}
    if x.nbytes < 10_000:
        forms["json"] = json_request(model, x)
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with served(bundle.root, "onnxruntime", cores[0], folder) as ways:
        for _ in range(rounds):
            for way, connect in ways.items():
                for form, request in forms.items():
                    os.sched_setaffinity(0, cores[1])
                    ours = statistics.median(round_trips_us(connect, request, requests))
                    os.sched_setaffinity(0, cores[0])
                    alone = statistics.median(paced_us(lambda: bare(x), ours, requests))
                    seen.setdefault((way, form), []).append((ours, alone))
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    for (way, form), pairs in seen.items():
        ours, alone = (statistics.median(side) for side in zip(*pairs, strict=True))
        best = min(pairs)
        print(
            f"{model.name:<6} {len(cores[0] | cores[1])} core(s)  {way:<12} {form:<7} p50 {ours:7.1f} us, "
            f"bare, paced {alone:7.1f}: {ours / alone:5.2f} x, {ours - alone:+7.1f} us; "
            f"quickest round {best[0]:7.1f} on {best[1]:7.1f}: {best[0] / best[1]:5.2f} x, {best[0] - best[1]:+7.1f} us"
        )


def round_trips_us(connect: Callable[[], socket.socket], request: bytes, n: int) -> list[float]:
    """Return the time of each of n requests on one connection, read into one buffer as long as the reply."""
    times = []
    with connect() as connection:
        connection.sendall(request)
        room = memoryview(bytearray(reply_bytes(connection)))
        for index in range(WARM_UP + n):
            began = time.perf_counter()
            connection.sendall(request)
            got = connection.recv_into(room)
            while got < len(room):
                got += connection.recv_into(room[got:])
            took = time.perf_counter() - began
            if room[:12] != b"HTTP/1.1 200":
                sys.exit(f"the daemon answered {bytes(room[:200])!r}")
            if index >= WARM_UP:
                times.append(1e6 * took)
    return times


def reply_bytes(connection: socket.socket) -> int:
    """Read one reply and return its length, head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, _ = data.partition(b"\r\n\r\n")
    total = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2])
    while len(data) < total:
        data += connection.recv(1 << 16)
    return total


def json_request(model: Model, x: np.ndarray) -> bytes:
    """Return the bytes of one request, JSON both ways."""
    tensor = {"name": model.inputs[0].name, "datatype": "FP32", "shape": x.shape, "data": x.reshape(-1).tolist()}  # fmt: skip
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model.name}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"  # fmt: skip
    return head.encode() + body


def small(out: Path) -> Bundle:
    """Write a bundle of a network of the reference CNN's shape, with random weights."""
    rng = np.random.default_rng(0)
    tensors, nodes = [], []

    def weight(name: str, *shape: int) -> str:
        scale = (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5
        tensors.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    at = node("Transpose", "image", perm=[0, 3, 1, 2])
    for index, (channels, filters) in enumerate(((1, 32), (32, 64), (64, 128))):
        at = node("Relu", node("Conv", at, weight(f"w{index}", filters, channels, 3, 3)))
        at = at if index == 2 else node("MaxPool", at, kernel_shape=[2, 2], strides=[2, 2])
    at = node("Relu", node("Gemm", node("Flatten", at), weight("w3", 128, 1152), transB=1))
    at = node("Softmax", node("Gemm", at, weight("w4", 10, 128), transB=1))
    nodes[-1].output[0] = "scores"
    image, scores = TensorSpec("image", "float32", (-1, 28, 28, 1)), TensorSpec("scores", "float32", (-1, 10))
    return written(out, "small", "classification", image, scores, nodes, tensors)


def large(out: Path) -> Bundle:
    """Write a bundle of an identity of 602,112 bytes."""
    x, y = (TensorSpec(name, "float32", (-1, 3, 224, 224)) for name in ("x", "y"))
    return written(out, "large", "other", x, y, [helper.make_node("Identity", ["x"], ["y"])], [])


def written(
    out: Path,
    name: str,
    task: str,
    source: TensorSpec,
    target: TensorSpec,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
) -> Bundle:
    """Write a bundle of one ONNX graph, whose golden outputs are its own."""
    import onnxruntime

    def value(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["n", *spec.shape[1:]])

    graph = helper.make_graph(nodes, name, [value(source)], [value(target)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    run: Callable[..., list[np.ndarray]] = onnxruntime.InferenceSession(data).run
    x = np.random.default_rng(2).random((4 if task == "other" else 64, *source.shape[1:]), np.float32)
    y = run(None, {source.name: x})[0]
    path = f"artifacts/{NAME}/model.onnx"
    manifest = Manifest(
        name=name,
        version=1,
        task=task,  # type: ignore[arg-type]
        source=SourceInfo("onnx", "0" * 64),
        inputs=(source,),
        outputs=(target,),
        artifacts={
            NAME: Artifact("onnx", "fp32", path, (path,), (source,), (target,), Recipe((), "fp32"), GateResult("accepted", ()))
        },
        plan=Plan("x86-64", NAME, "onnxruntime"),
        golden=Golden(4, "synthetic", {NAME: GoldenTolerance(1e-3)}),
        files={},
    )  # fmt: skip
    files: dict[str, Path | bytes] = {
        path: data,
        "golden.npz": encode_golden(GoldenSet({source.name: x[:4]}, {target.name: y[:4]}, "synthetic")),
    }
    if task == "classification":
        reference = build_reference(task, {target.name: y}, y.argmax(1))
        files["reference.json"] = encode_references({NAME: reference})
    return write_bundle(out, manifest, files)


if __name__ == "__main__":
    main()
