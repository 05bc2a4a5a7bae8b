from __future__ import annotations

import contextlib
import json
import random
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.daemon.http1 import (
    Head,
    HeadParser,
    HttpError,
    Reply,
    error_reply,
    head_of,
    httptools_head,
    json_reply,
    plain_head,
    remembering,
)

pytestmark = pytest.mark.device

PARSERS = [
    pytest.param(httptools_head, id="httptools"),
    pytest.param(plain_head, id="stdlib"),
]

INSTALLED = [plain_head, *([httptools_head] if find_spec("httptools") else [])]


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.fixture(params=PARSERS)
def parse(request: pytest.FixtureRequest) -> HeadParser:
    chosen: HeadParser = request.param
    if chosen is httptools_head:
        pytest.importorskip("httptools")
    return chosen


def test_an_inference_head(parse: HeadParser) -> None:
    got = parse(
        head(
            "POST /v2/models/m/infer?x=1 HTTP/1.1",
            "host: edge",
            "CONTENT-LENGTH: 12",
            "Inference-Header-Content-Length:  7 ",
            "Content-Encoding: GZIP",
            "Expect: 100-Continue",
        )
    )
    assert got == Head(
        method="POST",
        target="/v2/models/m/infer?x=1",
        length=12,
        expects_continue=True,
        encoding="gzip",
        json_length=7,
    )


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [
        (["GET / HTTP/1.1", "Host: e"], True),
        (["GET / HTTP/1.1", "Host: e", "Connection: close"], False),
        (["GET / HTTP/1.1", "Host: e", "Connection: x, Close"], False),
        (["GET / HTTP/1.0"], False),
        (["GET / HTTP/1.0", "Connection: Keep-Alive"], True),
    ],
)
def test_keep_alive(parse: HeadParser, lines: list[str], keep_alive: bool) -> None:
    assert parse(head(*lines)).keep_alive is keep_alive


def test_no_length_is_not_a_length_of_zero(parse: HeadParser) -> None:
    assert parse(head("POST / HTTP/1.1", "Host: e")).length is None
    assert parse(head("POST / HTTP/1.1", "Host: e", "Content-Length: 0")).length == 0


def test_a_chunked_head(parse: HeadParser) -> None:
    got = parse(head("POST / HTTP/1.1", "Host: e", "Transfer-Encoding: Chunked"))
    assert got.chunked
    assert got.length is None


@pytest.mark.parametrize("value", ["x", "", "1.5", "99999999999999999999", "1, 2"])
def test_a_malformed_header_length_is_kept_for_the_route_to_refuse(parse: HeadParser, value: str) -> None:
    got = parse(head("POST / HTTP/1.1", "Host: e", f"Inference-Header-Content-Length: {value}"))
    assert got.json_length == -1


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (400, ["GET / HTTP/1.1 x", "Host: e"]),
        (400, ["GET /\x01 HTTP/1.1", "Host: e"]),
        (400, ["GET / HTTP/1.1"]),
        (400, ["GET / HTTP/1.1", "Host: e", "Host: f"]),
        (400, ["GET / HTTP/1.1", "Host: e", "no colon"]),
        (400, ["GET / HTTP/1.1", "Host: e", "Sp ace: x"]),
        (400, ["GET / HTTP/1.1", "Host: e", "X: a\x00b"]),
        (400, ["GET / HTTP/1.1", "Host: e", " folded: x"]),
        (400, ["POST / HTTP/1.1", "Host: e", "Content-Length: -1"]),
        (400, ["POST / HTTP/1.1", "Host: e", "Content-Length: 0x10"]),
        (400, ["POST / HTTP/1.1", "Host: e", "Content-Length: +1"]),
        (400, ["POST / HTTP/1.1", "Host: e", "Content-Length: 1", "Content-Length: 2"]),
        (400, ["POST / HTTP/1.1", "Host: e", "Content-Length: 1", "Transfer-Encoding: chunked"]),
        (400, ["POST / HTTP/1.0", "Transfer-Encoding: chunked"]),
        (417, ["POST / HTTP/1.1", "Host: e", "Expect: a-miracle"]),
        (501, ["POST / HTTP/1.1", "Host: e", "Transfer-Encoding: gzip, chunked"]),
        (501, ["BREW / HTTP/1.1", "Host: e"]),
        (505, ["GET / HTTP/2.0", "Host: e"]),
    ],
)
def test_refused_heads_close_the_connection(parse: HeadParser, status: int, lines: list[str]) -> None:
    with pytest.raises(HttpError) as refused:
        parse(head(*lines))
    # llhttp stops at some of these before the common check sees them: the class of answer is the same
    assert refused.value.status == status or (parse is httptools_head and refused.value.status == 400)
    assert refused.value.close


def test_http_0_9_is_refused(parse: HeadParser) -> None:
    with pytest.raises(HttpError) as refused:
        parse(head("GET /"))
    assert refused.value.status in (400, 505)
    assert refused.value.close


SEED_HEAD = head(
    "POST /v2/models/m/versions/1/infer HTTP/1.1",
    "Host: localhost:8080",
    "User-Agent: test",
    "Content-Length: 120",
    "Inference-Header-Content-Length: 80",
    "Connection: keep-alive",
)


def mutated(data: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    out = bytearray(data[:-4])
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out))
        kind = draw.randrange(4)
        if kind == 0:
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + draw.randint(1, 8)]
        elif kind == 2:
            out[at:at] = draw.choice([b"\r\n", b"\n", b" ", b"\x00", b":", b"\xff", b"Content-Length: 3\r\n"])
        else:
            out[at:at] = out[max(0, at - 20) : at]
    return bytes(out).split(b"\r\n\r\n")[0] + b"\r\n\r\n"


def test_where_both_parsers_accept_a_head_they_read_the_same() -> None:
    """Two readings of one head are how requests are smuggled."""
    pytest.importorskip("httptools")
    both = 0
    for seed in range(3000):
        data = mutated(SEED_HEAD, seed)
        readings = []
        for parse in (httptools_head, plain_head):
            try:
                readings.append(parse(data))
            except HttpError:
                continue
        if len(readings) == 2:
            both += 1
            assert readings[0] == readings[1], data
    assert both > 500


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    ended = data.split(b"\r\n\r\n", maxsplit=1)[0] + b"\r\n\r\n"
    for parse in INSTALLED:
        with contextlib.suppress(HttpError):
            assert parse(ended).target


def test_remembering_parses_a_repeated_head_once() -> None:
    seen: list[bytes] = []

    def parse(data: bytes) -> Head:
        seen.append(data)
        return plain_head(data)

    remember = remembering(parse)
    assert remember(SEED_HEAD) == remember(SEED_HEAD)
    assert len(seen) == 1
    long = head("GET / HTTP/1.1", "Host: e", "X: " + "y" * 4000)
    remember(long)
    remember(long)
    assert len(seen) == 3  # a long head is not worth the memory


def test_a_reply_head() -> None:
    reply = Reply(200, (b"{}", memoryview(b"abcd")), "application/octet-stream", 2, {"X": "y"})
    assert head_of(reply, keep_alive=False) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: 2\r\n"
        b"X: y\r\nConnection: close\r\nContent-Length: 6\r\n\r\n"
    )
    assert b"Connection: keep-alive" in head_of(json_reply({}), keep_alive=True, old=True)
    assert b"Connection" not in head_of(json_reply({}), keep_alive=True)


def test_an_error_reply_is_bounded() -> None:
    reply = error_reply(HttpError(400, "x" * 100_000))
    assert len(json.loads(b"".join(reply.chunks))["error"]) == 1000
