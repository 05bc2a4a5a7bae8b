from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.canonical import canonicalise, open_inside, save_canonical
from edgekit.errors import ConversionError
from tests.conversions import reference_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.convert

FLOAT = TensorProto.FLOAT


def value(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, list(shape))


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: np.ndarray) -> Any:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto: Any, **feed: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(None, feed)
    return answers


def text(proto: Any) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


W1, W2 = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
X = np.array([[0.5, -1.0]], np.float32)


def two_layers(a: str, b: str, c: str, *, swapped: bool = False) -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", a], [c], name=f"{a}_first"),
        helper.make_node("MatMul", [c, b], ["y"], name=f"{b}_second"),
    ]
    weights = {a: W1, b: W2} if not swapped else {b: W2, a: W1}
    return model(nodes[::-1] if swapped else nodes, [value("x", "n", 2)], [value("y", "n", 2)], **weights)


def test_names_and_order_do_not_matter() -> None:
    first = canonicalise(two_layers("Const__38", "Const__39", "t"))
    second = canonicalise(two_layers("Const__7", "zzz", "other", swapped=True))
    assert text(first) == text(second)
    onnx.checker.check_model(first)
    assert np.array_equal(run(first, x=X)[0], run(two_layers("a", "b", "c"), x=X)[0])


def test_names_say_the_position() -> None:
    graph = canonicalise(two_layers("a", "b", "c")).graph
    assert [node.name for node in graph.node] == ["n0", "n1"]
    assert [tensor.name for tensor in graph.initializer] == ["w0", "w1"]
    assert [list(node.input) for node in graph.node] == [["x", "w0"], ["v0", "w1"]]
    assert (graph.name, graph.input[0].name, graph.output[0].name) == ("graph", "x", "y")


def test_other_weights_are_another_model() -> None:
    other = two_layers("a", "b", "c")
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(W2, "a"))
    assert text(canonicalise(other)) != text(canonicalise(two_layers("a", "b", "c")))


def test_the_model_given_is_not_changed() -> None:
    given_model = two_layers("a", "b", "c")
    before = text(given_model)
    canonicalise(given_model, inputs=["p"], outputs=["q"], ir_version=7)
    assert text(given_model) == before


def test_what_nobody_reads_goes() -> None:
    proto = two_layers("a", "b", "c")
    proto.graph.node.append(helper.make_node("Relu", ["c"], ["dead"]))
    proto.graph.initializer.append(numpy_helper.from_array(W1, "unused"))
    proto.doc_string = proto.producer_version = "yesterday"
    assert text(canonicalise(proto)) == text(canonicalise(two_layers("a", "b", "c")))


def test_inputs_and_outputs_take_the_names_given() -> None:
    renamed = canonicalise(two_layers("a", "b", "c"), inputs=["image"], outputs=["output_0"])
    assert [v.name for v in renamed.graph.input] == ["image"]
    assert [v.name for v in renamed.graph.output] == ["output_0"]
    assert np.array_equal(run(renamed, image=X)[0], run(two_layers("a", "b", "c"), x=X)[0])
    with pytest.raises(ValueError, match="zip"):
        canonicalise(two_layers("a", "b", "c"), inputs=["one", "two"])


def test_the_ir_version_is_only_lowered() -> None:
    assert canonicalise(two_layers("a", "b", "c")).ir_version == 8
    assert canonicalise(two_layers("a", "b", "c"), ir_version=7).ir_version == 7
    assert canonicalise(two_layers("a", "b", "c"), ir_version=10).ir_version == 8


def test_an_initializer_listed_as_an_input_is_a_weight() -> None:
    proto = two_layers("a", "b", "c")
    proto.graph.input.append(value("a", 2, 2))
    assert text(canonicalise(proto)) == text(canonicalise(two_layers("a", "b", "c")))


def test_a_graph_may_return_its_input_and_a_weight() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", 2, 2)],
        [value("y", 2, 2), value("w", 2, 2)],
        w=W1,
    )
    canonical = canonicalise(proto)
    onnx.checker.check_model(canonical)
    ours, theirs = run(canonical, x=W2), run(proto, x=W2)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [v.name for v in canonical.graph.output] == ["y", "w"]


@pytest.mark.parametrize("taken", ["v0", "w0", "v1"])
def test_names_of_inputs_and_outputs_that_look_like_ours_stay_apart(taken: str) -> None:
    """A user may call an input `v0`: no inner value may then get that name."""
    proto = model(
        [
            helper.make_node("MatMul", [taken, "k"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "m"], ["y"]),
        ],
        [value(taken, "n", 2)],
        [value("y", "n", 2)],
        k=W1,
        m=W2,
    )
    canonical = canonicalise(proto)
    onnx.checker.check_model(canonical, full_check=True)
    assert [v.name for v in canonical.graph.input] == [taken]
    assert np.array_equal(run(canonical, **{taken: X})[0], run(proto, **{taken: X})[0])
    backwards = model(
        [helper.make_node("MatMul", ["x", "k"], ["h"]), helper.make_node("MatMul", ["h", "m"], [taken])],
        [value("x", "n", 2)],
        [value(taken, "n", 2)],
        k=W1,
        m=W2,
    )
    canonical = canonicalise(backwards)
    onnx.checker.check_model(canonical, full_check=True)
    assert np.array_equal(run(canonical, x=X)[0], run(backwards, x=X)[0])


def branching(first: str, second: str) -> Any:
    """Return x·w + 1 where the sum is positive, else x·w · 2; the branches read values of the outer graph."""
    then = helper.make_graph(
        [helper.make_node("Add", [first, f"{second}_one"], [f"{second}_sum"])],
        "then",
        [],
        [value(f"{second}_sum", "n", 2)],
        [numpy_helper.from_array(np.float32(1.0), f"{second}_one")],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Mul", [first, "two"], [f"{second}_twice"])],
        "else",
        [],
        [value(f"{second}_twice", "n", 2)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], [first]),
        helper.make_node("ReduceSum", [first], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    return model(
        nodes,
        [value("x", "n", 2)],
        [value("y", "n", 2)],
        w=W1,
        two=np.array(2.0, np.float32),
        zero=np.array(0.0, np.float32),
    )


def test_branches_keep_reading_what_they_read() -> None:
    canonical = canonicalise(branching("h", "inner"))
    onnx.checker.check_model(canonical, full_check=True)
    for x in (X, -X, np.array([[1, 1]], np.float32)):
        assert np.array_equal(run(canonical, x=x)[0], run(branching("h", "inner"), x=x)[0])
    assert text(canonical) == text(canonicalise(branching("hidden__12", "other__7")))


def test_branches_shadow_no_outer_name() -> None:
    """Two branches use the same inner names, as exporters do."""
    canonical = canonicalise(branching("h", "h2"))
    names: list[str] = []

    def collect(graph: Any) -> None:
        for node in graph.node:
            names.extend(name for name in node.output if name)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    collect(attribute.g)

    collect(canonical.graph)
    assert len(names) == len(set(names))


def test_a_cycle_is_told() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
        [value("x", 1)],
        [value("a", 1)],
    )
    with pytest.raises(ConversionError, match="the ONNX graph has a cycle through "):
        canonicalise(proto)


def test_a_long_chain_does_not_exhaust_the_stack() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(3000)]
    proto = model(nodes[::-1], [value("t0", 1)], [value("t3000", 1)])
    assert len(canonicalise(proto).graph.node) == 3000


def test_a_diamond_keeps_each_node_once_and_in_order() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Abs", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    canonical = canonicalise(model(nodes[::-1], [value("x", 1)], [value("y", 1)]))
    assert [node.op_type for node in canonical.graph.node] == ["Relu", "Neg", "Abs", "Add"]
    onnx.checker.check_model(canonical)


def test_missing_optional_inputs_stay_missing() -> None:
    proto = model(
        [helper.make_node("Clip", ["x", "", "top"], ["y"])],
        [value("x", 2)],
        [value("y", 2)],
        top=np.float32(1.0),
    )
    canonical = canonicalise(proto)
    assert list(canonical.graph.node[0].input) == ["x", "", "w0"]
    assert run(canonical, x=np.array([-3, 3], np.float32))[0].tolist() == [-3.0, 1.0]


def test_a_node_of_several_outputs_is_named_once() -> None:
    proto = model(
        [helper.make_node("Split", ["x"], ["p", "q"], axis=0, num_outputs=2)],
        [value("x", 2)],
        [value("q", 1), value("p", 1)],
    )
    proto.opset_import[0].version = 18
    canonical = canonicalise(proto)
    assert len(canonical.graph.node) == 1
    assert [a.tolist() for a in run(canonical, x=np.array([1, 2], np.float32))] == [[2.0], [1.0]]


def test_the_reference_cnn_is_already_canonical_and_answers_the_same(tmp_path: Path) -> None:
    proto = onnx.load(str(reference_onnx()))
    again = canonicalise(proto)
    assert text(again) == text(proto)
    save_canonical(again, str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").read_bytes() == reference_onnx().read_bytes()


@given(st.integers(0, 10_000))
def test_random_names_and_orders_of_a_random_graph_are_one_model(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    made = ["x"]
    plan: list[tuple[str, list[int]]] = []
    for _ in range(count):
        op = str(random.choice(["Relu", "Neg", "Add", "Mul"]))
        plan.append((op, [int(random.integers(len(made))) for _ in range(2 if op in ("Add", "Mul") else 1)]))
        made.append("")

    def build(salt: int) -> Any:
        own = np.random.default_rng(salt)
        names = ["x", *[f"s{salt}_{i}" for i in own.permutation(count - 1)], "y"]
        nodes = [
            helper.make_node(op, [names[i] for i in reads], [names[n + 1]], name=f"{salt}:{n}")
            for n, (op, reads) in enumerate(plan)
        ]
        own.shuffle(nodes)
        return model(nodes, [value("x", 2)], [value("y", 2)])

    first, second = canonicalise(build(1)), canonicalise(build(2))
    assert text(first) == text(second)
    assert text(canonicalise(first)) == text(first)
    onnx.checker.check_model(first, full_check=True)


def test_constants_become_weights_and_functions_are_written_out() -> None:
    tensor = numpy_helper.from_array(W1, "anything")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("MatMul", ["x", "c"], ["h"]),
        helper.make_node("twice", ["h"], ["t"], domain="own"),
        helper.make_node("ReduceSum", ["t", "axes"], ["y"]),
    ]
    proto = model(nodes, [value("x", "n", 2)], [value("y", "n", 1)])
    doubled = helper.make_node("Add", ["a", "a"], ["b"])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(
        helper.make_function("own", "twice", ["a"], ["b"], [doubled], [helper.make_opsetid("", 17)])
    )
    canonical = canonicalise(proto)
    onnx.checker.check_model(canonical)
    assert {node.op_type for node in canonical.graph.node} == {"MatMul", "Add", "ReduceSum"}
    assert len(canonical.graph.initializer) == 2
    assert not canonical.functions
    assert np.array_equal(run(canonical, x=X)[0], run(proto, x=X)[0])


def test_a_constant_that_is_an_answer_stays_a_node() -> None:
    proto = model(
        [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(W1))], [], [value("y", 2, 2)]
    )
    canonical = canonicalise(proto)
    assert [node.op_type for node in canonical.graph.node] == ["Constant"]
    assert np.array_equal(run(canonical)[0], W1)


# Weights outside the file


def outside(tmp_path: Path) -> Path:
    big = np.arange(40_000, dtype=np.float32).reshape(200, 200) / 1e4
    proto = model(
        [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])],
        [value("x", "n", 200)],
        [value("y", "n", 200)],
        a=big,
        b=big[::-1].copy(),
    )
    path = tmp_path / "big.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="big.data", size_threshold=0)
    return path


def same_answers(path: Path, other: Path) -> bool:
    x = np.random.default_rng(0).random((2, 200), np.float32)
    sessions = [ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (path, other)]
    return np.array_equal(*(session.run(None, {"x": x})[0] for session in sessions))


def test_weights_outside_are_copied_into_one_file_that_any_reader_takes(tmp_path: Path) -> None:
    path = outside(tmp_path)
    canonical = canonicalise(onnx.load(str(path), load_external_data=False))
    save_canonical(canonical, str(tmp_path / "model.onnx"), tmp_path)
    whole = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(whole)
    assert text(whole) == text(canonicalise(onnx.load(str(path))))
    assert same_answers(path, tmp_path / "model.onnx")


def test_weights_too_large_for_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.canonical._MOST_IN_FILE", 100_000)
    path = outside(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    save_canonical(
        canonicalise(onnx.load(str(path), load_external_data=False)), str(out / "m.onnx"), tmp_path
    )
    assert sorted(file.name for file in out.iterdir()) == ["m.onnx", "model.onnx.data"]
    assert (out / "m.onnx").stat().st_size < 2000
    assert same_answers(path, out / "m.onnx")
    offsets = [
        int(entry.value)
        for tensor in onnx.load(str(out / "m.onnx"), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets == [0, 163_840]  # on pages of their own
    first = (out / "model.onnx.data").read_bytes()
    save_canonical(
        canonicalise(onnx.load(str(path), load_external_data=False)), str(out / "m.onnx"), tmp_path
    )
    assert (out / "model.onnx.data").read_bytes() == first


def test_the_inside_of_a_model_with_weights_outside_can_be_seen(tmp_path: Path) -> None:
    session = open_inside(outside(tmp_path))
    assert len(session.run(None, {"x": np.ones((1, 200), np.float32)})) == 2
