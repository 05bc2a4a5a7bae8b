"""One HTTP request with binary tensors, over the bare in-process call of the same model paced alike.

    python benchmarks/http_roundtrip.py [BUNDLE] [--runtime R] [--requests 2000]

Without BUNDLE, the reference CNN is trained where need be and converted. Both sides have one thread and the same
session options; monitor and metrics are on. The in-process call is made at the pace of the requests, since an idle
gap makes the same call slower than a hot loop does. Server and client run on one core and on two, in turns; the
better counts. Budgets: 1.6 x on the Unix socket, 1.8 x on TCP, for a model of 0.1 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from predict_overhead import NATIVE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import open_bundle
from edgekit.model import Model, load
from edgekit.process import python_command
from edgekit.tensors import sample_shape

BUDGETS = {"unix socket": 1.6, "tcp": 1.8}
WARM_UP = 200
WIRE = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "float64": "FP64"}


def main() -> None:
    """Print one row for each way to connect and each number of cores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--runtime", default="onnxruntime", choices=NATIVE)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or reference_bundle(Path(folder))
        with load(bundle, runtime=given.runtime, threads=1, monitor=False) as model:
            print_machine(model)
            for cores in core_sets():
                measure(bundle, model, cores, Path(folder), given)


def measure(
    bundle: Path, model: Model, cores: list[set[int]], folder: Path, given: argparse.Namespace
) -> None:
    """Print the rows for one placement: the server's cores first, the client's second."""
    spec = model.inputs[0]
    x = np.random.default_rng(0).random(sample_shape(spec)).astype(spec.dtype)
    request = infer_request(model, x)
    native = open_bundle(bundle).model_files(model.plan.artifact).path
    bare_call = NATIVE[given.runtime](model, native)
    with served(bundle, given.runtime, cores[0], folder) as addresses:
        os.sched_setaffinity(0, cores[1])
        for way, connect in addresses.items():
            http_us = round_trips_us(connect, request, given.requests)
            # the bare call where the server's was: on its core, and no sooner than the next request comes
            os.sched_setaffinity(0, cores[0])
            bare_us = paced_us(lambda: bare_call(x), statistics.median(http_us), given.requests)
            os.sched_setaffinity(0, cores[1])
            ours, bare = statistics.median(http_us), statistics.median(bare_us)
            print(
                f"{len(cores[0] | cores[1])} core(s), {way:<12} p50 {ours:7.1f} us, p99 {np.percentile(http_us, 99):7.1f}; "
                f"bare, paced {bare:7.1f}; {ours / bare:.2f} x (budget {BUDGETS[way]} for 0.1 ms), {ours - bare:+.0f} us"
            )
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def core_sets() -> list[list[set[int]]]:
    """Return the placements: server and client on one core, and on a core each where there are two."""
    available = sorted(os.sched_getaffinity(0))
    placements = [[{available[0]}, {available[0]}]]
    return placements if len(available) < 2 else [*placements, [{available[0]}, {available[1]}]]


def infer_request(model: Model, x: np.ndarray) -> bytes:
    """Return the bytes of one request, binary both ways."""
    spec = model.inputs[0]
    head = {
        "inputs": [
            {
                "name": spec.name,
                "datatype": WIRE[spec.dtype],
                "shape": x.shape,
                "parameters": {"binary_data_size": x.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    return (
        f"POST /v2/models/{model.name}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
        f"Content-Length: {len(text) + x.nbytes}\r\n\r\n"
    ).encode() + text + x.tobytes()  # fmt: skip


@contextmanager
def served(
    bundle: Path, runtime: str, cores: set[int], folder: Path
) -> Iterator[dict[str, Callable[[], socket.socket]]]:
    """Run `edgekit serve` on the given cores; give a way to connect by name."""
    path = folder / "bench.sock"
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the child inherits it, all its threads do
    command = python_command(
        "-m", "edgekit", "serve", str(bundle), "--http", "127.0.0.1:0", "--socket", str(path), "--threads", "1",
        "--runtime", runtime, "--state-dir", str(folder / "state"),
    )  # fmt: skip
    log = (folder / "serve.log").open("w+", encoding="utf-8")
    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    os.sched_setaffinity(0, before)
    try:
        port = wait_ready(child, folder / "serve.log")
        yield {"unix socket": lambda: unix(path), "tcp": lambda: tcp(port)}
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        log.close()


def wait_ready(child: subprocess.Popen[bytes], log: Path, limit_s: float = 60.0) -> int:
    """Wait until the daemon says that it listens and is ready; return its TCP port."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and child.poll() is None:
        text = log.read_text(encoding="utf-8")
        found = re.search(r"listening on http://[^:]+:(\d+)", text)
        if found and "ready: " in text:
            return int(found[1])
        time.sleep(0.05)
    sys.exit(f"edgekit serve did not become ready:\n{log.read_text(encoding='utf-8')[-2000:]}")


def unix(path: Path) -> socket.socket:
    """Return a connection to the Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def tcp(port: int) -> socket.socket:
    """Return a TCP connection without Nagle's delay."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def round_trips_us(connect: Callable[[], socket.socket], request: bytes, n: int) -> list[float]:
    """Return the time of each of n requests on one connection."""
    times = []
    with connect() as connection:
        for i in range(WARM_UP + n):
            began = time.perf_counter()
            connection.sendall(request)
            status = read_reply(connection)
            took = time.perf_counter() - began
            if status != b"200":
                sys.exit(f"the daemon answered {status!r}")
            if i >= WARM_UP:
                times.append(1e6 * took)
    return times


def read_reply(connection: socket.socket) -> bytes:
    """Read one whole reply; return its status."""
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        missing -= len(connection.recv(min(missing, 1 << 20)))
    return head.split(b" ", 2)[1]


def paced_us(call: Callable[[], object], period_us: float, n: int) -> list[float]:
    """Return the time of each of n calls, begun `period_us` apart with the thread asleep in between."""
    times = []
    for i in range(WARM_UP + n):
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
        time.sleep(max(0.0, period_us * 1e-6 - took))
        if i >= WARM_UP:
            times.append(1e6 * took)
    return times


def reference_bundle(folder: Path) -> Path:
    """Convert the reference CNN to float32 ONNX."""
    from tests.corpus import reference_cnn

    cnn, out = reference_cnn(), folder / "digits"
    command = python_command(
        "-m", "edgekit", "convert", str(cnn.model), "--target", "x86-64", "-o", str(out),
        "--format", "onnx", "--precision", "fp32", "--eval", str(cnn.evaluation),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the reference CNN could not be converted:\n{done.stdout}{done.stderr}")
    return out


def print_machine(model: Model) -> None:
    """Print what the numbers depend on."""
    found = re.search(
        r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    print(
        f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}; {model.plan.artifact} on {model.plan.runtime}, 1 thread"
    )


if __name__ == "__main__":
    main()
