"""`edgekit serve` as a process of its own: exit codes, signals, and what a kill leaves behind."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.bundle import open_bundle
from edgekit.daemon.repository import installed
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.schema import WindowReport
from edgekit.process import python_command
from edgekit.state import open_state
from tests import bundle_samples as samples

pytestmark = pytest.mark.device

START_S = 60.0


class Served:
    """A child that runs `edgekit serve` on any port."""

    def __init__(self, *arguments: str, http_port: bool = True) -> None:
        where = ["--http", "127.0.0.1:0"] if http_port else []
        self.child = subprocess.Popen(
            python_command("-m", "edgekit", "serve", *where, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self.port = 0

    def wait_ready(self) -> Served:
        """Read what it says until a model is ready."""
        assert self.child.stdout is not None
        deadline = time.monotonic() + START_S
        while "ready: " not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, self.said
            assert select.select([self.child.stdout], [], [], left)[0], self.said
            line = self.child.stdout.readline()
            if not line:
                raise AssertionError(f"it ended: {self.said} {self.end()}")
            self.said += line
            if "http://" in line:
                self.port = int(line.rsplit(":", 1)[1])
        return self

    def end(self, with_signal: int | None = None) -> tuple[int, str]:
        """Return the exit code and what it wrote to stderr."""
        if with_signal is not None:
            self.child.send_signal(with_signal)
        rest, errors = self.child.communicate(timeout=START_S)
        self.said += rest
        return self.child.returncode, errors

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)


def request(n: int = 1) -> bytes:
    inputs, _, _ = samples.samples(n)
    x = {"name": "image", "shape": [n, 4, 4, 1], "datatype": "FP32", "data": inputs["image"].reshape(-1).tolist()}  # fmt: skip
    return json.dumps({"inputs": [x]}).encode()


def infer(client: http.client.HTTPConnection, body: bytes) -> tuple[int, Any, bool]:
    """Return status, reply, and whether the connection ends."""
    client.request("POST", "/v2/models/quadrants/infer", body)
    response = client.getresponse()
    return response.status, json.loads(response.read()), response.getheader("Connection") == "close"


def infer_once(served: Served, body: bytes) -> tuple[int, Any]:
    with closing(served.connect()) as client:
        return infer(client, body)[:2]


def windows(state: Path) -> list[WindowReport]:
    """Return the reports that wait for the agent."""
    with Outbox(open_state(state).outbox) as outbox:
        return [msgspec.json.decode(body, type=WindowReport) for _, _, body in outbox.read(1000, 1 << 24)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    samples.write(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start daemons on the null runtime with one state folder; end what a failed test has left."""
    started: list[Served] = []

    def start(*arguments: object, **options: Any) -> Served:
        words = [str(argument) for argument in arguments]
        served = Served(*words, "--runtime", "null", "--state-dir", str(tmp_path / "state"), **options)
        started.append(served)
        return served

    yield start
    for served in started:
        if served.child.poll() is None:
            served.child.kill()
            served.child.communicate()


def test_serve_installs_then_serves_what_is_installed(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path
) -> None:
    first = serve(bundle).wait_ready()
    assert "ready: quadrants version 1, tflite-fp32 on null" in first.said
    status, reply = infer_once(first, request())
    assert status == 200
    # the null runtime answers golden inputs with the source model's own outputs
    golden = samples.golden()
    x = {"name": "image", "shape": [golden.n, 4, 4, 1], "datatype": "FP32", "data": golden.inputs["image"].reshape(-1).tolist()}  # fmt: skip
    _, reply = infer_once(first, json.dumps({"inputs": [x]}).encode())
    got = np.array(reply["outputs"][0]["data"], np.float32).reshape(golden.n, 3)
    np.testing.assert_array_equal(got, golden.outputs["probabilities"])
    assert first.end(signal.SIGTERM) == (0, "")
    second = serve(http_port=True).wait_ready()
    assert infer_once(second, request())[0] == 200
    assert second.end(signal.SIGINT) == (130, "")
    reports = windows(tmp_path / "state")
    assert sum(report.n for report in reports) == 2 + golden.n
    assert sum(report.calls for report in reports) == 3


def test_one_daemon_per_state_folder(serve: Callable[..., Served], bundle: Path) -> None:
    first = serve(bundle).wait_ready()
    code, errors = serve(bundle).end()
    assert code == 1
    assert f"got process {first.child.pid}" in errors
    assert infer_once(first, request())[0] == 200


def test_tcp_may_be_off(serve: Callable[..., Served], bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    served = serve(bundle, "--http", "off", "--socket", path, http_port=False).wait_ready()
    assert "http://" not in served.said
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(path))
        stream.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: e\r\n\r\n")
        assert stream.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert served.end(signal.SIGTERM)[0] == 0
    assert not path.exists()


def test_the_socket_is_in_the_runtime_directory(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    served = serve(bundle).wait_ready()
    assert f"listening on unix:{tmp_path}/run/edgekit.sock" in served.said


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "golden.npz", "artifacts/tflite-fp32/model.tflite"])  # fmt: skip
def test_a_flipped_byte_is_refused_by_name(serve: Callable[..., Served], bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    code, errors = serve(bundle).end()
    assert code == 6
    assert name in errors
    assert errors.count("\n") == 1


def test_a_flipped_byte_in_the_repository_is_refused_by_name(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path
) -> None:
    assert serve(bundle).wait_ready().end(signal.SIGTERM)[0] == 0
    path = tmp_path / "state/repository/quadrants/1/golden.npz"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    code, errors = serve().end()
    assert code == 6
    assert "golden.npz" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no bundle is installed"),
        (["/no/such/bundle"], 2, "no bundle at /no/such/bundle"),
        (["--http", "nonsense"], 2, "expected HOST:PORT"),
        (["--http", "off"], 2, "nothing to listen on"),
        (["--window", "0"], 2, "--window"),
        (["--max-body", "0"], 2, "--max-body"),
        (["--max-queue", "0"], 2, "--max-queue"),
        (["--threads", "0"], 2, "--threads"),
        (["--device", "toaster"], 2, "unknown device"),
        (["--device", "jetson-orin-nano", "--runtime", "onnxruntime"], 5, "TensorrtExecutionProvider"),
    ],
)
def test_what_cannot_be_served(
    bundle: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    given = [] if says.startswith("no bundle") else [str(bundle)]
    where = [] if "--http" in arguments else ["--http", "127.0.0.1:0"]
    done = subprocess.run(
        python_command(
            "-m", "edgekit", "serve", *given, *where, *arguments, "--state-dir", str(tmp_path / "state")
        ),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_bundles_of_one_name(serve: Callable[..., Served], bundle: Path, tmp_path: Path) -> None:
    samples.write(tmp_path / "two", version=2)
    code, errors = serve(bundle, tmp_path / "two").end()
    assert code == 2
    assert "two of the bundles are called 'quadrants'" in errors


def test_a_body_over_the_limit(serve: Callable[..., Served], bundle: Path) -> None:
    served = serve(bundle, "--max-body", "0.01").wait_ready()
    status, reply = infer_once(served, bytes(10_486))
    assert status == 413
    assert reply == {"error": "the request body is larger than 10485 bytes"}


def traffic(served: Served, stop: threading.Event, failures: list[str], counts: list[int]) -> None:
    """Ask on one connection until it is closed politely, or `stop` is set."""
    body = request()
    with closing(served.connect()) as client:
        while True:
            try:
                status, _, ends = infer(client, body)
            except (OSError, http.client.HTTPException) as error:
                if not stop.is_set():
                    failures.append(repr(error))
                return
            counts.append(status)
            if ends:
                return


def test_sigterm_under_traffic_fails_no_accepted_request(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path
) -> None:
    served = serve(bundle).wait_ready()
    failures: list[str] = []
    counts: list[int] = []
    clients = [
        threading.Thread(target=traffic, args=(served, threading.Event(), failures, counts)) for _ in range(4)
    ]
    for client in clients:
        client.start()
    while len(counts) < 200:
        time.sleep(0.01)
    code, errors = served.end(signal.SIGTERM)
    for client in clients:
        client.join(20)
    assert (code, errors, failures) == (0, "", [])
    assert set(counts) == {200}
    # every answer that a client has is in the outbox
    assert sum(report.n for report in windows(tmp_path / "state")) == len(counts)


def test_sigkill_under_traffic_leaves_a_usable_state_folder(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    for _ in range(2):
        served = serve(bundle, "--window", "1", "--socket", tmp_path / "s.sock").wait_ready()
        killed, failures = threading.Event(), list[str]()
        counts: list[int] = []
        clients = [
            threading.Thread(target=traffic, args=(served, killed, failures, counts)) for _ in range(2)
        ]
        for client in clients:
            client.start()
        time.sleep(1.5)  # past the end of a window
        killed.set()
        assert served.end(signal.SIGKILL)[0] == -signal.SIGKILL
        for client in clients:
            client.join(20)
        assert failures == []
        assert counts
    assert [place.version for place in installed(open_state(state))] == [1]
    reports = windows(state)
    assert len({(report.boot, report.seq) for report in reports}) == len(reports) >= 2
    assert (tmp_path / "s.sock").exists()  # nobody could remove it: the next daemon replaces it
    last = serve("--socket", tmp_path / "s.sock").wait_ready()
    assert infer_once(last, request())[0] == 200
    assert last.end(signal.SIGTERM)[0] == 0


def test_sigkill_during_installation_leaves_the_old_or_the_new(
    serve: Callable[..., Served], bundle: Path, tmp_path: Path
) -> None:
    """Killed at ever later moments: what is installed is whole each time, and the next start cleans up."""
    state = open_state(tmp_path / "state")
    for step in count():
        done = subprocess.run(
            python_command("-c", _INSTALL, str(bundle), str(state.root), str(step)),
            timeout=START_S,
            check=False,
        )
        for place in installed(state):
            open_bundle(place.path)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert step > 10
    assert serve().wait_ready().end(signal.SIGTERM)[0] == 0
    assert sorted(each.name for each in (state.repository / "quadrants").iterdir()) == ["1", "slots.json"]


#: Installs, and kills itself when the n-th of the calls that change the disk for good is about to be made.
_INSTALL = """
import os, signal, sys
from edgekit.daemon.repository import install
from edgekit.state import open_state

left = int(sys.argv[3])
real = os.fsync

def fsync(handle):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(handle)

os.fsync = fsync
install(sys.argv[1], open_state(sys.argv[2]))
"""


def test_help_needs_no_numpy() -> None:
    code = "import sys; from click.testing import CliRunner; from edgekit.cli.serve import serve; r = CliRunner().invoke(serve, ['--help']); assert r.exit_code == 0, r; assert 'numpy' not in sys.modules and 'asyncio' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=START_S, env=os.environ)


def test_a_daemon_whose_announcements_nobody_reads_serves_on(bundle: Path, tmp_path: Path) -> None:
    where = tmp_path / "s.sock"
    arguments = ("serve", str(bundle), "--http", "off", "--socket", str(where), "--runtime", "null")
    with Path("/dev/full").open("w") as full:
        child = subprocess.Popen(
            python_command("-m", "edgekit", *arguments, "--state-dir", str(tmp_path / "state")),
            stdout=full,
            stderr=subprocess.PIPE,
        )
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(where):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.terminate()
        assert (child.communicate(timeout=START_S)[1], child.returncode) == (b"", 0)
    finally:
        child.kill()
        child.wait()


def _is_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: e\r\n\r\n")
        return client.recv(12) == b"HTTP/1.1 200"


def test_grpc_is_served_beside_http(serve: Callable[..., Served], bundle: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from edgekit.daemon.grpc_schema import INFERENCE, message_class

    served = serve(bundle, "--grpc", "127.0.0.1:0").wait_ready()
    (address,) = [line.rpartition("/")[2] for line in served.said.splitlines() if "grpc://" in line]
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary(f"/{INFERENCE}/ServerReady")(b"", timeout=20)
    assert message_class("inference.ServerReadyResponse").FromString(answer).ready
    assert served.end(signal.SIGTERM)[0] == 0


def test_shared_memory_with_the_network_is_refused(serve: Callable[..., Served], bundle: Path) -> None:
    served = serve(bundle, "--http", "0.0.0.0:0", "--shared-memory", http_port=False)
    code, errors = served.end()
    assert code == 2
    assert "--shared-memory is for clients on this machine: got --http 0.0.0.0" in errors
