"""Opsets lowered: the same answers, or a refusal that names the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx
from onnx import TensorProto, helper

from edgekit.canonical import canonicalise, save_canonical
from edgekit.errors import ConversionError
from edgekit.opset import lower, opset_of
from tests.converters.nets import graph, node, run

pytestmark = pytest.mark.convert

X = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)


def lowered(
    nodes: list[Any], opset: int = 21, most: int = 17, shape: list[Any] | None = None, **weights: Any
) -> Any:
    shape = shape or [2, 4, 6]
    net = graph(nodes, {"x": shape}, {"y": [None] * 3}, weights, opset=opset, ir=10)
    net.graph.output[0].type.tensor_type.ClearField("shape")
    before = run(net, {"x": X})
    for size in before[0].shape:
        net.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    result = canonicalise(lower(net, most), ir_version=8)
    assert opset_of(result) == most
    onnx.checker.check_model(result, full_check=True)
    after = run(result, {"x": X})
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-5)
    return result


def test_what_only_gained_types_is_written_anew() -> None:
    made = lowered(
        [
            node("Shape", "x", "s"),
            node("Cast", "x", "c", to=1),
            node("Reshape", "c s", "r"),
            node("Relu", "r", "y"),
        ]
    )
    assert made.ir_version == 8
    cast = next(n for n in made.graph.node if n.op_type == "Cast")
    assert [a.name for a in cast.attribute] == ["to"]


def test_axes_become_an_attribute_again() -> None:
    made = lowered([node("ReduceMean", "x axes", "y", keepdims=0)], axes=np.array([1, -1], np.int64))
    assert len(made.graph.node[0].input) == 1
    lowered([node("ReduceMax", "x", "y")])
    with pytest.raises(
        ConversionError, match=r"ReduceMean \(opset 18\) has no form .*: its axes are computed"
    ):
        lowered(
            [node("Shape", "x", "s", end=1), node("Sub", "s s", "axes"), node("ReduceMean", "x axes", "y")]
        )


def test_an_operator_that_is_newer_becomes_the_function_that_defines_it() -> None:
    made = lowered([node("Gelu", "x", "y", approximate="tanh")])
    assert "Gelu" not in {n.op_type for n in made.graph.node}
    lowered([node("Mish", "x", "y")])


def test_group_normalisation_changed_its_meaning_and_not_its_form() -> None:
    weights: dict[str, Any] = {
        "s": np.array([1, 2, 3, 4], np.float32),
        "b": np.array([0, 1, 0, -1], np.float32),
    }
    lowered([node("GroupNormalization", "x s b", "y", num_groups=2)], most=18, **weights)


def test_an_even_split_needs_no_number_of_parts() -> None:
    nodes = [node("Split", "x", "a b", num_outputs=2, axis=1), node("Add", "a b", "y")]
    made = lowered(nodes)
    assert [a.name for a in made.graph.node[0].attribute] == ["axis"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [node("BitwiseNot", "i", "j")],
            r"BitwiseNot \(opset 18\) has no form that the target's runtime reads",
        ),
        ([node("Pad", "x p", "y", mode="wrap")], r"Pad \(opset 2\d\) .*: mode='wrap' is newer"),
        (
            [node("Resize", "x  s", "y", antialias=1, mode="linear")],
            r"Resize \(opset 19\) .*: its attribute 'antialias' is newer",
        ),
    ],
)
def test_what_has_no_older_form_is_refused_by_name(nodes: list[Any], said: str) -> None:
    weights = {"p": np.array([0, 0, 1, 0, 0, 1], np.int64), "s": np.array([1, 1, 2], np.float32)}
    if nodes[0].op_type == "BitwiseNot":
        nodes = [node("Cast", "x", "i", to=6), *nodes, node("Cast", "j", "y", to=1)]
    if nodes[0].op_type == "Resize":
        nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1, mode="linear")]
    net = graph(nodes, {"x": [2, 4, 6]}, {"y": [None] * 3}, weights, opset=21, ir=10)
    with pytest.raises(ConversionError, match=said + r".*: got opset 21, expected at most opset 17"):
        lower(net, 17)


@pytest.mark.parametrize(("most", "mode"), [(17, "bilinear"), (20, "linear")])
def test_modes_are_named_as_the_opset_names_them(most: int, mode: str) -> None:
    made = lowered(
        [node("Reshape", "x picture", "p"), node("GridSample", "p grid", "g", mode="linear"),
         node("Reshape", "g line", "y")],
        opset=22,
        most=most,
        picture=np.array([1, 1, 6, 8], np.int64),
        grid=np.random.default_rng(1).uniform(-1, 1, (1, 4, 6, 2)).astype(np.float32),
        line=np.array([1, 4, 6], np.int64),
    )  # fmt: skip
    sample = next(n for n in made.graph.node if n.op_type == "GridSample")
    assert {a.name: helper.get_attribute_value(a) for a in sample.attribute}["mode"] == mode.encode()


def test_types_that_the_older_form_lacks_are_refused() -> None:
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [
        node("Cast", "x", "b", to=16),
        node("Transpose", "b", "t"),
        node("Equal", "t t", "e"),
        node("Cast", "e", "y", to=1),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [takes], [gives]), opset_imports=[helper.make_opsetid("", 21)]
    )
    lower(proto, 17)
    strings = [
        helper.make_node("Cast", ["x"], ["s"], to=8),
        helper.make_node("Equal", ["s", "s"], ["e"]),
        node("Cast", "e", "y", to=1),
    ]
    proto = helper.make_model(
        helper.make_graph(strings, "g", [takes], [gives]), opset_imports=[helper.make_opsetid("", 21)]
    )
    with pytest.raises(ConversionError, match=r"Equal .*: the older form takes no tensor\(string\)"):
        lower(proto, 17)


def test_branches_are_lowered_too() -> None:
    def branch(name: str, axis: int) -> Any:
        tensor = helper.make_tensor(f"{name}_a", TensorProto.INT64, [1], [axis])
        axes = helper.make_node("Constant", [], [f"{name}_axes"], value=tensor)
        mean = helper.make_node("ReduceMean", ["x", f"{name}_axes"], [f"{name}_y"], keepdims=0)
        gives = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [2, None])
        return helper.make_graph([axes, mean], name, [], [gives])

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("t", 1), else_branch=branch("e", 2)),
    ]
    lowered(nodes, zero=np.float32(0))


def test_large_weights_outside_the_file_are_not_needed(tmp_path: Any) -> None:
    net = graph(
        [node("MatMul", "x w", "m"), node("ReduceMean", "m axes", "y", keepdims=0)],
        {"x": [2, 4, 6]}, {"y": [None] * 2},
        {"w": np.ones((6, 5000), np.float32), "axes": np.array([2], np.int64)}, opset=21, ir=10,
    )  # fmt: skip
    onnx.save(net, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data")
    bare = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    made = canonicalise(lower(bare, 17), ir_version=8)
    save_canonical(made, str(tmp_path / "o.onnx"), tmp_path)
    assert np.allclose(
        run(onnx.load(str(tmp_path / "o.onnx")), {"x": X})[0],
        run(onnx.load(str(tmp_path / "m.onnx")), {"x": X})[0],
    )


def test_what_is_old_enough_is_left_alone() -> None:
    net = graph([node("Relu", "x", "y")], {"x": [2, 4, 6]}, {"y": [2, 4, 6]}, {}, opset=13)
    before = net.SerializeToString()
    assert lower(net, 17).SerializeToString() == before


def test_far_down_onnxs_own_converter_is_asked() -> None:
    net = graph([node("Softmax", "x", "y", axis=-1)], {"x": [2, 4, 6]}, {"y": [2, 4, 6]}, {}, opset=15, ir=8)
    before = run(net, {"x": X})
    made = lower(net, 12)
    assert opset_of(made) == 12
    np.testing.assert_allclose(run(made, {"x": X})[0], before[0], rtol=1e-5)
    newer = graph([node("Gelu", "x", "y")], {"x": [2, 4, 6]}, {"y": [2, 4, 6]}, {}, opset=20, ir=9)
    with pytest.raises(ConversionError, match="the model cannot be written for opset 12"):
        lower(newer, 12)
