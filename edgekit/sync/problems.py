"""How the server says no: one exception, its HTTP status by its code."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.sync.wire import ProblemCode

__all__ = ["STATUS", "ProblemError"]

STATUS: Mapping[ProblemCode, int] = {
    "bad-request": 400,
    "signature": 401,
    "unknown-device": 401,
    "clock": 401,
    "token-unknown": 403,
    "token-expired": 403,
    "token-used": 403,
    "revoked": 403,
    "forbidden": 403,
    "not-found": 404,
    "timeout": 408,
    "replay": 409,
    "too-large": 413,
    "encoding": 415,
    "newer-schema": 422,
    "too-many-requests": 429,
    "storage": 503,
}


class ProblemError(Exception):
    """A request that is not served; becomes a `wire.Problem`.

    Args:
        code: What kind of no.
        detail: One sentence for the operator of the device.
        retry_after_s: When to come back, in seconds.
    """

    def __init__(self, code: ProblemCode, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.code: ProblemCode = code
        self.detail, self.retry_after_s = detail, retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]
