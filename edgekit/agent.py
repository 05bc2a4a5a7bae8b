"""The agent: takes windows from the outbox to the sync server, and forgets only what the server has on disk.

`react` decides, on data alone, what a reply means; `Agent` reads the outbox, sends, waits. It is a process of its
own, without model and accelerator, so that neither the network nor the server can disturb inference.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from edgekit import __version__
from edgekit.errors import EdgeKitError, NetworkError, UnavailableError, UsageError
from edgekit.identity import Enrolled, Identity, new_nonce, read_enrolment, write_enrolment
from edgekit.monitor.outbox import Outbox
from edgekit.state import StateFolder
from edgekit.sync.wire import (
    ENROLL_PATH,
    MAX_WINDOWS,
    REPORTS_PATH,
    Enrolment,
    EnrolmentReply,
    Reports,
    ReportsReply,
    SentWindow,
)

if TYPE_CHECKING:
    import urllib3

__all__ = [
    "Agent",
    "Answer",
    "Http",
    "Progress",
    "Reaction",
    "backoff_s",
    "build_reports",
    "check_url",
    "react",
    "react_to_enrolment",
]

#: Raw JSON of the windows in one request, in bytes: far below what the server takes.
BATCH_BYTES = 1 << 20
#: A device with nothing to tell says so this often, in seconds.
HEARTBEAT_S = 60.0
#: The longest wait after failures, in seconds.
MAX_BACKOFF_S = 300.0
#: The longest wait that a server may ask for, in seconds.
MAX_RETRY_AFTER_S = 3600.0
#: `--once` gives up after this many failures in a row.
ONCE_TRIES = 3
#: Windows that the server could not take are tried again after this many seconds.
HELD_S = 3600.0
_MAX_HELD = 512
_MAX_REPLY_BYTES = 1 << 20
_MAX_TEXT = 500
_CONNECT_S, _READ_S, _WHOLE_S = 10.0, 30.0, 60.0
#: A server's clock beyond the year 5000 is no clock.
_LATEST_UNIX_S = 1e11
_DEVICE_ID = re.compile(r"[0-9a-z-]{1,64}")
#: What msgspec raises for a reply that is not a sync server's: no JSON, bad UTF-8, nested without end.
_UNREADABLE = (ValueError, RecursionError)

Key = tuple[str, int]
Row = tuple[str, int, bytes]


@dataclass(frozen=True)
class Progress:
    """What the agent remembers from one request to the next.

    Attributes:
        failures: Requests that failed since the last that did not.
        clock_offset_s: The server's clock minus ours; used for signing only.
        batch_windows: Windows to send at once.
        held: Windows that this server cannot take, with their sizes in bytes; they stay in the outbox.
    """

    failures: int = 0
    clock_offset_s: float = 0.0
    batch_windows: int = MAX_WINDOWS
    held: Mapping[Key, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A reply as it came, or `status` 0 and the reason for none in `body`."""

    status: int
    body: bytes = b""
    retry_after: str | None = None


@dataclass(frozen=True)
class Reaction:
    """What to do about a reply.

    Attributes:
        acknowledge: What the outbox may forget.
        wait_s: How long to wait before the next request.
        note: What the log should say; empty for nothing.
        fatal: Why trying again is of no use.
        enrolled: The enrolment, where that was asked.
    """

    progress: Progress
    acknowledge: tuple[Key, ...] = ()
    wait_s: float = 0.0
    note: str = ""
    fatal: EdgeKitError | None = None
    enrolled: EnrolmentReply | None = None


def backoff_s(failures: int, rand: float) -> float:
    """Return the wait after `failures` in a row: full jitter, so that a fleet does not come back at once.

    Args:
        failures: From 1.
        rand: Uniform in [0, 1).
    """
    return rand * min(MAX_BACKOFF_S, 2.0 ** min(failures - 1, 30))


def read_retry_after(value: str | None, wall_s: float) -> float:
    """Return the seconds that a `Retry-After` asks for, 0 for none; it may be a number or a date."""
    if not value:
        return 0.0
    try:
        seconds = (
            float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - wall_s
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def build_reports(rows: Sequence[Row], *, wall_s: float, queued_windows: int, lost_windows: int) -> bytes:
    """Return the compressed body of one report request.

    Args:
        rows: (boot, seq, JSON of the window) from the outbox.
        wall_s: This device's clock, uncorrected.
        queued_windows: Windows in the outbox beside these.
        lost_windows: Windows lost so far.
    """
    reports = Reports(
        sent_unix_s=wall_s,
        windows=tuple(SentWindow(boot, seq, msgspec.Raw(report)) for boot, seq, report in rows),
        agent=__version__,
        queued_windows=queued_windows,
        lost_windows=lost_windows,
    )
    return zlib.compress(msgspec.json.encode(reports), 6)


def react(progress: Progress, sent: Sequence[Row], answer: Answer, *, wall_s: float, rand: float) -> Reaction:
    """Decide what the reply to a report means.

    Args:
        progress: Before the request.
        sent: The windows that it carried.
        answer: What came back.
        wall_s: This device's clock.
        rand: Uniform in [0, 1).
    """
    if answer.status == 200:
        return _react_to_acks(progress, sent, answer, wall_s=wall_s, rand=rand)
    if answer.status in (400, 413) and sent:
        return _react_to_indigestion(progress, sent, answer)
    return _react_to_no(progress, answer, wall_s=wall_s, rand=rand)


def react_to_enrolment(progress: Progress, answer: Answer, *, wall_s: float, rand: float) -> Reaction:
    """Decide what the reply to an enrolment means."""
    if answer.status != 200:
        return _react_to_no(progress, answer, wall_s=wall_s, rand=rand)
    try:
        reply = msgspec.json.decode(answer.body, type=EnrolmentReply)
    except _UNREADABLE:
        return _try_later(progress, answer, "the reply is not a sync server's", wall_s=wall_s, rand=rand)
    if not _DEVICE_ID.fullmatch(reply.device_id):  # it will stand in a header
        return _try_later(progress, answer, "the server gave no device id", wall_s=wall_s, rand=rand)
    return Reaction(replace(progress, failures=0), enrolled=reply)


def _react_to_acks(
    progress: Progress, sent: Sequence[Row], answer: Answer, *, wall_s: float, rand: float
) -> Reaction:
    try:
        reply = msgspec.json.decode(answer.body, type=ReportsReply)
    except _UNREADABLE:
        return _try_later(progress, answer, "the reply is not a sync server's", wall_s=wall_s, rand=rand)
    sizes = {(boot, seq): len(report) for boot, seq, report in sent}
    hopeless = {(no.boot, no.seq): _one_line(no.detail) for no in reply.refused if no.code == "invalid"}
    held = {(no.boot, no.seq) for no in reply.refused if no.code == "newer-schema"} & sizes.keys()
    done = tuple(key for key in sizes if key in {*reply.acked, *hopeless})
    if sent and not done and not held:
        return _try_later(progress, answer, "the server acknowledged nothing", wall_s=wall_s, rand=rand)
    notes = [f"the server refused window {key[0]}/{key[1]} for good: {hopeless[key]}" for key in hopeless]
    if held:
        notes.append(f"{len(held)} window(s) are newer than the server; they are kept until it is upgraded")
    return Reaction(
        replace(
            progress,
            failures=0,
            batch_windows=min(MAX_WINDOWS, progress.batch_windows * 2),
            held={**progress.held, **{key: sizes[key] for key in held}},
        ),
        acknowledge=done,
        note="; ".join(notes),
    )


def _react_to_indigestion(progress: Progress, sent: Sequence[Row], answer: Answer) -> Reaction:
    """Send less at once, until the one window that the server cannot read stands alone; skip that."""
    if len(sent) > 1:
        return Reaction(replace(progress, batch_windows=max(1, len(sent) // 2)))
    boot, seq, report = sent[0]
    detail = _problem(answer).detail
    return Reaction(
        replace(progress, held={**progress.held, (boot, seq): len(report)}),
        note=f"the server cannot read window {boot}/{seq} ({detail}); it stays in the outbox",
    )


def _react_to_no(progress: Progress, answer: Answer, *, wall_s: float, rand: float) -> Reaction:
    problem = _problem(answer)
    offset = problem.server_unix_s - wall_s
    possible = 0.0 < problem.server_unix_s < _LATEST_UNIX_S
    if problem.code == "clock" and possible and abs(offset - progress.clock_offset_s) > 1.0:
        note = f"this device's clock is {-offset:+.0f} s from the server's; signing by the server's"
        # at once, but a server whose clock jumps about is not asked in a loop
        wait_s = backoff_s(progress.failures, rand) if progress.failures else 0.0
        later = replace(progress, clock_offset_s=offset, failures=progress.failures + 1)
        return Reaction(later, wait_s=wait_s, note=note)
    hint = _FATAL.get(problem.code)
    if hint is not None:
        error = NetworkError(f"the sync server refuses this device: {problem.detail}", hint=hint)
        return Reaction(replace(progress, failures=progress.failures + 1), fatal=error)
    return _try_later(progress, answer, problem.detail, wall_s=wall_s, rand=rand)


_ENROL_AGAIN = "Make a new token with `edgekit fleet enroll` and start the agent with --enroll-token."
_FATAL = {
    "signature": "Is the device's key the one it enrolled with? " + _ENROL_AGAIN,
    "unknown-device": _ENROL_AGAIN,
    "token-unknown": _ENROL_AGAIN,
    "token-expired": _ENROL_AGAIN,
    "token-used": _ENROL_AGAIN,
    "revoked": "The fleet's operator has shut it out.",
}


def _try_later(progress: Progress, answer: Answer, why: str, *, wall_s: float, rand: float) -> Reaction:
    failures = progress.failures + 1
    wait_s = read_retry_after(answer.retry_after, wall_s) + backoff_s(failures, rand)
    note = f"not sent: {why}; trying again in {wait_s:.1f} s"
    return Reaction(replace(progress, failures=failures), wait_s=wait_s, note=note)


class _LooseProblem(msgspec.Struct):
    """`wire.Problem`, also of a newer server with codes that we do not know."""

    code: str
    detail: str
    server_unix_s: float = 0.0


def _problem(answer: Answer) -> _LooseProblem:
    if answer.status == 0:
        return _LooseProblem("", answer.body.decode(errors="replace"))
    try:
        problem = msgspec.json.decode(answer.body, type=_LooseProblem)
        return _LooseProblem(problem.code, _one_line(problem.detail), problem.server_unix_s)
    except _UNREADABLE:
        return _LooseProblem("", f"HTTP status {answer.status}, not from a sync server")


def _one_line(text: str) -> str:
    """Return what a server said as it may stand in a log: no line of its own making, no control of a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:_MAX_TEXT])


def check_url(url: str, option: str = "--sync") -> str:
    """Return the server's URL without a slash at the end.

    Args:
        url: What the user gave.
        option: Where, for the message.

    Raises:
        UsageError: It is no HTTP URL, carries a password, or would cross the network unencrypted.
    """
    expected = "https://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"{option} is not a server's URL ({error})", expected=expected) from error
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{option} carries a user name", expected=expected, hint="Leave it out.")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{option} is not a server's URL", got=repr(url), expected=expected)
    if parts.scheme == "http" and not _is_loopback(host):
        raise UsageError(
            "plain HTTP is for this machine only",
            got=url,
            expected=f"https://{parts.netloc}",
            hint="Use TLS.",
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Http:
    """Requests to one server: no redirect is followed, no reply larger than 1 MiB or slower than a minute is read.

    Args:
        url: From `check_url`.
        ca_file: Certificates to trust instead of the system's.
        whole_s: How long the body of a reply may take, in seconds.
    """

    def __init__(self, url: str, ca_file: str | None = None, whole_s: float = _WHOLE_S) -> None:
        try:
            import urllib3
        except ImportError as error:
            raise UnavailableError(
                "the package urllib3 is missing", hint="Run: pip install 'edgekit-deploy[agent]'"
            ) from error
        self._url, self._whole_s = url, whole_s
        self._pool: urllib3.PoolManager = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            ca_certs=ca_file,
        )

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send one request; a failure of the network is an answer too."""
        from urllib3.exceptions import HTTPError

        try:
            reply = self._pool.request(
                "POST",
                self._url + path,
                body=body,
                headers={
                    **headers,
                    "Content-Type": "application/json",
                    "User-Agent": f"edgekit/{__version__}",
                },
                redirect=False,
                preload_content=False,
            )
            try:
                content = self._read(reply)
            finally:
                reply.drain_conn() if reply.length_remaining == 0 else reply.close()
        except (HTTPError, OSError) as error:
            return Answer(0, f"{self._url} cannot be reached ({error})".encode())
        return Answer(reply.status, content, reply.headers.get("Retry-After"))

    def _read(self, reply: urllib3.BaseHTTPResponse) -> bytes:
        content, until = bytearray(), time.monotonic() + self._whole_s
        while len(content) < _MAX_REPLY_BYTES:
            block = reply.read1(_MAX_REPLY_BYTES - len(content))
            if not block:
                break
            content += block
            if time.monotonic() > until:  # a byte now and then would never run into the limit of one read
                raise TimeoutError(f"the reply takes longer than {self._whole_s:g} s")
        return bytes(content)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()


class Agent:
    """Sends what is in the outbox until it is told to stop.

    Args:
        url: From `check_url`.
        state: Holds identity and outbox.
        identity: The device's key.
        http: Sends.
        stop: Set to finish after the request under way.
        say: Takes one line for the log; never given a secret.
        wall: Unix time in seconds.
        monotonic: Seconds that never go back.
        rand: Uniform in [0, 1).
    """

    def __init__(
        self,
        url: str,
        state: StateFolder,
        identity: Identity,
        http: Http,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rand: Callable[[], float],
    ) -> None:
        self._url, self._state, self._identity, self._http = url, state, identity, http
        self._stop, self._say = stop, say
        self._wall, self._monotonic, self._rand = wall, monotonic, rand
        self._progress = Progress()
        self._device_id = identity.device_id

    def enrol(self, token: str | None, *, once: bool) -> None:
        """Enrol by `token`, unless that was done before; without a token an earlier enrolment is needed.

        Raises:
            UsageError: There is neither.
            NetworkError: The server refuses; or, `once`, does not answer.
        """
        earlier = read_enrolment(self._state)
        if token is None:
            if earlier is None:
                raise UsageError(
                    "this device is not enrolled",
                    hint="Run `edgekit fleet enroll` on the server, pass --enroll-token.",
                )
            self._device_id = earlier.device_id
            return
        token_sha256 = hashlib.sha256(token.encode()).hexdigest()
        if earlier is not None and (earlier.server, earlier.token_sha256) == (self._url, token_sha256):
            self._device_id = earlier.device_id
            return
        reply = self._ask_to_enrol(token, once=once)
        if reply is not None:
            write_enrolment(self._state, Enrolled(reply.device_id, self._url, token_sha256))
            self._device_id = reply.device_id
            self._say(f"enrolled as {reply.device_id} ({_one_line(reply.name)})")

    def _ask_to_enrol(self, token: str, *, once: bool) -> EnrolmentReply | None:
        public_key = base64.b64encode(self._identity.public_key).decode("ascii")
        body = msgspec.json.encode(Enrolment(token, public_key, socket.gethostname()[:200], __version__))
        while not self._stop.is_set():
            answer = self._post(ENROLL_PATH, body)
            reaction = react_to_enrolment(self._progress, answer, wall_s=self._wall(), rand=self._rand())
            self._apply(reaction, once=once)
            if reaction.enrolled is not None:
                return reaction.enrolled
            self._stop.wait(reaction.wait_s)
        return None

    def run(self, outbox: Outbox, *, interval_s: float, once: bool) -> int:
        """Send windows until stopped, or `once`, all that there are; return how many were acknowledged.

        Args:
            outbox: Read and acknowledged; never written.
            interval_s: How often to look into an empty outbox, in seconds.
            once: Return when everything is sent.

        Raises:
            NetworkError: The server refuses for good; or, `once`, cannot be reached or took not everything.
        """
        acknowledged, last_contact, held_since = 0, float("-inf"), self._monotonic()
        while not self._stop.is_set():
            if self._monotonic() - held_since > HELD_S:
                self._progress, held_since = replace(self._progress, held={}), self._monotonic()
            rows = self._next_rows(outbox)
            wait_s = interval_s
            if rows or self._monotonic() - last_contact >= HEARTBEAT_S:
                reaction = self._send(outbox, rows, once=once)
                acknowledged += len(reaction.acknowledge)
                last_contact, wait_s = self._monotonic(), reaction.wait_s
            elif once:
                break
            self._stop.wait(wait_s)
        if once and self._progress.held:
            raise NetworkError(
                f"the server could not take {len(self._progress.held)} window(s); they are kept"
            )
        return acknowledged

    def _next_rows(self, outbox: Outbox) -> list[Row]:
        """Return the oldest windows that are not held; none when too many are held to look behind them."""
        held, batch = self._progress.held, self._progress.batch_windows
        if len(held) >= _MAX_HELD:
            return []
        rows = outbox.read(batch + len(held), BATCH_BYTES + sum(held.values()))
        return [row for row in rows if row[:2] not in held][:batch]

    def _send(self, outbox: Outbox, rows: Sequence[Row], *, once: bool) -> Reaction:
        body = build_reports(
            rows,
            wall_s=self._wall(),
            queued_windows=max(0, outbox.depth()[0] - len(rows)),
            lost_windows=outbox.lost(),
        )
        answer = self._post(REPORTS_PATH, body, encoding="deflate")
        reaction = react(self._progress, rows, answer, wall_s=self._wall(), rand=self._rand())
        if reaction.acknowledge:
            outbox.acknowledge(reaction.acknowledge)
        self._apply(reaction, once=once)
        return reaction

    def _post(self, path: str, body: bytes, encoding: str | None = None) -> Answer:
        now = self._wall() + self._progress.clock_offset_s
        headers = self._identity.sign_request(
            "POST", path, body, unix_s=now, nonce=new_nonce(), device_id=self._device_id
        )
        return self._http.post(
            path, body, {**headers, **({"Content-Encoding": encoding} if encoding else {})}
        )

    def _apply(self, reaction: Reaction, *, once: bool) -> None:
        self._progress = reaction.progress
        if reaction.fatal is not None:
            raise reaction.fatal
        if once and self._progress.failures >= ONCE_TRIES:
            raise NetworkError(f"gave up after {ONCE_TRIES} tries: {reaction.note.partition(';')[0]}")
        if reaction.note:
            self._say(reaction.note)
