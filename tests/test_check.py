"""`check`: its decisions, its tables against what the tools do today, its verdicts against real conversions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.check.outlook import Outlook, check, decide
from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.check.tables import table
from edgekit.check.verdicts import REASONS, STATUSES, judge_ops, worst_of
from edgekit.converters import CONVERTERS
from edgekit.devices import DeviceProfile, load_profile
from edgekit.recipes import wanted_artifacts
from edgekit.routes import converters
from edgekit.tensors import TensorSpec
from tests.check_models import ROUTES, Compared, compare
from tests.corpus import ROOT
from tests.models import Model, models
from tests.small_sources import small_source

pytestmark = pytest.mark.convert

X = TensorSpec("x", "float32", (-1, 28, 28, 1), "NHWC")
Y = TensorSpec("y", "float32", (-1, 10))


def surveyed(dialect: str, *ops: OpUse, **more: Any) -> Surveyed:
    return Surveyed(dialect, (X,), (Y,), merged(ops), **{"parameters": 1000, "parameter_bytes": 4000, **more})


def verdict(dialect: str, op: OpUse, format_: str, via: str = "", **more: Any) -> tuple[str, str]:
    (found,) = judge_ops(surveyed(dialect, op, **more), format_, via)
    return found.status, found.reason


# One operator

FLOAT = {"T": "float"}


@pytest.mark.parametrize(
    ("op", "format_", "wanted"),
    [
        (OpUse("Conv", "float", 11, types=FLOAT), "onnx", ("supported", "")),
        (OpUse("Conv", "float", 11, types=FLOAT), "openvino", ("supported", "")),
        (OpUse("Conv", "float", 11, "If", FLOAT), "onnx", ("supported", "")),
        (OpUse("Conv", "float", 11, "If", FLOAT), "openvino", ("supported", "")),
        (OpUse("Conv", "float", 11, "If", FLOAT, free_rank=True), "openvino", ("unsupported", "conv-in-if")),
        (OpUse("Conv", "float", 11, types=FLOAT, free_rank=True), "openvino", ("unknown", "free-rank")),
        (OpUse("Conv", "float", 11, types=FLOAT, free_rank=True), "onnx", ("supported", "")),
        (OpUse("Unsqueeze", "int64", 13, types={"T": "int64"}), "openvino", ("supported", "")),
        (OpUse("Conv", "double", 11, types={"T": "double"}), "onnx", ("unsupported", "double")),
        (OpUse("Conv", "float16", 11, types={"T": "float16"}), "onnx", ("rewritten", "computed-in-float32")),
        (OpUse("Add", "float", 14, types=FLOAT, lowered=True), "onnx", ("rewritten", "opset-lowered")),
        (OpUse("Add", "bfloat16", 14, types={"T": "bfloat16"}), "onnx", ("unsupported", "no-kernel-for-type")),
        (OpUse("Add", "float", 99, types=FLOAT), "onnx", ("unsupported", "no-kernel")),
        (OpUse("HardSwish", "float", 99, types=FLOAT, function=True), "onnx", ("rewritten", "by-function")),
        (OpUse("If", "bool", 16), "openvino", ("unknown", "control-flow")),
        (OpUse("Unsqueeze", "float", 13, types=FLOAT, computed=True), "openvino", ("unknown", "computed-inputs")),
        (OpUse("Reshape", "float", 14, types=FLOAT, computed=True), "openvino", ("supported", "")),
        (OpUse("ai.onnx.ml:TreeEnsemble", "float", 5), "openvino", ("unsupported", "ai-onnx-ml")),
        (OpUse("ai.onnx.ml:TreeEnsembleClassifier", "float", 3), "onnx", ("supported", "")),
        (OpUse("ai.onnx.ml:TreeEnsembleClassifier", "float", 3), "openvino", ("unsupported", "ai-onnx-ml")),
        (OpUse("com.microsoft:Gelu", "float", 1), "openvino", ("unknown", "contrib-op")),
        (OpUse("my.own:Thing", "float"), "onnx", ("unsupported", "custom-op")),
        (OpUse("Det", "float", 11, types=FLOAT), "openvino", ("unsupported", "refused-when-tried")),
        (OpUse("RNN", "float/1", 14, types=FLOAT), "onnx", ("unsupported", "no-attribute")),
        (OpUse("Split", "float", 13, types=FLOAT, lowered=True), "onnx", ("unknown", "some-forms")),
    ],
)  # fmt: skip
def test_operators_of_onnx(op: OpUse, format_: str, wanted: tuple[str, str]) -> None:
    assert verdict("onnx", op, format_) == wanted


@pytest.mark.parametrize(
    ("op", "format_", "wanted"),
    [
        (OpUse("CONV_2D", "float32"), "tflite", ("supported", "")),
        (OpUse("FlexErf", "custom"), "tflite", ("unsupported", "flex-op")),
        (OpUse("TFLite_Detection_PostProcess", "custom"), "tflite", ("unsupported", "custom-op")),
        (OpUse("TFLite_Detection_PostProcess", "custom"), "openvino", ("unsupported", "custom-op")),
        (OpUse("VAR_HANDLE"), "tflite", ("supported", "")),
        (OpUse("VAR_HANDLE"), "openvino", ("unsupported", "resource-variable")),
        (OpUse("VAR_HANDLE"), "onnx", ("unsupported", "resource-variable")),
        (OpUse("WHILE"), "openvino", ("unknown", "control-flow")),
        (OpUse("CONV_2D", "float32"), "openvino", ("supported", "")),
        (OpUse("SKIP_GRAM"), "onnx", ("unknown", "not-tried")),
        (OpUse("MULTINOMIAL", "float32"), "openvino", ("unsupported", "refused-when-tried")),
    ],
)  # fmt: skip
def test_operators_of_tflite(op: OpUse, format_: str, wanted: tuple[str, str]) -> None:
    assert verdict("tflite", op, format_) == wanted


@pytest.mark.parametrize(
    ("op", "format_", "via", "wanted"),
    [
        (OpUse("Conv2D", "float"), "tflite", "tflite", ("supported", "")),
        (OpUse("Erf", "float"), "tflite", "tflite", ("unsupported", "flex-op")),
        (OpUse("Erf", "float"), "onnx", "onnx", ("supported", "")),
        (OpUse("Erf", "float"), "openvino", "onnx", ("supported", "")),
        (OpUse("Erf", "float"), "openvino", "tflite", ("unsupported", "flex-op")),
        (OpUse("Digamma", "float"), "tflite", "tflite", ("unsupported", "custom-op")),
        (OpUse("Digamma", "float"), "onnx", "onnx", ("unsupported", "no-translation")),
        (OpUse("Conv2D", "double"), "tflite", "tflite", ("unsupported", "flex-op")),
        (OpUse("AddV2", "double"), "tflite", "tflite", ("unknown", "double")),
        (OpUse("While"), "tflite", "tflite", ("rewritten", "control-flow")),
        (OpUse("While"), "openvino", "tflite", ("unknown", "control-flow")),
        (OpUse("AssignVariableOp"), "tflite", "tflite", ("unknown", "resource-variable")),
        (OpUse("AssignVariableOp"), "onnx", "onnx", ("unsupported", "resource-variable")),
        (OpUse("HashTableV2"), "onnx", "onnx", ("unsupported", "lookup-table")),
        (OpUse("Placeholder", "float"), "tflite", "tflite", ("supported", "")),
        (OpUse("NeverHeardOf"), "tflite", "tflite", ("unknown", "not-tried")),
    ],
)  # fmt: skip
def test_operators_of_tensorflow(op: OpUse, format_: str, via: str, wanted: tuple[str, str]) -> None:
    assert verdict("tensorflow", op, format_, via) == wanted


@pytest.mark.parametrize(
    ("op", "decomposed", "wanted"),
    [
        (OpUse("relu", "float"), (), ("supported", "")),
        (OpUse("linear", "float", function=True), ("addmm",), ("rewritten", "decomposed")),
        (OpUse("linear", "float", function=True), ("no_such",), ("unknown", "no-translation-known")),
        (OpUse("no_such", "float"), (), ("unknown", "no-translation-known")),
        (OpUse("relu", "double"), (), ("unknown", "double")),
        (OpUse("torchvision:nms", "float"), (), ("unsupported", "custom-op")),
    ],
)
def test_operators_of_pytorch(op: OpUse, decomposed: tuple[str, ...], wanted: tuple[str, str]) -> None:
    assert verdict("aten", op, "tflite", "tflite", decomposed=decomposed) == wanted


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        (OpUse("StandardScaler"), ("supported", "")),
        (OpUse("RandomForestClassifier"), ("supported", "")),
        (OpUse("SpectralClustering"), ("unsupported", "no-translation")),
        (OpUse("MyScaler", "custom"), ("unsupported", "custom-op")),
    ],
)
def test_operators_of_scikit_learn(op: OpUse, wanted: tuple[str, str]) -> None:
    assert verdict("sklearn", op, "onnx", "onnx") == wanted


def test_the_same_verdicts_are_counted_together_worst_first() -> None:
    ops = [OpUse("Add", "float", 14, types=FLOAT)] * 3 + [
        OpUse("Add", "float", 14, "If", FLOAT),
        OpUse("my.own:A"),
    ]
    found = judge_ops(surveyed("onnx", *ops), "onnx")
    assert [(v.op, v.count, v.status) for v in found] == [
        ("my.own:A", 1, "unsupported"),
        ("Add", 4, "supported"),
    ]
    assert worst_of(found) == "unsupported"
    assert worst_of(()) == "supported"


def test_an_accelerator_may_leave_an_operator_to_the_cpu() -> None:
    providers = ("TensorrtExecutionProvider", "CPUExecutionProvider")
    ops = [OpUse("Add", "double", 14, types={"T": "double"}), OpUse("Add", "float", 14, types=FLOAT)]
    found = judge_ops(surveyed("onnx", *ops), "onnx", providers=providers)
    assert [(v.status, v.reason) for v in found] == [("fallback", "provider-falls-back"), ("supported", "")]


def test_every_reason_is_documented_and_may_be_given() -> None:
    page = (ROOT / "docs" / "check.md").read_text("utf-8")
    assert (
        dict(
            re.findall(
                r"^\| `([a-z0-9-]+)` \| (.+) \|$",
                page.split("## Reason codes")[1].split("## Keys")[0],
                re.MULTILINE,
            )
        )
        == REASONS
    )
    code = (ROOT / "edgekit" / "check" / "verdicts.py").read_text("utf-8").split("def judge_ops")[1]
    assert [reason for reason in REASONS if f'"{reason}"' not in code] == []


# The whole outlook

PI, NPU, X86, JETSON = (load_profile(name) for name in ("raspberry-pi", "intel-npu", "x86-64", "jetson"))


def outlook(
    source: Surveyed, kind: str = "onnx", profile: DeviceProfile = X86, formats: Sequence[str] = ()
) -> Outlook:
    wanted = wanted_artifacts(
        profile, kind, converters(), formats=formats, calibrated=True, quantized=source.quantized
    )
    return decide(kind, profile, source, wanted)


CONV = OpUse("Conv", "float", 11, types=FLOAT)


def test_a_refused_operator_leaves_the_other_runtime() -> None:
    found = outlook(surveyed("onnx", CONV, OpUse("Conv", "float", 11, "If", FLOAT, free_rank=True)))
    possible = {runtime.runtime: runtime.possible for runtime in found.runtimes}
    assert possible == {"openvino": False, "onnxruntime": True, "litert": False}
    assert found.possible
    openvino = found.runtimes[0].artifacts[0]
    assert openvino.reasons == ("operators that are refused: Conv",)
    assert openvino.needs == ()
    assert found.next_step.startswith("Run edgekit convert")


def test_nothing_is_possible_where_everything_is_refused() -> None:
    found = outlook(surveyed("onnx", OpUse("my.own:Thing")))
    assert not found.possible
    assert "without my.own:Thing" in found.next_step


def test_the_route_is_the_one_that_takes_the_operators() -> None:
    found = outlook(surveyed("tensorflow", OpUse("Erf", "float")), "keras", formats=("openvino",))
    (runtime,) = found.runtimes
    assert runtime.possible
    assert runtime.artifacts[0].route[0] == "keras-onnx"


def test_versions_that_cannot_be_lowered_refuse_every_artifact() -> None:
    why = "the operator Swish (opset 24) has no form that the target's runtime reads"
    found = outlook(surveyed("onnx", OpUse("Swish", "float", 24, types=FLOAT), opset=24, ir=10, lowering=why))
    assert found.versions is not None
    assert (found.versions.verdict, found.versions.opset) == ("refused", 24)
    assert not found.possible
    assert all(why in artifact.reasons for r in found.runtimes for artifact in r.artifacts if artifact.route)


def test_versions_that_can_be_lowered_are_said_to_be() -> None:
    found = outlook(surveyed("onnx", CONV, opset=25, ir=12))
    assert found.versions is not None
    assert found.versions.verdict == "lowered"
    assert outlook(surveyed("onnx", CONV, opset=11, ir=6)).versions.verdict == "as-is"  # type: ignore[union-attr]


def test_sizes_follow_the_width_of_the_weights() -> None:
    sizes = {a.name: a.size_bytes for r in outlook(surveyed("onnx", CONV)).runtimes for a in r.artifacts}
    assert (sizes["onnx-fp32"], sizes["onnx-int8"]) == (4000, 1000)


def test_a_quantized_source_keeps_its_size() -> None:
    source = surveyed("onnx", CONV, quantized="int8", parameter_bytes=1234)
    artifact = next(a for r in outlook(source).runtimes for a in r.artifacts if a.name == "onnx-int8")
    assert (artifact.size_bytes, artifact.needs, artifact.possible) == (1234, (), True)


@pytest.mark.parametrize(
    ("mib", "wanted", "possible"),
    [(100, "fits", True), (300, "tight", True), (600, "tight", True), (3000, "too-large", False)],
)
def test_weights_must_fit_the_memory(mib: int, wanted: str, possible: bool) -> None:
    source = surveyed("onnx", CONV, parameters=mib << 18, parameter_bytes=mib << 20)
    found = outlook(source, profile=PI)  # 512 MiB
    assert (found.memory.verdict, found.possible) == (wanted, possible)


def test_memory_is_unknown_where_the_profile_says_nothing() -> None:
    assert outlook(surveyed("onnx", CONV)).memory.verdict == "unknown"


def test_fixed_shapes_are_demanded_where_the_target_needs_them() -> None:
    free = TensorSpec("x", "float32", (-1, 3, -1, -1))
    source = Surveyed("onnx", (free,), (Y,), (CONV,))
    found = outlook(source, profile=NPU)
    assert not found.possible
    assert "fixed shapes only" in found.runtimes[0].artifacts[0].reasons[0]
    assert outlook(surveyed("onnx", CONV), profile=NPU).possible  # a free batch is fixed at one


def test_types_that_no_array_has_are_refused() -> None:
    source = Surveyed("onnx", (TensorSpec("x", "bfloat16", (1,)),), (Y,), (CONV,))
    assert not outlook(source).possible


def test_layout_counts_pictures_that_are_turned() -> None:
    found = outlook(surveyed("tensorflow", OpUse("Conv2D", "float")), "keras", PI)
    layouts = {runtime.format: runtime.layout for runtime in found.runtimes}
    assert (layouts["onnx"].transposes_at_least, layouts["onnx"].bytes_per_sample) == (1, 28 * 28 * 4)
    assert layouts["tflite"].transposes_at_least == 0


# Reading: real files of every kind

KINDS = ("keras", "keras2", "savedmodel", "onnx", "tflite", "torch-export", "torchscript")


def test_a_forest_is_one_step_and_goes_to_onnx_alone() -> None:
    found = check(small_source("sklearn"), "x86-64")
    assert [(op.name, op.count) for op in found.source.ops] == [("RandomForestClassifier", 1)]
    assert [r.runtime for r in found.runtimes if r.possible] == ["onnxruntime"]
    assert found.source.parameters > 100
    assert found.next_step == "Run edgekit convert with --eval."


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_read(kind: str) -> None:
    from edgekit.sources import SourceOptions

    options = SourceOptions(input_shapes={"input_0": (-1, 8)}) if kind == "torchscript" else SourceOptions()
    found = check(small_source(kind), "x86-64", options=options)
    assert found.kind == kind
    assert found.possible
    assert found.source.inputs[0].shape == (-1, 8)
    assert found.source.ops
    assert 176 <= found.source.parameters <= 195  # 8·16 + 16·3 weights, with or without the 19 biases
    assert worst_of(found.runtimes[0].ops) != "unsupported"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Any:
    """Return a function that writes nodes as a model and surveys it."""
    import onnx
    from onnx import TensorProto, helper

    from edgekit.check.onnx_graph import survey
    from edgekit.sources import SourceOptions

    def write(nodes: list[Any], opset: int = 17, most: int = 17, weights: Any = (), **graph: Any) -> Surveyed:
        info = helper.make_tensor_value_info
        made = helper.make_graph(
            nodes,
            "g",
            graph.get("inputs") or [info("x", TensorProto.FLOAT, ["n", 4])],
            graph.get("outputs") or [info("y", TensorProto.FLOAT, ["n", 4])],
            list(weights),
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
        model = helper.make_model(made, opset_imports=opsets, functions=graph.get("functions", []))
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        assert onnx.load(str(path)) is not None
        return survey(path, SourceOptions(), most)

    return write


def test_operators_of_branches_and_functions_are_found(onnx_file: Any) -> None:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    branch = [
        helper.make_graph(
            [helper.make_node(kind, ["x"], [f"{kind}_out"])],
            kind,
            [],
            [info(f"{kind}_out", TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Twice", ["z"], ["y"], domain="my.own"),
    ]
    twice = helper.make_function(
        "my.own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    found = onnx_file(nodes, weights=[zero], functions=[twice])
    places = {op.name: op.inside for op in found.ops}
    assert places == {"Add": "", "Greater": "", "If": "", "Neg": "If", "ReduceSum": "", "Relu": "If"}
    assert next(op for op in found.ops if op.name == "Relu").types == {"T": "float"}


def test_free_sizes_inside_and_transposes_are_counted(onnx_file: Any) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Transpose", ["t"], ["y"]),
    ]
    found = onnx_file(nodes)
    assert (found.transposes, found.free_inside) == (2, 1)


def test_a_convolution_behind_branches_of_different_rank_is_refused_by_openvino(onnx_file: Any) -> None:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    branches = {
        "then_branch": helper.make_node("Identity", ["x"], ["out"]),
        "else_branch": helper.make_node("Squeeze", ["x"], ["out"]),
    }
    graphs = {
        name: helper.make_graph([node], name, [], [info("out", TensorProto.FLOAT, None)])
        for name, node in branches.items()
    }
    nodes = [
        helper.make_node("If", ["flag"], ["z"], **graphs),
        helper.make_node("Conv", ["z", "w"], ["y"]),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    inputs = [info("x", TensorProto.FLOAT, [1, 1, 4, 4])]
    found = onnx_file(
        nodes, weights=[weight, flag], inputs=inputs, outputs=[info("y", TensorProto.FLOAT, None)]
    )
    (conv,) = (op for op in found.ops if op.name == "Conv")
    assert verdict("onnx", conv, "openvino") == ("unknown", "free-rank")


def test_a_newer_opset_is_lowered_or_refused(onnx_file: Any) -> None:
    from onnx import TensorProto, helper

    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    found = onnx_file([helper.make_node("ReduceMax", ["x", "axes"], ["y"])], opset=18, weights=[axes])
    assert found.lowering == ""
    (op,) = found.ops
    assert (op.since, op.lowered, found.opset) == (13, True, 18)
    assert verdict("onnx", op, "onnx") == ("rewritten", "opset-lowered")
    refused = onnx_file([helper.make_node("ReduceMax", ["x", "x2"], ["y"])], opset=18, inputs=[
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4]),
        helper.make_tensor_value_info("x2", TensorProto.INT64, [1]),
    ])  # fmt: skip
    assert "ReduceMax" in refused.lowering
    assert {op.name: verdict("onnx", op, "onnx", lowering=refused.lowering) for op in refused.ops} == {
        "ReduceMax": ("unsupported", "opset-too-new")
    }


def test_weights_stay_on_the_disk(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.check.onnx_graph import survey
    from edgekit.sources import SourceOptions

    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    found = survey(tmp_path / "m.onnx", SourceOptions(), 17)
    assert (found.parameters, found.parameter_bytes) == (4096, 16384)


# The tables against the tools of today


def test_tables_are_of_the_versions_that_are_installed() -> None:
    from importlib.metadata import version

    tables = ("onnxruntime", "openvino", "tensorflow", "torch", "sklearn")
    old = [
        f"ops_{name}.toml: {tool} {taken}, installed {version(tool)}: run .ci/op_tables.py {name}"
        for name in tables
        for tool, taken in table(name)["tools"].items()
        if version(tool) != taken
    ]
    assert old == []


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))


@pytest.mark.usefixtures("scripts")
def test_the_kernels_of_onnxruntime_are_those_of_the_table() -> None:
    import op_tables  # type: ignore[import-not-found]

    assert op_tables.onnxruntime_table() == (ROOT / "edgekit/check/ops_onnxruntime.toml").read_text("utf-8")


@pytest.mark.usefixtures("scripts")
def test_openvino_still_says_what_the_table_says() -> None:
    import op_tables

    wanted = (
        "test_conv_",
        "test_softmax_",
        "test_reduce_max_",
        "test_gridsample",
        "test_image_decoder",
        "test_lstm",
    )
    trials = list(op_tables.node_trials(lambda name: name.startswith(wanted)))
    counts: dict[tuple[str, int, str], list[int]] = {}
    for trial in trials:
        outcome = _outcome(op_tables, trial)
        counts.setdefault((trial.operator, trial.since, trial.form), [0, 0, 0])[outcome] += 1
    # an operator has tests of other names too: what was seen here is at most what the table counts
    less = {
        key: seen
        for key, seen in counts.items()
        if any(a > b for a, b in zip(seen, _in_table(key), strict=True))
    }
    assert len(trials) > 50
    assert less == {}


def _outcome(op_tables: Any, trial: Any) -> int:
    try:
        return [op_tables.OK, op_tables.BAD, op_tables.WRONG].index(op_tables.try_openvino(trial))
    except Exception:  # noqa: BLE001  # OpenVINO's errors share no base class with others
        return 1


def _in_table(key: tuple[str, int, str]) -> list[int]:
    operator, since, form = key
    counts: list[int] = table("openvino")[operator][str(since)][form]
    return counts


def test_tensorflow_still_says_what_the_table_says() -> None:
    names = ("Erf", "Conv2D", "Digamma", "Expm1", "TopKV2")
    code = (
        "import json, sys; sys.path.insert(0, '.ci'); import op_tables as o; "
        f"print('\\n' + json.dumps({{t[0]: o.try_tensorflow(t[2], t[3]) for t in o.tensorflow_trials() if t[0] in {names} and t[1] == 'float'}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted(names)
    for name, result in found.items():
        row = table("tensorflow")["tensorflow"][f"{name}:float"]
        assert {key: bool(value) for key, value in row.items()} == {key: bool(result[key]) for key in row}


# Said before, and done


def _agree(results: Sequence[Compared]) -> None:
    lies = [(r.name, r.format, r.error, [v for v in r.ops if v.reason]) for r in results if r.lied]
    assert lies == []


def _node_models(folder: Path, step: int) -> Iterator[tuple[str, Path]]:
    from tests.models.nodes import node_cases

    for case in [case for case in node_cases() if case.feeds is not None][::step]:
        path = folder / f"{case.name}.onnx"
        path.write_bytes(case.model.SerializeToString())
        yield case.name, path


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.soak)])
def test_what_is_supported_converts_node_tests(tmp_path: Path, format_: str, step: int) -> None:
    results = [compare(name, "onnx", path, format_) for name, path in _node_models(tmp_path, step)]
    assert len(results) >= 30
    _agree(results)
    fine = [r for r in results if not r.error]
    assert sum(r.refused for r in fine) <= 0.05 * len(
        fine
    )  # and hardly anything is refused that would have gone


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize("net", ["squeezenet", "shufflenet", "resnet50", "inception_v1", "zfnet512"])
def test_what_is_supported_converts_light_nets(net: str, format_: str) -> None:
    import onnx

    path = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{net}.onnx"
    result = compare(net, "onnx", path, format_)
    assert (result.refused, result.error) == (False, "")


@pytest.mark.parametrize(
    ("kind", "format_"),
    [(kind, f) for kind in ("keras", "savedmodel", "tflite") for f in ("tflite", "onnx", "openvino")],
)
def test_what_is_supported_converts_other_kinds(kind: str, format_: str) -> None:
    result = compare(kind, kind, small_source(kind), format_)
    assert (result.refused, result.error) == (False, "")


_CORPUS = [model for model in models() if (model.kind, "onnx") in ROUTES]


@pytest.mark.soak
@pytest.mark.parametrize("model", _CORPUS, ids=lambda model: model.id)
def test_what_is_supported_converts_the_corpus(model: Model) -> None:
    formats = [format_ for kind, format_ in ROUTES if kind == model.kind]
    results = [compare(model.id, model.kind, model.path, format_) for format_ in formats]
    _agree(results)
    assert [(r.format, r.ops) for r in results if r.refused and not r.error] == []


def test_converters_of_the_comparison_exist() -> None:
    assert {step for route in ROUTES.values() for step in route} <= set(CONVERTERS)
    assert STATUSES[0] == "supported"
