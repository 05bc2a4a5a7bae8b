"""gRPC beside the plain calls: streams, repository, shared memory, health, and how it begins and ends."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from edgekit.daemon import grpc_server  # noqa: E402
from edgekit.daemon.grpc_schema import HEALTH, INFERENCE, METHODS, message_class, messages  # noqa: E402
from edgekit.daemon.inbound import Limits  # noqa: E402
from edgekit.errors import MachineError, UnavailableError  # noqa: E402
from tests.daemon.grpc_peer import FOUR, Serving, numbers, place, raw, request, wait_until  # noqa: E402
from tests.daemon.serving import PLAIN, Running, adder, affine, model_of, slow  # noqa: E402
from tests.daemon.test_extensions import Shelf  # noqa: E402
from tests.daemon.test_sharedmemory import Segment  # noqa: E402

pytestmark = pytest.mark.device


def test_streams_answer_in_order_and_errors_in_band(peer: Serving) -> None:
    both = peer(affine(), slow(0.01))
    stream = both.channel.stream_stream(
        f"/{INFERENCE}/ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_class("inference.ModelStreamInferResponse").FromString,
    )
    sent = [raw(FOUR), request("absent"), raw(np.ones((1, 1), np.float32), model="slow"), raw(FOUR * 2)]
    for index, message in enumerate(sent):
        message.id = str(index)
    got = list(stream(iter(sent), timeout=20))
    assert [one.infer_response.model_name for one in got] == ["affine", "", "slow", "affine"]
    assert [one.infer_response.id for one in got] == ["0", "1", "2", "3"]
    assert [bool(one.error_message) for one in got] == [False, True, False, False]
    assert "'absent' is not found" in got[1].error_message
    assert numbers(got[3].infer_response) == [5, 9, 13, 17]
    strict = stream(iter(sent), timeout=20, metadata=(("triton_grpc_error", "true"),))
    assert next(strict).infer_response.model_name == "affine"
    with pytest.raises(grpc.RpcError) as refused:
        next(strict)
    assert refused.value.code().name == "NOT_FOUND"
    assert list(stream(iter(()), timeout=20)) == []


def test_repository(peer: Serving) -> None:
    shelf = Shelf()
    shelf.put(affine())
    both = peer(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.put(adder())
    index = both.call("RepositoryIndex").models
    assert [(one.name, one.state, one.reason) for one in index] == [
        ("adder", "UNAVAILABLE", "not loaded"),
        ("affine", "READY", ""),
    ]
    assert [one.name for one in both.call("RepositoryIndex", ready=True).models] == ["affine"]
    both.call("RepositoryModelLoad", model_name="adder")
    assert both.call("ModelReady", name="adder").ready
    both.call("RepositoryModelUnload", model_name="adder")
    assert not both.call("ModelReady", name="adder").ready
    assert both.refused("RepositoryModelLoad", model_name="nope")[0] == "NOT_FOUND"
    assert both.refused("RepositoryModelLoad", model_name="")[0] == "INVALID_ARGUMENT"
    assert both.refused("RepositoryModelLoad", model_name="affine", parameters={"config": {}})[0] == (
        "INVALID_ARGUMENT"
    )


def test_clients_may_not_load_and_unload_unless_they_may(peer: Serving) -> None:
    assert peer(affine()).refused("RepositoryModelUnload", model_name="affine")[0] == "PERMISSION_DENIED"


def test_shared_memory(peer: Serving) -> None:
    both = peer(affine(), shared_memory=True)
    shared = Segment(FOUR.tobytes() + bytes(64))
    try:
        both.call("SystemSharedMemoryRegister", name="r", key=shared.key, byte_size=80)
        assert both.refused("SystemSharedMemoryRegister", name="r", key=shared.key, byte_size=80)[0] == "ALREADY_EXISTS"  # fmt: skip
        regions = both.call("SystemSharedMemoryStatus").regions
        assert (list(regions), regions["r"].byte_size) == (["r"], 80)
        assert both.refused("SystemSharedMemoryStatus", name="q")[0] == "NOT_FOUND"
        message = request()
        tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        place(tensor.parameters, "r", 16)
        output = message.outputs.add(name="y")
        place(output.parameters, "r", 16, 32)
        message.outputs.add(name="total")
        response = both.infer(message)
        assert numbers(response, 1) == [10]
        assert response.raw_output_contents[0] == b""
        assert np.frombuffer(shared.path.read_bytes(), np.float32, 4, 32).tolist() == [3, 5, 7, 9]
        place(tensor.parameters, "r", -1)
        assert both.refuses(message)[0] == "INVALID_ARGUMENT"
        place(tensor.parameters, "q", 16)
        assert both.refuses(message)[0] == "NOT_FOUND"
        both.call("SystemSharedMemoryUnregister")
        assert not both.call("SystemSharedMemoryStatus").regions
        both.call("CudaSharedMemoryUnregister")
        assert not both.call("CudaSharedMemoryStatus").regions
    finally:
        shared.path.unlink()


def test_what_is_not_spoken_says_so(peer: Serving) -> None:
    both = peer(affine())
    for method in ("TraceSetting", "LogSettings", "CudaSharedMemoryRegister", "SystemSharedMemoryStatus"):
        assert both.refused(method)[0] == "UNIMPLEMENTED"


def test_health(peer: Serving) -> None:
    both = peer(affine())
    kinds = [message_class(f"grpc.health.v1.HealthCheck{end}") for end in ("Request", "Response")]
    check = both.channel.unary_unary(f"/{HEALTH}/Check", kinds[0].SerializeToString, kinds[1].FromString)
    assert check(kinds[0](), timeout=20).status == 1
    assert check(kinds[0](service=INFERENCE), timeout=20).status == 1
    with pytest.raises(grpc.RpcError) as refused:
        check(kinds[0](service="nope"), timeout=20)
    assert refused.value.code().name == "NOT_FOUND"
    watch = both.channel.unary_stream(f"/{HEALTH}/Watch", kinds[0].SerializeToString, kinds[1].FromString)
    watching = watch(kinds[0](), timeout=20)
    assert next(watching).status == 1
    both.running.daemon.catalog.draining = True
    assert next(watching).status == 2
    unknown = watch(kinds[0](service="nope"), timeout=20)
    assert next(unknown).status == 3
    unknown.cancel()


def test_what_is_under_way_is_finished_at_the_end(peer: Serving) -> None:
    entered, gate = threading.Event(), threading.Event()

    def wait(feed: Any) -> dict[str, Any]:
        entered.set()
        gate.wait(20)
        return {"y": feed["x"]}

    specs = slow(0.0)
    both = peer(model_of("gated", specs.inputs, specs.outputs, wait), linger_s=0.1)
    under_way = both.method("ModelInfer").future(raw(np.ones((1, 1), np.float32), model="gated"))
    assert entered.wait(20)
    stopping = threading.Thread(target=both.running.stop)
    stopping.start()
    wait_until(lambda: both.running.daemon.catalog.draining)
    time.sleep(0.3)
    gate.set()
    assert numbers(under_way.result(20)) == [1]
    stopping.join()
    with pytest.raises(grpc.RpcError):
        both.call("ServerLive")


def test_a_client_that_never_sends_its_message_is_given_up(peer: Serving) -> None:
    """It would hold one of the few places for calls for ever."""
    both = peer(affine(), limits=Limits(body_bytes=1 << 16, body_s=0.3, slowest_bytes_per_s=1 << 20))
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield from ()

    silent = both.channel.stream_unary(f"/{INFERENCE}/ServerLive").future(nothing(), timeout=20)
    error = silent.exception(20)
    never.set()
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert error.details() == "the call's message took too long"
    assert both.call("ServerLive").live


def test_calls_are_bounded(peer: Serving) -> None:
    both = peer(affine())
    stream = both.channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield from ()

    open_ones = [stream(nothing()) for _ in range(64)]
    wait_until(lambda: both.outcome("ServerLive") == "RESOURCE_EXHAUSTED")
    for one in open_ones:
        one.cancel()
    never.set()
    wait_until(lambda: both.outcome("ServerLive") == "OK")


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        running = Running([affine()], PLAIN, tmp_path, grpc=other.getsockname()[:2])
        with pytest.raises(MachineError, match=r"cannot listen on 127\.0\.0\.1:.*--grpc"):
            running.start()


def test_two_daemons_cannot_share_a_port(peer: Serving, tmp_path: Path) -> None:
    both = peer(affine())
    second = Running([affine()], PLAIN, tmp_path / "2", grpc=both.running.listening.grpc)
    with pytest.raises(MachineError, match="cannot listen"):
        second.start()


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)
    with pytest.raises(UnavailableError, match=r"pip install 'edgekit-deploy\[grpc\]'") as missing:
        grpc_server.check_installed()
    assert missing.value.exit_code == 5


def test_the_messages_live_in_a_pool_of_their_own() -> None:
    from google.protobuf import descriptor_pool

    assert {f"inference.{name}Request" for name in METHODS} <= messages().keys()
    for name in messages():
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindMessageTypeByName(name)


def test_an_asyncio_client_may_have_many_calls_at_once(peer: Serving) -> None:
    both = peer(affine())

    async def many() -> list[Any]:
        async with grpc.aio.insecure_channel(both.address) as channel:
            method = channel.unary_unary(
                f"/{INFERENCE}/ModelInfer",
                response_deserializer=message_class("inference.ModelInferResponse").FromString,
            )
            data = raw(FOUR).SerializeToString()
            return await asyncio.gather(*(method(data, timeout=20) for _ in range(40)))

    assert [numbers(one) for one in asyncio.run(many())] == [[3, 5, 7, 9]] * 40
