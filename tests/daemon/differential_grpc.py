"""Seeded gRPC calls, valid and broken, for EdgeKit's daemon and for Triton."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from edgekit.daemon.grpc_schema import HEALTH, INFERENCE, message_class
from tests.daemon.differential_valid import MODELS, Tensor, packed, value

__all__ = ["Called", "Outcome", "call", "calls"]

_FIELDS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "INT8": "int_contents", "INT32": "int_contents",
    "UINT64": "uint64_contents", "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip


class Called(NamedTuple):
    """One unary call: what it tries, the method's path, and the message's bytes."""

    kind: str
    path: str
    data: bytes


class Outcome(NamedTuple):
    """What came of it: the status's name, and the response as a dictionary where it is OK."""

    code: str
    message: Any


def call(channel: Any, called: Called) -> Outcome:
    """Make the call."""
    import grpc
    from google.protobuf.json_format import MessageToDict

    try:
        data = channel.unary_unary(called.path)(called.data, timeout=30)
    except grpc.RpcError as error:
        return Outcome(error.code().name, None)
    package, _, method = called.path[1:].rpartition("/")
    kind = "grpc.health.v1.HealthCheckResponse" if package == HEALTH else f"inference.{method}Response"
    return Outcome(
        "OK", MessageToDict(message_class(kind).FromString(data), preserving_proto_field_name=True)
    )


def calls(seed: int, count: int) -> Iterator[Called]:
    """Yield `count` calls."""
    draw = random.Random(seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.4:
            yield _Valid(draw).called("valid")
        elif kind < 0.85:
            yield draw.choice(_BREAKS)(_Valid(draw))
        else:
            yield draw.choice(_CONTROLS)(draw)


class _Valid:
    """A valid `ModelInferRequest`, in parts that may be broken before they are put together."""

    def __init__(self, draw: random.Random, model: str = "", *, raw: bool | None = None) -> None:
        self.draw = draw
        self.model = model or draw.choice(tuple(MODELS))
        inputs, self.outputs, _ = MODELS[self.model]
        halves = any(tensor.wire == "FP16" for tensor in inputs)
        self.raw = halves or (draw.random() < 0.6 if raw is None else raw)
        kind = message_class("inference.ModelInferRequest")
        self.message = kind(model_name=self.model, model_version=draw.choice(("", "", "1")))
        free = {0: draw.choice((1, 1, 2, 3)), 1: draw.choice((1, 2, 5))}
        for tensor in inputs:
            self.add(tensor, [free[axis] if size == -1 else size for axis, size in enumerate(tensor.shape)])
        if draw.random() < 0.3:
            self.message.id = draw.choice(("7", "é", "x" * 200))
        if draw.random() < 0.3:
            for output in draw.sample(self.outputs, draw.randint(1, len(self.outputs))):
                self.message.outputs.add(name=output.name)
        if draw.random() < 0.2:
            self.message.parameters["mine"].string_param = "x"

    def add(self, tensor: Tensor, shape: list[int]) -> None:
        values = [value(self.draw, tensor.wire) for _ in range(math.prod(shape))]
        made = self.message.inputs.add(name=tensor.name, datatype=tensor.wire, shape=shape)
        if self.raw:
            self.message.raw_input_contents.append(packed(tensor.wire, values))
        else:
            texts = [one.encode() if isinstance(one, str) else one for one in values]
            getattr(made.contents, _FIELDS[tensor.wire]).extend(texts)

    def called(self, kind: str) -> Called:
        return Called(kind, f"/{INFERENCE}/ModelInfer", self.message.SerializeToString(deterministic=True))


def _edit(kind: str, edit: Callable[[Any, random.Random], object], **how: Any) -> Callable[[_Valid], Called]:
    """Return a break: a valid request that `edit` spoils."""

    def broken(valid: _Valid) -> Called:
        made = _Valid(valid.draw, **how) if how else valid
        edit(made.message, made.draw)
        return made.called(kind)

    return broken


def _set(field: str, *values: Any) -> Callable[[Any, random.Random], object]:
    return lambda message, draw: setattr(message, field, draw.choice(values))


def _set_input(field: str, *values: Any) -> Callable[[Any, random.Random], object]:
    return lambda message, draw: setattr(message.inputs[0], field, draw.choice(values))


def _reshape(change: Callable[[list[int]], list[int]]) -> Callable[[Any, random.Random], object]:
    def edit(message: Any, _: random.Random) -> None:
        message.inputs[0].shape[:] = change(list(message.inputs[0].shape))

    return edit


def _cut_raw(message: Any, draw: random.Random) -> None:
    data = message.raw_input_contents[0]
    message.raw_input_contents[0] = draw.choice((data[:-1], data + b"x"))


def _cut_contents(message: Any, draw: random.Random) -> None:
    values = message.inputs[0].contents.fp32_contents
    values[:] = draw.choice((list(values)[:-1], [*values, 1.0]))


def _mix(message: Any, _: random.Random) -> None:
    message.inputs[0].contents.fp32_contents.append(1.0)


def _other_field(message: Any, _: random.Random) -> None:
    message.inputs[0].contents.ClearField("fp32_contents")
    message.inputs[0].contents.int64_contents.extend([1] * math.prod(message.inputs[0].shape))


def _again(message: Any, _: random.Random) -> None:
    message.inputs.add().CopyFrom(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])


def _further(message: Any, _: random.Random) -> None:
    message.inputs.add(name="further", datatype="FP32", shape=[1])
    message.raw_input_contents.append(bytes(4))


def _spoil_strings(message: Any, _: random.Random) -> None:
    message.raw_input_contents[0] = b"\xff" * len(message.raw_input_contents[0])


def _wish_twice(message: Any, _: random.Random) -> None:
    message.ClearField("outputs")
    message.outputs.add(name="y")
    message.outputs.add(name="y")


def _wish_unknown(message: Any, draw: random.Random) -> None:
    message.outputs.add(name=draw.choice(("nope", "", "Y")))


def _wish_classes(message: Any, draw: random.Random) -> None:
    message.ClearField("outputs")
    message.outputs.add(name="y").parameters["classification"].int64_param = draw.choice((1, 2))


def _no_region(message: Any, _: random.Random) -> None:
    message.ClearField("raw_input_contents")
    message.inputs[0].parameters["shared_memory_region"].string_param = "nope"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16


def _nonsense(valid: _Valid) -> Called:
    called = valid.called("bytes that are no message")
    return called._replace(data=b"\xff\xff" + called.data)


_BREAKS: tuple[Callable[[_Valid], Called], ...] = (
    _edit("an unknown model", _set("model_name", "nope", "", "..")),
    _edit("an unknown version", _set("model_version", "2", "999")),
    _edit("a version that is no number", _set("model_version", "x", "1.0", "-1")),
    _edit("an unknown input", _set_input("name", "nope", "", "X")),
    _edit("another datatype", _set_input("datatype", "INT16", "UINT32")),
    _edit("no such datatype", _set_input("datatype", "fp32", "", "INT128")),
    _edit("an axis too many", _reshape(lambda shape: [*shape, 1])),
    _edit("an axis too few", _reshape(lambda shape: [math.prod(shape)])),
    _edit("a fixed axis of another size", _reshape(lambda shape: [shape[0], 3]), model="affine", raw=True),
    _edit("a negative axis", _reshape(lambda shape: [-1, *shape[1:]])),
    _edit("an axis of nothing", _reshape(lambda shape: [0, *shape[1:]]), model="affine", raw=True),
    _edit("no inputs", lambda message, _: (message.ClearField("inputs"), message.ClearField("raw_input_contents"))),
    _edit("an input too few", lambda message, _: (message.inputs.pop(), message.raw_input_contents.pop()), model="adder", raw=True),
    _edit("an input too many", _further, model="affine", raw=True),
    _edit("an input twice", _again, model="affine", raw=True),
    _edit("raw data that does not fit", _cut_raw, model="echo-fp32", raw=True),
    _edit("too little raw data", lambda message, _: message.raw_input_contents.pop(), model="adder", raw=True),
    _edit("too much raw data", lambda message, _: message.raw_input_contents.append(b""), model="adder", raw=True),
    _edit("contents that do not fit", _cut_contents, model="echo-fp32", raw=False),
    _edit("contents of another type", _other_field, model="echo-fp32", raw=False),
    _edit("no contents", lambda message, _: message.inputs[0].ClearField("contents"), model="echo-fp32", raw=False),
    _edit("contents and raw data", _mix, model="echo-fp32", raw=True),
    _edit("strings whose lengths do not add up", _spoil_strings, model="echo-bytes", raw=True),
    _edit("an unknown output", _wish_unknown),
    _edit("an output twice", _wish_twice, model="affine"),
    _edit("classes", _wish_classes, model="affine", raw=True),
    _edit("a region that is not there", _no_region, model="affine", raw=True),
    _nonsense,
)  # fmt: skip


def _ask(kind: str, method: str, *fields: Mapping[str, Any]) -> Callable[[random.Random], Called]:
    def asked(draw: random.Random) -> Called:
        made = message_class(f"inference.{method}Request")(**draw.choice(fields or ({},)))
        return Called(kind, f"/{INFERENCE}/{method}", made.SerializeToString(deterministic=True))

    return asked


def _health(draw: random.Random) -> Called:
    kind = message_class("grpc.health.v1.HealthCheckRequest")
    return Called("health", f"/{HEALTH}/Check", kind(service=draw.choice(("", ""))).SerializeToString())


_NOT_THERE: tuple[Mapping[str, Any], ...] = ({"name": "nope"}, {"name": "affine", "version": "9"})
_THERE: tuple[Mapping[str, Any], ...] = (
    *({"name": name} for name in MODELS),
    {"name": "affine", "version": "1"},
)
_CONTROLS: tuple[Callable[[random.Random], Called], ...] = (
    _health,
    _ask("live and ready", "ServerLive"),
    _ask("live and ready", "ServerReady"),
    _ask("model ready", "ModelReady", *_THERE),
    _ask("readiness of what is not there", "ModelReady", *_NOT_THERE),
    _ask("server metadata", "ServerMetadata"),
    _ask("model metadata", "ModelMetadata", *_THERE),
    _ask("metadata of what is not there", "ModelMetadata", *_NOT_THERE),
    _ask("configuration", "ModelConfig", *_THERE),
    _ask("configuration of what is not there", "ModelConfig", *_NOT_THERE),
    _ask("statistics", "ModelStatistics", {}, *_THERE),
    _ask("statistics of what is not there", "ModelStatistics", *_NOT_THERE),
    _ask("index", "RepositoryIndex", {}, {"ready": True}),
    _ask("regions", "SystemSharedMemoryStatus"),
    _ask("a region that is not there", "SystemSharedMemoryStatus", {"name": "nope"}),
    _ask("unregister", "SystemSharedMemoryUnregister", {}, {"name": "nope"}),
    _ask("memory that is not there", "SystemSharedMemoryRegister", {"name": "r", "key": "/edgekit-absent", "byte_size": 8}),
    _ask("CUDA regions", "CudaSharedMemoryStatus"),
    _ask("CUDA unregister", "CudaSharedMemoryUnregister"),
    _ask("tracing and logging", "TraceSetting"),
    _ask("tracing and logging", "LogSettings"),
)  # fmt: skip
