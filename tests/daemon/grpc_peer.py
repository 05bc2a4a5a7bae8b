"""A gRPC client of the daemon, with its own messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.daemon.grpc_schema import INFERENCE, message_class
from tests.daemon.serving import Running

grpc = pytest.importorskip("grpc")

Serving = Callable[..., "Peer"]
FOUR = np.array([[1, 2, 3, 4]], np.float32)


class Peer:
    """A daemon with gRPC, and a client of it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        assert running.listening.grpc is not None
        self.address = "{}:{}".format(*running.listening.grpc)
        self.channel = grpc.insecure_channel(
            self.address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )

    def close(self) -> None:
        self.channel.close()

    def method(self, name: str) -> Any:
        return self.channel.unary_unary(
            f"/{INFERENCE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(f"inference.{name}Response").FromString,
        )

    def call(self, method: str, /, **fields: Any) -> Any:
        return self.method(method)(message_class(f"inference.{method}Request")(**fields), timeout=20)

    def outcome(self, method: str, /, **fields: Any) -> str:
        """Return the status's name."""
        try:
            self.call(method, **fields)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def infer(self, message: Any) -> Any:
        return self.method("ModelInfer")(message, timeout=20)

    def refused(self, method: str, /, **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, **fields)
        return refused.value.code().name, refused.value.details()

    def refuses(self, message: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.infer(message)
        return refused.value.code().name, refused.value.details()


def request(model: str = "affine", version: str = "", **fields: Any) -> Any:
    return message_class("inference.ModelInferRequest")(model_name=model, model_version=version, **fields)


def raw(array: np.ndarray[Any, Any], datatype: str = "FP32", model: str = "affine", name: str = "x") -> Any:
    message = request(model)
    message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


def written(field: str, values: list[Any], datatype: str, model: str, shape: list[int] | None = None) -> Any:
    message = request(model)
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape or [1, len(values)])
    getattr(tensor.contents, field).extend(values)
    return message


def numbers(response: Any, index: int = 0, dtype: Any = np.float32) -> list[Any]:
    values: list[Any] = np.frombuffer(response.raw_output_contents[index], dtype).tolist()
    return values


def place(parameters: Any, region: str, size: int, offset: int = 0) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    parameters["shared_memory_offset"].int64_param = offset


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
