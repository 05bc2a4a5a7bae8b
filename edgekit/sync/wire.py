"""What agent and server say to each other, wire schema 1. Imports msgspec only: the device uses it too.

Both requests are `POST`, their bodies JSON, compressed with zlib when `Content-Encoding: deflate` says so,
and signed as `edgekit.identity` describes.

* `/api/v1/enroll`: `Enrolment` → 200 `EnrolmentReply`.
* `/api/v1/reports`: `Reports` → 200 `ReportsReply`. What is in `acked` is durable. What is in `refused` with
  the code `invalid` can never be stored; the refusal is recorded and the device may drop it. `newer-schema`
  must be kept: a newer server will take it.

Every other status carries a `Problem`; 429 and 503 carry `Retry-After` in seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "CLOCK_WINDOW_S",
    "ENROLL_PATH",
    "MAX_BODY_BYTES",
    "MAX_INFLATED_BYTES",
    "MAX_WINDOWS",
    "REPORTS_PATH",
    "SCHEMA",
    "Boot",
    "Enrolment",
    "EnrolmentReply",
    "Name",
    "Problem",
    "ProblemCode",
    "Refused",
    "Reports",
    "ReportsReply",
    "SentWindow",
    "Seq",
]

SCHEMA = 1
ENROLL_PATH = "/api/v1/enroll"
REPORTS_PATH = "/api/v1/reports"

#: A body as it travels, and after zlib: more is refused with 413.
MAX_BODY_BYTES = 1 << 20
MAX_INFLATED_BYTES = 8 << 20
#: Windows in one request.
MAX_WINDOWS = 512
#: How far a request's timestamp may be from the server's clock, in seconds.
CLOCK_WINDOW_S = 600.0

#: One line of text without control characters.
Name = Annotated[str, Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Boot = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_.:-]{1,64}\Z")]
Seq = Annotated[int, Meta(ge=1, le=1 << 53)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]

ProblemCode = Literal[
    "bad-request",  # 400: not the promised JSON, encoding or fields
    "signature",  # 401: headers missing, or not signed by the key of that device
    "unknown-device",  # 401
    "clock",  # 401: the timestamp is too far from `server_unix_s`; sign again with that clock
    "token-unknown",  # 403
    "token-expired",  # 403
    "token-used",  # 403: by another key
    "revoked",  # 403
    "forbidden",  # 403: this address may not read
    "not-found",  # 404
    "timeout",  # 408: the body came too slowly
    "replay",  # 409: this nonce was used before; sign again
    "too-large",  # 413: send less at once
    "encoding",  # 415: neither plain nor deflate
    "newer-schema",  # 422: the envelope is newer than the server
    "too-many-requests",  # 429
    "storage",  # 503: could not be made durable now
]


class Enrolment(msgspec.Struct, frozen=True):
    """Ask to become a device of the fleet. Signed with the key it presents.

    Attributes:
        token: One-time token from `edgekit fleet enroll`.
        public_key: Raw Ed25519 public key, base64 of 32 bytes.
        name: What the device calls itself; the operator's name for the token wins.
        agent: Version of EdgeKit on the device.
    """

    token: Annotated[str, Meta(max_length=200)]
    public_key: Annotated[str, Meta(max_length=64)]
    name: Name = ""
    agent: Name = ""
    schema: int = SCHEMA


class EnrolmentReply(msgspec.Struct, frozen=True):
    """The device is enrolled, now or since an earlier try with the same key and token."""

    device_id: str
    name: str
    server_unix_s: float


class SentWindow(msgspec.Struct, frozen=True):
    """One window as it lies in the outbox, under its key there.

    Attributes:
        report: A `WindowReport`; decoded on its own, so that a bad one does not take others with it.
    """

    boot: Boot
    seq: Seq
    report: msgspec.Raw


class Reports(msgspec.Struct, frozen=True):
    """A batch of windows; an empty batch says that the device is alive.

    Attributes:
        sent_unix_s: The device's wall clock at sending, uncorrected: the server learns its error from it.
        queued_windows: Windows in the outbox beside these.
        lost_windows: Windows that the outbox had to drop, cumulative.
    """

    sent_unix_s: float
    windows: Annotated[tuple[SentWindow, ...], Meta(max_length=MAX_WINDOWS)] = ()
    agent: Name = ""
    queued_windows: Count = 0
    lost_windows: Count = 0
    schema: int = SCHEMA


class Refused(msgspec.Struct, frozen=True):
    """A window that was not stored, and why."""

    boot: str
    seq: int
    code: Literal["invalid", "newer-schema"]
    detail: str


class ReportsReply(msgspec.Struct, frozen=True):
    """What became of the batch. `acked` are (boot, seq) that are on the server's disk."""

    acked: tuple[tuple[str, int], ...]
    refused: tuple[Refused, ...]
    server_unix_s: float


class Problem(msgspec.Struct, frozen=True):
    """Why a request as a whole was not served."""

    code: ProblemCode
    detail: str
    server_unix_s: float
