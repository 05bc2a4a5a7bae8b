"""HTTP/1.1 heads: bytes in, a checked `Head` out; a `Reply` in, bytes out. No sockets here.

Two parsers read a head: `httptools` (llhttp) where it is installed, a small one of our own elsewhere. Both
hand what they read to `check_head`, which alone decides what is allowed, so that framing never depends on
which of them ran.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    Chunk = bytes | memoryview

__all__ = [
    "CONTINUE",
    "Head",
    "HeadParser",
    "HttpError",
    "Reply",
    "best_head_parser",
    "check_head",
    "error_reply",
    "head_of",
    "httptools_head",
    "json_reply",
    "plain_head",
]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = "application/json"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
_QUALITY = re.compile(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)")


class HttpError(Exception):
    """A request that is answered with an error status.

    Args:
        status: The HTTP status.
        message: Becomes `{"error": message}`.
        headers: Further headers, such as `Retry-After`.
        close: Whether the connection can no longer be trusted to be in step and must be closed.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.close = status, message, headers or {}, close


class Head(msgspec.Struct, frozen=True, gc=False):
    """What the daemon wants to know of a request's head.

    Attributes:
        length: Content-Length in bytes; None without the header.
        chunked: The body comes in chunks.
        keep_alive: The client wants to go on using the connection.
        old: The client speaks HTTP/1.0.
        expects_continue: The client waits for `100 Continue` before it sends the body.
        encoding: Content-Encoding in lower case; empty for none.
        json_length: Inference-Header-Content-Length; None without the header, -1 for what is no number.
        accepts: The encoding of the reply that the client likes best, `gzip` or `deflate`; empty for none.
    """

    method: str
    target: str
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    old: bool = False
    expects_continue: bool = False
    encoding: str = ""
    json_length: int | None = None
    accepts: str = ""


HeadParser = Callable[[bytes], Head]


class Reply(msgspec.Struct, gc=False):
    """An answer: the status and the body as buffers in order, which may be views of a model's outputs.

    Attributes:
        json_length: Bytes of JSON before the binary tensors; None where there are none.
        owned: Nobody will write to the buffers any more: they may be sent later without a copy.
    """

    status: int
    chunks: Sequence[Chunk]
    content_type: str = JSON
    json_length: int | None = None
    headers: Mapping[str, str] = {}
    owned: bool = True

    @property
    def length(self) -> int:
        """Return the body's size in bytes."""
        length = 0
        for chunk in self.chunks:
            length += len(chunk) if type(chunk) is bytes else chunk.nbytes  # type: ignore[union-attr]
        return length


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a reply whose body is `value` in JSON."""
    return Reply(status, (msgspec.json.encode(value),), headers=headers or {})


def error_reply(error: HttpError) -> Reply:
    """Return `{"error": message}` with the error's status and headers."""
    return json_reply({"error": error.message[:_MESSAGE_CHARACTERS]}, error.status, error.headers)


#: A message may quote what the client sent, which may be long.
_MESSAGE_CHARACTERS = 1000


def head_of(reply: Reply, *, keep_alive: bool, old: bool = False) -> bytes:
    """Return the reply's head, ready to send."""
    further = tuple(reply.headers.items()) if reply.headers else ()
    connection = "" if keep_alive and not old else "keep-alive" if keep_alive else "close"
    return _head_bytes(reply.status, reply.content_type, reply.json_length, further, connection, reply.length)


@functools.lru_cache(512)  # replies of one model differ little
def _head_bytes(
    status: int,
    content_type: str,
    json_length: int | None,
    further: tuple[tuple[str, str], ...],
    connection: str,
    length: int,
) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}"]
    if json_length is not None:
        lines.append(f"Inference-Header-Content-Length: {json_length}")
    lines += [f"{name}: {value}" for name, value in further]
    if connection:
        lines.append(f"Connection: {connection}")
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode("latin-1")


def _broken(message: str, status: int = 400) -> HttpError:
    return HttpError(status, message, close=True)


def plain_head(data: bytes) -> Head:
    """Parse a head that ends with an empty line, with the standard library alone.

    Raises:
        HttpError: It is not an HTTP/1 head.
    """
    request_line, *lines = data[:-4].split(b"\r\n")
    parts = request_line.split(b" ")
    if len(parts) != 3:
        raise _broken("malformed request line: expected METHOD TARGET HTTP/1.1")
    method, target, version = parts
    matched = _VERSION.fullmatch(version)
    if not matched:
        raise _broken("malformed request line: expected METHOD TARGET HTTP/1.1")
    headers = [_header(line) for line in lines]
    return check_head(method, target, (int(matched[1]), int(matched[2])), headers)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon:
        raise _broken("malformed header: no colon")
    return name, value


class _Collector:
    """Takes llhttp's callbacks."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def httptools_head(data: bytes) -> Head:
    """Parse a head that ends with an empty line with llhttp.

    Raises:
        HttpError: It is not an HTTP/1 head.
    """
    import httptools

    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # an Upgrade header is an offer, which this server does not take up
    except httptools.HttpParserInvalidMethodError as error:
        raise _broken("unknown method", 501) from error
    except httptools.HttpParserError as error:
        raise _broken(f"malformed request head: {error}") from error
    if not collector.complete:
        raise _broken("malformed request head")
    major, _, minor = parser.get_http_version().partition(".")
    version = (int(major), int(minor or 0))
    return check_head(parser.get_method(), collector.target, version, collector.headers)


def best_head_parser() -> HeadParser:
    """Return the llhttp parser where it is installed, else the plain one."""
    try:
        import httptools  # noqa: F401
    except ImportError:
        return plain_head
    return httptools_head


def check_head(
    method: bytes, target: bytes, version: tuple[int, int], headers: Sequence[tuple[bytes, bytes]]
) -> Head:
    """Decide whether a head is allowed, and what it says about the body's framing (RFC 9112 §6).

    Raises:
        HttpError: It is not allowed; the connection must be closed.
    """
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise _broken("malformed request line: expected METHOD TARGET HTTP/1.1")
    if version not in ((1, 0), (1, 1)):
        raise _broken(f"HTTP/{version[0]}.{version[1]} is not supported: expected HTTP/1.1", 505)
    if method.decode() not in METHODS:
        raise _broken("unknown method", 501)
    fields = _fields(headers)
    old = version == (1, 0)
    if not old and len(fields.get(b"host", ())) != 1:
        raise _broken("HTTP/1.1 needs exactly one Host header")
    chunked = _is_chunked(fields, old=old)
    return Head(
        method=method.decode(),
        target=target.decode(),
        length=None if chunked else _content_length(fields),
        chunked=chunked,
        keep_alive=_keeps_alive(fields, old=old),
        old=old,
        expects_continue=_expects_continue(fields, old=old),
        encoding=b",".join(fields.get(b"content-encoding", ())).decode("latin-1").strip().lower(),
        json_length=_json_length(fields),
        accepts=_accepted(fields),
    )


def _fields(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _broken("malformed header")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return fields


def _is_chunked(fields: Mapping[bytes, list[bytes]], *, old: bool) -> bool:
    codings = fields.get(b"transfer-encoding")
    if codings is None:
        return False
    if old or b"content-length" in fields:
        # two answers to "where does the body end" are how requests are smuggled
        raise _broken("Transfer-Encoding next to Content-Length, or in HTTP/1.0")
    if [coding.strip().lower() for coding in codings] != [b"chunked"]:
        raise _broken("the only transfer coding supported is chunked", 501)
    return True


def _content_length(fields: Mapping[bytes, list[bytes]]) -> int | None:
    values = fields.get(b"content-length")
    if values is None:
        return None
    if len(set(values)) != 1 or not _DIGITS.fullmatch(values[0]):
        raise _broken("malformed Content-Length")
    return int(values[0])


def _keeps_alive(fields: Mapping[bytes, list[bytes]], *, old: bool) -> bool:
    options = {part.strip().lower() for value in fields.get(b"connection", ()) for part in value.split(b",")}
    return b"close" not in options and (not old or b"keep-alive" in options)


def _expects_continue(fields: Mapping[bytes, list[bytes]], *, old: bool) -> bool:
    expected = fields.get(b"expect")
    if expected is None or old:
        return False
    if [value.lower() for value in expected] != [b"100-continue"]:
        raise _broken("the only expectation supported is 100-continue", 417)
    return True


def _json_length(fields: Mapping[bytes, list[bytes]]) -> int | None:
    values = fields.get(b"inference-header-content-length")
    if values is None:
        return None
    return int(values[0]) if len(set(values)) == 1 and _INTEGER.fullmatch(values[0]) else -1


def _accepted(fields: Mapping[bytes, list[bytes]]) -> str:
    """Return the better of gzip and deflate by the client's own weights (RFC 9110 §12.5.3)."""
    best, best_weight = "", 0.0
    for part in b",".join(fields.get(b"accept-encoding", ())).decode("latin-1").lower().split(","):
        coding, _, parameters = part.partition(";")
        coding = coding.strip()
        weight = _weight(parameters)
        if coding in ("gzip", "x-gzip", "deflate") and weight > best_weight:
            best, best_weight = coding.removeprefix("x-"), weight
    return best


def _weight(parameters: str) -> float:
    matched = _QUALITY.fullmatch(parameters.strip())
    return float(matched[1]) if matched else 0.0 if parameters.strip() else 1.0


#: A client repeats its head from request to request: the last few hundred are not parsed again.
_REMEMBERED = 256
_REMEMBERED_BYTES = 2048


def remembering(parse: HeadParser) -> HeadParser:
    """Return `parse` with a memory of the heads it has read lately."""
    cached = functools.lru_cache(_REMEMBERED)(parse)

    def parse_remembering(data: bytes) -> Head:
        return cached(data) if len(data) <= _REMEMBERED_BYTES else parse(data)

    return parse_remembering
