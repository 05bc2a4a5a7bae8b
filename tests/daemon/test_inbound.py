from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.http1 import HttpError, plain_head
from edgekit.daemon.inbound import Inbound, Limits

pytestmark = pytest.mark.device

LIMITS = Limits(body_bytes=200_000, head_bytes=1000)


def feed(inbound: Inbound, data: bytes) -> int:
    """Receive as much of `data` as there is room for."""
    room = inbound.buffer()
    count = min(len(room), len(data))
    room[:count] = data[:count]
    inbound.received(count)
    return count


def read_all(data: bytes, cuts: list[int], limits: Limits = LIMITS) -> list[tuple[str, bytes]]:
    """Return target and body of every request in `data`, received in pieces that end at `cuts`."""
    inbound = Inbound(plain_head, limits)
    got: list[tuple[str, bytes]] = []
    edges = [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    start = 0
    for edge in edges:
        while start < edge:
            used = feed(inbound, data[start:edge])
            assert used
            start += used
            while (request := inbound.next()) is not None:
                got.append((request.head.target, bytes(request.body)))
                inbound.done()
    assert not inbound.partial
    return got


def plain(target: str, body: bytes) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(target: str, body: bytes, size: int, trailer: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = f"POST {target} HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + coded + b"0\r\n" + trailer + b"\r\n"


BODIES = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 100_000).map(lambda n: bytes(i * 7 % 251 for i in range(n))),
)


@given(st.data())
def test_requests_survive_any_cut(data: st.DataObject) -> None:
    """Plain, large and chunked requests in a row, received in any pieces, come out as they went in."""
    expected: list[tuple[str, bytes]] = []
    stream = b""
    for index in range(data.draw(st.integers(1, 4))):
        body, target = data.draw(BODIES), f"/{index}"
        if data.draw(st.booleans()):
            size = data.draw(st.integers(max(1, len(body) // 50), 40_000))
            stream += chunked(target, body, size, data.draw(st.sampled_from([b"", b"A: b\r\n"])))
        else:
            stream += b"\r\n" * data.draw(st.integers(0, 1)) + plain(target, body)
        expected.append((target, body))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert read_all(stream, cuts) == expected


def test_byte_by_byte() -> None:
    stream = plain("/a", b"xyz") + chunked("/b", b"0123456789", 3) + plain("/c", b"")
    assert read_all(stream, list(range(len(stream)))) == [("/a", b"xyz"), ("/b", b"0123456789"), ("/c", b"")]


def test_a_lent_body_is_not_overwritten_by_what_comes_next() -> None:
    inbound = Inbound(plain_head, LIMITS)
    feed(inbound, plain("/a", b"a" * 10_000))
    first = inbound.next()
    assert first is not None
    behind = plain("/b", b"b" * 30_000)
    sent = 0
    while inbound.has_room:
        sent += feed(inbound, behind[sent:])
    assert bytes(first.body) == b"a" * 10_000
    inbound.done()
    while sent < len(behind):
        sent += feed(inbound, behind[sent:])
        second = inbound.next()
    assert second is not None
    assert bytes(second.body) == b"b" * 30_000


def test_tensors_of_a_large_body_are_aligned() -> None:
    for json_length in (1, 63, 64, 100):
        body = b"j" * json_length + b"t" * 100_000
        request_bytes = (
            f"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n"
            f"Inference-Header-Content-Length: {json_length}\r\n\r\n"
        ).encode() + body
        inbound = Inbound(plain_head, LIMITS)
        sent = 0
        request = None
        while request is None:
            sent += feed(inbound, request_bytes[sent:])
            request = inbound.next()
        import numpy as np

        tensor = np.frombuffer(request.body, np.float64, 10, json_length)
        assert tensor.flags.aligned
        assert bytes(request.body) == body


def test_the_large_buffer_is_kept_for_the_next_and_can_be_given_back() -> None:
    inbound = Inbound(plain_head, LIMITS)
    seen = set()
    for _ in range(3):
        data = plain("/", b"x" * 50_000)
        request = None
        while request is None:
            data = data[feed(inbound, data) :]
            request = inbound.next()
        seen.add(id(request.body.obj))
        inbound.done()
    assert len(seen) == 1
    inbound.trim()
    assert inbound._kept is None


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (431, b"GET / HTTP/1.1\r\nHost: e\r\nX: " + b"y" * 1000),
        (431, b"GET / HTTP/1.1\r\nHost: e\r\nX: " + b"y" * 1000 + b"\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: 200001\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n30D41\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"x" * 1001),
        (400, b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n"),
    ],
)
def test_what_is_refused(status: int, data: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        read_all(data, [])
    assert refused.value.status == status
    assert refused.value.close


def test_a_chunked_body_of_many_tiny_chunks_is_refused() -> None:
    data = b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 70_000
    with pytest.raises(HttpError) as refused:
        read_all(data, [])
    assert refused.value.status == 413
