"""Drives a daemon with the unmodified tritonclient; run by the clients environment's own interpreter.

Usage: python triton_http.py HOST:PORT. The daemon serves `affine` (y = 2x + 1 and total for float32 x [N, 4]),
`adder` (float64 total = a + b for float32 a and int64 b), `echo-bytes`, `echo-bool`, `echo-float16` and `slow`;
shared memory is on, and clients may load and unload.
It needs nothing of EdgeKit, and exits with a traceback at the first thing that is not as it should be.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

Array = np.ndarray[Any, Any]
FOUR = np.array([[1, 2, 3, 4]], np.float32)


def given(name: str, datatype: str, array: Array, *, binary: bool) -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def asks_state(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("absent")
    assert not client.is_model_ready("affine", "7")
    server = client.get_server_metadata()
    assert server["name"] == "edgekit"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("adder")
    assert [tensor["datatype"] for tensor in model["inputs"]] == ["FP32", "INT64"]
    assert model["outputs"] == [{"name": "total", "datatype": "FP64", "shape": [-1, 2]}]
    config = client.get_model_config("affine")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], "format": "FORMAT_NONE"}]
    (statistics,) = client.get_inference_statistics("affine", "1")["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == statistics["execution_count"]
    assert len(client.get_inference_statistics()["model_stats"]) == 6


def infers_in_every_form(client: Any) -> None:
    for binary_in in (True, False):
        x = given("x", "FP32", FOUR, binary=binary_in)
        check(client.infer("affine", [x]))
        check(client.infer("affine", [x], request_id="é7", model_version="1"), "é7")
        for binary_out in (True, False):
            outputs = [
                triton.InferRequestedOutput("total", binary_data=binary_out),
                triton.InferRequestedOutput("y", binary_data=not binary_out),
            ]
            check(client.infer("affine", [x], outputs=outputs))
        for how in ("gzip", "deflate"):
            check(
                client.infer(
                    "affine", [x], request_compression_algorithm=how, response_compression_algorithm=how
                )
            )
        check(client.infer("affine", [x], priority=1, timeout=5_000_000, parameters={"mine": "x"}))


def check(result: Any, request_id: str | None = None) -> None:
    response = result.get_response()
    assert response["model_name"] == "affine"
    assert response["model_version"] == "1"
    assert response.get("id") == request_id
    assert result.as_numpy("y").tolist() == [[3, 5, 7, 9]]
    assert result.as_numpy("total").tolist() == [10]
    assert result.as_numpy("y").dtype == np.float32


def infers_other_datatypes(client: Any) -> None:
    for binary in (True, False):
        a = given("a", "FP32", np.array([[0.5, 1.5]], np.float32), binary=True)
        b = given("b", "INT64", np.array([[2**40, -4]], np.int64), binary=binary)
        total = client.infer("adder", [a, b]).as_numpy("total")
        assert total.dtype == np.float64
        assert total.tolist() == [[0.5 + 2**40, -2.5]]
        words = np.array([["a", "ü", ""]], object)
        got = client.infer("echo-bytes", [given("x", "BYTES", words, binary=binary)]).as_numpy("y")
        assert [word.decode() for word in got.reshape(-1)] == ["a", "ü", ""]
        flags = np.array([[True, False]])
        got = client.infer("echo-bool", [given("x", "BOOL", flags, binary=binary)]).as_numpy("y")
        assert got.tolist() == flags.tolist()
    halves = np.array([[1.5, -2.0]], np.float16)
    got = client.infer("echo-float16", [given("x", "FP16", halves, binary=True)]).as_numpy("y")
    assert got.dtype == np.float16
    assert got.tolist() == halves.tolist()


def infers_nan(client: Any) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    outputs = [triton.InferRequestedOutput("y", binary_data=False)]
    for binary in (True, False):
        result = client.infer("affine", [given("x", "FP32", x, binary=binary)], outputs=outputs)
        np.testing.assert_array_equal(result.as_numpy("y"), [[np.nan, np.inf, -np.inf, 3]])


def infers_several_at_once(client: Any) -> None:
    one = np.ones((1, 1), np.float32)
    asked = [client.async_infer("slow", [given("x", "FP32", one * index, binary=True)]) for index in range(8)]
    assert [answer.get_result().as_numpy("y").item() for answer in asked] == list(range(8))


def shares_memory(client: Any) -> None:
    key = f"/edgekit-{uuid.uuid4().hex}"
    region = shm.create_shared_memory_region("there", key, 64)
    try:
        shm.set_shared_memory_region(region, [FOUR])
        client.register_system_shared_memory("there", key, 64)
        assert [one["name"] for one in client.get_system_shared_memory_status()] == ["there"]
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_shared_memory("there", 16)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("there", 16, 32)
        result = client.infer("affine", [x], outputs=[y, triton.InferRequestedOutput("total")])
        assert result.as_numpy("total").tolist() == [10]
        assert shm.get_contents_as_numpy(region, np.float32, [1, 4], 32).tolist() == [[3, 5, 7, 9]]
        client.unregister_system_shared_memory("there")
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
    finally:
        shm.destroy_shared_memory_region(region)


def loads_and_unloads(client: Any) -> None:
    client.unload_model("adder")
    assert not client.is_model_ready("adder")
    states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
    assert (states["adder"], states["affine"]) == ("UNAVAILABLE", "READY")
    client.load_model("adder")
    assert client.is_model_ready("adder")


def reads_errors(client: Any) -> None:
    x = given("x", "FP32", FOUR, binary=True)
    refused(client, "absent", [x], "404", "'absent' is not found")
    refused(client, "affine", [given("z", "FP32", FOUR, binary=True)], "400", "unknown input 'z'")
    refused(
        client, "affine", [given("x", "INT32", FOUR.astype(np.int32), binary=False)], "400", "wrong datatype"
    )
    refused(client, "affine", [given("x", "FP32", FOUR[:, :3], binary=True)], "400", "wrong shape")
    refused(client, "affine", [x], "400", "unknown output 'q'", [triton.InferRequestedOutput("q")])
    check(client.infer("affine", [x]))


def refused(
    client: Any, model: str, inputs: list[Any], status: str, says: str, outputs: list[Any] | None = None
) -> None:
    caught = None
    try:
        client.infer(model, inputs, outputs=outputs)
    except InferenceServerException as error:
        caught = error
    assert caught is not None, f"{model} answered"
    assert caught.status() == status, caught
    assert says in caught.message(), caught


async def infers_asynchronously(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        x = given("x", "FP32", FOUR, binary=True)
        for result in await asyncio.gather(*(client.infer("affine", [x]) for _ in range(50))):
            check(result)


def main(address: str) -> None:
    """Run everything."""
    client = triton.InferenceServerClient(address, concurrency=8)
    try:
        asks_state(client)
        infers_in_every_form(client)
        infers_other_datatypes(client)
        infers_nan(client)
        infers_several_at_once(client)
        shares_memory(client)
        loads_and_unloads(client)
        reads_errors(client)
    finally:
        client.close()
    asyncio.run(infers_asynchronously(address))
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
