"""The device's side under a Cortex-A72: daemon, agent and monitor at work, and the device tests themselves."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from edgekit.devices import load_profile
from edgekit.emulator import Emulator, emulator_of
from edgekit.state import StateFolder
from edgekit.wheels import DeviceSystem, install
from tests.corpus import ROOT, corpus_folder, made_once
from tests.emulation import prepared
from tests.road import PATIENCE_S, Child, ask, committed, request_body
from tests.runtimes.bundles import write_tiny
from tests.sync.fleet import ServerProcess

pytestmark = pytest.mark.convert

#: Device tests that are quick enough under an emulator: what chooses, opens, compares and monitors.
SELECTED = (
    "tests/runtimes", "tests/test_golden.py", "tests/test_identity.py", "tests/daemon/test_oip.py",
    "tests/monitor/test_outbox.py", "tests/monitor/test_recorder.py", "tests/monitor/test_health.py",
)  # fmt: skip


@pytest.fixture(scope="module", name="emulator")
def _emulator() -> Iterator[Emulator]:
    with prepared():
        yield emulator_of(load_profile("raspberry-pi-4"))


def test_daemon_agent_and_monitor_work_there(emulator: Emulator, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "device")
    bundle = write_tiny(tmp_path / "bundle", ("tflite-fp32",)).root
    interpreter = emulator.interpreter
    words = (
        "--http",
        "127.0.0.1:0",
        "--window",
        "1",
        "--state-dir",
        state.root,
        "--device",
        "raspberry-pi-4",
    )
    daemon = Child(tmp_path / "daemon.log", "serve", bundle, *words, interpreter=interpreter)
    children = [daemon]
    try:
        assert "litert for raspberry-pi-4" in daemon.wait_for("ready: tiny version 3.*")
        port = int(daemon.wait_for(r"http://127\.0\.0\.1:(\d+)"))
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
            for _ in range(40):
                assert ask(connection, request_body())[0] == 200
            assert ask(connection, request_body(7))[0] == 400
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
        assert re.search(r"^edgekit_inferences_total\{[^}]*\} 40$", metrics, re.MULTILINE)
        with ServerProcess(tmp_path / "sync.sqlite") as server:
            where = ("--sync", server.url, "--state-dir", state.root, "--interval", "0.2")
            agent = Child(
                tmp_path / "agent.log",
                "agent",
                *where,
                interpreter=interpreter,
                EDGEKIT_ENROLL_TOKEN=server.token(),
            )
            children.append(agent)
            device = agent.wait_for(r"enrolled as (\S+)")
            deadline = time.monotonic() + PATIENCE_S
            while not (windows := server.get(f"/api/v1/devices/{device}/windows?limit=100")["windows"]):
                assert time.monotonic() < deadline, agent.said
                time.sleep(0.1)
            assert agent.end(signal.SIGTERM) == 0
        assert daemon.end(signal.SIGTERM) == 0
        assert committed(state.outbox) >= len(windows) >= 1
    finally:
        for child in children:
            if child.running:
                child.end(signal.SIGKILL)


def test_the_device_tests_pass_there(emulator: Emulator) -> None:
    folder = corpus_folder() / "emulator-pytest"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            wanted = [f"{name}=={version(name)}" for name in ("pytest", "hypothesis")]
            install(DeviceSystem("aarch64", "2.36"), wanted, unfinished)
    there = emulator.interpreter.environment
    environment = {**there, "PYTHONPATH": os.pathsep.join([there["PYTHONPATH"], str(folder), str(ROOT)])}
    environment["EDGEKIT_MAY_LACK"] = "openvino,tflite-runtime"
    done = subprocess.run(
        [
            *emulator.interpreter.words, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "-m", "device and not convert and not soak", *SELECTED,
        ],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
