"""Requests out of a stream of bytes: framing, limits and chunked bodies. No sockets and no clock here.

A shell asks for `buffer()`, receives into it, says how much with `received(n)` and takes what is complete with
`next()`. Bodies are received in place: a small one stays where it arrived, a large one goes straight into a
buffer of its own, which the connection keeps for the next, because the copies are what large tensors cost.
"""

from __future__ import annotations

import mmap
import sys
from typing import NamedTuple

import msgspec

from edgekit.daemon.http1 import Head, HeadParser, HttpError
from edgekit.daemon.room import Room

__all__ = ["Inbound", "Limits", "Request"]

_RECEIVE_BYTES = 32 << 10
_KEEP_BYTES = 1 << 20
_ALIGNMENT = 64
_CHUNK_LINE_BYTES = 256
_MOST_CHUNKS = 1 << 16
_LINE_ENDS = b"\r\n"


class Limits(msgspec.Struct, frozen=True):
    """What a client may ask of the daemon.

    Attributes:
        body_bytes: Largest body, after decompression.
        pending_bytes: What the bodies of all connections may take together, and likewise the replies that
            clients have not taken yet; but always two of the largest bodies.
        connections: Connections open at once.
        head_bytes: Largest head.
        head_s: Seconds from a head's first byte to its last.
        body_s: Seconds allowed for a body, on top of what it takes at `slowest_bytes_per_s`.
        slowest_bytes_per_s: The slowest client that is waited for, while it sends and while it receives.
        idle_s: Seconds that a connection may stay open without a request.
        write_s: Seconds allowed for taking a reply, on top of what it takes at `slowest_bytes_per_s`.
        linger_s: Seconds to go on reading after a refusal, so that the client gets to read it.
    """

    body_bytes: int = 64 << 20
    pending_bytes: int = 128 << 20
    connections: int = 900
    head_bytes: int = 16 << 10
    head_s: float = 10.0
    body_s: float = 20.0
    slowest_bytes_per_s: int = 64 << 10
    idle_s: float = 300.0
    write_s: float = 30.0
    linger_s: float = 3.0

    def room(self) -> Room:
        """Return the room for what all connections hold of one kind."""
        return Room(max(self.pending_bytes, 2 * self.body_bytes))


class Request(NamedTuple):
    """A complete request; `body` is a view that is valid until `Inbound.done`."""

    head: Head
    body: memoryview


class Inbound:
    """The reading half of one connection.

    Args:
        parse_head: Parser of a head that ends with an empty line.
        limits: What the client may send.
        room: What the bodies of all connections share; those that fit into the receive buffer do not count.
    """

    def __init__(self, parse_head: HeadParser, limits: Limits, room: Room | None = None) -> None:
        self._parse_head, self._limits = parse_head, limits
        self._room = room or Room(sys.maxsize)
        self._taken = 0
        self._data = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._data)
        self._start = self._end = self._scanned = 0
        self._head: Head | None = None
        self._large: memoryview | None = None
        self._kept: bytearray | None = None
        self._filled = 0
        self._chunks: _ChunkedBody | None = None
        self._lent = False

    def buffer(self) -> memoryview:
        """Return where the next bytes go; empty when there is no room until `done`."""
        if self._large is not None and self._filled < len(self._large):
            return self._large[self._filled :]
        if self._end == _RECEIVE_BYTES and not self._lent:
            self._compact()
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take note that `count` bytes have been put into `buffer()`."""
        if self._large is not None and self._filled < len(self._large):
            self._filled += count
        else:
            self._end += count

    @property
    def has_room(self) -> bool:
        """Tell whether `buffer()` can take anything."""
        return len(self.buffer()) > 0

    @property
    def partial(self) -> bool:
        """Tell whether a request has begun and is not complete."""
        return self._head is not None or self._end > self._start

    @property
    def awaiting_body(self) -> Head | None:
        """Return the head whose body is not complete yet."""
        return self._head

    @property
    def body_started(self) -> bool:
        """Tell whether any of the awaited body has arrived."""
        return (
            self._end > self._start or self._filled > 0 or (self._chunks is not None and self._chunks.begun)
        )

    def next(self) -> Request | None:
        """Return the next complete request, or None until more has been received.

        Raises:
            HttpError: What came is not a request that may be answered; nothing more can be read.
        """
        head = self._head
        if head is None:
            if self._start == self._end:
                return None
            head = self._head = self._next_head()
            if head is None:
                return None
            self._begin_body(head)
        return self._next_body(head)

    def done(self) -> None:
        """Take back the buffer of the last request: nobody looks at its body any more."""
        self._lent = False
        if self._start == self._end:
            self._start = self._end = self._scanned = 0
        if self._taken:
            if self._room.tight:
                self._kept = None
            self._give_back(0 if self._kept is None else len(self._kept))

    def trim(self) -> None:
        """Give back the memory that an idle connection keeps for its next large body."""
        self._kept = None
        self._give_back(0)

    def release(self) -> None:
        """Give everything back: nothing more is read, and nobody looks at a body any more."""
        self._large = self._chunks = None
        self.trim()

    def _take_room(self, count: int) -> None:
        """Count `count` bytes of the body that is being received; they are counted as they come.

        Raises:
            HttpError: 503, other connections hold too much.
        """
        more = count - self._taken
        if more <= 0:
            return
        if not self._room.take(more, own=self._taken):
            raise HttpError(
                503,
                "the bodies of other requests take all the memory that there is for them",
                headers={"Retry-After": "1"},
                close=True,
            )
        self._taken = count

    def _give_back(self, but: int) -> None:
        if self._taken > but:
            self._room.give(self._taken - but)
            self._taken = but

    def _next_head(self) -> Head | None:
        start, end = self._start, self._end
        while start < end and self._data[start] in _LINE_ENDS:
            start += 1  # RFC 9112 §2.2: empty lines before a request are ignored
        self._start = start
        unseen = self._scanned - 3
        stop = self._data.find(b"\r\n\r\n", max(start, unseen), end)
        limit = self._limits.head_bytes
        if stop < 0:
            self._scanned = end
            if end - start > limit:
                raise HttpError(431, f"the request head is longer than {limit} bytes", close=True)
            return None
        if stop + 4 - start > limit:
            raise HttpError(431, f"the request head is longer than {limit} bytes", close=True)
        head = self._parse_head(bytes(self._view[start : stop + 4]))
        self._start = self._scanned = stop + 4
        return head

    def _begin_body(self, head: Head) -> None:
        self._filled = 0
        if head.chunked:
            self._chunks = _ChunkedBody(self._limits.body_bytes, self._limits.head_bytes)
            return
        length = head.length or 0
        if length > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        if self._start + length <= _RECEIVE_BYTES:
            return
        # the tensors after the JSON shall begin on an aligned address
        pad = -(head.json_length or 0) % _ALIGNMENT
        self._large = self._room_for(pad + length)[pad : pad + length]
        held = self._end - self._start
        self._large[:held] = self._view[self._start : self._end]
        self._filled = held
        self._start = self._end = self._scanned = 0

    def _room_for(self, size: int) -> memoryview:
        if self._kept is not None and len(self._kept) >= size:
            return memoryview(self._kept)
        self._kept = None
        self._give_back(0)
        if size > _KEEP_BYTES:
            # pages that are there once something has been written to them: a client that only says that much
            # will come costs nothing, and what is freed goes back to the system at once
            return memoryview(mmap.mmap(-1, size))
        self._kept = bytearray(size)
        return memoryview(self._kept)

    def _next_body(self, head: Head) -> Request | None:
        if self._chunks is not None:
            return self._next_chunked(head, self._chunks)
        if self._large is not None:
            self._take_room(self._filled)
            if self._filled < len(self._large):
                return None
            body, self._large = self._large, None
            return self._complete(head, body)
        length = head.length or 0
        if self._end - self._start < length:
            return None
        body = self._view[self._start : self._start + length]
        self._start = self._scanned = self._start + length
        return self._complete(head, body)

    def _next_chunked(self, head: Head, chunks: _ChunkedBody) -> Request | None:
        self._start += chunks.feed(self._view[self._start : self._end])
        self._scanned = self._start
        self._take_room(len(chunks.body))
        if not chunks.complete:
            self._compact()
            return None
        self._chunks = None
        return self._complete(head, memoryview(chunks.body))

    def _complete(self, head: Head, body: memoryview) -> Request:
        self._head, self._filled, self._lent = None, 0, True
        return Request(head, body)

    def _compact(self) -> None:
        held = self._end - self._start
        if self._start:
            self._view[:held] = bytes(self._view[self._start : self._end])
        self._scanned = max(0, self._scanned - self._start)
        self._start, self._end = 0, held


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the request body is larger than {limit} bytes", close=True)


class _ChunkedBody:
    """Decodes `Transfer-Encoding: chunked` (RFC 9112 §7.1); extensions and trailers are read and dropped."""

    def __init__(self, limit: int, trailer_limit: int) -> None:
        self.body = bytearray()
        self.complete = False
        self._limit, self._trailer_limit = limit, trailer_limit
        self._left = 0
        self._state = "size"
        self._count = 0

    @property
    def begun(self) -> bool:
        """Tell whether a chunk has begun."""
        return self._count > 0

    def feed(self, data: memoryview) -> int:
        """Decode as much as possible and return how many bytes were used."""
        used = 0
        while not self.complete:
            step = self._take_data(data[used:]) if self._state == "data" else self._take_line(data[used:])
            if step == 0:
                break
            used += step
        return used

    def _take_data(self, data: memoryview) -> int:
        count = min(self._left, len(data))
        self.body += data[:count]
        self._left -= count
        if not self._left and count:
            self._state = "end"
        return count

    def _take_line(self, data: memoryview) -> int:
        head = bytes(data[: self._trailer_limit if self._state == "trailer" else _CHUNK_LINE_BYTES])
        stop = head.find(b"\r\n")
        if stop < 0:
            if len(head) < len(data) or (len(head) >= _CHUNK_LINE_BYTES and self._state != "trailer"):
                raise HttpError(400, "malformed chunked body: a line is too long", close=True)
            return 0
        line = head[:stop]
        if self._state == "size":
            self._begin_chunk(line)
        elif self._state == "end":
            self._end_chunk(line)
        else:
            self._trailer_limit -= stop + 2
            self.complete = not line
        return stop + 2

    def _begin_chunk(self, line: bytes) -> None:
        digits = line.partition(b";")[0].strip(b" \t")
        if not 0 < len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise HttpError(400, "malformed chunked body: no chunk size", close=True)
        self._left = int(digits, 16)
        self._count += 1
        if self._count > _MOST_CHUNKS:
            raise HttpError(413, f"the chunked body has more than {_MOST_CHUNKS} chunks", close=True)
        if len(self.body) + self._left > self._limit:
            raise _too_large(self._limit)
        self._state = "data" if self._left else "trailer"

    def _end_chunk(self, line: bytes) -> None:
        if line:
            raise HttpError(400, "malformed chunked body: a chunk is longer than it says", close=True)
        self._state = "size"
