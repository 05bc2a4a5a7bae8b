"""The same calls through a daemon of their own and here: what it costs, and what does not pass for a cost."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.daemon_cost import DaemonCost, Served, daemon_cost, infer_request
from edgekit.detect import detect
from edgekit.errors import MachineError, UnavailableError, UsageError
from edgekit.manifest import Plan
from edgekit.profiling import Probes, profile_bundle
from edgekit.served import served
from tests.bundle_samples import write
from tests.daemon.serving import FAST, FunctionSession, Running, affine, slow
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import runtime_or_skip

pytestmark = pytest.mark.device


def quiet(_phase: str, _share: float) -> None:
    pass


def here(name: str) -> Plan:
    artifact = {"null": "tflite-fp32", "litert": "tflite-fp32", "onnxruntime": "onnx-fp32"}[name]
    return Plan(detect().profile_id, artifact, name, (), 1)


@pytest.mark.parametrize("name", ["null", "litert", "onnxruntime"])
def test_the_daemon_serves_just_the_plan_that_is_measured(tmp_path: Path, name: str) -> None:
    if name != "null":
        runtime_or_skip(name)
    bundle = write_tiny(tmp_path / "tiny")
    report = profile_bundle(
        bundle, runtimes=[name], threads=[1], batches=[2], seconds=0.3, probes=Probes(daemon=True)
    )
    cost = report.measurements[0].daemon
    assert isinstance(cost, DaemonCost), cost
    assert cost.in_process.n == cost.through_daemon.n >= 60
    assert cost.cost_interval_ms[0] <= cost.cost_ms <= cost.cost_interval_ms[1]
    assert cost.cost_ms > 0
    assert cost.ratio > 1
    assert cost.request_bytes > 2 * 8 * 8 * 4
    assert cost.daemon_mib > 10
    assert report.measurements[0].as_json()["through_daemon"]["cost_ms"] == cost.cost_ms


def test_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    with served(write(tmp_path / "bundle"), here("null"), detect().profile_id) as running:
        assert running.socket.is_socket()
    assert list((tmp_path / "t").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def test_another_plan_than_the_one_measured_is_an_error(tmp_path: Path) -> None:
    runtime_or_skip("litert")
    bundle = write_tiny(tmp_path / "tiny")
    with (
        pytest.raises(UnavailableError, match=r"serves another plan.*expected onnx-fp32 on nothing"),
        served(bundle, Plan("x86-64", "onnx-fp32", "nothing"), "another-device"),
    ):
        pytest.fail("it must not start")


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")  # its artifacts are no models
    with (
        pytest.raises(UnavailableError, match=r"the daemon did not become ready: .+"),
        served(bundle, here("null"), "another-device"),
    ):
        pytest.fail("it must not start")


def test_a_bundle_with_a_state_is_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    stateful = msgspec.structs.replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, state={"a": "b"})
    )
    with (
        pytest.raises(UsageError, match="does not fit a bundle with a state"),
        served(stateful, here("null"), "x86-64"),
    ):
        pytest.fail("it must not start")


def test_both_sides_are_paced_alike_and_the_slower_one_shows(tmp_path: Path) -> None:
    model = slow(0.004)
    with Running([model], FAST, tmp_path) as running:
        assert running.listening.socket is not None
        target = Served(Path(running.listening.socket), "slow", os.getpid())
        quick = FunctionSession(model.inputs, model.manifest.outputs, lambda feed: {"y": feed["x"]})
        found = daemon_cost(quick, {"x": np.ones((1, 1), np.float32)}, target, seconds=0.8, tell=quiet)
    assert found.cost_ms > 3.9
    assert found.rate_per_s <= 1000 / 4
    assert found.in_process.percentiles["p50"] < 2.0


def test_a_refused_request_is_no_measurement(tmp_path: Path) -> None:
    model = affine()
    with Running([model], FAST, tmp_path) as running:
        assert running.listening.socket is not None
        target = Served(Path(running.listening.socket), "affine", os.getpid())
        feed = {"wrong": np.ones((1, 4), np.float32)}
        with pytest.raises(MachineError, match=r"the daemon answered 400: .*wrong"):
            daemon_cost(model.session, feed, target, seconds=0.1, tell=quiet)


@contextmanager
def answering(path: Path, reply: bytes) -> Iterator[Served]:
    """Answer every connection's first bytes with `reply`, then hang up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Served(path, "affine", os.getpid())
        thread.join(10)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "in the middle of a reply"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not say its length"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull", "answered 503: full"),
        (b"x" * (1 << 17), "no end to its head"),
        (b"", "in the middle of a reply"),
        (b"\r\n\r\n", "answered nothing"),
    ],
)
def test_a_daemon_that_misbehaves_is_an_error(tmp_path: Path, reply: bytes, message: str) -> None:
    model = affine()
    with (
        answering(tmp_path / "s", reply) as target,
        pytest.raises(MachineError, match=message),
    ):
        daemon_cost(model.session, {"x": np.ones((1, 4), np.float32)}, target, seconds=0.1, tell=quiet)


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    target = Served(tmp_path / "none", "affine", os.getpid())
    with pytest.raises(MachineError, match="cannot be reached"):
        daemon_cost(affine().session, {}, target, seconds=0.1, tell=quiet)


def test_strings_and_numbers_go_over_the_wire_as_the_protocol_says() -> None:
    feed = {"t": np.array([b"ab", b""], object), "n": np.array([[1.5]], np.float32)}
    head, _, body = infer_request("m", feed).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert body.endswith(b"\x02\0\0\0ab\0\0\0\0" + np.float32(1.5).tobytes())
    assert b'"datatype": "BYTES"' in body
