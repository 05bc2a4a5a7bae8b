"""`edgekit agent` as a process, against a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.identity import open_identity
from edgekit.monitor.outbox import Outbox
from edgekit.state import StateFolder
from tests.sync.fleet import BOOT, ServerProcess, edgekit, window


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("sync") / "sync.sqlite") as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def _run(*arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGEKIT_ENROLL_TOKEN": token}
    return subprocess.run(
        edgekit("agent", *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def _fill(state: StateFolder, *sequence: int) -> None:
    with Outbox(state.outbox, boot=BOOT) as outbox:
        outbox.append(*(window(seq) for seq in sequence))


def test_once_enrols_sends_everything_and_exits(server: ServerProcess, state: StateFolder) -> None:
    _fill(state, 1, 2, 3)
    where = ("--sync", server.url, "--state-dir", str(state.root), "--once")
    token = server.token()
    first = _run(*where, "--enroll-token", token)
    assert first.returncode == 0, first.stderr
    assert "3 window(s) sent" in first.stderr
    assert server.keys(open_identity(state).device_id) == [(BOOT, 1), (BOOT, 2), (BOOT, 3)]
    assert token not in first.stdout + first.stderr
    again = _run(*where, token=token)
    assert again.returncode == 0, again.stderr
    assert "0 window(s) sent" in again.stderr


def test_token_of_another_device_is_refused(
    server: ServerProcess, state: StateFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    token = server.token()
    other = tmp_path_factory.mktemp("other")
    assert _run("--sync", server.url, "--state-dir", str(other), "--once", token=token).returncode == 0
    refused = _run("--sync", server.url, "--state-dir", str(state.root), token=token)
    assert refused.returncode == 7
    assert "used by another device" in refused.stderr
    assert token not in refused.stderr


def test_server_that_does_not_answer(state: StateFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        _fill(state, 1)
        done = _run("--sync", url, "--state-dir", str(state.root), "--once", token="ek1_x")
    assert done.returncode == 7
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    with Outbox(state.outbox) as outbox:
        assert outbox.depth()[0] == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--sync", "http://fleet.example:8090"), "plain HTTP"),
        (("--sync", "fleet.example"), "--sync"),
        (("--sync", "http://127.0.0.1:1"), "not enrolled"),
        ((), "--sync"),
        (("--sync", "https://fleet.example", "--interval", "0"), "--interval"),
    ],
)
def test_requests_that_cannot_be_meant(state: StateFolder, arguments: tuple[str, ...], word: str) -> None:
    done = _run(*arguments, "--state-dir", str(state.root))
    assert done.returncode == 2
    assert word in done.stderr


def test_runs_until_sigterm_and_ends_cleanly(server: ServerProcess, state: StateFolder) -> None:
    _fill(state, 1, 2)
    command = edgekit("agent", "--sync", server.url, "--state-dir", str(state.root), "--interval", "0.1")
    environment = {**os.environ, "EDGEKIT_ENROLL_TOKEN": server.token()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as agent:
        try:
            _wait_for(server, state, 2)
            _fill(state, 3)
            _wait_for(server, state, 3)
            second = _run("--sync", server.url, "--state-dir", str(state.root), "--once")
            assert second.returncode == 1
            assert "another agent" in second.stderr
        finally:
            agent.send_signal(signal.SIGTERM)
            _, log = agent.communicate(timeout=60)
    assert agent.returncode == 0
    assert "3 window(s) sent and acknowledged" in log
    with Outbox(state.outbox) as outbox:
        assert outbox.depth()[0] == 0


def _wait_for(server: ServerProcess, state: StateFolder, windows: int) -> None:
    end = time.monotonic() + 60
    while not (state.identity / "enrolment.json").exists() or (
        len(server.keys(open_identity(state).device_id)) < windows
    ):
        assert time.monotonic() < end, "the windows did not arrive"
        time.sleep(0.02)


def test_device_side_needs_no_server_package() -> None:
    code = (
        "import sys, edgekit.agent, edgekit.cli.agent;"
        "print([m for m in ('fastapi', 'sqlalchemy', 'alembic', 'jinja2', 'uvicorn', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [*edgekit()[:-2], "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
