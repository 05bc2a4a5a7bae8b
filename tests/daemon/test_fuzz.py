"""Mutated requests on real sockets: every answer is well formed, and the daemon lives."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.daemon.inbound import Limits
from tests.daemon.serving import Answer, Running, adder, affine, echo, read_reply, request_bytes
from tests.daemon.test_memory import resident_kib

pytestmark = [
    pytest.mark.device,
    # random bits are numbers that overflow, or none: in the tests' own models, which compute with numpy
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

#: What the process may grow by in the last three quarters, the test's own part included.
MOST_GROWTH_KIB = 40 << 10
INFER = "/v2/models/affine/infer"
X = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
JSON_BODY = json.dumps({"id": "i", "inputs": [{**X, "data": [[1, 2.5, -3e2, 4]]}], "outputs": [{"name": "y"}]}).encode()  # fmt: skip
BINARY_HEAD = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": 16}}], "parameters": {"binary_data_output": True}}).encode()  # fmt: skip
STRINGS = json.dumps({"inputs": [{"name": "x", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "é"]}]}).encode()  # fmt: skip
PAIR = json.dumps({"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}, {"name": "b", "shape": [1, 2], "datatype": "INT64", "data": [3, 4]}]}).encode()  # fmt: skip
FOUR = np.arange(4, dtype=np.float32).tobytes()
SHARED = json.dumps({"inputs": [{**X, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16}}], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16, "shared_memory_offset": 16}}]}).encode()  # fmt: skip
CLASSES = json.dumps({"inputs": [{**X, "data": [1, 2, 3, 4]}], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}).encode()  # fmt: skip

SEEDS = [
    request_bytes(INFER, JSON_BODY),
    request_bytes(
        INFER, BINARY_HEAD + FOUR, f"Inference-Header-Content-Length: {len(BINARY_HEAD)}"
    ),
    request_bytes(INFER, FOUR, "Inference-Header-Content-Length: 0"),
    request_bytes("/v2/models/echo-bytes/infer", STRINGS),
    request_bytes("/v2/models/adder/versions/1/infer", PAIR, "Expect: 100-continue"),
    b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON_BODY), JSON_BODY),
    request_bytes("/v2/models/affine", b"", method="GET"),
    request_bytes("/metrics", b"", method="GET"),
    request_bytes("/v2/models/affine/config", b"", method="GET"),
    request_bytes("/v2/models/stats", b"", method="GET"),
    request_bytes("/v2/repository/index", b'{"ready": true}'),
    request_bytes("/v2/repository/models/nope/load", b'{"parameters": {"config": "{}"}}'),
    request_bytes("/v2/repository/models/nope/unload", b'{"parameters": {"unload_dependents": true}}'),
    request_bytes("/v2/systemsharedmemory/region/r/register", b'{"key": "/edgekit-fuzz", "offset": 0, "byte_size": 64}'),
    request_bytes("/v2/systemsharedmemory/region/r/status", b"", method="GET"),
    request_bytes("/v2/systemsharedmemory/unregister", b""),
    request_bytes(INFER, SHARED),
    request_bytes(INFER, gzip.compress(JSON_BODY, mtime=0), "Content-Encoding: gzip", "Accept-Encoding: gzip"),
    request_bytes(INFER, CLASSES),
]  # fmt: skip
EXPECTED = (100, 200, 400, 403, 404, 405, 408, 409, 411, 413, 415, 417, 431, 501, 505)
TOKENS = [
    b"\r\n", b"\x00", b"\xff", b"[", b"]", b"{", b'"', b",", b"NaN", b"-1", b"99999999999999999999", b"1e999", b"null",
    b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"%2e%2e/", b"true",
    b"Connection: close\r\n", b'"shape":[0]', b'"binary_data_size":', b"HTTP/1.0",
]  # fmt: skip


def mutated(draw: random.Random) -> bytes:
    out = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 5)):
        at, size = draw.randrange(len(out)), draw.randint(1, 16)
        kind = draw.randrange(6)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and len(out) > 32:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = draw.choice(TOKENS)
        elif kind == 3:
            out[at : at + size] = draw.choice(TOKENS)
        elif kind == 4:
            out[at:at] = draw.randbytes(size)
        else:
            other = draw.choice(SEEDS)
            out[at:] = other[draw.randrange(len(other)) :]
    return bytes(out)


def answers(running: Running, data: bytes, *, unix: bool) -> int:
    """Send bytes, close the sending half and read replies until the daemon closes; return how many came."""
    with running.connect(unix=unix) as stream:
        try:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the daemon has refused and closed already
        buffered, count = bytearray(), 0
        while True:
            try:
                answer = read_reply(stream, buffered)
            except ConnectionResetError:
                return count
            except ConnectionError:
                assert not buffered, bytes(buffered)
                return count
            assert answer.status in EXPECTED, answer
            if answer.status >= 400 and answer.body:
                assert isinstance(answer.error, str), answer
            elif answer.headers.get("Content-Type") == "application/json" and answer.body:
                json.loads(plain(answer))
            count += 1


def plain(answer: Answer) -> bytes:
    """Return the body, inflated where need be."""
    return gzip.decompress(answer.body) if answer.headers.get("Content-Encoding") == "gzip" else answer.body


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make the shared memory that requests name."""
    path = Path("/dev/shm/edgekit-fuzz")
    path.write_bytes(bytes(64))
    yield path
    path.unlink()


@pytest.mark.parametrize(
    "count", [pytest.param(5_000, id="5000"), pytest.param(100_000, id="100000", marks=pytest.mark.soak)]
)
def test_mutated_requests(serving: Callable[..., Running], count: int, shared: Path) -> None:
    limits = Limits(body_bytes=1 << 20, linger_s=0.5)
    running = serving(
        affine(), adder(), echo("bytes"), limits=limits, shared_memory=True, repository_control=True
    )
    draw = random.Random(count)
    replies, resident = 0, 0
    for index in range(count):
        if index == count // 4:
            resident = resident_kib()
        data = mutated(draw)
        try:
            replies += answers(running, data, unix=bool(index % 2))
        except Exception as error:
            raise AssertionError(f"request {index}: {data!r}") from error
    assert replies > count // 2
    assert resident_kib() - resident < MOST_GROWTH_KIB
    assert shared.stat().st_size == 64
    sane = running.infer("affine", JSON_BODY)
    assert sane.json["outputs"][0]["data"] == [3.0, 6.0, -599.0, 9.0]
    assert running.ask("GET", "/v2/health/ready").status == 200
