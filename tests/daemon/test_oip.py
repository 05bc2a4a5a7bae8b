"""The protocol's messages without sockets: what a body means, and what is refused."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.daemon import codec, oip, replies
from edgekit.daemon.http1 import HttpError, Reply
from edgekit.daemon.signature import Inference, Signature
from edgekit.tensors import DTYPES, TensorSpec

pytestmark = pytest.mark.device

NUMERIC = tuple(dtype for dtype in DTYPES if dtype != "bytes")
JSON_DTYPES = tuple(dtype for dtype in NUMERIC if dtype != "float16")


def signature(
    *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "float32", (-1,)),)
) -> Signature:
    return Signature("m", "3", inputs, outputs)


def one(dtype: str, shape: tuple[int, ...]) -> Signature:
    return signature(TensorSpec("x", dtype, shape))


def tensor(data: object = None, **changes: object) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "FP32"}
    if data is not None:
        made["data"] = data
    return {**made, **changes}


def decode(of: Signature, message: object, tensors: bytes = b"", length: int | None = -2) -> Inference:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    if length == -2:
        length = len(data) if tensors else None
    return oip.decode_inference(of, memoryview(bytearray(data + tensors)), length)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(HttpError) as refused:
        decode(*args, **kwargs)
    assert refused.value.status == 400
    return refused.value.message


def encode(outputs: Mapping[str, Any], wanted: list[tuple[str, bool]], id_: str | None = None) -> Reply:
    specs = tuple(
        TensorSpec(name, "bytes" if array.dtype.kind == "O" else array.dtype.name, (-1,) * array.ndim)
        for name, array in outputs.items()
    )
    of = signature(outputs=specs)
    return replies.encode_outputs(of, Inference({}, wanted, id_, 1), outputs)


def joined(reply: Reply) -> bytes:
    return b"".join(reply.chunks)


def arrays(dtype: str) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))


@given(st.sampled_from(NUMERIC).flatmap(arrays))
def test_binary_round_trip_is_exact(array: np.ndarray[Any, Any]) -> None:
    kind = codec.BY_DTYPE[array.dtype.name]
    message = {
        "inputs": [
            tensor(shape=list(array.shape), datatype=kind.wire, parameters={"binary_data_size": array.nbytes})
        ]
    }
    got = decode(one(array.dtype.name, (-1,) * array.ndim), message, array.tobytes()).feed["x"]
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert got.flags.aligned
    reply = encode({"y": array}, [("y", True)])
    assert reply.json_length is not None
    assert joined(reply)[reply.json_length :] == array.tobytes()
    described = json.loads(joined(reply)[: reply.json_length])["outputs"][0]
    assert described == {
        "name": "y",
        "datatype": kind.wire,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }


@given(st.sampled_from(JSON_DTYPES).flatmap(arrays), st.booleans())
def test_json_round_trip_is_exact_nested_or_flat(array: np.ndarray[Any, Any], nested: bool) -> None:
    """Also for NaN and infinity, which travel as the tokens that Python's json writes."""
    kind = codec.BY_DTYPE[array.dtype.name]
    data = array.tolist() if nested else array.reshape(-1).tolist()
    message = {"inputs": [tensor(data, shape=list(array.shape), datatype=kind.wire)]}
    got = decode(one(array.dtype.name, (-1,) * array.ndim), message).feed["x"]
    assert got.dtype == array.dtype
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array)
    reply = encode({"y": array}, [("y", False)])
    assert reply.json_length is None
    (described,) = json.loads(joined(reply))["outputs"]
    back = np.array(described["data"], array.dtype).reshape(described["shape"])
    np.testing.assert_array_equal(back, array)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=6)


@given(TEXTS)
def test_strings_round_trip(texts: list[str]) -> None:
    raw = [text.encode() for text in texts]
    message = {"inputs": [tensor(texts, shape=[len(raw)], datatype="BYTES")]}
    assert list(decode(one("bytes", (-1,)), message).feed["x"]) == raw
    packed = b"".join(struct.pack("<I", len(item)) + item for item in raw)
    message = {
        "inputs": [tensor(shape=[len(raw)], datatype="BYTES", parameters={"binary_data_size": len(packed)})]
    }
    assert list(decode(one("bytes", (-1,)), message, packed).feed["x"]) == raw
    array = np.empty(len(raw), object)
    array[:] = raw
    assert json.loads(joined(encode({"y": array}, [("y", False)])))["outputs"][0]["data"] == texts
    reply = encode({"y": array}, [("y", True)])
    assert joined(reply)[reply.json_length :] == packed


def test_strings_that_are_not_utf_8_have_no_json_form() -> None:
    array = np.array([b"\xff"], object)
    with pytest.raises(HttpError) as refused:
        encode({"y": array}, [("y", False)])
    assert refused.value.status == 400
    assert "binary_data" in refused.value.message


def test_float16_has_no_json_form_in_or_out() -> None:
    message = {"inputs": [tensor([1.0, 2.0], datatype="FP16")]}
    assert "FP16 has no JSON form" in refusal(one("float16", (-1,)), message)
    with pytest.raises(HttpError) as refused:
        encode({"y": np.ones(1, np.float16)}, [("y", False)])
    assert refused.value.status == 400
    assert "FP16 has no JSON form" in refused.value.message


def test_bfloat16_is_no_models_datatype() -> None:
    message = {"inputs": [tensor([1.0, 2.0], datatype="BF16")]}
    assert "got 'BF16', expected FP32" in refusal(one("float32", (-1,)), message)


def test_binary_booleans_are_zero_or_not() -> None:
    message = {"inputs": [tensor(shape=[3], datatype="BOOL", parameters={"binary_data_size": 3})]}
    got = decode(one("bool", (-1,)), message, b"\x00\x01\x07").feed["x"]
    assert got.view(np.uint8).tolist() == [0, 1, 1]


def test_nonfinite_outputs_are_tokens_that_python_reads() -> None:
    array = np.array([math.nan, math.inf, -math.inf, 1.5], np.float32)
    text = joined(encode({"y": array}, [("y", False)], "null"))
    assert b"[NaN,Infinity,-Infinity,1.5]" in text
    assert json.loads(text)["id"] == "null"


def test_mixed_json_and_binary_inputs() -> None:
    of = signature(
        TensorSpec("a", "float32", (-1,)), TensorSpec("b", "int64", (-1,)), TensorSpec("c", "uint8", (-1,))
    )
    a, c = np.array([1.5, 2.5], np.float32), np.array([7, 8, 9], np.uint8)
    message = {
        "inputs": [
            tensor(name="c", shape=[3], datatype="UINT8", parameters={"binary_data_size": 3}),
            tensor([4, 5], name="b", datatype="INT64"),
            tensor(name="a", parameters={"binary_data_size": 8}),
        ]
    }
    feed = decode(of, message, c.tobytes() + a.tobytes()).feed
    assert feed["a"].tolist() == [1.5, 2.5]
    assert feed["b"].tolist() == [4, 5]
    assert feed["c"].tolist() == [7, 8, 9]


def test_a_header_length_of_the_whole_body_is_plain_json() -> None:
    data = json.dumps({"inputs": [tensor([1, 2])]}).encode()
    assert decode(one("float32", (-1,)), data, length=len(data)).feed["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("length", [-1, 1000])
def test_a_header_length_outside_the_body_is_refused(length: int) -> None:
    message = refusal(one("float32", (-1,)), {"inputs": [tensor([1, 2])]}, length=length)
    assert message.startswith("inference header size should be in range (0, ")


@pytest.mark.parametrize(
    ("shape", "nbytes", "got"),
    [
        ((-1, 4), 16, (1, 4)),
        ((1, 4), 16, (1, 4)),
        ((-1, -1, 2), 24, (1, 3, 2)),
        ((4,), 16, (4,)),
        ((-1,), 4, (1,)),
    ],
)
def test_raw_binary_is_the_only_input_as_a_batch_of_one(
    shape: tuple[int, ...], nbytes: int, got: tuple[int, ...]
) -> None:
    inference = decode(one("float32", shape), bytes(nbytes), length=0)
    assert inference.feed["x"].shape == got
    assert inference.wanted == (("y", True),)


@pytest.mark.parametrize(
    ("shape", "nbytes"), [((-1, 4), 32), ((-1, -1, -1), 4), ((-1, -1, 2), 20), ((2,), 3)]
)
def test_raw_binary_that_does_not_fit(shape: tuple[int, ...], nbytes: int) -> None:
    assert "raw" in refusal(one("float32", shape), bytes(nbytes), length=0)


def test_raw_binary_strings_are_one_element() -> None:
    assert decode(one("bytes", (-1,)), b"hello", length=0).feed["x"].tolist() == [b"hello"]


def test_raw_binary_needs_one_input() -> None:
    of = signature(TensorSpec("a", "float32", (1,)), TensorSpec("b", "float32", (1,)))
    assert "one input" in refusal(of, bytes(4), length=0)


PAIR = {"outputs": (TensorSpec("y", "float32", (-1,)), TensorSpec("z", "float32", (-1,)))}


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({}, (("y", False), ("z", False))),
        ({"outputs": []}, (("y", False), ("z", False))),
        ({"parameters": {"binary_data_output": True}}, (("y", True), ("z", True))),
        ({"outputs": [{"name": "z"}]}, (("z", False),)),
        ({"outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]}, (("z", True), ("y", False))),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
            },
            (("y", False), ("z", True)),
        ),
        ({"parameters": {"binary_data_output": True, "priority": 1, "timeout": 5, "mine": "x"}}, (("y", True), ("z", True))),
    ],
)  # fmt: skip
def test_which_outputs_are_wanted_and_how(extra: dict[str, Any], wanted: object) -> None:
    of = signature(TensorSpec("x", "float32", (-1,)), outputs=PAIR["outputs"])
    assert tuple(decode(of, {"inputs": [tensor([1, 2])], **extra}).wanted) == wanted


def test_the_id_is_echoed() -> None:
    assert decode(one("float32", (-1,)), {"id": 'a"b', "inputs": [tensor([1, 2])]}).id == 'a"b'
    reply = encode({"y": np.ones(1, np.float32)}, [("y", False)], 'a"b')
    assert json.loads(joined(reply)) == {
        "model_name": "m",
        "model_version": "3",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        "id": 'a"b',
    }


X = TensorSpec("x", "float32", (-1,))
SHM = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "parse"),
        (b"{", "parse"),
        (b"[]", "not an inference request"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": 5}', "Expected `array`"),
        (b'{"inputs": []}', "input 'x' is missing"),
        (b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, ]}]}', "parse"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000 + b"1" + b"]" * 100_000 + b"}]}", "recursion"),
        (b"\xff\xfe", "parse"),
        (b'{"id": "\xff", "inputs": []}', "parse"),
        (b'{"id": "\\ud800", "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "parse"),
        ({"inputs": [tensor([1, 2])], "id": 7}, "Expected `str | null`"),
        ({"inputs": [tensor([1, 2], name="nope")]}, "unknown input 'nope'"),
        ({"inputs": [tensor([1, 2], name="")]}, "unknown input ''"),
        ({"inputs": [tensor([1, 2]), tensor([1, 2])]}, "given twice"),
        ({"inputs": [tensor([1, 2], datatype="fp32")]}, "wrong datatype: got 'fp32', expected FP32"),
        ({"inputs": [tensor([1, 2], datatype="INT32")]}, "wrong datatype"),
        ({"inputs": [tensor([1, 2], shape=[1, 2])]}, "wrong shape: got [1, 2], expected [-1]"),
        ({"inputs": [tensor([1, 2], shape=[-2])]}, "Expected `int` >= 1"),
        ({"inputs": [tensor([], shape=[0])]}, "Expected `int` >= 1"),
        ({"inputs": [tensor([1, 2], shape=[2**61])]}, "does not have the shape"),
        ({"inputs": [tensor([1, 2], shape=[10**30])]}, "Expected `int`"),
        ({"inputs": [tensor([1, 2], shape=[1.5])]}, "Expected `int`"),
        ({"inputs": [tensor([1])]}, "expected 2 elements"),
        ({"inputs": [tensor([1, 2, 3])]}, "got 3 elements"),
        ({"inputs": [tensor([[1], [2]])]}, "another nesting"),
        ({"inputs": [tensor(5)]}, "does not have the shape"),
        ({"inputs": [tensor({"a": 1})]}, "does not have the shape"),
        ({"inputs": [tensor([1, "2"])]}, "is not FP32"),
        ({"inputs": [tensor([1, None])]}, "is not FP32"),
        ({"inputs": [tensor([1, True])]}, "is not FP32"),
        ({"inputs": [tensor([1, 1e300])]}, "does not fit into FP32"),
        ({"inputs": [tensor()]}, "neither data nor binary_data_size"),
        ({"inputs": [tensor([1, 2], parameters={"binary_data_size": 8})]}, "both data and"),
        ({"inputs": [tensor(parameters={"binary_data_size": 8})]}, "the body ends within"),
        ({"inputs": [tensor(parameters={"binary_data_size": 2**60})]}, "does not fit the shape"),
        ({"inputs": [tensor(parameters={"binary_data_size": 2**70})]}, "Expected `int`"),
        ({"inputs": [tensor(parameters={"binary_data_size": -1})]}, "Expected `int` >= 0"),
        ({"inputs": [tensor(parameters=SHM)]}, "shared memory is not supported"),
        ({"inputs": [tensor([1, 2])], "outputs": [{"name": "q"}]}, "unknown output 'q'"),
        ({"inputs": [tensor([1, 2])], "outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ({"inputs": [tensor([1, 2])], "outputs": [{"name": "y", "parameters": {"classification": 0}}]}, "no classes"),
        ({"inputs": [tensor([1, 2])], "outputs": [{"name": "y", "parameters": SHM}]}, "shared memory is not supported"),
    ],
)  # fmt: skip
def test_what_is_refused(message: object, says: str) -> None:
    assert says in refusal(signature(X), message)


@pytest.mark.parametrize(
    ("parameters", "tensors", "says"),
    [
        ({"binary_data_size": 8}, bytes(9), "1 bytes after the last tensor"),
        ({"binary_data_size": 4}, bytes(4), "does not fit the shape [2]: got 4, expected 8"),
        ({"binary_data_size": 8}, bytes(7), "the body ends within the binary data: got 7 bytes"),
    ],
)
def test_binary_sizes_that_do_not_add_up(parameters: object, tensors: bytes, says: str) -> None:
    assert says in refusal(signature(X), {"inputs": [tensor(parameters=parameters)]}, tensors)


@pytest.mark.parametrize(
    "data", [b"\x02\x00\x00\x00a", b"\x01\x00", b"\xff\xff\xff\xffab", b"\x01\x00\x00\x00a"]
)
def test_broken_binary_strings(data: bytes) -> None:
    message = {"inputs": [tensor(datatype="BYTES", parameters={"binary_data_size": len(data)})]}
    refusal(one("bytes", (-1,)), message, data)


@pytest.mark.parametrize(
    ("dtype", "wire", "value"),
    [
        ("uint8", "UINT8", 256), ("uint8", "UINT8", -1), ("int8", "INT8", 128), ("uint64", "UINT64", 2**64),
        ("int64", "INT64", 2**63), ("int32", "INT32", 1.5), ("bool", "BOOL", 1), ("float64", "FP64", "1"),
        ("bytes", "BYTES", 5),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_the_datatype(dtype: str, wire: str, value: object) -> None:
    refusal(one(dtype, (-1,)), {"inputs": [tensor([value], shape=[1], datatype=wire)]})


def test_ragged_data_with_the_right_number_of_elements_is_refused() -> None:
    message = {"inputs": [tensor([[1, 2, 3], [4]], shape=[2, 2])]}
    assert "another nesting" in refusal(one("float32", (-1, -1)), message)
    message = {"inputs": [tensor([["a", "b", "c"], ["d"]], shape=[2, 2], datatype="BYTES")]}
    assert "another nesting" in refusal(one("bytes", (-1, -1)), message)


def test_one_value_in_every_axis_may_be_flat() -> None:
    for data in ([5.0], [[[5.0]]], [math.nan]):
        got = decode(one("float32", (-1, -1, -1)), {"inputs": [tensor(data, shape=[1, 1, 1])]}).feed["x"]
        assert got.shape == (1, 1, 1)


def test_large_outputs_are_not_copied() -> None:
    array = np.zeros((100, 100), np.float32)
    reply = encode({"y": array}, [("y", True)])
    view = reply.chunks[1]
    assert isinstance(view, memoryview)
    array[0, 0] = 7
    assert struct.unpack_from("<f", view.cast("B"))[0] == 7
    assert reply.length == len(reply.chunks[0]) + array.nbytes


def test_outputs_that_are_not_contiguous_are_sent_row_by_row() -> None:
    array = np.arange(20_000, dtype=np.int32).reshape(100, 200).T
    reply = encode({"y": array}, [("y", True)])
    assert joined(reply)[reply.json_length :] == array.tobytes()


@pytest.mark.parametrize("nested", [False, True])
def test_long_json_is_the_same_tensor_and_never_all_python_objects(nested: bool) -> None:
    array = np.random.default_rng(3).random((300, 50, 20), np.float32)
    data = array.tolist() if nested else array.ravel().tolist()
    message = {"inputs": [{**tensor(data), "shape": [300, 50, 20]}]}
    assert len(json.dumps(message)) > 4 * codec._PIECE_BYTES
    tracemalloc.start()
    got = decode(one("float32", (-1, 50, 20)), message).feed["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got, array)
    assert got.flags.writeable
    body = len(json.dumps(message))
    assert peak < 5 * body  # all at once it takes more than twice this


@pytest.mark.parametrize("damage", [b"true", b'"1"', b"[1]", b"", b"1e999", b"1,1"])
def test_long_json_that_is_wrong_at_the_end_is_refused(damage: bytes) -> None:
    elements = b"0.12345," * 400_000 + damage
    text = b'{"inputs":[{"name":"x","shape":[1,400001],"datatype":"FP32","data":[' + elements + b"]}]}"
    with pytest.raises(HttpError) as refused:
        oip.decode_inference(one("float32", (-1, -1)), memoryview(text), None)
    assert refused.value.status == 400
