"""Drives a daemon with the unmodified tritonclient over gRPC; run by the clients environment's own interpreter.

Usage: python triton_grpc.py HOST:PORT FOLDER. The daemon serves `affine` (y = 2x + 1 and total for float32 x [N, 4]),
`adder` (float64 total = a + b for float32 a and int64 b), `echo-bytes`, `echo-bool`, `echo-float16`, `echo-float32` and
`slow`; shared memory is on, and clients may load and unload. FOLDER holds the package `edgekit`, whose own messages
must live in one process with tritonclient's. It exits with a traceback at the first thing that is not as it should be.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import uuid
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

Array = np.ndarray[Any, Any]
FOUR = np.array([[1, 2, 3, 4]], np.float32)


def given(name: str, datatype: str, array: Array) -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def asks_state(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("absent")
    assert client.get_server_metadata(as_json=True)["name"] == "edgekit"
    model = client.get_model_metadata("adder")
    assert [tensor.datatype for tensor in model.inputs] == ["FP32", "INT64"]
    assert list(model.outputs[0].shape) == [-1, 2]
    config = client.get_model_config("affine", as_json=True)["config"]
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert config["backend"] == "onnxruntime"
    assert config["instance_group"][0]["count"] == 1
    statistics = client.get_inference_statistics("affine").model_stats[0]
    assert statistics.inference_stats.success.count == statistics.execution_count
    assert len(client.get_inference_statistics().model_stats) == 7


def check(result: Any, request_id: str = "") -> None:
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("affine", "1", request_id)
    assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]
    assert result.as_numpy("total").tolist() == [10]
    assert result.as_numpy("y").dtype == np.float32


def infers_in_every_form(client: Any) -> None:
    x = given("x", "FP32", FOUR)
    check(client.infer("affine", [x]))
    check(client.infer("affine", [x], request_id="é7", model_version="1"), "é7")
    outputs = [triton.InferRequestedOutput("total"), triton.InferRequestedOutput("y")]
    check(client.infer("affine", [x], outputs=outputs))
    for how in ("gzip", "deflate"):
        check(client.infer("affine", [x], compression_algorithm=how))
    check(
        client.infer(
            "affine", [x], priority=1, timeout=5_000_000, parameters={"mine": "x"}, client_timeout=20
        )
    )
    only = client.infer("affine", [x], outputs=[triton.InferRequestedOutput("total")])
    assert only.as_numpy("y") is None
    assert only.as_numpy("total").tolist() == [10]


def infers_other_datatypes(client: Any) -> None:
    a = given("a", "FP32", np.array([[0.5, 1.5]], np.float32))
    b = given("b", "INT64", np.array([[2**40, -4]], np.int64))
    total = client.infer("adder", [a, b]).as_numpy("total")
    assert total.dtype == np.float64
    assert total.tolist() == [[0.5 + 2**40, -2.5]]
    words = np.array([["a", "ü", ""]], object)
    got = client.infer("echo-bytes", [given("x", "BYTES", words)]).as_numpy("y")
    assert [word.decode() for word in got.reshape(-1)] == ["a", "ü", ""]
    flags = np.array([[True, False]])
    assert client.infer("echo-bool", [given("x", "BOOL", flags)]).as_numpy("y").tolist() == flags.tolist()
    halves = np.array([[1.5, -2.0]], np.float16)
    got = client.infer("echo-float16", [given("x", "FP16", halves)]).as_numpy("y")
    assert (got.dtype, got.tolist()) == (np.float16, halves.tolist())
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    got = client.infer("affine", [given("x", "FP32", odd)]).as_numpy("y")
    np.testing.assert_array_equal(got, [[np.nan, np.inf, -np.inf, 3]])
    image = np.random.default_rng(0).random((1, 3_000_000), np.float32)  # over grpcio's own limit of 4 MiB
    got = client.infer("echo-float32", [given("x", "FP32", image)]).as_numpy("y")
    np.testing.assert_array_equal(got, image)


def infers_several_at_once(client: Any) -> None:
    one = np.ones((1, 1), np.float32)
    answers: queue.Queue[Any] = queue.Queue()
    for index in range(8):
        client.async_infer(
            "slow",
            [given("x", "FP32", one * index)],
            callback=lambda result, error: answers.put(error or result.as_numpy("y").item()),
        )
    assert sorted(answers.get(timeout=20) for _ in range(8)) == list(range(8))


def streams(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    x = given("x", "FP32", FOUR)
    for index in range(5):
        client.async_stream_infer("affine", [x], request_id=str(index))
    client.async_stream_infer("absent", [x], request_id="5")
    client.async_stream_infer("affine", [x], request_id="6", enable_empty_final_response=True)
    for index in range(7):
        result, error = answers.get(timeout=20)
        if index == 5:
            assert "'absent' is not found" in error.message(), error
        else:
            assert error is None, error
            check(result, str(index))
    client.stop_stream()


def shares_memory(client: Any) -> None:
    key = f"/edgekit-{uuid.uuid4().hex}"
    region = shm.create_shared_memory_region("there", key, 64)
    try:
        shm.set_shared_memory_region(region, [FOUR])
        client.register_system_shared_memory("there", key, 64)
        assert list(client.get_system_shared_memory_status().regions) == ["there"]
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_shared_memory("there", 16)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("there", 16, 32)
        result = client.infer("affine", [x], outputs=[y, triton.InferRequestedOutput("total")])
        assert result.as_numpy("total").tolist() == [10]
        assert result.get_output("y").datatype == "FP32"
        assert shm.get_contents_as_numpy(region, np.float32, [1, 4], 32).tolist() == [[3, 5, 7, 9]]
        client.unregister_system_shared_memory("there")
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        assert not client.get_cuda_shared_memory_status().regions
    finally:
        shm.destroy_shared_memory_region(region)


def loads_and_unloads(client: Any) -> None:
    client.unload_model("adder")
    assert not client.is_model_ready("adder")
    states = {one.name: one.state for one in client.get_model_repository_index().models}
    assert states["adder"] == "UNAVAILABLE"
    assert states["affine"] == "READY"
    client.load_model("adder")
    assert client.is_model_ready("adder")
    assert refusal(client.load_model, "absent") == "StatusCode.NOT_FOUND"
    assert refusal(client.load_model, "adder", config="{}") == "StatusCode.INVALID_ARGUMENT"


def refusal(method: Any, *args: Any, **kwargs: Any) -> str:
    try:
        method(*args, **kwargs)
    except InferenceServerException as error:
        return str(error.status())
    raise AssertionError(f"{method} answered")


def reads_errors(client: Any) -> None:
    x = given("x", "FP32", FOUR)
    invalid = "StatusCode.INVALID_ARGUMENT"
    assert refusal(client.infer, "absent", [x]) == "StatusCode.NOT_FOUND"
    assert refusal(client.infer, "affine", [x], model_version="7") == "StatusCode.NOT_FOUND"
    assert refusal(client.infer, "affine", [given("z", "FP32", FOUR)]) == invalid
    assert refusal(client.infer, "affine", [given("x", "INT32", FOUR.astype(np.int32))]) == invalid
    assert refusal(client.infer, "affine", [given("x", "FP32", FOUR[:, :3])]) == invalid
    assert refusal(client.infer, "affine", [x], outputs=[triton.InferRequestedOutput("q")]) == invalid
    assert refusal(client.get_trace_settings) == "StatusCode.UNIMPLEMENTED"
    check(client.infer("affine", [x]))


async def infers_asynchronously(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        x = given("x", "FP32", FOUR)
        for result in await asyncio.gather(*(client.infer("affine", [x]) for _ in range(50))):
            check(result)

        async def requests() -> Any:
            for index in range(3):
                yield {"model_name": "affine", "inputs": [x], "request_id": str(index)}

        index = 0
        async for result, error in client.stream_infer(requests()):
            assert error is None
            check(result, str(index))
            index += 1
        assert index == 3


def shares_a_process(folder: str) -> None:
    """The daemon's messages next to tritonclient's own: no duplicate, and the same field by field."""
    sys.path.append(folder)
    from tritonclient.grpc import model_config_pb2, service_pb2

    from edgekit.daemon.grpc_schema import messages

    theirs = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    compared = 0
    for name, ours in messages().items():
        package, _, short = name.rpartition(".")
        if package == "inference":
            compared += same_fields(ours.DESCRIPTOR, theirs[short])
    assert compared > 150, compared
    whole = set(service_pb2.DESCRIPTOR.message_types_by_name)
    assert {f"inference.{name}" for name in whole} <= messages().keys()


def same_fields(ours: Any, theirs: Any) -> int:
    complete = ours.name.endswith(("Request", "Response")) and ours.name != "ModelConfig"
    if complete:
        assert len(ours.fields) == len(theirs.fields), ours.full_name
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert describe(field) == describe(other), field.full_name
        if field.enum_type:
            assert values(field.enum_type) == values(other.enum_type), field.full_name
    nested = sum(same_fields(one, theirs.nested_types_by_name[one.name]) for one in ours.nested_types)
    return len(ours.fields) + nested


def describe(field: Any) -> tuple[object, ...]:
    of = field.message_type or field.enum_type
    choice = field.containing_oneof.name if field.containing_oneof else ""
    return field.number, field.type, field.label, of.full_name if of else "", choice


def values(enum: Any) -> list[tuple[str, int]]:
    return [(value.name, value.number) for value in enum.values]


def main(address: str, folder: str) -> None:
    """Run everything."""
    client = triton.InferenceServerClient(address)
    try:
        asks_state(client)
        infers_in_every_form(client)
        infers_other_datatypes(client)
        infers_several_at_once(client)
        streams(client)
        shares_memory(client)
        loads_and_unloads(client)
        reads_errors(client)
    finally:
        client.close()
    asyncio.run(infers_asynchronously(address))
    shares_a_process(folder)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
