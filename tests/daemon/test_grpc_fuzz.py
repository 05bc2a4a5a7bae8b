"""Mutated protobufs, and bytes that are no HTTP/2, on gRPC's real socket: every answer has a status that fits."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from edgekit.daemon.grpc_schema import INFERENCE, METHODS, message_class  # noqa: E402
from edgekit.daemon.inbound import Limits  # noqa: E402
from tests.daemon.grpc_peer import Peer, numbers, place, raw, request, written  # noqa: E402
from tests.daemon.serving import adder, affine, echo  # noqa: E402
from tests.daemon.test_fuzz import MOST_GROWTH_KIB  # noqa: E402
from tests.daemon.test_memory import resident_kib  # noqa: E402

pytestmark = [
    pytest.mark.device,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # random bits overflow in the tests' own models
]

MODELS = (affine, adder, lambda: echo("bytes"))
FOUR = np.array([[1, 2, 3, 4]], np.float32)
#: Neither INTERNAL nor UNKNOWN, which would be a bug, nor DEADLINE_EXCEEDED, which would be a hang.
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED", "ALREADY_EXISTS"}
TOKENS = [
    b"\x00",
    b"\xff" * 10,
    b"\x0a\x00",
    b"affine",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x3a\x10" + bytes(16),
]


def shared() -> Any:
    message = request()
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    place(tensor.parameters, "r", 16)
    place(message.outputs.add(name="y").parameters, "r", 16, 16)
    return message


def both() -> Any:
    message = request("adder", "1", id="é")
    for name, datatype, field in (("a", "FP32", "fp32_contents"), ("b", "INT64", "int64_contents")):
        tensor = message.inputs.add(name=name, datatype=datatype, shape=[1, 2])
        getattr(tensor.contents, field).extend([1, 2])
    message.parameters["priority"].uint64_param = 1
    return message


def seeds() -> list[tuple[str, bytes]]:
    """Return methods with valid messages."""
    infers = [raw(FOUR), written("bytes_contents", [b"a", b""], "BYTES", "echo-bytes"), shared(), both()]
    made = [("ModelInfer", message.SerializeToString()) for message in infers]
    named = {"name": "affine", "version": "1"}
    made += [
        (method, message_class(f"inference.{method}Request")(**named).SerializeToString())
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
    ]
    region = {"name": "r", "key": "/edgekit-absent", "offset": 0, "byte_size": 64}
    kind = message_class("inference.SystemSharedMemoryRegisterRequest")
    made.append(("SystemSharedMemoryRegister", kind(**region).SerializeToString()))
    kind = message_class("inference.RepositoryModelLoadRequest")
    made.append(("RepositoryModelLoad", kind(model_name="nope").SerializeToString()))
    return made


def outcome(call: Any, data: bytes) -> tuple[str, Any]:
    """Return the status's name, and the answer or the error."""
    try:
        return "OK", call(data, timeout=20)
    except grpc.RpcError as error:
        return error.code().name, error


def mutated(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[at : at + draw.randint(1, 8)]
        elif kind == 2:
            out[at:at] = draw.choice(TOKENS)
        elif kind == 3:
            out[at:at] = draw.randbytes(draw.randint(1, 8))
        else:
            out[at:] = out[draw.randrange(len(out) + 1) :]
    return bytes(out)


@pytest.mark.parametrize(
    "count", [pytest.param(2_500, id="2500"), pytest.param(50_000, id="50000", marks=pytest.mark.soak)]
)
def test_mutated_messages(peer: Callable[..., Peer], count: int) -> None:
    one = peer(
        *(make() for make in MODELS),
        shared_memory=True,
        repository_control=True,
        limits=Limits(body_bytes=1 << 20),
    )
    draw, valid = random.Random(count), seeds()
    calls = {name: one.channel.unary_unary(f"/{INFERENCE}/{name}") for name in METHODS}
    answered, resident = 0, 0
    for index in range(count):
        if index == count // 4:
            resident = resident_kib()
        method, data = draw.choice(valid)
        if draw.random() < 0.1:
            method = draw.choice(METHODS)
        sent = mutated(draw, data)
        code, got = outcome(calls[method], sent)
        assert code in EXPECTED, (index, method, sent, got)
        if code == "OK":
            message_class(f"inference.{method}Response").FromString(got)
            answered += 1
    assert answered > count // 50
    assert resident_kib() - resident < MOST_GROWTH_KIB
    assert numbers(one.infer(raw(FOUR))) == [3, 5, 7, 9]


def test_mutated_messages_in_streams(peer: Callable[..., Peer]) -> None:
    one = peer(*(make() for make in MODELS), limits=Limits(body_bytes=1 << 20))
    draw, valid = random.Random(3), [data for method, data in seeds() if method == "ModelInfer"]
    stream = one.channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")
    sent = [mutated(draw, draw.choice(valid)) for _ in range(300)] + [raw(FOUR).SerializeToString()]
    kind = message_class("inference.ModelStreamInferResponse")
    got = [kind.FromString(data) for data in stream(iter(sent), timeout=60)]
    assert len(got) == len(sent)
    assert numbers(got[-1].infer_response) == [3, 5, 7, 9]


def test_bytes_that_are_no_http2(peer: Callable[..., Peer]) -> None:
    one = peer(*(make() for make in MODELS))
    draw = random.Random(5)
    host, port = one.address.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for _ in range(60):
        start = draw.choice(
            (b"", preface, preface + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), b"GET / HTTP/1.1\r\n\r\n")
        )
        with socket.create_connection((host, int(port)), timeout=20) as stream:
            stream.sendall(start + draw.randbytes(draw.randint(0, 200)))
    assert numbers(one.infer(raw(FOUR))) == [3, 5, 7, 9]
