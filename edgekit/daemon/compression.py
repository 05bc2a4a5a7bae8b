"""Compressed bodies, gzip or deflate: requests with a cap on what comes out, replies where the client asks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.daemon.http1 import HttpError

if TYPE_CHECKING:
    from edgekit.daemon.http1 import Chunk

__all__ = ["COMPRESS_FROM_BYTES", "compress", "decompress"]

#: A smaller reply gains nothing.
COMPRESS_FROM_BYTES = 1024
#: The quickest: a device's processor is slower than its network, and tensors of floats hardly shrink.
_LEVEL = 1
_GZIP_BITS = 16 + zlib.MAX_WBITS
_STEP_BYTES = 1 << 20
#: Given to zlib at once: at the end of each gzip member it copies all that is left of what it was given.
_WINDOW_BYTES = 64 << 10
#: Blocked gzip (bgzip) makes a member of every 64 KiB.
_MOST_MEMBERS = 10_000


def decompress(body: memoryview, encoding: str, limit: int) -> memoryview:
    """Return the decompressed body.

    Raises:
        HttpError: 413, more than `limit` bytes come out; 400, the data is damaged or cut off; 415, the
            encoding is neither gzip nor deflate.
    """
    if encoding in ("gzip", "x-gzip"):
        return memoryview(_inflate(body, _GZIP_BITS, limit))
    if encoding != "deflate":
        raise HttpError(415, f"Content-Encoding {encoding!r} is not supported: expected gzip or deflate")
    # RFC 9110 means zlib's format; some clients send the bare stream
    bare = len(body) < 2 or body[0] & 15 != zlib.DEFLATED or (body[0] << 8 | body[1]) % 31
    return memoryview(_inflate(body, -zlib.MAX_WBITS if bare else zlib.MAX_WBITS, limit))


def compress(chunks: Sequence[Chunk], encoding: str) -> bytes:
    """Return the chunks, joined and compressed as `gzip` or `deflate` (zlib's format, as RFC 9110 has it)."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_BITS if encoding == "gzip" else zlib.MAX_WBITS)
    return b"".join([*(stream.compress(chunk) for chunk in chunks), stream.flush()])


def _inflate(body: memoryview, bits: int, limit: int) -> bytearray:
    out = bytearray()
    stream, members = zlib.decompressobj(bits), 1
    data: bytes | memoryview = b""
    try:
        while True:
            if not data:
                data, body = body[:_WINDOW_BYTES], body[_WINDOW_BYTES:]
            piece = stream.decompress(data, _STEP_BYTES)
            out += piece
            if len(out) > limit:
                raise HttpError(413, f"the decompressed request body is larger than {limit} bytes")
            data = stream.unconsumed_tail
            if stream.eof:
                if bits != _GZIP_BITS or not (stream.unused_data or body):
                    return out
                data, stream = stream.unused_data, zlib.decompressobj(bits)  # RFC 1952: members in a row
                members += 1
                if members > _MOST_MEMBERS:
                    raise HttpError(
                        400, f"the compressed request body has more than {_MOST_MEMBERS} gzip members"
                    )
            elif not (piece or data or body):
                raise HttpError(400, "the compressed request body is cut off")
    except zlib.error as error:
        raise HttpError(400, f"the compressed request body is damaged: {error}") from error
