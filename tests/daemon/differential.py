"""Seeded requests, valid and broken, for EdgeKit's daemon and for Triton: the same on every run and every machine."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.daemon.differential_valid import CODES, MODELS, Asked, Valid, packed, value

__all__ = ["Answered", "ask", "digest", "requests"]


class Answered(NamedTuple):
    """What matters of an answer.

    Attributes:
        status: HTTP's.
        encoding: Content-Encoding.
        message: The JSON, parsed; None where there is none.
        binary: What follows it.
    """

    status: int
    encoding: str
    message: Any
    binary: bytes


def ask(connection: http.client.HTTPConnection, asked: Asked) -> Answered:
    """Send a request and read the answer."""
    connection.putrequest(asked.method, asked.path, skip_accept_encoding=True)
    for name, text in asked.headers.items():
        connection.putheader(name, text)
    if asked.chunked:
        connection.putheader("Transfer-Encoding", "chunked")
    elif asked.method == "POST" or asked.pieces:
        connection.putheader("Content-Length", str(sum(map(len, asked.pieces))))
    connection.endheaders()
    for piece in asked.pieces:
        if piece:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if asked.chunked else piece)
    if asked.chunked:
        connection.send(b"0\r\n\r\n")
    response = connection.getresponse()
    return _read(response, response.read())


def _read(response: http.client.HTTPResponse, body: bytes) -> Answered:
    encoding = response.getheader("Content-Encoding") or ""
    if encoding == "gzip":
        body = gzip.decompress(body)
    elif encoding == "deflate":
        body = zlib.decompress(body)
    length = response.getheader("Inference-Header-Content-Length")
    split = len(body) if length is None else int(length)
    text = body[:split]
    return Answered(response.status, encoding, json.loads(text) if text else None, body[split:])


def requests(seed: int, count: int) -> Iterator[Asked]:
    """Yield `count` requests."""
    draw = random.Random(seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.4:
            yield Valid(draw).asked("valid")
        elif kind < 0.9:
            yield draw.choice(_BREAKS)(Valid(draw))
        else:
            yield draw.choice(_CONTROLS)(draw)


def digest(asked: Asked) -> str:
    """Return a few letters that change with the request, but not with the zlib that has compressed it."""
    body = b"".join(asked.pieces)
    if asked.kind != "a damaged encoding":
        how = asked.headers.get("Content-Encoding")
        body = gzip.decompress(body) if how == "gzip" else zlib.decompress(body) if how == "deflate" else body
    text = repr((asked.kind, asked.method, asked.path, sorted(asked.headers.items()), asked.chunked, body))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _raw(draw: random.Random) -> Asked:
    """A raw binary request: the body is the only input of a batch of one."""
    wire = draw.choice(("fixed", "affine", "echo-int64", "echo-fp32", "echo-bool", "echo-uint8"))
    ((tensor,), _, _) = MODELS[wire]
    size = math.prod(abs(size) for size in tensor.shape) * draw.choice((1, 1, 1, 2, 3))
    data = packed(tensor.wire, [value(draw, tensor.wire) for _ in range(size)])
    if draw.random() < 0.2 and len(data) > 1:
        data = data[:-1]
    headers = {"Inference-Header-Content-Length": "0"}
    return Asked("raw binary", "POST", f"/v2/models/{wire}/infer", headers, (data,))


# Each breaks one thing, and says which.


def _with_data(valid: Valid) -> dict[str, Any]:
    """Return the first tensor, with its data in JSON."""
    tensor = valid.tensors[0]
    if "data" not in tensor:
        shape = tensor["shape"]
        tensor.pop("parameters", None)
        tensor["data"] = [value(valid.draw, tensor["datatype"]) for _ in range(math.prod(shape))]
        valid.binary.pop(0)
    return tensor


def _with_binary(valid: Valid) -> dict[str, Any]:
    """Return the first tensor, in binary."""
    tensor = valid.tensors[0]
    if "data" in tensor:
        del tensor["data"]
        values = [value(valid.draw, tensor["datatype"]) for _ in range(math.prod(tensor["shape"]))]
        data = packed(tensor["datatype"], values)
        valid.binary.insert(0, data)
        tensor["parameters"] = {"binary_data_size": len(data)}
    return tensor


def _not_json(valid: Valid) -> Asked:
    text = json.dumps(valid.message).encode()
    at = valid.draw.randrange(1, len(text))
    return valid.asked("malformed JSON", text[:at])


def _no_object(valid: Valid) -> Asked:
    valid.binary.clear()
    return valid.asked("JSON that is no request", valid.draw.choice((b"[]", b"1", b'"x"', b"null", b"true")))


def _empty(valid: Valid) -> Asked:
    valid.binary.clear()
    return valid.asked("no body", b"")._replace(headers={}, pieces=(), chunked=False)


def _field_of_another_type(valid: Valid) -> Asked:
    draw = valid.draw
    key = draw.choice(("inputs", "outputs", "parameters"))
    valid.message[key] = draw.choice((1, "x", True))
    return valid.asked(f"{key} of another type")


def _id_of_another_type(valid: Valid) -> Asked:
    valid.message["id"] = valid.draw.choice((1, True, [], {}))
    return valid.asked("id of another type")


def _without(key: str) -> Callable[[Valid], Asked]:
    def without(valid: Valid) -> Asked:
        del valid.tensors[0][key]
        return valid.asked(f"an input without {key}")

    return without


def _no_data(valid: Valid) -> Asked:
    del _with_data(valid)["data"]
    return valid.asked("an input without data")


def _no_inputs(valid: Valid) -> Asked:
    valid.binary.clear()
    if valid.draw.random() < 0.5:
        del valid.message["inputs"]
        return valid.asked("no inputs")
    valid.message["inputs"] = []
    return valid.asked("an empty list of inputs")


def _unknown_input(valid: Valid) -> Asked:
    valid.tensors[0]["name"] = valid.draw.choice(("nope", "", "X"))
    return valid.asked("an unknown input")


def _further_input(valid: Valid) -> Asked:
    valid.tensors.append({"name": "further", "shape": [1], "datatype": "FP32", "data": [1]})
    return valid.asked("an input too many")


def _input_twice(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    valid.tensors.append(dict(tensor))
    return valid.asked("an input twice")


def _other_datatype(valid: Valid) -> Asked:
    tensor = valid.tensors[0]
    others = sorted({*CODES, "BYTES", "BF16"} - {tensor["datatype"], "FP16"})
    tensor["datatype"] = valid.draw.choice(others)
    return valid.asked("another datatype")


def _no_datatype(valid: Valid) -> Asked:
    valid.tensors[0]["datatype"] = valid.draw.choice(("fp32", "", "FLOAT", "INT128"))
    return valid.asked("no such datatype")


def _more_axes(valid: Valid) -> Asked:
    tensor = valid.tensors[0]
    tensor["shape"] = [*tensor["shape"], 1]
    return valid.asked("an axis too many")


def _fewer_axes(valid: Valid) -> Asked:
    tensor = valid.tensors[0]
    tensor["shape"] = [math.prod(tensor["shape"])]
    return valid.asked("an axis too few")


def _fixed_axis(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("affine", "fixed")))
    tensor = _with_data(made)
    rows, columns = tensor["shape"]
    tensor["shape"] = [rows, columns + 1]
    tensor["data"] = [1] * (rows * (columns + 1))
    return made.asked("a fixed axis of another size")


def _negative(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    tensor["shape"] = [-1, *tensor["shape"][1:]]
    return valid.asked("a negative axis")


def _zero(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    tensor["shape"], tensor["data"] = [0, *tensor["shape"][1:]], []
    return valid.asked("an axis of nothing")


def _odd_shape(valid: Valid) -> Asked:
    tensor = valid.tensors[0]
    tensor["shape"] = valid.draw.choice((1, "x", [1.5, 4], ["1", 4], None))
    return valid.asked("a shape of another type")


def _huge_shape(valid: Valid) -> Asked:
    _with_data(valid)["shape"] = valid.draw.choice(([2**62, 4], [2**31, 2**31], [2**40, 2**40]))
    return valid.asked("a shape beyond all memory")


def _few_elements(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    flat = _flat(tensor["data"])
    tensor["data"] = flat[:-1]
    return valid.asked("an element too few")


def _many_elements(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    tensor["data"] = [*_flat(tensor["data"]), value(valid.draw, tensor["datatype"])]
    return valid.asked("an element too many")


def _other_nesting(valid: Valid) -> Asked:
    made = Valid(valid.draw, "affine")
    tensor = _with_data(made)
    tensor["data"] = [[value] for value in _flat(tensor["data"])]
    return made.asked("another nesting")


def _no_list(valid: Valid) -> Asked:
    _with_data(valid)["data"] = valid.draw.choice((1, "x", None, {}))
    return valid.asked("data that is no list")


def _odd_element(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    flat = _flat(tensor["data"])
    flat[-1] = {"BYTES": 5, "BOOL": "true"}.get(tensor["datatype"], "5")
    tensor["data"] = flat
    return valid.asked("an element of another type")


def _null_element(valid: Valid) -> Asked:
    tensor = _with_data(valid)
    tensor["data"] = [*_flat(tensor["data"])[:-1], None]
    return valid.asked("a null among the data")


def _out_of_range(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("echo-uint8", "echo-int8")))
    tensor = _with_data(made)
    tensor["data"] = [*_flat(tensor["data"])[:-1], valid.draw.choice((256, -129, 10**6))]
    return made.asked("a number beyond its datatype")


def _fraction(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("echo-int64", "echo-int8", "fixed")))
    tensor = _with_data(made)
    tensor["data"] = [*_flat(tensor["data"])[:-1], 1.5]
    return made.asked("a fraction for an integer")


def _nonfinite(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("echo-fp32", "echo-fp64", "affine")))
    tensor = _with_data(made)
    tensor["data"] = [*_flat(tensor["data"])[:-1], valid.draw.choice((math.nan, math.inf, -math.inf))]
    return made.asked("NaN and infinity")


def _half_in_json(valid: Valid) -> Asked:
    made = Valid(valid.draw, "echo-fp16")
    _with_data(made)
    return made.asked("half precision in JSON")


def _half_out_json(valid: Valid) -> Asked:
    made = Valid(valid.draw, "echo-fp16")
    made.message.pop("parameters", None)
    made.message.pop("outputs", None)
    return made.asked("half precision asked for in JSON")


def _binary_size(valid: Valid) -> Asked:
    tensor = _with_binary(valid)
    size = tensor["parameters"]["binary_data_size"]
    tensor["parameters"]["binary_data_size"] = max(0, size + valid.draw.choice((-1, 1, 100)))
    return valid.asked("a binary size that does not fit")


def _odd_binary_size(valid: Valid) -> Asked:
    _with_binary(valid)["parameters"]["binary_data_size"] = valid.draw.choice((-1, "4", 1.5, None))
    return valid.asked("a binary size of another type")


def _cut_binary(valid: Valid) -> Asked:
    _with_binary(valid)
    cut = b"".join(valid.binary)
    valid.binary[:] = [cut[:-1]]
    return valid.asked("binary data cut off")


def _further_binary(valid: Valid) -> Asked:
    _with_binary(valid)
    valid.tail = b"abc"
    return valid.asked("binary data too long")


def _data_and_binary(valid: Valid) -> Asked:
    tensor = _with_binary(valid)
    tensor["data"] = [value(valid.draw, tensor["datatype"]) for _ in range(math.prod(tensor["shape"]))]
    return valid.asked("data in JSON and in binary")


def _broken_strings(valid: Valid) -> Asked:
    made = Valid(valid.draw, "echo-bytes")
    tensor = _with_binary(made)
    size = len(made.binary[0])
    made.binary[0] = b"\xff" * size
    tensor["parameters"]["binary_data_size"] = size
    return made.asked("strings whose lengths do not add up")


def _header_length(valid: Valid) -> Asked:
    valid.header_length = valid.draw.choice((-1, 10**6, 2**31 + 5))
    return valid.asked("a header length beyond the body")


def _header_cuts(valid: Valid) -> Asked:
    valid.header_length = 5
    return valid.asked("a header length within the JSON")


def _unknown_output(valid: Valid) -> Asked:
    valid.message["outputs"] = [{"name": valid.draw.choice(("nope", "", "Y"))}]
    return valid.asked("an unknown output")


def _output_twice(valid: Valid) -> Asked:
    name = valid.outputs[0].name
    valid.message["outputs"] = [{"name": name}, {"name": name}]
    return valid.asked("an output twice")


def _nameless_output(valid: Valid) -> Asked:
    valid.message["outputs"] = [{}]
    return valid.asked("an output without a name")


def _odd_wish(valid: Valid) -> Asked:
    name = valid.outputs[0].name
    valid.message["outputs"] = [{"name": name, "parameters": {"binary_data": "yes"}}]
    return valid.asked("binary_data of another type")


def _odd_wish_for_all(valid: Valid) -> Asked:
    valid.message["parameters"] = {"binary_data_output": valid.draw.choice(("yes", 1))}
    return valid.asked("binary_data_output of another type")


def _empty_outputs(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("affine", "adder", "echo-int64")))
    made.message["outputs"] = []
    return made.asked("an empty list of outputs")


def _unknown_fields(valid: Valid) -> Asked:
    valid.message["whatever"] = {"deep": [1, {"er": None}]}
    valid.tensors[0]["whatever"] = 1
    return valid.asked("fields that nobody knows")


def _unknown_model(valid: Valid) -> Asked:
    valid.model = valid.draw.choice(("nope", "affine2", "..", "%2e%2e", "a%2Fb", "%00"))
    return valid.asked("an unknown model")


def _unknown_version(valid: Valid) -> Asked:
    valid.version = valid.draw.choice(("/versions/2", "/versions/0", "/versions/999"))
    return valid.asked("an unknown version")


def _odd_version(valid: Valid) -> Asked:
    valid.version = valid.draw.choice(("/versions/x", "/versions/", "/versions/1.0", "/versions/-1"))
    return valid.asked("a version that is no number")


def _huge_version(valid: Valid) -> Asked:
    valid.version = "/versions/99999999999999999999"
    return valid.asked("a version beyond all numbers")


def _unknown_encoding(valid: Valid) -> Asked:
    asked = valid.asked("an unknown encoding")
    headers = {**asked.headers, "Content-Encoding": "br"}
    return asked._replace(headers=headers, pieces=(b"whatever",), chunked=False)


def _damaged_encoding(valid: Valid) -> Asked:
    valid.headers = {}
    asked = valid.asked("a damaged encoding")
    headers = {**asked.headers, "Content-Encoding": valid.draw.choice(("gzip", "deflate"))}
    return asked._replace(headers=headers, pieces=(b"\x00nonsense",), chunked=False)


def _deep(valid: Valid) -> Asked:
    _with_data(valid)
    text = json.dumps(valid.message).encode()
    deep = b"[" * 90 + b"]" * 90
    return valid.asked("JSON that is deep", b'{"whatever": %b, ' % deep + text[1:])


def _query(valid: Valid) -> Asked:
    asked = valid.asked("a query behind the path")
    return asked._replace(path=f"{asked.path}?a=b&c")


def _get_infer(valid: Valid) -> Asked:
    return Asked("another method", valid.draw.choice(("GET", "PUT", "DELETE")), f"/v2/models/{valid.model}/infer", {}, ())  # fmt: skip


def _binary_for_all_by_name(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("affine", "adder", "fixed")))
    made.message["parameters"] = {"binary_data_output": True}
    made.message["outputs"] = [{"name": made.outputs[0].name}]
    return made.asked("binary for all, outputs by name")


def _compressed_reply(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("affine", "adder", "fixed")))
    made.headers["Accept-Encoding"] = valid.draw.choice(
        ("gzip", "deflate", "identity", "gzip;q=0.5, deflate;q=0.1")
    )
    return made.asked("a short reply that may be compressed")


def _long_compressed_reply(valid: Valid) -> Asked:
    made = Valid(valid.draw, "echo-fp64")
    made.tensors.clear()
    made.binary.clear()
    made.add(made.inputs[0], [2, 200])
    made.headers["Accept-Encoding"] = valid.draw.choice(("gzip", "deflate", "identity"))
    return made.asked("a long reply that may be compressed")


def _classes(valid: Valid) -> Asked:
    made = Valid(valid.draw, valid.draw.choice(("affine", "echo-fp64", "echo-int64")))
    name = made.outputs[0].name
    made.message.pop("parameters", None)
    made.message["outputs"] = [{"name": name, "parameters": {"classification": valid.draw.choice((1, 2))}}]
    return made.asked("classes")


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [leaf for item in data for leaf in _flat(item)]


_BREAKS: tuple[Callable[[Valid], Asked], ...] = (
    _not_json, _no_object, _empty, _field_of_another_type, _id_of_another_type, _without("name"), _without("shape"),
    _without("datatype"), _no_data, _no_inputs, _unknown_input, _further_input, _input_twice, _other_datatype,
    _no_datatype, _more_axes, _fewer_axes, _fixed_axis, _negative, _zero, _odd_shape, _huge_shape, _few_elements,
    _many_elements, _other_nesting, _no_list, _odd_element, _null_element, _out_of_range, _fraction, _nonfinite,
    _half_in_json, _half_out_json, _binary_size, _odd_binary_size, _cut_binary, _further_binary, _data_and_binary,
    _broken_strings, _header_length, _header_cuts, _unknown_output, _output_twice, _nameless_output, _odd_wish,
    _odd_wish_for_all, _empty_outputs, _unknown_fields, _unknown_model, _unknown_version, _odd_version,
    _huge_version, _unknown_encoding, _damaged_encoding, _deep, _query, _get_infer, _classes, _binary_for_all_by_name,
    _compressed_reply, _long_compressed_reply,
)  # fmt: skip


# What is asked beside inference. Statistics and configuration are compared by their keys.


def _get(kind: str, *paths: str) -> Callable[[random.Random], Asked]:
    return lambda draw: Asked(kind, "GET", draw.choice(paths), {}, ())


def _post(kind: str, path: str, *bodies: bytes) -> Callable[[random.Random], Asked]:
    return lambda draw: Asked(kind, "POST", path, {}, (draw.choice(bodies),))


def _wrong_method(draw: random.Random) -> Asked:
    path = draw.choice(
        ("/v2", "/v2/health/live", "/v2/models/affine", "/v2/models/affine/ready", "/v2/models/affine/config")
    )
    return Asked("another method", draw.choice(("POST", "PUT", "DELETE")), path, {}, ())


def _wrong_reading(draw: random.Random) -> Asked:
    path = draw.choice(("/v2/repository/index", "/v2/systemsharedmemory/region/r/register"))
    return Asked("another method", "GET", path, {}, ())


_CONTROLS: tuple[Callable[[random.Random], Asked], ...] = (
    _raw,
    _get("health", "/v2/health/live", "/v2/health/ready", "/v2/models/affine/ready", "/v2/models/adder/versions/1/ready"),
    _get("readiness of what is not there", "/v2/models/nope/ready", "/v2/models/affine/versions/9/ready"),
    _get("server metadata", "/v2", "/v2/"),
    _get("model metadata", *(f"/v2/models/{name}" for name in MODELS), "/v2/models/affine/versions/1"),
    _get("metadata of what is not there", "/v2/models/nope", "/v2/models/affine/versions/9"),
    _get("configuration", *(f"/v2/models/{name}/config" for name in MODELS)),
    _get("configuration of what is not there", "/v2/models/nope/config", "/v2/models/affine/versions/9/config"),
    _get("statistics", "/v2/models/affine/stats", "/v2/models/stats", "/v2/models/fixed/versions/1/stats"),
    _get("statistics of what is not there", "/v2/models/nope/stats", "/v2/models/affine/versions/9/stats"),
    _get("nothing there", "/", "/v1", "/v2/nope", "/v2/models", "/v2/models/affine/nope", "/v2/health", "/v2/models//ready"),
    _post("index", "/v2/repository/index", b"", b"{}", b'{"ready": true}', b'{"ready": false}'),
    _post("index of a repository", "/v2/repository/any/index", b"{}"),
    _post("index asked for in nonsense", "/v2/repository/index", b"{", b"[", b"nope"),
    _get("regions", "/v2/systemsharedmemory/status"),
    _get("a region that is not there", "/v2/systemsharedmemory/region/nope/status"),
    _post("unregister", "/v2/systemsharedmemory/region/nope/unregister", b""),
    _post("unregister all", "/v2/systemsharedmemory/unregister", b""),
    _post(
        "memory that is not there", "/v2/systemsharedmemory/region/r/register",
        b'{"key": "/edgekit-absent", "offset": 0, "byte_size": 8}',
    ),
    _post("register in nonsense", "/v2/systemsharedmemory/region/r/register", b"", b"{", b'{"key": "/k"}', b'{"key": 5, "offset": 0, "byte_size": 8}'),
    _get("CUDA regions", "/v2/cudasharedmemory/status"),
    _post("CUDA unregister", "/v2/cudasharedmemory/unregister", b""),
    _wrong_method,
    _wrong_reading,
)  # fmt: skip
