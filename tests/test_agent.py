"""The agent's decisions, and its loop against a server that answers by script."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="needs the [agent] extra")
pytest.importorskip("urllib3", reason="needs the [agent] extra")

from edgekit import agent as agents
from edgekit.agent import Agent, Answer, Http, Progress, backoff_s, check_url, react, react_to_enrolment
from edgekit.errors import NetworkError, UsageError
from edgekit.identity import canonical_request, open_identity, read_enrolment, verify_request
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.schema import WindowReport
from edgekit.state import StateFolder
from edgekit.sync.wire import (
    MAX_WINDOWS,
    REPORTS_PATH,
    EnrolmentReply,
    Problem,
    Refused,
    Reports,
    ReportsReply,
)

pytestmark = pytest.mark.device

WALL = 1_790_000_000.0
BOOT = "boot-1"
ROWS = [(BOOT, seq, b'{"seq":%d}' % seq) for seq in range(1, 5)]


def _reply(acked: Sequence[int] = (), invalid: Sequence[int] = (), newer: Sequence[int] = ()) -> Answer:
    refused = tuple(Refused(BOOT, seq, "invalid", "no") for seq in invalid)
    refused += tuple(Refused(BOOT, seq, "newer-schema", "new") for seq in newer)
    reply = ReportsReply(tuple((BOOT, seq) for seq in acked), refused, WALL)
    return Answer(200, msgspec.json.encode(reply))


def _problem(status: int, code: Any, *, now: float = WALL, retry_after: str | None = None) -> Answer:
    return Answer(status, msgspec.json.encode(Problem(code, "because", now)), retry_after)


def _react(
    answer: Answer, progress: Progress | None = None, rows: Sequence[agents.Row] = ROWS
) -> agents.Reaction:
    return react(progress or Progress(), rows, answer, wall_s=WALL, rand=0.5)


# Decisions.


def test_acknowledges_what_the_server_acknowledged() -> None:
    reaction = _react(_reply([1, 3]), Progress(failures=4, batch_windows=100))
    assert reaction.acknowledge == ((BOOT, 1), (BOOT, 3))
    assert (reaction.progress.failures, reaction.progress.batch_windows, reaction.wait_s) == (0, 200, 0.0)


def test_forgets_what_the_server_can_never_store_and_says_so() -> None:
    reaction = _react(_reply([1, 2, 3], invalid=[4]))
    assert set(reaction.acknowledge) == {(BOOT, seq) for seq in (1, 2, 3, 4)}
    assert "boot-1/4" in reaction.note


def test_holds_what_a_newer_server_will_take() -> None:
    reaction = _react(_reply([1, 2], newer=[3, 4]))
    assert reaction.acknowledge == ((BOOT, 1), (BOOT, 2))
    assert reaction.progress.held == {(BOOT, 3): len(ROWS[2][2]), (BOOT, 4): len(ROWS[3][2])}


def test_never_acknowledges_what_was_not_sent() -> None:
    assert _react(_reply([1, 99], invalid=[98], newer=[97])).acknowledge == ((BOOT, 1),)
    assert _react(_reply([99])).acknowledge == ()


def test_reply_that_settles_nothing_is_a_failure() -> None:
    reaction = _react(_reply())
    assert reaction.progress.failures == 1
    assert reaction.wait_s > 0


_statuses = st.sampled_from(
    [0, 201, 204, 301, 302, 307, 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503]
)
_codes = st.sampled_from([*msgspec.structs.fields(Problem)[0].type.__args__, "a-code-of-the-future"])


@given(
    status=_statuses,
    body=st.binary(max_size=50)
    | st.builds(lambda code: b'{"code":"%s","detail":"d"}' % code.encode(), _codes),
    retry_after=st.none() | st.text(max_size=10) | st.integers(0, 10**12).map(str),
    failures=st.integers(0, 10_000),
    rand=st.floats(0, 1, exclude_max=True),
    sent=st.integers(0, 4),
)
def test_nothing_but_200_forgets_a_window(
    status: int, body: bytes, retry_after: str | None, failures: int, rand: float, sent: int
) -> None:
    answer = Answer(status, body, retry_after)
    reaction = react(Progress(failures=failures), ROWS[:sent], answer, wall_s=WALL, rand=rand)
    assert reaction.acknowledge == ()
    assert 0 <= reaction.wait_s <= agents.MAX_RETRY_AFTER_S + agents.MAX_BACKOFF_S
    moved = reaction.progress != Progress(failures=failures)
    assert moved or reaction.wait_s > 0 or reaction.fatal  # or it would ask the same for ever


@example(content=b'{"acked":[["\xff",1]],"refused":[],"server_unix_s":1}')
@given(content=st.binary(max_size=60))
def test_200_from_something_else_forgets_nothing(content: bytes) -> None:
    assert _react(Answer(200, content)).acknowledge == ()


@given(failures=st.integers(1, 10**6), rand=st.floats(0, 1, exclude_max=True))
def test_backoff_has_full_jitter_and_an_end(failures: int, rand: float) -> None:
    assert 0 <= backoff_s(failures, rand) <= min(agents.MAX_BACKOFF_S, 2.0 ** min(failures - 1, 100))
    assert backoff_s(failures, 0.0) == 0.0


def test_backoff_doubles() -> None:
    assert [backoff_s(failures, 0.5) for failures in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        ("0", 0.0),
        ("999999", agents.MAX_RETRY_AFTER_S),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2020 14:13:50 GMT", 0.0),
    ],
)
def test_retry_after_is_honoured(value: str | None, seconds: float) -> None:
    assert agents.read_retry_after(value, WALL) == seconds
    reaction = _react(_problem(503, "storage", retry_after=value))
    assert reaction.wait_s == seconds + backoff_s(1, 0.5)


@pytest.mark.parametrize("status", [400, 413])
def test_batch_that_cannot_be_digested_is_halved_down_to_the_window_at_fault(status: int) -> None:
    answer = _problem(status, "too-large")
    assert _react(answer).progress.batch_windows == 2
    assert _react(answer, rows=ROWS[:2]).progress.batch_windows == 1
    alone = _react(answer, rows=ROWS[2:3])
    assert list(alone.progress.held) == [(BOOT, 3)]
    assert "boot-1/3" in alone.note
    assert _react(answer, rows=[]).progress.failures == 1


def test_clock_of_the_server_is_learnt_once() -> None:
    first = _react(_problem(401, "clock", now=WALL + 5000))
    assert (first.progress.clock_offset_s, first.wait_s) == (5000.0, 0.0)
    again = _react(_problem(401, "clock", now=WALL + 5000), first.progress)
    assert again.wait_s > 0


@pytest.mark.parametrize("unix_s", [1e308, -1e15, 0.0])
def test_clock_that_is_none_is_not_learnt(unix_s: float) -> None:
    reaction = _react(_problem(401, "clock", now=unix_s))
    assert reaction.progress.clock_offset_s == 0.0
    assert reaction.wait_s > 0


def test_server_whose_clock_jumps_about_is_not_asked_in_a_loop() -> None:
    progress, waits = Progress(), list[float]()
    for jump in range(1, 6):
        reaction = _react(_problem(401, "clock", now=WALL + 5000 * jump), progress)
        progress = reaction.progress
        waits.append(reaction.wait_s)
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0]


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b'{"acked":[],"refused":[],"server_unix_s":1.0,"more":' + DEEP + b"}"),
        (401, b'{"code":"clock","detail":"no","more":' + DEEP + b"}"),
    ],
)
def test_reply_nested_without_end_is_not_a_sync_servers(status: int, content: bytes) -> None:
    reaction = _react(Answer(status, content))
    assert "not a sync server's" in reaction.note or "not from a sync server" in reaction.note
    assert reaction.acknowledge == ()


def test_what_a_server_says_is_one_line_in_the_log() -> None:
    said = "no\nedgekit agent: enrolled as root\r\x1b[2J"
    refused = Refused(BOOT, 1, "invalid", said)
    for reaction in (
        _react(Answer(503, msgspec.json.encode(Problem("storage", said, WALL)))),
        _react(Answer(200, msgspec.json.encode(ReportsReply((), (refused,), WALL)))),
    ):
        assert "enrolled as root" in reaction.note
        assert reaction.note.isprintable()


@pytest.mark.parametrize("device_id", ["", "d-1\r\nX-More: 1", "D/1", "d" * 65])
def test_device_id_that_no_header_can_hold_is_not_taken(device_id: str) -> None:
    answer = Answer(200, msgspec.json.encode(EnrolmentReply(device_id, "bench", WALL)))
    reaction = react_to_enrolment(Progress(), answer, wall_s=WALL, rand=0.5)
    assert reaction.enrolled is None
    assert reaction.wait_s > 0


@pytest.mark.parametrize(
    "code", ["signature", "unknown-device", "revoked", "token-unknown", "token-expired", "token-used"]
)
def test_refusals_that_no_retry_mends_are_fatal(code: str) -> None:
    reaction = _react(_problem(403, code))
    assert isinstance(reaction.fatal, NetworkError)
    assert "because" in str(reaction.fatal)
    assert react_to_enrolment(Progress(), _problem(403, code), wall_s=WALL, rand=0.5).fatal


@pytest.mark.parametrize(
    "code", ["storage", "too-many-requests", "replay", "timeout", "newer-schema", "forbidden"]
)
def test_refusals_that_pass_are_not(code: str) -> None:
    reaction = _react(_problem(503, code))
    assert reaction.fatal is None
    assert reaction.wait_s > 0


@given(
    st.lists(st.tuples(st.from_regex(r"\A[a-z]{1,8}\Z"), st.integers(1, 99), st.just(b'{"n":1}')), max_size=9)
)
def test_body_is_what_the_server_reads(rows: list[agents.Row]) -> None:
    body = agents.build_reports(rows, wall_s=WALL, queued_windows=3, lost_windows=4)
    reports = msgspec.json.decode(zlib.decompress(body), type=Reports)
    assert [(one.boot, one.seq, bytes(one.report)) for one in reports.windows] == rows
    assert (reports.sent_unix_s, reports.queued_windows, reports.lost_windows) == (WALL, 3, 4)


@pytest.mark.parametrize(
    "url",
    [
        "https://fleet.example",
        "https://10.0.0.2:8090/edge/",
        "http://127.0.0.1:8090",
        "http://[::1]:1",
        "http://localhost",
    ],
)
def test_good_urls(url: str) -> None:
    assert check_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fleet.example",
        "ftp://fleet.example",
        "http://fleet.example",
        "http://10.0.0.2:8090",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@fleet.example",
        "https://me:secret@fleet.example",
        "https://fleet.example?x=1",
        "https://fleet.example:port",
        "https://",
        "http://[::1",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(UsageError, match=r"--sync|plain HTTP") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


# The loop.


class _Script(ThreadingHTTPServer):
    """Answers each request with what `answer` makes of it, and keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[str, Any], tuple[int, bytes, dict[str, str]]] = acknowledge_all
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def sent(self) -> list[list[int]]:
        """The sequence numbers in each report so far."""
        bodies = [body for path, _, body in self.requests if path == REPORTS_PATH]
        return [[one["seq"] for one in json.loads(zlib.decompress(body))["windows"]] for body in bodies]


class _Handler(BaseHTTPRequestHandler):
    server: _Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        content = json.loads(zlib.decompress(body) if self.headers.get("Content-Encoding") else body)
        status, reply, headers = self.server.answer(self.path, content)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(reply))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_arguments: object) -> None:
        pass


def acknowledge_all(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
    if path != REPORTS_PATH:
        return 200, msgspec.json.encode(EnrolmentReply("d-given", "bench", WALL)), {}
    acked = tuple((one["boot"], one["seq"]) for one in content["windows"])
    return 200, msgspec.json.encode(ReportsReply(acked, (), WALL)), {}


class _Stop(threading.Event):
    """Time that passes when the agent waits; no test waits for real."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.now, self.waits, self._after = 0.0, list[float](), after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        self.waits.append(timeout)
        if len(self.waits) >= self._after:
            self.set()
        return self.is_set()


class _Bench:
    """One device with an outbox, an agent and a scripted server."""

    def __init__(self, folder: Path, script: _Script) -> None:
        self.state, self.script, self.log = StateFolder(folder), script, list[str]()
        self.outbox = Outbox(self.state.outbox, boot=BOOT)
        self.stop = _Stop(100)

    def fill(self, windows: int, *, padding: int = 0) -> None:
        self.outbox.append(*(_window(self.outbox.next_seq(), padding) for _ in range(windows)))

    def agent(self) -> Agent:
        return Agent(
            self.script.url,
            self.state,
            open_identity(self.state),
            Http(self.script.url),
            stop=self.stop,
            say=self.log.append,
            wall=lambda: WALL + self.stop.now,
            monotonic=lambda: self.stop.now,
            rand=lambda: 0.5,
        )

    def run(self, *, once: bool = True, token: str | None = "a-token") -> int:
        agent = self.agent()
        agent.enrol(token, once=once)
        return agent.run(self.outbox, interval_s=15.0, once=once)


def _window(seq: int, padding: int = 0) -> WindowReport:
    return WindowReport(BOOT, seq, "m", 1, "d", "a", "r", "x" * padding, WALL, 60.0, 1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    script = _Script()
    thread = threading.Thread(target=script.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    bench = _Bench(tmp_path, script)
    yield bench
    bench.outbox.close()
    script.shutdown()
    thread.join()
    script.server_close()


def test_once_sends_everything_in_bounded_batches_oldest_first(bench: _Bench) -> None:
    bench.fill(2 * MAX_WINDOWS + 5)
    assert bench.run() == 2 * MAX_WINDOWS + 5
    assert [len(batch) for batch in bench.script.sent] == [MAX_WINDOWS, MAX_WINDOWS, 5]
    assert list(chain(*bench.script.sent)) == list(range(1, 2 * MAX_WINDOWS + 6))
    assert bench.outbox.depth()[0] == 0


def test_batches_are_bounded_in_bytes_too(bench: _Bench) -> None:
    bench.fill(12, padding=200_000)
    bench.run()
    assert max(map(len, bench.script.sent)) == agents.BATCH_BYTES // 200_000
    assert bench.outbox.depth()[0] == 0


def test_every_request_is_signed_and_no_nonce_comes_twice(bench: _Bench) -> None:
    bench.fill(MAX_WINDOWS + 1)
    bench.run()
    key, nonces = open_identity(bench.state).public_key, set()
    for path, headers, body in bench.script.requests:
        assert verify_request(key, _canonical(path, headers, body), headers["EdgeKit-Signature"])
        nonces.add(headers["EdgeKit-Nonce"])
    assert len(nonces) == len(bench.script.requests) == 3


def _canonical(path: str, headers: dict[str, str], body: bytes) -> bytes:
    return canonical_request(
        "POST",
        path,
        body,
        timestamp_ms=int(headers["EdgeKit-Timestamp"]),
        nonce=headers["EdgeKit-Nonce"],
        device_id=headers["EdgeKit-Device"],
    )


def test_enrols_once_and_goes_by_the_id_it_was_given(bench: _Bench) -> None:
    bench.run()
    bench.run()
    paths = [path for path, _, _ in bench.script.requests]
    assert paths.count("/api/v1/enroll") == 1
    assert {
        headers["EdgeKit-Device"] for path, headers, _ in bench.script.requests if path == REPORTS_PATH
    } == {"d-given"}
    bench.run(token=None)
    assert bench.script.requests[-1][1]["EdgeKit-Device"] == "d-given"


def test_without_token_and_enrolment_nothing_is_sent(bench: _Bench) -> None:
    with pytest.raises(UsageError, match="not enrolled"):
        bench.run(token=None)
    assert bench.script.requests == []


def test_token_and_key_are_never_logged_or_kept_in_clear(bench: _Bench) -> None:
    bench.fill(3)
    bench.run(token="the-secret-token")
    enrolled = read_enrolment(bench.state)
    assert enrolled is not None
    kept = (bench.state.identity / "enrolment.json").read_text()
    pem = (bench.state.identity / "device.pem").read_text().splitlines()[1]
    for text in (kept, *bench.log):
        assert "the-secret-token" not in text
        assert pem not in text
    for path, headers, body in bench.script.requests:
        assert pem.encode() not in body
        assert path == "/api/v1/enroll" or b"the-secret-token" not in body
        assert "the-secret-token" not in str(headers)


def test_partly_acknowledged_batch_is_sent_again_without_what_was_acknowledged(bench: _Bench) -> None:
    bench.fill(6)

    def only_even(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
        windows = content.get("windows", [])
        kept = [one for one in windows if one["seq"] % 2 == 0] or windows
        return acknowledge_all(path, {"windows": kept})

    bench.script.answer = only_even
    assert bench.run() == 6
    assert bench.script.sent[:2] == [[1, 2, 3, 4, 5, 6], [1, 3, 5]]


def test_failures_wait_ever_longer_and_nothing_is_lost(bench: _Bench) -> None:
    bench.fill(2)
    replies = iter([503, 503, 503, 503])

    def busy(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
        if path == REPORTS_PATH and (status := next(replies, 0)):
            return status, msgspec.json.encode(Problem("storage", "busy", WALL)), {"Retry-After": "10"}
        return acknowledge_all(path, content)

    bench.script.answer = busy
    bench.stop = _Stop(6)
    assert bench.run(once=False) == 2
    assert bench.stop.waits[:4] == [10.5, 11.0, 12.0, 14.0]
    assert bench.script.sent[:5] == [[1, 2]] * 5


def test_once_gives_up_on_a_server_that_stays_busy(bench: _Bench) -> None:
    bench.fill(2)
    bench.run()
    bench.fill(2)
    bench.script.answer = lambda _path, _content: (503, b"", {})
    with pytest.raises(NetworkError, match="3 tries"):
        bench.run()
    assert bench.outbox.depth()[0] == 2


def test_nothing_to_tell_is_told_now_and_then(bench: _Bench) -> None:
    bench.stop = _Stop(12)
    bench.run(once=False)
    assert bench.script.sent == [[], [], []]
    assert 120.0 <= bench.stop.now < 180.0


def test_windows_for_a_newer_server_do_not_hold_up_the_others(bench: _Bench) -> None:
    bench.fill(MAX_WINDOWS + 3)

    def old(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
        if path != REPORTS_PATH:
            return acknowledge_all(path, content)
        keys = [(one["boot"], one["seq"]) for one in content["windows"]]
        refused = tuple(Refused(boot, seq, "newer-schema", "newer") for boot, seq in keys if seq <= 2)
        acked = tuple(key for key in keys if key[1] > 2)
        return 200, msgspec.json.encode(ReportsReply(acked, refused, WALL)), {}

    bench.script.answer = old
    with pytest.raises(NetworkError, match="2 window"):
        bench.run()
    assert [key[1] for key in bench.outbox.read()] == [1, 2]
    bench.script.answer = acknowledge_all
    assert bench.run() == 2


def test_window_that_the_server_cannot_read_does_not_hold_up_the_others(bench: _Bench) -> None:
    bench.fill(8)

    def picky(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
        if any(one["seq"] == 5 for one in content.get("windows", [])):
            return 400, msgspec.json.encode(Problem("bad-request", "cannot read", WALL)), {}
        return acknowledge_all(path, content)

    bench.script.answer = picky
    with pytest.raises(NetworkError, match="1 window"):
        bench.run()
    assert [key[1] for key in bench.outbox.read()] == [5]


def test_wrong_clock_is_corrected_for_signing_only(bench: _Bench) -> None:
    bench.fill(1)
    ahead = 3e8

    def strict(path: str, content: Any) -> tuple[int, bytes, dict[str, str]]:
        timestamp = int(bench.script.requests[-1][1]["EdgeKit-Timestamp"]) / 1000
        if abs(timestamp - (WALL - ahead)) > 600:
            return 401, msgspec.json.encode(Problem("clock", "off", WALL - ahead)), {}
        return acknowledge_all(path, content)

    bench.script.answer = strict
    assert bench.run() == 1
    body = json.loads(zlib.decompress(bench.script.requests[-1][2]))
    assert body["sent_unix_s"] == pytest.approx(WALL, abs=60)


def test_redirect_is_not_followed(bench: _Bench) -> None:
    bench.fill(1)
    bench.script.answer = lambda _path, _content: (307, b"", {"Location": "http://127.0.0.1:1/elsewhere"})
    with pytest.raises(NetworkError, match="307"):
        bench.run()
    assert bench.outbox.depth()[0] == 1


def test_endless_reply_is_cut_off(bench: _Bench) -> None:
    bench.run()
    bench.fill(1)
    bench.script.answer = lambda _path, _content: (200, b"[" + b" " * (5 << 20), {})
    with pytest.raises(NetworkError, match="3 tries"):
        bench.run()
    assert bench.outbox.depth()[0] == 1


def test_server_that_is_not_there(tmp_path: Path) -> None:
    with _Script() as gone:
        pass
    bench = _Bench(tmp_path, gone)
    with pytest.raises(NetworkError, match="cannot be reached"):
        bench.run()
    bench.outbox.close()


def test_reply_that_never_ends_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=(listener,))
        thread.start()
        http = Http(f"http://127.0.0.1:{listener.getsockname()[1]}", whole_s=0.1)
        answer = http.post(REPORTS_PATH, b"{}", {})
        http.close()
        thread.join(30)
    assert answer.status == 0
    assert b"longer than 0.1 s" in answer.body
    assert not thread.is_alive()


def _drip(listener: socket.socket) -> None:
    """Promise a long reply and send a byte of it now and then, until the other side has gone."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b" ")
                time.sleep(0.02)
