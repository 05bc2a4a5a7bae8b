"""gRPC on real sockets, with grpcio's own client and the daemon's own messages."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from edgekit.daemon.grpc_schema import HEALTH, INFERENCE  # noqa: E402
from edgekit.daemon.inbound import Limits  # noqa: E402
from tests.daemon.grpc_peer import FOUR, Peer, Serving, numbers, raw, request, wait_until, written  # noqa: E402
from tests.daemon.serving import Flavour, Running, adder, affine, echo, model_of, slow  # noqa: E402
from tests.daemon.test_extensions import stats  # noqa: E402

pytestmark = pytest.mark.device


def test_state_and_metadata(tmp_path: Path, flavour: Flavour) -> None:
    with Running([affine(), adder()], flavour, tmp_path, grpc=("127.0.0.1", 0)) as running, closing(Peer(running)) as peer:  # fmt: skip
        assert peer.call("ServerLive").live
        assert peer.call("ServerReady").ready
        assert peer.call("ModelReady", name="affine", version="1").ready
        assert not peer.call("ModelReady", name="affine", version="2").ready
        assert not peer.call("ModelReady", name="absent").ready
        assert peer.call("ServerMetadata").name == "edgekit"
        metadata = peer.call("ModelMetadata", name="adder")
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
            ("a", "FP32", [-1, 2]),
            ("b", "INT64", [-1, 2]),
        ]
        config = peer.call("ModelConfig", name="affine").config
        assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (
            1024,
            11,
            [4],
        )
        assert peer.refused("ModelMetadata", name="absent") == (
            "NOT_FOUND",
            "model 'absent' is not found: this server has adder, affine",
        )


def test_http_and_grpc_are_one_server(peer: Serving) -> None:
    """The same lane, statistics, monitor and metrics."""
    both = peer(affine())
    for _ in range(3):
        response = both.infer(raw(FOUR))
    assert numbers(response) == [3, 5, 7, 9]
    assert numbers(response, 1) == [10]
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
    assert both.running.ask("POST", "/v2/models/affine/infer", body).status == 200
    (seen,) = stats(both.running)
    assert seen["execution_count"] == 4
    (same,) = both.call("ModelStatistics", name="affine").model_stats
    assert (same.execution_count, same.inference_stats.queue.count) == (4, 4)
    monitor = both.running.daemon.catalog.find("affine").model.monitor
    assert monitor is not None
    assert monitor.totals().calls == 4
    text = both.running.ask("GET", "/metrics").body.decode()
    assert 'edgekit_grpc_requests_total{model="affine",version="1",code="OK"} 3' in text
    assert 'edgekit_http_requests_total{model="affine",version="1",code="200"} 1' in text


def test_the_id_is_echoed_and_outputs_come_as_asked(peer: Serving) -> None:
    message = raw(FOUR)
    message.id = "é7"
    message.outputs.add(name="total")
    message.outputs.add(name="y")
    response = peer(affine(version=3)).infer(message)
    assert (response.id, response.model_name, response.model_version) == ("é7", "affine", "3")
    assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs] == [
        ("total", "FP32", [1]),
        ("y", "FP32", [1, 4]),
    ]
    assert numbers(response) == [10]


@pytest.mark.parametrize(
    ("dtype", "wire", "field", "values"),
    [
        ("bool", "BOOL", "bool_contents", [True, False]),
        ("int8", "INT8", "int_contents", [-128, 127]),
        ("int16", "INT16", "int_contents", [-5, 7]),
        ("int32", "INT32", "int_contents", [-(2**31), 7]),
        ("int64", "INT64", "int64_contents", [-(2**63), 7]),
        ("uint8", "UINT8", "uint_contents", [0, 255]),
        ("uint32", "UINT32", "uint_contents", [0, 2**32 - 1]),
        ("uint64", "UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("float32", "FP32", "fp32_contents", [1.5, float("inf")]),
        ("float64", "FP64", "fp64_contents", [1.5, -1e300]),
        ("float16", "FP16", "", [1.5, -2.0]),
    ],
)
def test_every_datatype(peer: Serving, dtype: str, wire: str, field: str, values: list[Any]) -> None:
    both = peer(echo(dtype))
    array = np.array([values], dtype)
    assert both.infer(raw(array, wire, f"echo-{dtype}")).raw_output_contents[0] == array.tobytes()
    if field:
        message = written(field, values, wire, f"echo-{dtype}")
        assert both.infer(message).raw_output_contents[0] == array.tobytes()
    else:
        message = written("fp32_contents", values, wire, f"echo-{dtype}")
        assert both.refuses(message)[0] == "INVALID_ARGUMENT"


def test_strings(peer: Serving) -> None:
    both = peer(echo("bytes"))
    packed = b"\x02\x00\x00\x00ab\x00\x00\x00\x00"
    message = written("bytes_contents", [b"ab", b""], "BYTES", "echo-bytes")
    assert both.infer(message).raw_output_contents[0] == packed
    message = request("echo-bytes")
    message.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    message.raw_input_contents.append(packed)
    assert both.infer(message).raw_output_contents[0] == packed
    message.raw_input_contents[0] = packed[:-1]
    assert both.refuses(message) == ("INVALID_ARGUMENT", "input 'x': the binary data ends within a length")


def test_large_messages_go_both_ways(peer: Serving) -> None:
    both = peer(echo("float32"))
    array = np.random.default_rng(0).random((1, 5_000_000), np.float32)  # 20 MB: grpcio's own limit is 4 MiB
    assert both.infer(raw(array, model="echo-float32")).raw_output_contents[0] == array.tobytes()


def test_a_message_over_the_limit_is_refused(peer: Serving) -> None:
    both = peer(echo("float32"), limits=Limits(body_bytes=1 << 20))
    array = np.zeros((1, 600_000), np.float32)
    assert both.refuses(raw(array, model="echo-float32"))[0] == "RESOURCE_EXHAUSTED"


def test_what_is_compressed_does_not_grow_beyond_the_limit(peer: Serving) -> None:
    both = peer(echo("float32"), limits=Limits(body_bytes=1 << 20))
    message = raw(np.zeros((1, 20_000_000), np.float32), model="echo-float32")
    with pytest.raises(grpc.RpcError) as refused:
        both.method("ModelInfer")(message, timeout=20, compression=grpc.Compression.Gzip)
    assert refused.value.code().name == "RESOURCE_EXHAUSTED"


def without(message: Any, field: str) -> Any:
    message.ClearField(field)
    return message


def changed(message: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(message.inputs[0], name, value)
    return message


def reshaped(shape: list[int]) -> Any:
    message = raw(FOUR)
    message.inputs[0].shape[:] = shape
    return message


def doubled() -> Any:
    message = raw(FOUR)
    message.raw_input_contents.append(b"")
    return message


def mixed() -> Any:
    message = raw(FOUR)
    message.inputs[0].contents.fp32_contents.append(1)
    return message


def wanting(name: str, **parameters: Any) -> Any:
    message = raw(FOUR)
    output = message.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value
    return message


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (request("absent"), "NOT_FOUND", "'absent' is not found"),
        (request("affine", "9"), "NOT_FOUND", "no version 9"),
        (request("affine", "x"), "NOT_FOUND", "no version x"),
        (request(), "INVALID_ARGUMENT", "'x' is missing"),
        (without(raw(FOUR), "raw_input_contents"), "INVALID_ARGUMENT", "got 0 elements"),
        (changed(raw(FOUR), name="z"), "INVALID_ARGUMENT", "unknown input 'z'"),
        (changed(raw(FOUR), datatype="INT32"), "INVALID_ARGUMENT", "wrong datatype"),
        (reshaped([1, 3]), "INVALID_ARGUMENT", "wrong shape"),
        (reshaped([-1, 4]), "INVALID_ARGUMENT", "no such shape"),
        (reshaped([0, 4]), "INVALID_ARGUMENT", "no such shape"),
        (reshaped([2**62, 4]), "INVALID_ARGUMENT", "does not fit the shape"),
        (raw(FOUR[:, :3]), "INVALID_ARGUMENT", "wrong shape"),
        (doubled(), "INVALID_ARGUMENT", "has 2 elements: expected 1"),
        (mixed(), "INVALID_ARGUMENT", "next to raw_input_contents"),
        (written("int_contents", [1, 2, 3, 4], "FP32", "affine"), "INVALID_ARGUMENT", "expected fp32_contents"),
        (written("fp32_contents", [1, 2, 3], "FP32", "affine", [1, 4]), "INVALID_ARGUMENT", "got 3 elements"),
        (wanting("q"), "INVALID_ARGUMENT", "unknown output 'q'"),
        (wanting("y", classification=0), "INVALID_ARGUMENT", "no classes"),
        (wanting("y", shared_memory_region=1), "INVALID_ARGUMENT", "shared memory is not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused(peer: Serving, message: Any, code: str, says: str) -> None:
    both = peer(affine())
    got = both.refuses(message)
    assert got[0] == code
    assert says in got[1]
    assert numbers(both.infer(raw(FOUR))) == [3, 5, 7, 9]


def test_values_out_of_range_are_refused(peer: Serving) -> None:
    both = peer(echo("int8"))
    assert "does not fit into INT8" in both.refuses(written("int_contents", [128], "INT8", "echo-int8"))[1]


def test_bytes_that_are_no_message_are_refused(peer: Serving) -> None:
    both = peer(affine())
    for path in (f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelConfig", f"/{HEALTH}/Check"):
        with pytest.raises(grpc.RpcError) as refused:
            both.channel.unary_unary(path)(b"\xff\xff\xff", timeout=20)
        assert refused.value.code().name == "INVALID_ARGUMENT"
    with pytest.raises(grpc.RpcError) as refused:
        both.channel.unary_unary(f"/{INFERENCE}/Nope")(b"", timeout=20)
    assert refused.value.code().name == "UNIMPLEMENTED"
    with pytest.raises(grpc.RpcError) as refused:
        both.channel.stream_unary(f"/{INFERENCE}/ServerLive")(iter(()), timeout=20)
    assert refused.value.code().name == "INVALID_ARGUMENT"


def test_a_runtime_that_fails_is_internal(peer: Serving) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise RuntimeError("the accelerator has gone")

    both = peer(model_of("broken", affine().inputs, affine().outputs, fail))
    code, details = both.refuses(raw(FOUR, model="broken"))
    assert code == "INTERNAL"
    assert "the accelerator has gone" in details


def test_a_full_queue_is_unavailable_and_a_client_that_goes_leaves_its_place(peer: Serving) -> None:
    entered, gate = threading.Event(), threading.Event()

    def wait(feed: Any) -> dict[str, Any]:
        entered.set()
        gate.wait(20)
        return {"y": feed["x"]}

    specs = slow(0.0)
    both = peer(model_of("gated", specs.inputs, specs.outputs, wait), queue_limit=2)
    lane = both.running.daemon.catalog.find("gated")
    one = raw(np.ones((1, 1), np.float32), model="gated")
    first = both.method("ModelInfer").future(one)
    assert entered.wait(20)
    second = both.method("ModelInfer").future(one)
    wait_until(lambda: lane.waiting == 2)
    code, details = both.refuses(one)
    assert (code, details) == ("UNAVAILABLE", "the queue of model 'gated' is full: 2 requests are waiting")
    assert both.call("ServerLive").live  # what waits does not hold up the others
    second.cancel()
    wait_until(lambda: lane.answered.get("CANCELLED") == 1)
    gate.set()
    assert numbers(first.result(20)) == [1]
    wait_until(lambda: lane.waiting == 0)
    assert (lane.model.monitor.totals().calls, lane.answered.get("OK")) == (1, 1)  # type: ignore[union-attr]


def test_all_calls_share_one_room(peer: Serving) -> None:
    limits = Limits(body_bytes=1 << 20, pending_bytes=1)
    both = peer(slow(0.5), echo("float32"), limits=limits)
    room = limits.room()
    assert room.limit == 2 << 20
    wide = raw(np.zeros((300_000, 1), np.float32), model="slow")
    waiting = [both.method("ModelInfer").future(wide) for _ in range(3)]
    outcomes = [future.exception(20) for future in waiting]
    codes = sorted("OK" if error is None else error.code().name for error in outcomes)
    assert codes in (["OK", "UNAVAILABLE", "UNAVAILABLE"], ["OK", "OK", "UNAVAILABLE"])
