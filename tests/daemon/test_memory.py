"""What all clients together may cost: each alone keeps within its limit in every test here."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.daemon.http1 import HttpError, plain_head
from edgekit.daemon.inbound import Inbound, Limits
from edgekit.daemon.room import Room
from edgekit.tensors import TensorSpec
from tests.daemon.serving import Running, affine, echo, model_of, read_reply, request_bytes
from tests.daemon.test_inbound import chunked, feed, plain

pytestmark = pytest.mark.device

Serving = Callable[..., Running]
INFER = "/v2/models/echo-float32/infer"
MIB = 1 << 20
#: Room for 4 MiB of bodies and 4 MiB of replies.
TIGHT = Limits(body_bytes=2 * MIB, pending_bytes=4 * MIB, head_s=20.0)


def test_room_is_taken_and_given_back() -> None:
    room = Room(100)
    assert room.take(60)
    assert room.tight
    assert not room.take(41)
    assert room.take(40)
    room.give(100)
    assert (room.held, room.tight) == (0, False)


def test_one_may_have_more_than_there_is_while_it_is_alone() -> None:
    room = Room(100)
    assert room.take(1000)
    assert room.take(1000, own=1000)
    assert not room.take(1)
    room.give(1500)
    assert not room.take(1)


@pytest.mark.parametrize("request_", [plain("/", bytes(90_000)), chunked("/", bytes(90_000), 5000)])
def test_a_body_counts_as_it_comes_and_is_refused_when_others_hold_too_much(request_: bytes) -> None:
    room, limits = Room(100_000), Limits()
    first, second = (Inbound(plain_head, limits, room) for _ in range(2))

    def send(inbound: Inbound, data: bytes) -> None:
        while data:
            data = data[feed(inbound, data) :]
            inbound.next()

    send(first, request_[:60_000])
    assert 50_000 < room.held <= 60_000
    with pytest.raises(HttpError) as refused:
        send(second, request_)
    assert (refused.value.status, refused.value.close) == (503, True)
    assert refused.value.headers["Retry-After"]
    second.release()
    send(first, request_[60_000:])
    assert 90_000 <= room.held <= 100_000
    first.done()
    first.trim()
    assert room.held == 0


def test_a_body_that_fits_into_the_receive_buffer_is_never_refused_for_others() -> None:
    room = Room(10)
    room.take(10)
    inbound = Inbound(plain_head, Limits(), room)
    feed(inbound, plain("/small", bytes(20_000)))
    assert inbound.next() is not None


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_a_length_alone_costs_nothing(serving: Serving) -> None:
    running = serving(echo("float32"))  # 64 MiB for each request
    before = resident_kib()
    connections = [running.connect() for _ in range(40)]
    for connection in connections:
        connection.sendall(request_bytes(INFER, b"", "X: y").replace(b"Length: 0", b"Length: 67108864"))
    assert running.ask("GET", "/v2/health/live").status == 200
    assert resident_kib() - before < 100 * 1024  # it took 1.3 GB
    for connection in connections:
        connection.close()


def test_bodies_of_many_clients_share_one_room(serving: Serving) -> None:
    running = serving(echo("float32"), limits=TIGHT)
    head = request_bytes(INFER, b"").replace(b"Length: 0", b"Length: %d" % (2 * MIB))
    connections = [running.connect() for _ in range(6)]
    for connection in connections:
        with_body = head + bytes(MIB + MIB // 2)  # all of them wait for the rest
        connection.sendall(with_body)
    statuses: list[int] = []
    for connection in connections:
        connection.settimeout(1.0)
        try:
            statuses.append(read_reply(connection, bytearray()).status)
        except TimeoutError:
            statuses.append(0)
    assert statuses.count(503) == 4
    assert statuses.count(0) == 2
    for connection in connections:
        connection.close()
    bodies = running.daemon._rooms.bodies
    wait_until(lambda: bodies.held == 0)
    assert running.ask("POST", INFER, tensor(300_000), binary_headers(300_000)).status == 200


def test_replies_that_nobody_takes_are_cut_off_before_they_fill_the_memory(serving: Serving) -> None:
    wide = model_of(
        "wide",
        [TensorSpec("x", "float32", (-1, 1))],
        [TensorSpec("y", "float32", (-1, 1))],
        lambda feed: {"y": np.zeros((8 * MIB, 1), np.float32)},
    )
    running = serving(wide, limits=TIGHT)
    message = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}],"parameters":{"binary_data_output":true}}'
    ask = request_bytes("/v2/models/wide/infer", message)
    deaf = [running.connect() for _ in range(3)]
    replies = running.daemon._rooms.replies
    for client in deaf:
        client.sendall(ask)
        wait_until(lambda: replies.held > 4 * MIB)
    assert replies.held < 33 * MIB  # one reply of 32 MiB, larger than the room, but alone
    for client in deaf:
        client.close()
    wait_until(lambda: replies.held == 0)
    assert running.ask("POST", "/v2/models/wide/infer", message).status == 200


def test_a_client_that_takes_a_reply_by_drops_is_given_up(serving: Serving) -> None:
    limits = Limits(write_s=0.5, slowest_bytes_per_s=64 * MIB)
    running = serving(echo("float32"), limits=limits, check_s=0.1)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect(running.address)
    count = 4 * MIB
    client.sendall(
        request_bytes(INFER, tensor(count), *(f"{k}: {v}" for k, v in binary_headers(count).items()))
    )
    wait_until(lambda: len(running.daemon._connections) == 1)
    taken = 0
    while running.daemon._connections:  # it never stands still, and would go on for minutes
        taken += len(client.recv(2048))
        assert taken < 2 * MIB
        time.sleep(0.02)
    client.close()


def test_one_connection_too_many_is_told_so(serving: Serving) -> None:
    running = serving(affine(), limits=Limits(connections=3))
    kept = [running.connect() for _ in range(3)]
    for connection in kept:
        connection.sendall(request_bytes("/v2/health/live", b"", method="GET"))
        assert read_reply(connection, bytearray()).status == 200
    with running.connect() as late:
        reply = read_reply(late, bytearray())
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert late.recv(1) == b""
    kept.pop().close()
    wait_until(lambda: len(running.daemon._connections) < 3)
    assert running.ask("GET", "/v2/health/live").status == 200
    for connection in kept:
        connection.close()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def json_of(count: int) -> bytes:
    return b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}' % (count, 4 * count)  # fmt: skip


def tensor(count: int) -> bytes:
    return json_of(count) + struct.pack("<f", 1.5) * count


def binary_headers(count: int) -> dict[str, str]:
    return {"Inference-Header-Content-Length": str(len(json_of(count)))}
