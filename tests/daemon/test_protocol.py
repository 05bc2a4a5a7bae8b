"""The protocol on real sockets, with both parsers and both event loops."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit import __version__
from edgekit.daemon.inbound import Limits
from tests.daemon.serving import (
    Answer,
    Running,
    adder,
    affine,
    echo,
    model_of,
    read_reply,
    request_bytes,
)

pytestmark = pytest.mark.device

Serving = Callable[..., Running]
X = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
JSON_REQUEST = {"inputs": [{**X, "data": [1, 2, 3, 4]}]}
BINARY_REQUEST = {
    "inputs": [{**X, "parameters": {"binary_data_size": 16}}],
    "parameters": {"binary_data_output": True},
}
FOUR = np.array([1, 2, 3, 4], np.float32).tobytes()
INFER = "/v2/models/affine/infer"
JSON_BYTES = json.dumps(JSON_REQUEST).encode()


def exchange(running: Running, *sent: bytes, replies: int = 1, unix: bool = False) -> list[Answer]:
    """Send pieces one after another, then read replies."""
    with running.connect(unix=unix) as stream:
        for piece in sent:
            stream.sendall(piece)
            if len(sent) > 1:
                time.sleep(0.02)
        buffered = bytearray()
        return [read_reply(stream, buffered) for _ in range(replies)]


def ends(stream: socket.socket) -> bool:
    """Tell whether the other side closes without a further byte."""
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


def test_metadata_and_health(serving: Serving) -> None:
    running = serving(affine(), affine(version=2), adder())
    extensions = [
        "binary_tensor_data",
        "classification",
        "statistics",
        "model_configuration",
        "model_repository",
    ]
    server = {"name": "edgekit", "version": __version__, "extensions": extensions}
    assert running.ask("GET", "/v2").json == server
    assert running.ask("GET", "/v2/").json == server
    assert running.ask("GET", "/v2/health/live").json == {"live": True}
    assert running.ask("GET", "/v2/health/ready").json == {"ready": True}
    model = running.ask("GET", "/v2/models/adder")
    assert model.headers["Content-Type"] == "application/json"
    assert model.json == {
        "name": "adder",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "INT64", "shape": [-1, 2]},
        ],
        "outputs": [{"name": "total", "datatype": "FP64", "shape": [-1, 2]}],
    }
    assert running.ask("GET", "/v2/models/affine/versions/1").json["versions"] == ["1", "2"]
    assert running.ask("GET", "/v2/models/affine/ready").json == {"name": "affine", "ready": True}
    assert running.ask("GET", "/v2/models/affine/versions/2/ready").status == 200
    head = running.ask("HEAD", "/v2/health/ready")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "14", b"")


def test_versions(serving: Serving) -> None:
    running = serving(affine(), affine(version=3))
    assert running.infer("affine", JSON_REQUEST).json["model_version"] == "3"
    assert running.infer("affine/versions/1", JSON_REQUEST).json["model_version"] == "1"
    missing = running.infer("affine/versions/2", JSON_REQUEST)
    assert (missing.status, missing.error) == (404, "model 'affine' has no version 2: this server has 1, 3")
    assert running.infer("affine/versions/99999999999999999999999", JSON_REQUEST).status == 404
    assert running.infer("affine/versions/x", JSON_REQUEST).status == 404


def test_json_inference(serving: Serving) -> None:
    running = serving(affine())
    answer = running.infer("affine", {"id": "7", **JSON_REQUEST})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert "Inference-Header-Content-Length" not in answer.headers
    assert answer.json == {
        "model_name": "affine",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [3.0, 5.0, 7.0, 9.0]},
            {"name": "total", "datatype": "FP32", "shape": [1], "data": [10.0]},
        ],
    }


def test_binary_inference(serving: Serving) -> None:
    running = serving(affine())
    answer = running.infer("affine", BINARY_REQUEST, FOUR)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert [output["parameters"] for output in answer.json["outputs"]] == [
        {"binary_data_size": 16},
        {"binary_data_size": 4},
    ]
    assert np.frombuffer(answer.binary, np.float32).tolist() == [3, 5, 7, 9, 10]


def test_one_output_in_binary_and_one_in_json(serving: Serving) -> None:
    running = serving(affine())
    wanted = [{"name": "total"}, {"name": "y", "parameters": {"binary_data": True}}]
    answer = running.infer("affine", {**JSON_REQUEST, "outputs": wanted})
    assert [output["name"] for output in answer.json["outputs"]] == ["total", "y"]
    assert answer.json["outputs"][0]["data"] == [10.0]
    assert np.frombuffer(answer.binary, np.float32).tolist() == [3, 5, 7, 9]


def test_raw_binary(serving: Serving) -> None:
    running = serving(affine())
    answer = running.ask("POST", INFER, FOUR, {"Inference-Header-Content-Length": "0"})
    assert np.frombuffer(answer.binary, np.float32).tolist() == [3, 5, 7, 9, 10]
    wrong = running.ask("POST", INFER, FOUR[:-1], {"Inference-Header-Content-Length": "0"})
    assert wrong.status == 400


def test_mixed_inputs_of_two_types(serving: Serving) -> None:
    running = serving(adder())
    message = {
        "inputs": [
            {"name": "b", "shape": [1, 2], "datatype": "INT64", "data": [[10, 20]]},
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        ]
    }
    answer = running.infer("adder", message, np.array([0.5, 1.5], np.float32).tobytes())
    assert answer.json["outputs"][0]["data"] == [10.5, 21.5]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64", "float16", "float64", "bytes"])
def test_every_kind_of_datatype_comes_back(serving: Serving, dtype: str) -> None:
    running = serving(echo(dtype))
    if dtype == "bytes":
        wire, payload = "BYTES", b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    else:
        array = np.array([[1, 0]], dtype)
        wire, payload = {"bool": "BOOL", "float16": "FP16", "float64": "FP64"}.get(dtype, dtype.upper()), array.tobytes()  # fmt: skip
    x = {"name": "x", "shape": [1, 2], "datatype": wire, "parameters": {"binary_data_size": len(payload)}}
    answer = running.infer(
        f"echo-{dtype}", {"inputs": [x], "parameters": {"binary_data_output": True}}, payload
    )
    assert answer.status == 200, answer
    assert answer.binary == payload


@pytest.mark.parametrize(
    ("status", "method", "path", "body"),
    [
        (404, "GET", "/", None),
        (404, "GET", "/v3", None),
        (404, "GET", "/v2/models", None),
        (404, "GET", "/v2/models/nope", None),
        (404, "GET", "/v2/models/nope/ready", None),
        (404, "POST", "/v2/models/nope/infer", b"{}"),
        (404, "POST", "/v2/models/..%2F..%2Fetc/infer", b"{}"),
        (404, "POST", "/v2/models/%00%ff/infer", b"{}"),
        (501, "POST", "/v2/models/affine/generate", b"{}"),
        (501, "GET", "/v2/logging", None),
        (501, "GET", "/v2/systemsharedmemory/status", None),
        (405, "GET", "/v2/repository/index", None),
        (404, "GET", "/v2/models/nope/config", None),
        (404, "GET", "/v2/models/affine/versions/9/stats", None),
        (403, "POST", "/v2/repository/models/affine/unload", b""),
        (400, "POST", "/v2/repository/index", b"["),
        (404, "GET", "/v2/models/affine/versions/x", None),
        (405, "GET", INFER, None),
        (405, "DELETE", "/v2/models/affine", None),
        (405, "POST", "/v2/health/live", b""),
        (405, "PUT", "/v2", b""),
        (400, "POST", INFER, b"{"),
        (400, "POST", INFER, b""),
    ],
)
def test_wrong_requests_leave_the_connection_usable(
    serving: Serving, status: int, method: str, path: str, body: bytes | None
) -> None:
    running = serving(affine())
    answer, after = exchange(
        running,
        request_bytes(path, body or b"", method=method) + request_bytes(INFER, JSON_BYTES),
        replies=2,
    )
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert isinstance(answer.error, str)
    if status == 405:
        assert answer.headers["Allow"]
    if (status, path) == (404, "/v3"):
        assert answer.error == "Not Found"
    assert after.status == 200


def test_a_post_without_a_length_is_refused(serving: Serving) -> None:
    running = serving(affine())
    bare = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: e\r\n\r\n"
    (answer,) = exchange(running, bare)
    assert answer.status == 411


def test_a_runtime_that_fails_is_a_500_and_the_daemon_goes_on(serving: Serving) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise RuntimeError("the accelerator has gone")

    broken = model_of("broken", affine().inputs, affine().outputs, fail)
    running = serving(broken, affine())
    for _ in range(2):
        answer = running.infer("broken", JSON_REQUEST)
        assert answer.status == 500
        assert answer.error.startswith("model 'broken': ")
        assert "the accelerator has gone" in answer.error
    assert running.infer("affine", JSON_REQUEST).status == 200


def test_body_over_the_limit_is_refused_before_it_is_sent(serving: Serving) -> None:
    running = serving(affine(), limits=Limits(body_bytes=10_000, linger_s=1.0))
    with running.connect() as stream:
        stream.sendall(request_bytes(INFER, b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 10001") + b"\r\n\r\n")  # fmt: skip
        answer = read_reply(stream, bytearray())
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
        assert answer.error == "the request body is larger than 10000 bytes"
        assert ends(stream)
    with running.connect() as stream:  # a client that sends everything before it reads gets the answer too
        stream.sendall(request_bytes(INFER, bytes(3_000_000)))
        assert read_reply(stream, bytearray()).status == 413
    assert running.ask("POST", INFER, bytes(10_000)).status == 400


def test_chunked_bodies(serving: Serving) -> None:
    running = serving(affine(), limits=Limits(body_bytes=10_000))
    head = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"
    half = len(JSON_BYTES) // 2
    first = b"%x\r\n%b\r\n" % (half, JSON_BYTES[:half])
    second = b"%X;a=b\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(JSON_BYTES) - half, JSON_BYTES[half:])
    answers = exchange(running, head + first, second + head + first + second, replies=2)
    assert [answer.status for answer in answers] == [200, 200]
    (answer,) = exchange(running, head + b"2711\r\n")
    assert answer.status == 413
    (answer,) = exchange(running, head + b"zz\r\n")
    assert answer.status == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate"])
def test_compressed_bodies(serving: Serving, encoding: str) -> None:
    running = serving(affine(), limits=Limits(body_bytes=100_000))

    def pack(data: bytes) -> bytes:
        if encoding == "gzip":
            half = len(data) // 2
            return gzip.compress(data[:half]) + gzip.compress(data[half:])
        packer = zlib.compressobj(wbits=15 if encoding == "deflate" else -15)
        return packer.compress(data) + packer.flush()

    def ask(body: bytes, **more: str) -> Answer:
        return running.ask("POST", INFER, body, {"Content-Encoding": encoding.rsplit(maxsplit=1)[-1], **more})

    assert ask(pack(JSON_BYTES)).json["outputs"][1]["data"] == [10.0]
    binary = json.dumps(BINARY_REQUEST).encode()
    got = ask(pack(binary + FOUR), **{"Inference-Header-Content-Length": str(len(binary))})
    assert np.frombuffer(got.binary, np.float32).tolist() == [3, 5, 7, 9, 10]
    bomb = ask(pack(b" " * 5_000_000))
    assert (bomb.status, bomb.error) == (413, "the decompressed request body is larger than 100000 bytes")
    assert ask(pack(b" " * 100_000)).status == 400
    cut = ask(pack(JSON_BYTES)[:-9])
    assert cut.status == 400
    assert "cut off" in cut.error
    assert ask(b"").status == 400
    if encoding != "raw deflate":
        assert ask(b"\x1f\x8b\x08not at all").status == 400


def test_an_unknown_encoding_is_refused(serving: Serving) -> None:
    running = serving(affine())
    assert running.ask("POST", INFER, JSON_BYTES, {"Content-Encoding": "br"}).status == 415


def test_expect_100_continue(serving: Serving) -> None:
    running = serving(affine())
    asks = request_bytes(INFER, JSON_BYTES, "Expect: 100-continue")
    head, body = asks[: -len(JSON_BYTES)], JSON_BYTES
    with running.connect() as stream:
        buffered = bytearray()
        for _ in range(2):
            stream.sendall(head)
            assert read_reply(stream, buffered).status == 100
            stream.sendall(body)
            assert read_reply(stream, buffered).status == 200
        stream.sendall(asks)  # a client that does not wait
        assert read_reply(stream, buffered).status == 200
        stream.sendall(head.replace(b"affine", b"absent"))
        refused = read_reply(stream, buffered)
        assert (refused.status, refused.headers["Connection"]) == (404, "close")
        assert ends(stream)


def test_pipelined_requests_are_answered_in_order(serving: Serving) -> None:
    running = serving(affine())
    for unix in (False, True):
        requests = [
            request_bytes(INFER, json.dumps({"id": str(index), **JSON_REQUEST}).encode())
            for index in range(200)
        ]
        answers = exchange(running, b"".join(requests), replies=200, unix=unix)
        assert [answer.json["id"] for answer in answers] == [str(index) for index in range(200)]


def test_pipelined_requests_through_the_worker_are_answered_in_order(serving: Serving) -> None:
    """Compressed bodies go to the worker, plain ones may run in the loop: the order stays."""
    running = serving(affine())
    requests = []
    for index in range(40):
        body = json.dumps({"id": str(index), **JSON_REQUEST}).encode()
        if index % 2:
            requests.append(request_bytes(INFER, gzip.compress(body), "Content-Encoding: gzip"))
        else:
            requests.append(request_bytes(INFER, body))
    answers = exchange(running, b"".join(requests), replies=40)
    assert [answer.json["id"] for answer in answers] == [str(index) for index in range(40)]


def test_keep_alive_and_close(serving: Serving) -> None:
    running = serving(affine())
    with running.connect() as stream:
        buffered = bytearray()
        for _ in range(3):
            stream.sendall(request_bytes(INFER, JSON_BYTES))
            assert "Connection" not in read_reply(stream, buffered).headers
        stream.sendall(request_bytes(INFER, JSON_BYTES, "Connection: close"))
        assert read_reply(stream, buffered).headers["Connection"] == "close"
        assert ends(stream)
    with running.connect() as stream:
        buffered = bytearray()
        old = b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        for _ in range(2):
            stream.sendall(old)
            assert read_reply(stream, buffered).headers["Connection"] == "keep-alive"
        stream.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert read_reply(stream, buffered).status == 200
        assert ends(stream)


def test_a_client_that_closes_its_sending_half_gets_its_answer(serving: Serving) -> None:
    running = serving(affine())
    for unix in (False, True):
        with running.connect(unix=unix) as stream:
            stream.sendall(request_bytes(INFER, JSON_BYTES))
            stream.shutdown(socket.SHUT_WR)
            assert read_reply(stream, bytearray()).status == 200
            assert ends(stream)


def test_a_truncated_body_is_answered_and_closed(serving: Serving) -> None:
    running = serving(affine())
    with running.connect() as stream:
        stream.sendall(request_bytes(INFER, JSON_BYTES)[:-5])
        stream.shutdown(socket.SHUT_WR)
        answer = read_reply(stream, bytearray())
        assert (answer.status, answer.error) == (400, "the request is cut off")
        assert ends(stream)
    with running.connect() as stream:  # one that just goes
        stream.sendall(request_bytes(INFER, JSON_BYTES)[:-5])
    assert running.infer("affine", JSON_REQUEST).status == 200


def test_a_head_that_is_too_long(serving: Serving) -> None:
    running = serving(affine())
    (answer,) = exchange(running, b"GET /v2 HTTP/1.1\r\nHost: e\r\nX: " + b"y" * 20_000)
    assert answer.status == 431


def test_slow_clients_are_given_up_on(serving: Serving) -> None:
    limits = Limits(head_s=0.2, body_s=0.2, slowest_bytes_per_s=1 << 20, idle_s=0.6, linger_s=0.2)
    running = serving(affine(), limits=limits, check_s=0.05)
    with running.connect() as head, running.connect() as body, running.connect() as idle:
        head.sendall(b"GET /v2 HT")
        body.sendall(request_bytes(INFER, JSON_BYTES)[:-5])
        answer = read_reply(head, bytearray())
        assert answer.status == 408
        assert "head" in answer.error
        answer = read_reply(body, bytearray())
        assert answer.status == 408
        assert "body" in answer.error
        assert ends(head)
        assert ends(body)
        assert ends(idle)


def test_large_tensors_in_and_out(serving: Serving) -> None:
    """602,112 bytes each way, over TCP and the Unix socket, pipelined."""
    running = serving(echo("float32", (-1, 3, 224, 224), name="echo"))
    array = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    x = {"name": "x", "shape": [1, 3, 224, 224], "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()
    request = request_bytes(
        "/v2/models/echo/infer", head + array.tobytes(), f"Inference-Header-Content-Length: {len(head)}"
    )
    for unix in (False, True):
        answers = exchange(running, request * 3, replies=3, unix=unix)
        assert [answer.binary == array.tobytes() for answer in answers] == [True] * 3


@pytest.mark.parametrize("fresh", [False, True], ids=["outputs used again", "outputs of their own"])
def test_a_reply_to_a_client_that_reads_late_is_complete(serving: Serving, fresh: bool) -> None:
    """The model's output memory is used again before the first client has read: it must not see that."""
    buffer = np.zeros((1, 2_000_000), np.float32)

    def fill(feed: Any) -> dict[str, Any]:
        target = np.empty_like(buffer) if fresh else buffer
        target[:] = feed["x"][0, 0]
        return {"y": target}

    specs = echo("float32", (-1, -1))
    reused = model_of("reused", specs.inputs, specs.outputs, fill)
    reused.session.fresh_outputs = fresh  # type: ignore[misc]
    running = serving(reused)

    def request(value: float) -> bytes:
        x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        message = {"inputs": [x], "parameters": {"binary_data_output": True}}
        return request_bytes("/v2/models/reused/infer", json.dumps(message).encode())

    with running.connect() as first, running.connect() as second:
        buffered = bytearray()
        for _ in range(3):  # until the model is known to be quick enough to run in the loop
            first.sendall(request(0.0))
            read_reply(first, buffered)
        first.sendall(request(1.0))
        time.sleep(0.3)
        second.sendall(request(2.0))
        assert set(np.frombuffer(read_reply(second, bytearray()).binary, np.float32).tolist()) == {2.0}
        assert set(np.frombuffer(read_reply(first, buffered).binary, np.float32).tolist()) == {1.0}


def test_both_sockets_serve_at_once(serving: Serving) -> None:
    running = serving(affine())
    for unix in (False, True):
        (answer,) = exchange(running, request_bytes(INFER, JSON_BYTES), unix=unix)
        assert answer.status == 200
    assert running.listening.socket is not None
    assert running.listening.socket.stat().st_mode & 0o777 == 0o660


def test_nonfinite_outputs(serving: Serving) -> None:
    running = serving(affine())
    answer = running.infer("affine", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NaN, Infinity, -Infinity, 1]}]}')  # fmt: skip
    assert b"[NaN,Infinity,-Infinity,3.0]" in answer.body
