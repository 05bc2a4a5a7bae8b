"""What the server makes of bytes from a device: pure functions, bounded before they are trusted."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from edgekit.identity import (
    DEVICE_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    canonical_request,
    verify_request,
)
from edgekit.monitor.schema import SCHEMA as WINDOW_SCHEMA
from edgekit.sync.problems import ProblemError
from edgekit.sync.wire import (
    CLOCK_WINDOW_S,
    MAX_INFLATED_BYTES,
    SCHEMA,
    Boot,
    Count,
    Name,
    Refused,
    Reports,
    SentWindow,
    Seq,
)

__all__ = [
    "Judged",
    "PlacedEvent",
    "PlacedWindow",
    "SignedHeaders",
    "check_clock",
    "check_signature",
    "decode_body",
    "inflate",
    "judge",
    "place",
    "read_headers",
]

#: A window may come this late, in seconds: 30 days.
MAX_AGE_S = 30 * 86400.0
#: A device's clock may be this wrong before its windows are moved, in seconds.
CLOCK_TOLERANCE_S = 600.0

_T = TypeVar("_T")

#: What msgspec raises for bytes that are not the JSON asked for; bad UTF-8 is no `DecodeError` but a `ValueError`.
_UNREADABLE = (ValueError, RecursionError)

_Text = Annotated[str, Meta(max_length=1000, pattern=r"\A[^\x00-\x08\x0b-\x1f\x7f]*\Z")]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Seconds = Annotated[float, Meta(ge=0.0, le=1e12)]
_Flags = Annotated[tuple[Name, ...], Meta(max_length=32)]


class _Latency(msgspec.Struct, frozen=True):
    counts: Annotated[tuple[Count, ...], Meta(max_length=4096)] = ()
    offset: Annotated[int, Meta(ge=-(1 << 26), le=1 << 26)] = 0
    scale: Annotated[int, Meta(ge=0, le=20)] = 5
    zero: Count = 0
    sum_s: _Seconds = 0.0


class _Accuracy(msgspec.Struct, frozen=True):
    estimate: _Share
    low: _Share
    high: _Share
    n: Count
    valid: bool = True
    flags: _Flags = ()


class _Detector(msgspec.Struct, frozen=True):
    name: Name
    log_e: float
    log_threshold: float
    alarm: bool
    promise: _Text = ""


class _Event(msgspec.Struct, frozen=True):
    unix_s: float
    kind: Name
    text: _Text
    level: Literal["info", "warning", "critical"] = "info"


class _Window(msgspec.Struct, frozen=True):
    """`edgekit.monitor.schema.WindowReport` with bounds; a test holds the two against each other."""

    boot: Boot
    seq: Seq
    model: Annotated[Name, Meta(min_length=1)]
    version: Annotated[int, Meta(ge=0, le=1 << 53)]
    digest: Name
    artifact: Name
    runtime: Name
    device: Name
    start_unix_s: float
    duration_s: Annotated[float, Meta(ge=0.0, le=32 * 86400.0)]
    n: Count
    calls: Count = 0
    errors: Count = 0
    unsampled: Count = 0
    latency: _Latency = _Latency()
    confidence: Annotated[tuple[Count, ...], Meta(max_length=256)] = ()
    classes: Annotated[tuple[Count, ...], Meta(max_length=65536)] = ()
    accuracy: _Accuracy | None = None
    detectors: Annotated[tuple[_Detector, ...], Meta(max_length=64)] = ()
    events: Annotated[tuple[_Event, ...], Meta(max_length=64)] = ()
    temperature_c: Annotated[float, Meta(ge=-273.15, le=1000.0)] | None = None
    throttled: bool = False
    nonfinite: Count = 0
    lost_windows: Count = 0
    schema: int = WINDOW_SCHEMA


class _SchemaProbe(msgspec.Struct):
    schema: int = 0


@dataclass(frozen=True)
class SignedHeaders:
    """The four headers of a signed request, well-formed but not yet believed."""

    device_id: str
    timestamp_ms: int
    nonce: str
    signature: str


_HEADER_SHAPES = {
    DEVICE_HEADER: re.compile(r"[0-9a-z-]{1,64}"),
    TIMESTAMP_HEADER: re.compile(r"[0-9]{1,16}"),
    NONCE_HEADER: re.compile(r"[0-9a-f]{32}"),
    SIGNATURE_HEADER: re.compile(r"[0-9A-Za-z+/]{86}=="),
}


def read_headers(headers: Mapping[str, str]) -> SignedHeaders:
    """Return the signed headers.

    Raises:
        ProblemError: `signature`, naming the header that is missing or has another shape.
    """
    for name, shape in _HEADER_SHAPES.items():
        value = headers.get(name)
        if value is None:
            raise ProblemError("signature", f"the header {name} is missing: requests are signed")
        if not shape.fullmatch(value):
            raise ProblemError("signature", f"the header {name} is malformed")
    return SignedHeaders(
        headers[DEVICE_HEADER],
        int(headers[TIMESTAMP_HEADER]),
        headers[NONCE_HEADER],
        headers[SIGNATURE_HEADER],
    )


def check_signature(public_key: bytes, signed: SignedHeaders, method: str, path: str, body: bytes) -> None:
    """Refuse a request that the owner of `public_key` (32 raw bytes) did not sign.

    Raises:
        ProblemError: `signature`.
    """
    message = canonical_request(
        method,
        path,
        body,
        timestamp_ms=signed.timestamp_ms,
        nonce=signed.nonce,
        device_id=signed.device_id,
    )
    if not verify_request(public_key, message, signed.signature):
        raise ProblemError("signature", f"the request is not signed by the key of {signed.device_id}")


def check_clock(signed: SignedHeaders, now_unix_s: float) -> None:
    """Refuse a timestamp further than `CLOCK_WINDOW_S` from the server's clock.

    Raises:
        ProblemError: `clock`; the reply carries the server's clock, so that the device can sign again.
    """
    ahead_s = signed.timestamp_ms / 1000 - now_unix_s
    if abs(ahead_s) > CLOCK_WINDOW_S:
        raise ProblemError("clock", f"the timestamp is {ahead_s:+.0f} s from the server's clock")


def inflate(body: bytes, encoding: str, limit: int = MAX_INFLATED_BYTES) -> bytes:
    """Return the body's content; never makes more than `limit` bytes of it.

    Raises:
        ProblemError: `encoding` (neither plain nor deflate), `too-large`, `bad-request` (damaged zlib).
    """
    if encoding in ("", "identity"):
        return body
    if encoding != "deflate":
        raise ProblemError("encoding", f"Content-Encoding {encoding[:40]!r} is not supported; send deflate")
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise ProblemError("bad-request", f"the body is not zlib data: {error}") from error
    if len(content) > limit:
        raise ProblemError("too-large", f"the body inflates to more than {limit} bytes")
    if not decoder.eof or decoder.unused_data:
        raise ProblemError("bad-request", "the zlib data is cut off or has something behind it")
    return content


def decode_body(content: bytes, kind: type[_T]) -> _T:
    """Read a request's JSON as `kind`, bounds included.

    Raises:
        ProblemError: `newer-schema`, or `bad-request` naming the field.
    """
    try:
        schema = msgspec.json.decode(content, type=_SchemaProbe).schema
        if schema > SCHEMA:
            raise ProblemError("newer-schema", f"schema {schema} is newer than this server's {SCHEMA}")
        return msgspec.json.decode(content, type=kind)
    except _UNREADABLE as error:
        raise ProblemError("bad-request", f"the body is not what it should be: {error}") from error


@dataclass(frozen=True)
class PlacedEvent:
    """An event of a window, at server time."""

    at_unix_s: float
    kind: str
    level: str
    text: str


@dataclass(frozen=True)
class PlacedWindow:
    """A window that may be stored.

    Attributes:
        at_unix_s: Its start by the server's clock, as well as that is known.
        clock: `device` (believed), `corrected` (moved by the device's clock error) or `server` (the time of
            arrival, since the device's makes no sense).
        report: The report as it came.
    """

    boot: str
    seq: int
    model: str
    at_unix_s: float
    clock: str
    report: bytes
    events: tuple[PlacedEvent, ...]


@dataclass(frozen=True)
class Judged:
    """A batch, judged: what to store and what never to."""

    windows: tuple[PlacedWindow, ...]
    refused: tuple[Refused, ...]


def judge(reports: Reports, now_unix_s: float) -> Judged:
    """Judge each window of a batch on its own."""
    windows: list[PlacedWindow] = []
    refused: list[Refused] = []
    for sent in reports.windows:
        verdict = _judge_one(sent, reports.sent_unix_s, now_unix_s)
        (refused if isinstance(verdict, Refused) else windows).append(verdict)  # type: ignore[arg-type]
    return Judged(tuple(windows), tuple(refused))


def _judge_one(sent: SentWindow, sent_unix_s: float, now_unix_s: float) -> PlacedWindow | Refused:
    report = bytes(sent.report)
    try:
        schema = msgspec.json.decode(report, type=_SchemaProbe).schema
        if schema > WINDOW_SCHEMA:
            detail = f"schema {schema} is newer than this server's {WINDOW_SCHEMA}"
            return Refused(sent.boot, sent.seq, "newer-schema", detail)
        window = msgspec.json.decode(report, type=_Window)
    except _UNREADABLE as error:
        return Refused(sent.boot, sent.seq, "invalid", str(error)[:500])
    wrong = _contradiction(sent, window)
    if wrong:
        return Refused(sent.boot, sent.seq, "invalid", wrong)
    return _placed(window, report, sent_unix_s, now_unix_s)


def _contradiction(sent: SentWindow, window: _Window) -> str:
    """Return what no honest report says, empty when there is nothing."""
    latency, accuracy = window.latency, window.accuracy
    if (sent.boot, sent.seq) != (window.boot, window.seq):
        return f"sent as {sent.boot}/{sent.seq}, but says {window.boot}/{window.seq}"
    if accuracy is not None and not accuracy.low <= accuracy.estimate <= accuracy.high:
        return "the accuracy estimate is outside its own interval"
    edge = max(abs(latency.offset), abs(latency.offset + len(latency.counts)))
    if edge > 64 << latency.scale:
        return "the latency buckets lie beyond 2^±64 s"
    return ""


def _placed(window: _Window, report: bytes, sent_unix_s: float, now_unix_s: float) -> PlacedWindow:
    at, clock = place(window.start_unix_s, window.duration_s, sent_unix_s, now_unix_s)
    events = tuple(
        PlacedEvent(_event_time(event.unix_s, window, at), event.kind, event.level, event.text)
        for event in window.events
    )
    return PlacedWindow(window.boot, window.seq, window.model, at, clock, report, events)


def _event_time(unix_s: float, window: _Window, at_unix_s: float) -> float:
    """Keep the event's place in its window; an event from outside it is put at its nearer end."""
    return at_unix_s + min(max(unix_s - window.start_unix_s, 0.0), window.duration_s)


def place(start_unix_s: float, duration_s: float, sent_unix_s: float, now_unix_s: float) -> tuple[float, str]:
    """Return when a window began by the server's clock, and whose word that is.

    A device without a battery-backed clock may be years off and must lose nothing for it. Its clock's error
    shows at sending; where that is more than 10 minutes, its windows are moved by it. What then still lies
    more than 10 minutes ahead or more than 30 days back gets the time of arrival.

    Args:
        start_unix_s: Start by the device's clock.
        duration_s: By its monotonic clock.
        sent_unix_s: The device's clock at sending.
        now_unix_s: The server's clock at arrival.

    >>> place(1000.0, 60.0, 1100.0, 1100.5)
    (1000.0, 'device')
    >>> place(1000.0, 60.0, 1100.0, 500_001_100.0)
    (500001000.0, 'corrected')
    >>> place(9e9, 60.0, 1100.0, 1100.0)
    (1040.0, 'server')
    """
    behind_s = now_unix_s - sent_unix_s
    trusted = math.isfinite(behind_s) and abs(behind_s) <= CLOCK_TOLERANCE_S
    at = start_unix_s if trusted else start_unix_s + behind_s
    if not (now_unix_s - MAX_AGE_S <= at <= now_unix_s + CLOCK_TOLERANCE_S):
        return now_unix_s - duration_s, "server"
    return at, "device" if trusted else "corrected"
