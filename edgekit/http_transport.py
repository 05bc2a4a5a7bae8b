"""HTTP to a server on this machine or another: kept connections, one deadline for everything, retries.

Only what an inference client needs, on the standard library: a device has nothing else for certain.
"""

from __future__ import annotations

import http.client
import math
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from edgekit.errors import NetworkError, UsageError

if TYPE_CHECKING:
    Chunk = bytes | memoryview

__all__ = ["Response", "Transport"]

_BACKOFF_S = 0.05
_MOST_BACKOFF_S = 2.0
_MOST_RESPONSE_BYTES = 1 << 30
_READ_BYTES = 1 << 20


class Response(NamedTuple):
    """What a server answered; header names are in lower case, the body may be written to."""

    status: int
    headers: Mapping[str, str]
    body: memoryview


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Transport:
    """Sends requests to one server; may be used by several threads, each request on a connection of its own.

    Args:
        url: `http://HOST:PORT` or `unix:/path/of/socket`.
        timeout_s: For a request with all its retries, where it names none itself.
        retries: Further tries when the server cannot be reached or says that it is busy (503).

    Raises:
        UsageError: The URL is neither.
    """

    def __init__(self, url: str, *, timeout_s: float, retries: int) -> None:
        if not 0 < timeout_s < math.inf or retries < 0:
            raise UsageError("not a way to wait", got=f"{timeout_s} s, {retries} retries", expected="timeout_s > 0, retries >= 0")  # fmt: skip
        self.url, self.timeout_s, self.retries = url, timeout_s, retries
        self._path, self._host, self._port = _parse(url)
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def request(
        self,
        method: str,
        path: str,
        body: Sequence[Chunk] = (),
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Response:
        """Send a request and return the answer, whatever its status; a 503 only after the last try.

        Args:
            method: GET or POST.
            path: Beginning with a slash.
            body: Buffers, sent one after the other.
            headers: Beside Content-Length.
            timeout_s: For all tries together.

        Raises:
            NetworkError: The server could not be reached, or did not answer in time.
        """
        deadline_s = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        tries = 0
        while True:
            wait_s = min(_BACKOFF_S * 2.0**tries, _MOST_BACKOFF_S)
            try:
                response = self._once(method, path, body, headers or {}, deadline_s)
            except (OSError, http.client.HTTPException) as error:
                failure = NetworkError(f"{self.url} does not answer", got=_said(error), hint="Is the server running there?")  # fmt: skip
                if isinstance(error, TimeoutError) or not self._may_retry(tries, wait_s, deadline_s):
                    raise failure from error
            else:
                wait_s = max(wait_s, _retry_after_s(response))
                if response.status != 503 or not self._may_retry(tries, wait_s, deadline_s):
                    return response
            tries += 1
            time.sleep(wait_s)

    def _may_retry(self, tries: int, wait_s: float, deadline_s: float) -> bool:
        return tries < self.retries and time.monotonic() + wait_s < deadline_s

    def _once(
        self, method: str, path: str, body: Sequence[Chunk], headers: Mapping[str, str], deadline_s: float
    ) -> Response:
        """Send once; a kept connection that the server has closed meanwhile is not held against it."""
        kept = self._kept()
        if kept is not None:
            try:
                return self._exchange(kept, method, path, body, headers, deadline_s)
            except (ConnectionError, http.client.BadStatusLine):
                self.close()  # it is likely that the server has closed the others too
        return self._exchange(self._new(), method, path, body, headers, deadline_s)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Sequence[Chunk],
        headers: Mapping[str, str],
        deadline_s: float,
    ) -> Response:
        try:
            _limit(connection, deadline_s)
            connection.putrequest(method, path, skip_accept_encoding=True)
            if method == "POST":
                connection.putheader("Content-Length", str(sum(memoryview(part).nbytes for part in body)))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            for part in body:
                _limit(connection, deadline_s)
                connection.send(part)
            got = connection.getresponse()
            data = _read(connection, got, deadline_s)
        except BaseException:
            connection.close()
            raise
        response = Response(got.status, {name.lower(): value for name, value in got.getheaders()}, data)
        self._keep(connection, got)
        return response

    def _new(self) -> http.client.HTTPConnection:
        if self._path:
            return _UnixConnection(self._path, self.timeout_s)
        return http.client.HTTPConnection(self._host, self._port, timeout=self.timeout_s)

    def _kept(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: http.client.HTTPConnection, got: http.client.HTTPResponse) -> None:
        if got.will_close:
            connection.close()
            return
        with self._lock:
            self._idle.append(connection)


def _parse(url: str) -> tuple[str, str, int]:
    """Return (path of a Unix socket, host, port)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return unquote(parts.path), "", 0
    if parts.scheme == "http" and parts.hostname and parts.path in ("", "/"):
        return "", parts.hostname, 80 if port is None else port
    raise UsageError("not a server's address", got=repr(url), expected="http://HOST:PORT or unix:/path")


def _limit(connection: http.client.HTTPConnection, deadline_s: float) -> None:
    """Let the socket wait until the deadline, and no longer.

    Raises:
        TimeoutError: It has passed.
    """
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    connection.timeout = left_s
    if connection.sock is not None:
        connection.sock.settimeout(left_s)


def _read(
    connection: http.client.HTTPConnection, got: http.client.HTTPResponse, deadline_s: float
) -> memoryview:
    """Read the body: into one buffer of the right size where the server says how long it is."""
    length = got.length
    if length is not None and length > _MOST_RESPONSE_BYTES:
        raise http.client.HTTPException(f"the response has {length} bytes: expected at most {_MOST_RESPONSE_BYTES}")  # fmt: skip
    body = bytearray(length or 0)
    view, filled = memoryview(body), 0
    while filled < len(body):
        _limit_reading(connection, got, deadline_s)
        count = got.fp.readinto1(view[filled:])  # got's own readinto goes on until the view is full
        if not count:
            raise http.client.IncompleteRead(bytes(view[:filled]), len(body) - filled)
        filled += count
    if length is not None:
        got.close()
    while length is None:
        _limit_reading(connection, got, deadline_s)
        piece = got.read1(_READ_BYTES)
        if not piece:
            return memoryview(body)
        view.release()
        body += piece
        view = memoryview(body)
        if len(body) > _MOST_RESPONSE_BYTES:
            raise http.client.HTTPException(f"the response has more than {_MOST_RESPONSE_BYTES} bytes")
    return memoryview(body)


def _limit_reading(
    connection: http.client.HTTPConnection, got: http.client.HTTPResponse, deadline_s: float
) -> None:
    if connection.sock is not None:  # a response that ends the connection has taken the socket over
        _limit(connection, deadline_s)
    elif time.monotonic() > deadline_s:
        got.close()
        raise TimeoutError("timed out")


def _retry_after_s(response: Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0


def _said(error: Exception) -> str:
    known = error.strerror if isinstance(error, OSError) else None
    return known or str(error) or type(error).__name__
