"""The protocol's gRPC service and messages, and `grpc.health.v1`, with their exact names and field numbers.

They are built here at run time, in a descriptor pool of their own: a process may hold each name only once in the
common pool, and tritonclient or KServe may have put theirs there already.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

__all__ = ["HEALTH", "INFERENCE", "METHODS", "message_class", "messages"]

#: Full names of the services.
INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"

#: Method, the start of its messages' names (`…Request`, `…Response`); all unary but ModelStreamInfer.
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)

#: In the language of .proto files, as far as it is needed. The configuration has the fields that this server fills.
_INFERENCE = """
message ServerLiveRequest { }
message ServerLiveResponse { bool live = 1; }
message ServerReadyRequest { }
message ServerReadyResponse { bool ready = 1; }
message ModelReadyRequest { string name = 1; string version = 2; }
message ModelReadyResponse { bool ready = 1; }
message ServerMetadataRequest { }
message ServerMetadataResponse { string name = 1; string version = 2; repeated string extensions = 3; }
message ModelMetadataRequest { string name = 1; string version = 2; }
message ModelMetadataResponse {
  message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }
  string name = 1; repeated string versions = 2; string platform = 3;
  repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5;
}
message InferParameter {
  oneof parameter_choice {
    bool bool_param = 1; int64 int64_param = 2; string string_param = 3; double double_param = 4;
    uint64 uint64_param = 5;
  }
}
message InferTensorContents {
  repeated bool bool_contents = 1; repeated int32 int_contents = 2; repeated int64 int64_contents = 3;
  repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
  repeated double fp64_contents = 7; repeated bytes bytes_contents = 8;
}
message ModelInferRequest {
  message InferInputTensor {
    string name = 1; string datatype = 2; repeated int64 shape = 3; map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  message InferRequestedOutputTensor { string name = 1; map<string, InferParameter> parameters = 2; }
  string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4;
  repeated InferInputTensor inputs = 5; repeated InferRequestedOutputTensor outputs = 6;
  repeated bytes raw_input_contents = 7;
}
message ModelInferResponse {
  message InferOutputTensor {
    string name = 1; string datatype = 2; repeated int64 shape = 3; map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4;
  repeated InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6;
}
message ModelStreamInferResponse { string error_message = 1; ModelInferResponse infer_response = 2; }
message ModelConfigRequest { string name = 1; string version = 2; }
message ModelConfigResponse { ModelConfig config = 1; }
message ModelStatisticsRequest { string name = 1; string version = 2; }
message StatisticDuration { uint64 count = 1; uint64 ns = 2; }
message InferStatistics {
  StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3;
  StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5; StatisticDuration compute_output = 6;
  StatisticDuration cache_hit = 7; StatisticDuration cache_miss = 8;
}
message InferResponseStatistics {
  StatisticDuration compute_infer = 1; StatisticDuration compute_output = 2; StatisticDuration success = 3;
  StatisticDuration fail = 4; StatisticDuration empty_response = 5; StatisticDuration cancel = 6;
}
message InferBatchStatistics {
  uint64 batch_size = 1; StatisticDuration compute_input = 2; StatisticDuration compute_infer = 3;
  StatisticDuration compute_output = 4;
}
message MemoryUsage { string type = 1; int64 id = 2; uint64 byte_size = 3; }
message ModelStatistics {
  string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4;
  uint64 execution_count = 5; InferStatistics inference_stats = 6; repeated InferBatchStatistics batch_stats = 7;
  repeated MemoryUsage memory_usage = 8; map<string, InferResponseStatistics> response_stats = 9;
}
message ModelStatisticsResponse { repeated ModelStatistics model_stats = 1; }
message ModelRepositoryParameter {
  oneof parameter_choice { bool bool_param = 1; int64 int64_param = 2; string string_param = 3; bytes bytes_param = 4; }
}
message RepositoryIndexRequest { string repository_name = 1; bool ready = 2; }
message RepositoryIndexResponse {
  message ModelIndex { string name = 1; string version = 2; string state = 3; string reason = 4; }
  repeated ModelIndex models = 1;
}
message RepositoryModelLoadRequest {
  string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3;
}
message RepositoryModelLoadResponse { }
message RepositoryModelUnloadRequest {
  string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3;
}
message RepositoryModelUnloadResponse { }
message SystemSharedMemoryStatusRequest { string name = 1; }
message SystemSharedMemoryStatusResponse {
  message RegionStatus { string name = 1; string key = 2; uint64 offset = 3; uint64 byte_size = 4; }
  map<string, RegionStatus> regions = 1;
}
message SystemSharedMemoryRegisterRequest { string name = 1; string key = 2; uint64 offset = 3; uint64 byte_size = 4; }
message SystemSharedMemoryRegisterResponse { }
message SystemSharedMemoryUnregisterRequest { string name = 1; }
message SystemSharedMemoryUnregisterResponse { }
message CudaSharedMemoryStatusRequest { string name = 1; }
message CudaSharedMemoryStatusResponse {
  message RegionStatus { string name = 1; uint64 device_id = 2; uint64 byte_size = 3; }
  map<string, RegionStatus> regions = 1;
}
message CudaSharedMemoryRegisterRequest {
  string name = 1; bytes raw_handle = 2; int64 device_id = 3; uint64 byte_size = 4;
}
message CudaSharedMemoryRegisterResponse { }
message CudaSharedMemoryUnregisterRequest { string name = 1; }
message CudaSharedMemoryUnregisterResponse { }
message TraceSettingRequest {
  message SettingValue { repeated string value = 1; }
  map<string, SettingValue> settings = 1; string model_name = 2;
}
message TraceSettingResponse {
  message SettingValue { repeated string value = 1; }
  map<string, SettingValue> settings = 1;
}
message LogSettingsRequest {
  message SettingValue { oneof parameter_choice { bool bool_param = 1; uint32 uint32_param = 2; string string_param = 3; } }
  map<string, SettingValue> settings = 1;
}
message LogSettingsResponse {
  message SettingValue { oneof parameter_choice { bool bool_param = 1; uint32 uint32_param = 2; string string_param = 3; } }
  map<string, SettingValue> settings = 1;
}
enum DataType {
  TYPE_INVALID = 0; TYPE_BOOL = 1; TYPE_UINT8 = 2; TYPE_UINT16 = 3; TYPE_UINT32 = 4; TYPE_UINT64 = 5; TYPE_INT8 = 6;
  TYPE_INT16 = 7; TYPE_INT32 = 8; TYPE_INT64 = 9; TYPE_FP16 = 10; TYPE_FP32 = 11; TYPE_FP64 = 12; TYPE_STRING = 13;
  TYPE_BF16 = 14;
}
message ModelInstanceGroup {
  enum Kind { KIND_AUTO = 0; KIND_GPU = 1; KIND_CPU = 2; KIND_MODEL = 3; }
  string name = 1; Kind kind = 4; int32 count = 2;
}
message ModelInput {
  enum Format { FORMAT_NONE = 0; FORMAT_NHWC = 1; FORMAT_NCHW = 2; }
  string name = 1; DataType data_type = 2; Format format = 3; repeated int64 dims = 4;
}
message ModelOutput { string name = 1; DataType data_type = 2; repeated int64 dims = 3; }
message ModelVersionPolicy {
  message Latest { uint32 num_versions = 1; }
  oneof policy_choice { Latest latest = 1; }
}
message ModelTransactionPolicy { bool decoupled = 1; }
message ModelConfig {
  string name = 1; string platform = 2; string backend = 17; ModelVersionPolicy version_policy = 3;
  int32 max_batch_size = 4; repeated ModelInput input = 5; repeated ModelOutput output = 6;
  repeated ModelInstanceGroup instance_group = 7; ModelTransactionPolicy model_transaction_policy = 19;
}
"""
_HEALTH = """
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
"""


def message_class(name: str) -> Any:
    """Return a message's class by its full name.

    Raises:
        KeyError: There is no such message.
    """
    return messages()[name]


@functools.cache
def messages() -> dict[str, Any]:
    """Build the descriptors and return every top-level message's class by its full name."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    classes: dict[str, Any] = {}
    for package, text in (("inference", _INFERENCE), ("grpc.health.v1", _HEALTH)):
        file = _file(package, text)
        pool.AddSerializedFile(file.SerializeToString())
        for message in file.message_type:
            name = f"{package}.{message.name}"
            classes[name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    return classes


_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[{}=;<>,]")


def _file(package: str, text: str) -> FileDescriptorProto:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=f"edgekit/{package}.proto", package=package, syntax="proto3")
    tokens = iter(_TOKEN.findall(text))
    for word in tokens:
        if word == "enum":
            _read_enum(file.enum_type.add(name=next(tokens)), tokens)
        else:
            _read_message(file.message_type.add(name=next(tokens)), tokens, f".{package}")
    _resolve(file, package)
    return file


def _read_enum(enum: EnumDescriptorProto, tokens: Iterator[str]) -> None:
    _expect(tokens, "{")
    while (name := next(tokens)) != "}":
        _expect(tokens, "=")
        enum.value.add(name=name, number=int(next(tokens)))
        _expect(tokens, ";")


def _read_message(message: DescriptorProto, tokens: Iterator[str], scope: str) -> None:
    scope = f"{scope}.{message.name}"
    _expect(tokens, "{")
    in_choice = False
    while (word := next(tokens)) != "}" or in_choice:
        if word == "}":
            in_choice = False
        elif word == "message":
            _read_message(message.nested_type.add(name=next(tokens)), tokens, scope)
        elif word == "enum":
            _read_enum(message.enum_type.add(name=next(tokens)), tokens)
        elif word == "oneof":
            message.oneof_decl.add(name=next(tokens))
            _expect(tokens, "{")
            in_choice = True
        elif word == "map":
            _read_map(message, tokens, scope)
        else:
            _read_field(message, word, tokens, in_choice=in_choice)


def _read_field(message: DescriptorProto, word: str, tokens: Iterator[str], *, in_choice: bool) -> None:
    field = message.field.add(label=3 if word == "repeated" else 1)
    field.type_name = next(tokens) if word == "repeated" else word
    field.name = next(tokens)
    _expect(tokens, "=")
    field.number = int(next(tokens))
    _expect(tokens, ";")
    if in_choice:
        field.oneof_index = len(message.oneof_decl) - 1


def _read_map(message: DescriptorProto, tokens: Iterator[str], scope: str) -> None:
    """A map is a repeated message of key and value, which has a name of its own."""
    _expect(tokens, "<")
    key = next(tokens)
    _expect(tokens, ",")
    value = next(tokens)
    _expect(tokens, ">")
    name = next(tokens)
    entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type_name=key)
    entry.field.add(name="value", number=2, label=1, type_name=value)
    _expect(tokens, "=")
    message.field.add(name=name, number=int(next(tokens)), label=3, type_name=f"{scope}.{entry.name}")
    _expect(tokens, ";")


def _expect(tokens: Iterator[str], wanted: str) -> None:
    got = next(tokens)
    assert got == wanted, (got, wanted)


def _resolve(file: FileDescriptorProto, package: str) -> None:
    """Give every field its type: a scalar's number, or a message's or enum's full name, from the inside out."""
    kinds: dict[str, int] = {}
    for enum in file.enum_type:
        kinds[f".{package}.{enum.name}"] = _ENUM
    for message in file.message_type:
        _collect(message, f".{package}", kinds)
    for message in file.message_type:
        _resolve_message(message, f".{package}", kinds)


def _collect(message: DescriptorProto, scope: str, kinds: dict[str, int]) -> None:
    name = f"{scope}.{message.name}"
    kinds[name] = _MESSAGE
    kinds.update({f"{name}.{enum.name}": _ENUM for enum in message.enum_type})
    for nested in message.nested_type:
        _collect(nested, name, kinds)


def _resolve_message(message: DescriptorProto, scope: str, kinds: dict[str, int]) -> None:
    name = f"{scope}.{message.name}"
    for nested in message.nested_type:
        _resolve_message(nested, name, kinds)
    for field in message.field:
        word = field.type_name
        if word in _SCALARS:
            field.ClearField("type_name")
            field.type = _SCALARS[word]
            continue
        full = word if word.startswith(".") else _find(word, name, kinds)
        field.type_name, field.type = full, kinds[full]


def _find(word: str, scope: str, kinds: dict[str, int]) -> str:
    while f"{scope}.{word}" not in kinds:
        scope, _, last = scope.rpartition(".")
        assert last, word
    return f"{scope}.{word}"


#: FieldDescriptorProto.Type.
_SCALARS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}
_MESSAGE, _ENUM = 11, 14
