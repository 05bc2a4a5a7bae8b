"""`edgekit fleet`: tokens and revocation in the database, reading over HTTP."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from edgekit.monitor.schema import AccuracyEstimate, DetectorState, Event
from tests.sync.fleet import Device, ServerProcess, edgekit, window


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("sync") / "sync.sqlite") as running:
        yield running


@pytest.fixture
def device(server: ServerProcess) -> Iterator[Device]:
    enrolled = Device(server).enrol()
    yield enrolled
    enrolled.pool.clear()


def _fleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        edgekit("fleet", *arguments), capture_output=True, text=True, timeout=60, check=False
    )


def _json(*arguments: str) -> dict[str, object]:
    done = _fleet(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    reply: dict[str, object] = json.loads(done.stdout)
    return reply


def test_token_enrols_one_device_under_the_operators_name(server: ServerProcess) -> None:
    done = _fleet("enroll", "--db", server.url_of_database, "--name", "press-3")
    assert done.returncode == 0, done.stderr
    (token,) = done.stdout.split()
    device = Device(server)
    status, reply = device.ask_to_enrol(token)
    assert (status, reply["name"]) == (200, "press-3")
    assert Device(server).ask_to_enrol(token)[0] == 403


def test_token_as_json_expires_when_told(server: ServerProcess) -> None:
    reply = _json("enroll", "--db", server.url_of_database, "--expires-h", "2")
    assert set(reply) == {"token", "name", "expires_unix_s"}
    assert reply["expires_unix_s"] == pytest.approx(time.time() + 7200, abs=120)


@pytest.mark.parametrize(
    "arguments", [("--expires-h", "0"), ("--name", "a\nb"), ("--name", "x" * 201), ("--db", "x")]
)
def test_tokens_that_cannot_be_meant(server: ServerProcess, arguments: tuple[str, str]) -> None:
    done = _fleet("enroll", "--db", server.url_of_database, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_devices_lists_state_model_and_estimate(server: ServerProcess, device: Device) -> None:
    device.send(window(1))
    (row,) = [
        line for line in _fleet("devices", "--server", server.url).stdout.splitlines() if device.id in line
    ]
    for shown in ("ok", "bench", "digits v3", "2.92 ms", "97.0% (95.0%–99.0%)"):
        assert shown in row
    listed = _json("devices", "--server", server.url)
    assert set(listed) == {"server_unix_s", "devices"}


def test_devices_tells_which_model_is_in_alarm(server: ServerProcess, device: Device) -> None:
    alarm = DetectorState("error-probability", 20.0, 17.3, alarm=True)
    device.send(window(1, model="bad", detectors=(alarm,)), window(2, model="well"))
    rows = [
        line for line in _fleet("devices", "--server", server.url).stdout.splitlines() if device.id in line
    ]
    assert [("bad" in row, row.endswith("ALARM")) for row in rows] == [(True, True), (False, False)]


def test_device_that_has_sent_nothing_is_listed(server: ServerProcess, device: Device) -> None:
    (row,) = [
        line for line in _fleet("devices", "--server", server.url).stdout.splitlines() if device.id in line
    ]
    assert "waiting" in row
    assert "never" in row


def test_show_has_the_newest_windows(server: ServerProcess, device: Device) -> None:
    now = time.time()
    doubtful = AccuracyEstimate(0.5, 0.4, 0.6, 9, valid=False)
    device.send(*(window(seq, start_unix_s=now - 600 + seq, n=seq, accuracy=doubtful) for seq in range(1, 6)))
    done = _fleet("show", device.id, "--server", server.url, "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "5 windows stored, 0 missing, 0 lost" in done.stdout
    assert done.stdout.count("not to be believed") == 2
    shown = _json("show", device.id, "--server", server.url)
    assert set(shown) == {"server_unix_s", "device", "stored_windows", "missing_windows", "windows"}


def test_unknown_device(server: ServerProcess) -> None:
    done = _fleet("show", "d-nobody", "--server", server.url)
    assert done.returncode == 7
    assert "no device d-nobody" in done.stderr


def test_alerts_are_alarms_and_what_was_critical_or_a_warning(server: ServerProcess, device: Device) -> None:
    events = (
        Event(time.time() - 40, "started", f"{device.id} info"),
        Event(time.time() - 30, "lost", f"{device.id} warned", "warning"),
        Event(
            time.time() - 20,
            "alarm",
            f"{device.id} critical\x1b[2J"[:60].replace("\x1b", "\u009b"),
            "critical",
        ),
    )
    device.send(
        window(1, detectors=(DetectorState("error-probability", 20.0, 17.0, alarm=True),), events=events)
    )
    done = _fleet("alerts", "--server", server.url)
    assert done.returncode == 0, done.stderr
    mine = [line for line in done.stdout.splitlines() if device.id in line]
    assert ["critical" in mine[0], "warned" in mine[1], len(mine)] == [True, True, 2]
    assert "IN ALARM  bench  digits  error-probability" in done.stdout
    assert "\u009b" not in done.stdout
    reply = _json("alerts", "--server", server.url)
    assert set(reply) == {"alarms", "events"}


def test_revoked_device_is_shut_out(server: ServerProcess, device: Device) -> None:
    assert _fleet("revoke", device.id, "--db", server.url_of_database).returncode == 0
    assert device.send(window(1))[1]["code"] == "revoked"
    unknown = _fleet("revoke", "d-nobody", "--db", server.url_of_database)
    assert unknown.returncode == 2
    assert "d-nobody" in unknown.stderr


def test_server_that_is_not_there_or_is_another() -> None:
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as other:
        url = f"http://127.0.0.1:{other.server_address[1]}"
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        wrong = _fleet("devices", "--server", url)
        other.shutdown()
        thread.join()
    assert wrong.returncode == 7
    assert "not a sync server" in wrong.stderr
    gone = _fleet("devices", "--server", url)
    assert gone.returncode == 7
    assert "cannot be reached" in gone.stderr
    assert _fleet("devices", "--server", "ftp://x").returncode == 2


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_arguments: object) -> None:
        pass
