"""Compressed request bodies: `Content-Encoding: gzip | deflate`, with the cap on what comes out.

Replies are never compressed: on the links that a device's clients use, the time is worth more than the bytes.
"""

from __future__ import annotations

import zlib

from edgekit.daemon.http1 import HttpError

__all__ = ["ENCODINGS", "decompress"]

ENCODINGS = ("gzip", "deflate")
_GZIP_BITS = 16 + zlib.MAX_WBITS
_STEP_BYTES = 1 << 20


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


def _inflate(body: memoryview, bits: int, limit: int) -> bytearray:
    out = bytearray()
    stream = zlib.decompressobj(bits)
    data: bytes | memoryview = body
    try:
        while True:
            piece = stream.decompress(data, _STEP_BYTES)
            out += piece
            if len(out) > limit:
                raise HttpError(413, f"the decompressed request body is larger than {limit} bytes")
            data = stream.unconsumed_tail
            if stream.eof:
                if not (stream.unused_data and bits == _GZIP_BITS):
                    return out
                data, stream = stream.unused_data, zlib.decompressobj(bits)  # RFC 1952: members in a row
            elif not piece and not data:
                raise HttpError(400, "the compressed request body is cut off")
    except zlib.error as error:
        raise HttpError(400, f"the compressed request body is damaged: {error}") from error
