"""The server as devices meet it: a process, a socket, SQLite."""

from __future__ import annotations

import json
import resource
import socket
import sqlite3
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.identity import SIGNATURE_HEADER, TIMESTAMP_HEADER
from edgekit.sync.database import open_database
from edgekit.sync.store import MAX_MODELS, revoke
from edgekit.sync.wire import ENROLL_PATH, MAX_BODY_BYTES, REPORTS_PATH, Reports
from tests.sync.fleet import BOOT, Device, ServerProcess, body_of, envelope, window


def _keys(*sequence: int) -> list[tuple[str, int]]:
    return [(BOOT, seq) for seq in sequence]


# Enrolment.


def test_enrolment_is_repeated_without_harm(server: ServerProcess) -> None:
    token, device = server.token(name="press-3"), Device(server)
    first, again = device.ask_to_enrol(token), device.ask_to_enrol(token)
    assert first[0] == again[0] == 200
    assert first[1]["device_id"] == again[1]["device_id"] == device.id
    assert first[1]["name"] == again[1]["name"] == "press-3"
    assert server.get(f"/api/v1/devices/{device.id}")["device"]["state"] == "waiting"


def test_token_serves_one_key_only(server: ServerProcess) -> None:
    token = server.token()
    Device(server).enrol(token)
    thief = Device(server)
    status, problem = thief.ask_to_enrol(token)
    assert (status, problem["code"]) == (403, "token-used")
    assert server.fetch(f"/api/v1/devices/{thief.id}")[0] == 404


def test_token_serves_one_of_many_keys_at_once(server: ServerProcess) -> None:
    token = server.token()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: Device(server).ask_to_enrol(token)[0], range(8)))
    assert sorted(statuses) == [200] + [403] * 7


def test_unknown_and_expired_tokens(server: ServerProcess) -> None:
    device = Device(server)
    assert device.ask_to_enrol("ek1_made-up")[1]["code"] == "token-unknown"
    assert device.ask_to_enrol(server.token(expires_s=-1.0))[1]["code"] == "token-expired"


def test_token_is_not_kept_in_clear(server: ServerProcess) -> None:
    token = server.token()
    Device(server).enrol(token)
    files = [path for path in server.database.parent.iterdir() if path.is_file()]
    assert len(files) >= 2
    for path in files:
        assert token.encode() not in path.read_bytes()
        assert token.removeprefix("ek1_").encode() not in path.read_bytes()


def test_key_that_the_asker_does_not_own_is_not_enrolled(server: ServerProcess) -> None:
    owner, thief = Device(server), Device(server)
    status, problem = thief.post(ENROLL_PATH, _enrolment_of(owner, server.token()), encoding="")
    assert (status, problem["code"]) == (401, "signature")


@pytest.mark.parametrize("key", ["", "AAAA", "no base64!", "A" * 44])
def test_key_that_is_none(server: ServerProcess, key: str) -> None:
    body = json.dumps({"token": server.token(), "public_key": key}).encode()
    status, problem = Device(server).post(ENROLL_PATH, body, encoding="")
    assert (status, problem["code"]) in [(400, "bad-request"), (401, "signature")]


def _enrolment_of(device: Device, token: str) -> bytes:
    import base64

    key = base64.b64encode(device.identity.public_key).decode()
    return json.dumps({"token": token, "public_key": key}).encode()


# Exactly once in effect.


def test_windows_are_stored_and_acknowledged(server: ServerProcess, device: Device) -> None:
    status, reply = device.send(window(1), window(2))
    assert (status, reply["acked"], reply["refused"]) == (200, [[BOOT, 1], [BOOT, 2]], [])
    assert server.keys(device.id) == _keys(1, 2)


def test_duplicates_are_acknowledged_and_stored_once(server: ServerProcess, device: Device) -> None:
    for _ in range(3):
        status, reply = device.send(window(1), window(1), window(2))
        assert status == 200
        assert {tuple(key) for key in reply["acked"]} == set(_keys(1, 2))
    assert server.keys(device.id) == _keys(1, 2)
    events = server.get(f"/api/v1/events?device={device.id}")["events"]
    assert len(events) == 2


def test_first_report_of_a_window_is_the_one_that_counts(server: ServerProcess, device: Device) -> None:
    device.send(window(1, n=100))
    device.send(window(1, n=999, model="other"))
    (stored,) = server.get(f"/api/v1/devices/{device.id}/windows")["windows"]
    assert (stored["n"], stored["model"]) == (100, "digits")
    assert [one["model"] for one in server.get(f"/api/v1/devices/{device.id}")["device"]["models"]] == [
        "digits"
    ]


def test_reordered_and_gapped_windows(server: ServerProcess, device: Device) -> None:
    now = time.time()
    for seq in (5, 1, 4, 2):
        device.send(window(seq, start_unix_s=now - 600 + 60 * seq, n=seq))
    reply = server.get(f"/api/v1/devices/{device.id}")
    assert (reply["stored_windows"], reply["missing_windows"]) == (4, 1)
    assert reply["device"]["models"][0]["seq"] == 5
    listed = server.get(f"/api/v1/devices/{device.id}/windows")["windows"]
    assert [one["seq"] for one in listed] == [1, 2, 4, 5]


def test_same_numbers_of_another_boot_are_other_windows(server: ServerProcess, device: Device) -> None:
    device.send(window(1), window(1, boot="boot-2"))
    assert server.keys(device.id) == [("boot-1", 1), ("boot-2", 1)]


def test_same_numbers_of_another_device_are_other_windows(server: ServerProcess, device: Device) -> None:
    other = Device(server).enrol()
    device.send(window(1))
    other.send(window(1))
    assert server.keys(device.id) == server.keys(other.id) == _keys(1)


def test_devices_that_send_at_once_lose_nothing(server: ServerProcess) -> None:
    devices = [Device(server).enrol() for _ in range(8)]

    def send_all(device: Device) -> None:
        seq = 1
        while seq <= 20:
            status, _ = device.send(window(seq), window(seq + 1))
            if status == 503:  # too many wait: a device comes back
                time.sleep(0.05)
                continue
            assert status == 200
            seq += 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send_all, devices))
    for device in devices:
        assert server.keys(device.id) == _keys(*range(1, 21))


def test_empty_report_says_that_the_device_is_alive(server: ServerProcess, device: Device) -> None:
    assert device.send()[0] == 200
    shown = server.get(f"/api/v1/devices/{device.id}")["device"]
    assert shown["state"] == "ok"
    assert shown["agent"] == "0.1.0"


# Who may send.


def test_replayed_request_is_refused(server: ServerProcess, device: Device) -> None:
    body = body_of([window(1)])
    headers = device.sign(REPORTS_PATH, body)
    assert device.post(REPORTS_PATH, body, headers=headers)[0] == 200
    status, problem = device.post(REPORTS_PATH, body, headers=headers)
    assert (status, problem["code"]) == (409, "replay")
    assert server.keys(device.id) == _keys(1)


def test_replays_at_once_pass_once(server: ServerProcess, device: Device) -> None:
    body = body_of([window(1)])
    headers = device.sign(REPORTS_PATH, body)
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: device.post(REPORTS_PATH, body, headers=headers)[0], range(6)))
    assert sorted(statuses) == [200] + [409] * 5


@pytest.mark.parametrize("forged", ["body", "key", "path", "time", "signature", "none", "encoding"])
def test_forged_request_is_refused(server: ServerProcess, device: Device, forged: str) -> None:
    body = body_of([window(1)])
    headers = device.sign(REPORTS_PATH, body)
    if forged == "body":
        body = body_of([window(2)])
    elif forged == "key":
        stranger = Device(server)
        headers = {**stranger.sign(REPORTS_PATH, body), "EdgeKit-Device": device.id}
    elif forged == "path":
        headers = device.sign(ENROLL_PATH, body)
    elif forged == "time":
        headers[TIMESTAMP_HEADER] = str(int(headers[TIMESTAMP_HEADER]) + 1)
    elif forged == "signature":
        headers[SIGNATURE_HEADER] = "A" * 86 + "=="
    elif forged == "none":
        headers = {"Content-Type": "application/json"}
    elif forged == "encoding":
        headers[SIGNATURE_HEADER] = "é" * 88
    status, problem = device.post(REPORTS_PATH, body, headers=headers)
    assert (status, problem["code"]) == (401, "signature")
    assert server.keys(device.id) == []


def test_device_cannot_send_as_another(server: ServerProcess, device: Device) -> None:
    victim = Device(server).enrol()
    body = body_of([window(1)])
    now = time.time()
    headers = device.identity.sign_request(
        "POST", REPORTS_PATH, body, unix_s=now, nonce="0" * 32, device_id=victim.id
    )
    status, problem = device.post(REPORTS_PATH, body, headers=headers)
    assert (status, problem["code"]) == (401, "signature")
    assert server.keys(victim.id) == []


def test_stranger_is_refused(server: ServerProcess) -> None:
    status, problem = Device(server).send(window(1))
    assert (status, problem["code"]) == (401, "unknown-device")


def test_revoked_device_is_shut_out_at_once_and_for_good(server: ServerProcess, device: Device) -> None:
    device.send(window(1))
    database = open_database(server.url_of_database)
    with database.write() as connection:
        assert revoke(connection, device.id, time.time())
        assert not revoke(connection, "d-nobody", time.time())
    database.close()
    status, problem = device.send(window(2))
    assert (status, problem["code"]) == (403, "revoked")
    assert device.ask_to_enrol(server.token())[1]["code"] == "revoked"
    assert server.keys(device.id) == _keys(1)
    assert server.get(f"/api/v1/devices/{device.id}")["device"]["state"] == "revoked"


@pytest.mark.parametrize("error_s", [-700.0, 700.0, 3e8, -1e9])
def test_timestamp_far_off_is_refused_with_the_servers_clock(
    server: ServerProcess, device: Device, error_s: float
) -> None:
    status, problem = device.post(REPORTS_PATH, body_of([window(1)]), unix_s=time.time() + error_s)
    assert (status, problem["code"]) == (401, "clock")
    assert abs(problem["server_unix_s"] - time.time()) < 60
    assert server.keys(device.id) == []


def test_clock_that_is_somewhat_off_is_no_reason_to_refuse(device: Device) -> None:
    assert device.post(REPORTS_PATH, body_of([window(1)]), unix_s=time.time() - 500)[0] == 200


# What may be sent.


def test_zip_bomb_is_refused_and_takes_no_memory(server: ServerProcess, device: Device) -> None:
    device.send()
    before = server.resident_mib()
    bomb = zlib.compress(bytes(300 << 20))
    assert len(bomb) < MAX_BODY_BYTES
    for _ in range(3):
        status, problem = device.post(REPORTS_PATH, bomb)
        assert (status, problem["code"]) == (413, "too-large")
    assert server.resident_mib() - before < 60


def test_body_over_the_limit_is_refused(device: Device) -> None:
    status, problem = device.post(REPORTS_PATH, bytes(MAX_BODY_BYTES + 1))
    assert (status, problem["code"]) == (413, "too-large")


def test_body_over_the_limit_without_a_declared_length(server: ServerProcess, device: Device) -> None:
    body = bytes(MAX_BODY_BYTES + 1)
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    reply = device.pool.request(
        "POST", server.url + REPORTS_PATH, body=chunks, headers=device.sign(REPORTS_PATH, body)
    )
    assert (reply.status, msgspec.json.decode(reply.data)["code"]) == (413, "too-large")


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (b"", "", 400, "bad-request"),
        (b"{", "", 400, "bad-request"),
        (b"not zlib", "deflate", 400, "bad-request"),
        (zlib.compress(b"{}")[:-2], "deflate", 400, "bad-request"),
        (b'{"sent_unix_s":1}', "gzip", 415, "encoding"),
        (b'{"sent_unix_s":1,"schema":2}', "", 422, "newer-schema"),
        (b'{"sent_unix_s":1,"windows":[{"boot":"b","seq":-1,"report":{}}]}', "", 400, "bad-request"),
        (b'{"sent_unix_s":1,"agent":"\xff"}', "", 400, "bad-request"),
        (b"[" * 500_000, "", 400, "bad-request"),
    ],
)
def test_bad_envelope(device: Device, body: bytes, encoding: str, status: int, code: str) -> None:
    got, problem = device.post(REPORTS_PATH, body, encoding=encoding)
    assert (got, problem["code"]) == (status, code)


@pytest.mark.parametrize(
    "bad", [(b'"n":100', b'"n":-100'), (b'"model":"digits"', b'"model":"\xff"'), (b'"n":100', b'"n":1e400')]
)
def test_bad_window_is_refused_alone_and_the_refusal_is_recorded(
    server: ServerProcess, device: Device, bad: tuple[bytes, bytes]
) -> None:
    rows = [(BOOT, seq, msgspec.json.encode(window(seq))) for seq in (1, 2, 3)]
    rows[1] = (BOOT, 2, rows[1][2].replace(*bad))
    for _ in range(2):
        status, reply = device.post(REPORTS_PATH, envelope(rows))
        assert (status, reply["acked"]) == (200, [[BOOT, 1], [BOOT, 3]])
        assert [(one["seq"], one["code"]) for one in reply["refused"]] == [(2, "invalid")]
    assert server.keys(device.id) == _keys(1, 3)
    warnings = server.get(f"/api/v1/events?device={device.id}&level=warning")["events"]
    assert [event["kind"] for event in warnings] == ["report-refused"]


def test_newer_window_is_neither_stored_nor_refused_for_good(server: ServerProcess, device: Device) -> None:
    status, reply = device.send(window(1), window(2, schema=99))
    assert (status, reply["acked"]) == (200, [[BOOT, 1]])
    assert [one["code"] for one in reply["refused"]] == ["newer-schema"]
    assert server.keys(device.id) == _keys(1)
    assert server.get(f"/api/v1/events?device={device.id}&level=warning")["events"] == []


def test_device_cannot_flood_the_overview_with_models(server: ServerProcess, device: Device) -> None:
    names = [f"model-{number:03}" for number in range(MAX_MODELS + 10)]
    _, reply = device.send(*(window(seq, model=name) for seq, name in enumerate(names, 1)))
    assert len(reply["acked"]) == MAX_MODELS
    assert {one["code"] for one in reply["refused"]} == {"invalid"}
    assert device.send(window(500, model="model-000"))[1]["acked"] == [[BOOT, 500]]
    assert device.send(window(501, model="one-more"))[1]["acked"] == []


def test_wrong_clocks_lose_nothing(server: ServerProcess, device: Device) -> None:
    now = time.time()
    decade = 10 * 365 * 86400.0
    status, _ = device.send(window(1, start_unix_s=now + decade - 120), sent_unix_s=now + decade)
    assert status == 200
    device.send(window(2, start_unix_s=now + 3600))
    first, second = server.get(f"/api/v1/devices/{device.id}/windows")["windows"]
    assert (first["seq"], first["clock"]) == (1, "corrected")
    assert first["at_unix_s"] == pytest.approx(now - 120, abs=60)
    assert first["device_start_unix_s"] == now + decade - 120
    assert (second["seq"], second["clock"]) == (2, "server")
    assert second["at_unix_s"] == pytest.approx(now - 60, abs=60)


# When the disk refuses.


def test_full_disk_is_no_ack_and_passes(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "sync.sqlite") as server:
        device = Device(server).enrol()
        assert device.send(window(1))[0] == 200
        log = Path(f"{server.database}-wal").stat().st_size
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (log + 4096, unlimited[1]))
        status, problem = device.send(*(window(seq) for seq in range(2, 200)))
        assert (status, problem["code"]) == (503, "storage")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert server.keys(device.id) == _keys(1)
        status, reply = device.send(*(window(seq) for seq in range(2, 200)))
        assert (status, len(reply["acked"])) == (200, 198)
        assert server.keys(device.id) == _keys(*range(1, 200))
        device.pool.clear()
        assert server.stop() == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_database_that_was_deleted_or_replaced_is_no_ack(tmp_path: Path, *, replaced: bool) -> None:
    with ServerProcess(tmp_path / "sync.sqlite") as server:
        device = Device(server).enrol()
        assert device.send(window(1))[0] == 200
        if replaced:
            restored = server.database.with_name("restored")
            restored.write_bytes(server.database.read_bytes())
            restored.replace(server.database)
        else:
            server.database.unlink()
        status, problem = device.send(window(2))
    assert (status, problem["code"]) == (503, "storage")
    assert "deleted or replaced" in problem["detail"]


def test_locked_database_is_503_with_a_time_to_come_back(server: ServerProcess, device: Device) -> None:
    other = sqlite3.connect(server.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        body = body_of([window(1)])
        reply = device.pool.request(
            "POST",
            server.url + REPORTS_PATH,
            body=body,
            headers={**device.sign(REPORTS_PATH, body), "Content-Encoding": "deflate"},
        )
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert device.send(window(1))[0] == 200


# Reading.


def test_quantiles_accuracy_and_detectors_are_read_back(server: ServerProcess, device: Device) -> None:
    device.send(window(1))
    (shown,) = server.get(f"/api/v1/devices/{device.id}/windows")["windows"]
    # counts (50, 44, 6) in buckets -270, -269, -268 of 32 a doubling
    assert shown["p50_s"] == pytest.approx(2 ** (-269.5 / 32), rel=0.011)
    assert shown["p95_s"] == pytest.approx(2 ** (-267.5 / 32), rel=0.011)
    assert shown["accuracy"] == {
        "estimate": 0.97,
        "low": 0.95,
        "high": 0.99,
        "n": 100,
        "valid": True,
        "flags": [],
    }
    assert shown["detectors"] == [
        {
            "name": "error-probability",
            "log_e": 1.5,
            "log_threshold": 17.3,
            "alarm": False,
            "promise": "1 a year",
        }
    ]
    assert (shown["model"], shown["version"], shown["profile"]) == ("digits", 3, "raspberry-pi-4")


def test_window_without_inference_has_no_latency(server: ServerProcess, device: Device) -> None:
    device.send(
        msgspec.structs.replace(window(1), n=0, calls=0, latency=type(window().latency)(), accuracy=None)
    )
    (shown,) = server.get(f"/api/v1/devices/{device.id}/windows")["windows"]
    assert (shown["n"], shown["p50_s"], shown["p95_s"], shown["accuracy"]) == (0, None, None, None)


def test_state_follows_the_newest_window(server: ServerProcess, device: Device) -> None:
    def alarming(seq: int, *, alarm: bool) -> Any:
        (detector,) = window().detectors
        detectors = (msgspec.structs.replace(detector, alarm=alarm),)
        return window(seq, start_unix_s=time.time() - 600 + seq, detectors=detectors)

    def state() -> str:
        return str(server.get(f"/api/v1/devices/{device.id}")["device"]["state"])

    device.send(alarming(1, alarm=False))
    assert state() == "ok"
    device.send(alarming(3, alarm=True))
    assert state() == "alarm"
    device.send(alarming(2, alarm=False))  # late, and older: the alarm stands
    assert state() == "alarm"
    device.send(alarming(4, alarm=False))
    assert state() == "ok"


def test_windows_are_paged_backwards(server: ServerProcess, device: Device) -> None:
    now = time.time()
    device.send(*(window(seq, start_unix_s=now - 3600 + seq) for seq in range(1, 8)))
    where = f"/api/v1/devices/{device.id}/windows?limit=3"
    page = server.get(where)["windows"]
    assert [one["seq"] for one in page] == [5, 6, 7]
    before = server.get(f"{where}&before_unix_s={page[0]['at_unix_s']!r}")["windows"]
    assert [one["seq"] for one in before] == [2, 3, 4]
    assert server.get(f"{where}&model=other")["windows"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/devices/d-nobody",
        "/api/v1/nothing",
        "/api/v1/events?limit=0",
        "/api/v1/events?level=fatal",
        "/api/v1/events?limit=many",
    ],
)
def test_wrong_question_gets_a_problem(server: ServerProcess, path: str) -> None:
    status, _, body = server.fetch(path)
    assert status in (400, 404)
    assert set(msgspec.json.decode(body)) == {"code", "detail", "server_unix_s"}


def test_description_names_every_endpoint_and_what_devices_send(server: ServerProcess) -> None:
    description = server.get("/api/v1/openapi.json")
    assert set(description["paths"]) == {
        "/api/v1/enroll",
        "/api/v1/reports",
        "/api/v1/health",
        "/api/v1/devices",
        "/api/v1/devices/{device_id}",
        "/api/v1/devices/{device_id}/windows",
        "/api/v1/events",
    }
    body = description["paths"]["/api/v1/reports"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) == set(Reports.__struct_fields__)
    assert server.get("/api/v1/health")["status"] == "ok"


def test_name_that_a_foreign_site_points_here_may_not_read(server: ServerProcess) -> None:
    status, _, body = server.fetch("/api/v1/devices", Host="rebound.example:8090")
    assert (status, msgspec.json.decode(body)["code"]) == (403, "forbidden")
    assert server.fetch("/", Host="rebound.example")[0] == 403
    assert server.fetch("/api/v1/devices", Host="localhost:8090")[0] == 200


def test_slow_body_is_given_up(tmp_path: Path) -> None:
    import uvicorn

    from edgekit.sync.app import create_app

    database = open_database(f"sqlite:///{tmp_path / 'sync.sqlite'}")
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    running = uvicorn.Server(uvicorn.Config(create_app(database, body_s=0.2), log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        head = "POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        signed = "".join(f"{name}: {value}\r\n" for name, value in _any_signature().items())
        with socket.create_connection(sock.getsockname(), timeout=60) as slow:
            slow.sendall(f"{head}{signed}\r\n".encode() + b"only the beginning")
            assert b" 408 " in slow.recv(4096).splitlines()[0]
    finally:
        running.should_exit = True
        thread.join()
        database.close()


def _any_signature() -> dict[str, str]:
    return {
        "EdgeKit-Device": "d-x",
        "EdgeKit-Timestamp": "1",
        "EdgeKit-Nonce": "0" * 32,
        SIGNATURE_HEADER: "A" * 86 + "==",
    }
