"""Measure which operators each runtime and converter takes, and write the tables that `edgekit check` reads.

    python .ci/op_tables.py onnxruntime|openvino|tensorflow|torch|sklearn

Each table is `edgekit/check/ops_<name>.toml`; it names the versions it was taken from. A test takes a sample of
it again and compares. Whatever kills its process is known by having been started and not finished.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

TABLES = Path(__file__).resolve().parent.parent / "edgekit" / "check"
TIME_LIMIT_S = 60.0
#: Outcomes of one trial: it works, it is refused, its answer is another.
#: Models are lowered to this opset at least before OpenVINO reads them.
_NEWEST = 21
OK, BAD, WRONG = "ok", "bad", "wrong"


def main(arguments: Sequence[str]) -> None:
    """Write the tables asked for."""
    makers: dict[str, Callable[[], str]] = {
        "onnxruntime": onnxruntime_table,
        "openvino": openvino_table,
        "tensorflow": tensorflow_table,
        "torch": torch_table,
        "sklearn": sklearn_table,
    }
    for name in arguments or makers:
        path = TABLES / f"ops_{name}.toml"
        path.write_text(makers[name](), encoding="utf-8")
        print(path)


def _head(what: str, tools: Sequence[str]) -> list[str]:
    taken = ", ".join(f'"{tool}" = "{version(tool)}"' for tool in tools)
    return [f"# {what}", "# Measured by .ci/op_tables.py; do not edit.", f"tools = {{ {taken} }}", ""]


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


# ONNX Runtime: the kernels that it says it has.


def onnxruntime_table() -> str:
    """Return the CPU kernels: operator to [first version, last version, types by constraint]."""
    lines = _head(
        "ONNX Runtime's CPU kernels: [first, last version of the operator, types by constraint]; last 0 is open.",
        ["onnxruntime"],
    )
    for name, kernels in sorted(kernels_of_onnxruntime().items()):
        rows = ", ".join(_kernel(first, last, types) for (first, last), types in sorted(kernels.items()))
        lines.append(f'"{name}" = [{rows}]')
    return "\n".join(lines) + "\n"


def kernels_of_onnxruntime() -> dict[str, dict[tuple[int, int], dict[str, set[str]]]]:
    """Return operator (`domain:` in front but for ONNX's own) to version range to constraint to types."""
    from onnxruntime.capi import _pybind_state

    found: dict[str, dict[tuple[int, int], dict[str, set[str]]]] = defaultdict(dict)
    for kernel in _pybind_state.get_all_opkernel_def():
        if kernel.provider != "CPUExecutionProvider" or kernel.domain == "com.microsoft.nchwc":
            continue
        name = f"{kernel.domain}:{kernel.op_name}" if kernel.domain else kernel.op_name
        first, last = kernel.version_range
        types = found[name].setdefault((first, 0 if last > 1000 else last), defaultdict(set))
        for constraint, allowed in kernel.type_constraints.items():
            types[constraint] |= set(allowed)
    return found


def _kernel(first: int, last: int, types: Mapping[str, set[str]]) -> str:
    parts = (f'"{key}" = {_list(sorted(_plain(t) for t in types[key]))}' for key in sorted(types))
    return f"[{first}, {last}, {{ {', '.join(parts)} }}]"


def _plain(onnx_type: str) -> str:
    return (
        onnx_type.removeprefix("tensor(").removesuffix(")") if onnx_type.startswith("tensor(") else onnx_type
    )


# OpenVINO's ONNX reader: ONNX's own node tests, each at every version of its operator that takes its form.


@dataclass(frozen=True)
class Trial:
    """One node test at one version of its operator; `feeds` is None where its inputs are not arrays."""

    operator: str
    since: int
    form: str
    model: Any
    case: Any
    feeds: dict[str, Any] | None


def openvino_table() -> str:
    """Return what OpenVINO makes of every operator, version and element type."""
    trials = list(node_trials())
    outcomes = isolated([partial(try_openvino, trial) for trial in trials])
    return _versions_table(
        "OpenVINO's ONNX reader and CPU plugin on ONNX's node tests: operator to version to form (element",
        "type of the first input, and what else decides) to [tests that work, that are refused, that give another answer].",
        ["openvino", "onnx"],
        trials,
        outcomes,
    )


def _versions_table(
    first: str, second: str, tools: Sequence[str], trials: Sequence[Trial], outcomes: Sequence[str]
) -> str:
    counts: dict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for trial, outcome in zip(trials, outcomes, strict=True):
        counts[trial.operator, trial.since, trial.form][(OK, BAD, WRONG).index(outcome)] += 1
    lines = [f"# {first}", *_head(second, tools)]
    for operator in sorted({key[0] for key in counts}):
        lines.append(f'["{operator}"]')
        for since in sorted({key[1] for key in counts if key[0] == operator}):
            cells = sorted((k[2], v) for k, v in counts.items() if k[:2] == (operator, since))
            lines.append(f"{since} = {{ " + ", ".join(f'"{e}" = {v}' for e, v in cells) + " }")
    return "\n".join(lines) + "\n"


def node_trials(names: Callable[[str], bool] = lambda _name: True) -> Iterator[Trial]:
    """Yield node tests of one node, at each version of the operator under which they are valid."""
    import onnx

    from tests.models.nodes import node_cases

    history: dict[tuple[str, str], list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        history[schema.domain, schema.name].append(schema.since_version)
    for case in node_cases():
        if len(case.model.graph.node) != 1 or not names(case.name):
            continue
        node = case.model.graph.node[0]
        domain = "" if node.domain == "ai.onnx" else node.domain
        stamped = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in case.model.opset_import}
        versions = sorted(v for v in history[domain, node.op_type] if v <= stamped.get(domain, 0))
        for since, following in zip(versions, [*versions[1:], None], strict=True):
            newest = following is None
            if since < 7 and following is not None and following <= 7:
                continue  # nobody writes those any more
            for whole, feeds, mark in _variants(case):
                opset = _NEWEST if following is None and not domain else following and following - 1
                model = _stamped(whole, domain, opset) if opset and since <= opset else None
                model = whole if model is None and newest else model
                if model is not None:
                    operator = f"{domain}:{node.op_type}" if domain else node.op_type
                    yield Trial(operator, since, _form(case, node) + mark, model, case, feeds)


def _form(case: Any, node: Any) -> str:
    from edgekit.check.onnx_graph import form_of

    types = {value.name: _element(value) for value in (*case.model.graph.input, *case.model.graph.output)}
    return form_of(node, [types.get(n, "") for n in node.input], [types.get(n, "") for n in node.output])


def _element(value: Any) -> str:
    import onnx

    if not value.type.HasField("tensor_type"):
        return "other"
    return str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _variants(case: Any) -> Iterator[tuple[Any, dict[str, Any] | None, str]]:
    """Yield (model, what is fed, mark of the form): axes and sizes as constants; where there are any, fed as well."""
    model, feeds = _with_constants(case)
    yield model, feeds, ""
    if model is not case.model:
        yield case.model, case.feeds, "+computed"


def _with_constants(case: Any) -> tuple[Any, dict[str, Any] | None]:
    """Return the model with scalars and rows of 64-bit integers, behind the first input, as initializers; and the rest."""
    import numpy as np
    import onnx

    if case.feeds is None:
        return case.model, None
    names = [value.name for value in case.model.graph.input]
    fixed = {
        n
        for n in names[1:]
        if np.ndim(case.feeds[n]) == 0 or (np.ndim(case.feeds[n]) == 1 and case.feeds[n].dtype == np.int64)
    }
    if case.model.graph.node[0].op_type in ("If", "Loop", "Scan") or not fixed:
        return case.model, case.feeds
    copy = onnx.ModelProto()
    copy.CopyFrom(case.model)
    kept = [value for value in copy.graph.input if value.name not in fixed]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(case.feeds[n]), n) for n in sorted(fixed)
    )
    return copy, {n: v for n, v in case.feeds.items() if n not in fixed}


def _stamped(model: Any, domain: str, opset: int) -> Any:
    """Return the model under an older opset; None where that is no valid model."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for entry in copy.opset_import:
        if ("" if entry.domain == "ai.onnx" else entry.domain) == domain:
            entry.version = opset
    try:
        onnx.checker.check_model(copy, full_check=True)
    except Exception:  # noqa: BLE001  # the checker raises several unrelated kinds
        return None
    return copy


def try_openvino(trial: Trial) -> str:
    """Read, compile and, where its answer is known, run one node test."""
    import numpy as np
    import openvino

    from tests.models.nodes import agrees

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:  # a file, as EdgeKit has it: streams have another reader
        path = Path(folder) / "model.onnx"
        path.write_bytes(trial.model.SerializeToString())
        model = core.read_model(str(path))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if trial.feeds is None:
        return OK
    taken = {name for port in compiled.inputs for name in port.get_names()}  # what nothing needs is dropped
    feed = {name: np.asarray(array) for name, array in trial.feeds.items() if name in taken}
    outputs = [np.array(value) for value in compiled(feed).values()]
    return OK if agrees(trial.case, outputs) or not _by_onnxruntime(trial) else WRONG


def _by_onnxruntime(trial: Trial) -> bool:
    """Tell whether ONNX Runtime gives the test's answer: an operator may have meant something else in its old version."""
    import onnxruntime

    from tests.models.nodes import agrees

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            trial.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return agrees(trial.case, list(session.run(None, trial.feeds)))
    except Exception:  # noqa: BLE001  # onnxruntime's errors share no public base class
        return False


# TensorFlow: functions of one operator, converted by TensorFlow's own converter and by tf2onnx.

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Digamma Elu Erf Erfc Exp Expm1 Floor Identity Inv IsFinite IsInf "
    "IsNan L2Loss LeakyRelu Lgamma Log Log1p LogSoftmax Neg OnesLike Reciprocal Relu Relu6 Rint Round Rsqrt Selu Shape "
    "Sigmoid Sign Sin Sinh Size Softmax Softplus Softsign Sqrt Square Tan Tanh ZerosLike Rank Snapshot StopGradient "
    "PreventGradient Cholesky MatrixDiag MatrixDiagPart MatrixInverse Svd Qr Ndtri Erfinv BesselI0e"
)
_BINARY = (
    "Add AddV2 Atan2 BiasAdd Div DivNoNan Equal FloorDiv FloorMod Greater GreaterEqual Less LessEqual MatMul Maximum "
    "Minimum Mod Mul MulNoNan NotEqual Pow RealDiv SquaredDifference Sub TruncateDiv TruncateMod Xdivy Xlogy Zeta "
    "Polygamma Igamma NextAfter"
)
_REDUCE = "Max Mean Min Prod Sum ArgMax ArgMin Cumsum Cumprod ReverseV2 EuclideanNorm CumulativeLogsumexp"
_LOGICAL = {"LogicalAnd": 2, "LogicalNot": 1, "LogicalOr": 2, "All": 0, "Any": 0}
_BITS = "BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift"


def tensorflow_trials() -> Iterator[tuple[str, str, Callable[..., Any], list[Any]]]:
    """Yield operator, element type, function and the specs it takes."""
    import tensorflow as tf

    raw = tf.raw_ops
    plane, square = tf.TensorSpec((8, 8), tf.float32), tf.TensorSpec((4, 4), tf.float32)
    row = tf.TensorSpec((8,), tf.float32)
    for name in _UNARY.split():
        yield name, "float", (lambda x, n=name: _call(raw, n, x)), [square]
    for name in _BINARY.split():
        yield (
            name,
            "float",
            (lambda x, y, n=name: _call(raw, n, x, y)),
            [plane, row if name == "BiasAdd" else plane],
        )
    for name in _REDUCE.split():
        axis = [1] if name == "ReverseV2" else 1
        yield name, "float", (lambda x, n=name, a=axis: _call(raw, n, x, tf.constant(a))), [plane]
    flags = tf.TensorSpec((8, 8), tf.bool)
    for name, count in _LOGICAL.items():
        more = [] if count else [1]
        yield name, "bool", (lambda *x, n=name, m=more: _call(raw, n, *x, *m)), [flags] * max(1, count)
    whole = tf.TensorSpec((8, 8), tf.int32)
    for name in _BITS.split():
        yield name, "int32", (lambda x, y, n=name: _call(raw, n, x, y)), [whole, whole]
    yield "Invert", "int32", (lambda x: raw.Invert(x=x)), [whole]
    yield from _special(tf)


def _call(raw: Any, name: str, *values: Any) -> Any:
    """Call a raw operator by the order of its arguments; attributes stay at their defaults."""
    import inspect

    operator = getattr(raw, name)
    names = list(inspect.signature(operator).parameters)
    return operator(**dict(zip(names, values, strict=False)))


def _special(tf: Any) -> Iterator[tuple[str, str, Callable[..., Any], list[Any]]]:
    import numpy as np

    raw, spec = tf.raw_ops, tf.TensorSpec
    image, volume = spec((2, 8, 8, 4), tf.float32), spec((1, 6, 6, 6, 2), tf.float32)
    plane, rows = spec((8, 8), tf.float32), spec((8, 4), tf.float32)
    whole, line = spec((8,), tf.int32), spec((8,), tf.float32)
    ones = [1, 1, 1, 1]
    const = tf.constant

    def weights(*shape: int) -> Any:
        values = np.arange(np.prod(shape), dtype=np.float32)
        return const(values.reshape(shape) / 100.0)

    window = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "SAME"}
    floats: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "Conv2D": (
            lambda x: raw.Conv2D(input=x, filter=weights(3, 3, 4, 5), strides=ones, padding="SAME"),
            [image],
        ),
        "DepthwiseConv2dNative": (
            lambda x: raw.DepthwiseConv2dNative(
                input=x, filter=weights(3, 3, 4, 1), strides=ones, padding="SAME"
            ),
            [image],
        ),
        "Conv2DBackpropInput": (
            lambda x: raw.Conv2DBackpropInput(
                input_sizes=[2, 16, 16, 3],
                filter=weights(3, 3, 3, 4),
                out_backprop=x,
                strides=[1, 2, 2, 1],
                padding="SAME",
            ),
            [image],
        ),
        "Conv3D": (
            lambda x: raw.Conv3D(
                input=x, filter=weights(3, 3, 3, 2, 3), strides=[1, 1, 1, 1, 1], padding="SAME"
            ),
            [volume],
        ),
        "Conv3DBackpropInputV2": (
            lambda x: raw.Conv3DBackpropInputV2(
                input_sizes=[1, 6, 6, 6, 3],
                filter=weights(3, 3, 3, 3, 2),
                out_backprop=x,
                strides=[1, 1, 1, 1, 1],
                padding="SAME",
            ),
            [volume],
        ),
        "AvgPool": (lambda x: raw.AvgPool(value=x, **window), [image]),
        "MaxPool": (lambda x: raw.MaxPool(input=x, **window), [image]),
        "MaxPoolWithArgmax": (lambda x: raw.MaxPoolWithArgmax(input=x, **window)[0], [image]),
        "AvgPool3D": (
            lambda x: raw.AvgPool3D(input=x, ksize=[1, 2, 2, 2, 1], strides=[1, 2, 2, 2, 1], padding="SAME"),
            [volume],
        ),
        "MaxPool3D": (
            lambda x: raw.MaxPool3D(input=x, ksize=[1, 2, 2, 2, 1], strides=[1, 2, 2, 2, 1], padding="SAME"),
            [volume],
        ),
        "FusedBatchNormV3": (
            lambda x: raw.FusedBatchNormV3(
                x=x,
                scale=weights(4),
                offset=weights(4),
                mean=weights(4),
                variance=weights(4) + 1.0,
                is_training=False,
            )[0],
            [image],
        ),
        "LRN": (lambda x: raw.LRN(input=x), [image]),
        "Dilation2D": (
            lambda x: raw.Dilation2D(
                input=x, filter=weights(3, 3, 4), strides=ones, rates=ones, padding="SAME"
            ),
            [image],
        ),
        "ResizeBilinear": (
            lambda x: raw.ResizeBilinear(images=x, size=[16, 16], half_pixel_centers=True),
            [image],
        ),
        "ResizeNearestNeighbor": (
            lambda x: raw.ResizeNearestNeighbor(images=x, size=[16, 16], half_pixel_centers=True),
            [image],
        ),
        "ResizeBicubic": (
            lambda x: raw.ResizeBicubic(images=x, size=[16, 16], half_pixel_centers=True),
            [image],
        ),
        "ResizeArea": (lambda x: raw.ResizeArea(images=x, size=[16, 16]), [image]),
        "CropAndResize": (
            lambda x: raw.CropAndResize(image=x, boxes=[[0.0, 0.0, 0.5, 0.5]], box_ind=[0], crop_size=[4, 4]),
            [image],
        ),
        "DepthToSpace": (lambda x: raw.DepthToSpace(input=x, block_size=2), [image]),
        "SpaceToDepth": (lambda x: raw.SpaceToDepth(input=x, block_size=2), [image]),
        "BatchToSpaceND": (
            lambda x: raw.BatchToSpaceND(input=x, block_shape=[2, 1], crops=[[0, 0], [0, 0]]),
            [image],
        ),
        "SpaceToBatchND": (
            lambda x: raw.SpaceToBatchND(input=x, block_shape=[2, 2], paddings=[[0, 0], [0, 0]]),
            [image],
        ),
        "ExtractImagePatches": (
            lambda x: raw.ExtractImagePatches(
                images=x, ksizes=[1, 3, 3, 1], strides=ones, rates=ones, padding="SAME"
            ),
            [image],
        ),
        "RGBToHSV": (lambda x: raw.RGBToHSV(images=x[..., :3]), [image]),
        "AdjustContrastv2": (lambda x: raw.AdjustContrastv2(images=x, contrast_factor=1.5), [image]),
        "BatchMatMul": (lambda x: raw.BatchMatMul(x=x, y=x, adj_y=True), [image]),
        "BatchMatMulV2": (lambda x: raw.BatchMatMulV2(x=x, y=x, adj_y=True), [image]),
        "BatchMatMulV3": (lambda x: raw.BatchMatMulV3(x=x, y=x, adj_y=True, Tout=tf.float32), [image]),
        "Einsum": (lambda x: raw.Einsum(inputs=[x, x], equation="bhwc,bhvc->bhwv"), [image]),
        "AddN": (lambda x: raw.AddN(inputs=[x, x, x]), [plane]),
        "BroadcastTo": (lambda x: raw.BroadcastTo(input=x, shape=[3, 8, 8]), [plane]),
        "Bucketize": (lambda x: raw.Bucketize(input=x, boundaries=[0.0, 0.5]), [plane]),
        "Cast": (lambda x: raw.Cast(x=x, DstT=tf.int32), [plane]),
        "CheckNumerics": (lambda x: raw.CheckNumerics(tensor=x, message=""), [plane]),
        "ClipByValue": (lambda x: raw.ClipByValue(t=x, clip_value_min=0.0, clip_value_max=1.0), [plane]),
        "ConcatV2": (lambda x: raw.ConcatV2(values=[x, x], axis=1), [plane]),
        "Cross": (lambda x: raw.Cross(a=x[:, :3], b=x[:, :3]), [plane]),
        "ExpandDims": (lambda x: raw.ExpandDims(input=x, axis=1), [plane]),
        "FakeQuantWithMinMaxVars": (
            lambda x: raw.FakeQuantWithMinMaxVars(inputs=x, min=-1.0, max=1.0),
            [plane],
        ),
        "Fill": (lambda x: raw.Fill(dims=tf.shape(x), value=2.0), [plane]),
        "Gather": (lambda x: raw.Gather(params=x, indices=[1, 2]), [plane]),
        "GatherNd": (lambda x: raw.GatherNd(params=x, indices=[[1, 2]]), [plane]),
        "GatherV2": (lambda x: raw.GatherV2(params=x, indices=[1, 2], axis=1), [plane]),
        "IdentityN": (lambda x: raw.IdentityN(input=[x, x])[1], [plane]),
        "LinSpace": (lambda x: raw.LinSpace(start=x[0, 0], stop=1.0, num=5), [plane]),
        "MatrixBandPart": (lambda x: raw.MatrixBandPart(input=x, num_lower=1, num_upper=1), [plane]),
        "MatrixDiagV3": (
            lambda x: raw.MatrixDiagV3(diagonal=x, k=0, num_rows=-1, num_cols=-1, padding_value=0.0),
            [plane],
        ),
        "MatrixSetDiagV3": (lambda x: raw.MatrixSetDiagV3(input=x, diagonal=x[0], k=0), [plane]),
        "MirrorPad": (lambda x: raw.MirrorPad(input=x, paddings=[[1, 1], [1, 1]], mode="REFLECT"), [plane]),
        "Multinomial": (lambda x: raw.Multinomial(logits=x, num_samples=2), [plane]),
        "Pack": (lambda x: raw.Pack(values=[x, x], axis=1), [plane]),
        "Pad": (lambda x: raw.Pad(input=x, paddings=[[1, 1], [1, 1]]), [plane]),
        "PadV2": (lambda x: raw.PadV2(input=x, paddings=[[1, 1], [1, 1]], constant_values=2.0), [plane]),
        "ParallelConcat": (lambda x: raw.ConcatV2(values=[x, x], axis=0), [plane]),
        "RandomUniform": (lambda x: raw.RandomUniform(shape=tf.shape(x), dtype=tf.float32), [plane]),
        "RandomStandardNormal": (
            lambda x: raw.RandomStandardNormal(shape=tf.shape(x), dtype=tf.float32),
            [plane],
        ),
        "Range": (lambda x: raw.Range(start=x[0, 0], limit=9.0, delta=1.0), [plane]),
        "Reshape": (lambda x: raw.Reshape(tensor=x, shape=[4, 16]), [plane]),
        "Roll": (lambda x: raw.Roll(input=x, shift=[1], axis=[1]), [plane]),
        "ScatterNd": (lambda x: raw.ScatterNd(indices=[[1], [3]], updates=x[:2], shape=[8, 8]), [plane]),
        "SegmentSum": (lambda x: raw.SegmentSum(data=x, segment_ids=[0, 0, 1, 1, 2, 2, 3, 3]), [plane]),
        "UnsortedSegmentSum": (
            lambda x: raw.UnsortedSegmentSum(data=x, segment_ids=[0, 0, 1, 1, 2, 2, 3, 3], num_segments=4),
            [plane],
        ),
        "UnsortedSegmentMax": (
            lambda x: raw.UnsortedSegmentMax(data=x, segment_ids=[0, 0, 1, 1, 2, 2, 3, 3], num_segments=4),
            [plane],
        ),
        "Select": (lambda x: raw.Select(condition=tf.greater(x, 0.0), x=x, y=-x), [plane]),
        "SelectV2": (lambda x: raw.SelectV2(condition=tf.greater(x, 0.0), t=x, e=-x), [plane]),
        "Slice": (lambda x: raw.Slice(input=x, begin=[0, 1], size=[2, 3]), [plane]),
        "Split": (lambda x: raw.Split(axis=1, value=x, num_split=2)[0], [plane]),
        "SplitV": (lambda x: raw.SplitV(value=x, size_splits=[3, 5], axis=1, num_split=2)[0], [plane]),
        "Squeeze": (lambda x: raw.Squeeze(input=x[:1], axis=[0]), [plane]),
        "StridedSlice": (
            lambda x: raw.StridedSlice(input=x, begin=[0, 1], end=[4, 7], strides=[1, 2]),
            [plane],
        ),
        "TensorScatterAdd": (
            lambda x: raw.TensorScatterAdd(tensor=x, indices=[[1], [3]], updates=x[:2]),
            [plane],
        ),
        "TensorScatterUpdate": (
            lambda x: raw.TensorScatterUpdate(tensor=x, indices=[[1], [3]], updates=x[:2]),
            [plane],
        ),
        "Tile": (lambda x: raw.Tile(input=x, multiples=[2, 2]), [plane]),
        "TopKV2": (lambda x: raw.TopKV2(input=x, k=3)[0], [plane]),
        "InTopKV2": (lambda x: raw.InTopKV2(predictions=x, targets=[0] * 8, k=2), [plane]),
        "Transpose": (lambda x: raw.Transpose(x=x, perm=[1, 0]), [plane]),
        "Unique": (lambda x: raw.Unique(x=x)[0], [line]),
        "Unpack": (lambda x: raw.Unpack(value=x, num=8, axis=1)[0], [plane]),
        "Where": (lambda x: raw.Where(condition=tf.greater(x, 0.0)), [plane]),
        "NonMaxSuppressionV4": (
            lambda b: raw.NonMaxSuppressionV4(
                boxes=b,
                scores=b[:, 0],
                max_output_size=3,
                iou_threshold=0.5,
                score_threshold=0.1,
                pad_to_max_output_size=True,
            )[0],
            [rows],
        ),
        "NonMaxSuppressionV5": (
            lambda b: raw.NonMaxSuppressionV5(
                boxes=b,
                scores=b[:, 0],
                max_output_size=3,
                iou_threshold=0.5,
                score_threshold=0.1,
                soft_nms_sigma=0.0,
                pad_to_max_output_size=True,
            )[0],
            [rows],
        ),
        "NonMaxSuppressionV3": (
            lambda b: raw.NonMaxSuppressionV3(
                boxes=b, scores=b[:, 0], max_output_size=3, iou_threshold=0.5, score_threshold=0.1
            ),
            [rows],
        ),
        "CombinedNonMaxSuppression": (
            lambda b: raw.CombinedNonMaxSuppression(
                boxes=b[None, :, None],
                scores=b[None, :, :1],
                max_output_size_per_class=3,
                max_total_size=3,
                iou_threshold=0.5,
                score_threshold=0.1,
            )[0],
            [rows],
        ),
        "RFFT": (lambda x: tf.abs(raw.RFFT(input=x, fft_length=[8])), [plane]),
        "RFFT2D": (lambda x: tf.abs(raw.RFFT2D(input=x, fft_length=[8, 8])), [plane]),
        "FFT": (lambda x: tf.abs(raw.FFT(input=tf.complex(x, x))), [plane]),
        "ComplexAbs": (lambda x: raw.ComplexAbs(x=tf.complex(x, x)), [plane]),
        "MatrixSolve": (lambda x: raw.MatrixSolve(matrix=x, rhs=x), [plane]),
        "MatrixTriangularSolve": (lambda x: raw.MatrixTriangularSolve(matrix=x, rhs=x), [plane]),
        "MatrixDeterminant": (lambda x: raw.MatrixDeterminant(input=x), [plane]),
        "AsString": (lambda x: raw.AsString(input=x), [plane]),
        "Bitcast": (lambda x: raw.Bitcast(input=x, type=tf.int32), [plane]),
        "DiagPart": (lambda x: raw.DiagPart(input=x), [plane]),
        "Diag": (lambda x: raw.Diag(diagonal=x), [line]),
        "HistogramFixedWidth": (
            lambda x: raw.HistogramFixedWidth(values=x, value_range=[0.0, 1.0], nbins=5),
            [plane],
        ),
        "InvertPermutation": (lambda x: raw.InvertPermutation(x=x), [whole]),
        "StatelessIf": (lambda x: tf.cond(x[0, 0] > 0.0, lambda: x + 1.0, lambda: x * 2.0), [plane]),
        "StatelessWhile": (lambda x: _loop(tf, x), [plane]),
        "TensorListReserve": (lambda x: tf.map_fn(lambda r: r * 2.0 + 1.0, x), [plane]),
    }
    for name, (function, takes) in floats.items():
        yield name, "float", function, takes
    free = spec((None, 8), tf.float32)
    yield "ExpandDims", "free batch", (lambda x: raw.ExpandDims(input=x, axis=1)), [free]
    yield "Reshape", "free batch", (lambda x: raw.Reshape(tensor=x, shape=[-1, 2, 4])), [free]
    yield "Shape", "free batch", (lambda x: raw.Shape(input=x)), [free]
    yield "Fill", "free batch", (lambda x: raw.Fill(dims=tf.shape(x), value=2.0)), [free]
    yield "Pack", "free batch", (lambda x: raw.Pack(values=[tf.shape(x)[0], 3], axis=0)), [free]
    yield "StridedSlice", "free batch", (lambda x: x[:, ::2]), [free]
    yield "OneHot", "int32", (lambda x: raw.OneHot(indices=x, depth=4, on_value=1.0, off_value=0.0)), [whole]
    yield (
        "SparseToDense",
        "int32",
        (
            lambda x: raw.SparseToDense(
                sparse_indices=x, output_shape=[9], sparse_values=1.0, default_value=0.0
            )
        ),
        [whole],
    )
    yield "Bincount", "int32", (lambda x: raw.Bincount(arr=x, size=8, weights=tf.zeros((0,)))), [whole]
    text = spec((8,), tf.string)
    yield "StringToNumber", "string", (lambda x: raw.StringToNumber(string_tensor=x)), [text]
    yield (
        "StringToHashBucketFast",
        "string",
        (lambda x: raw.StringToHashBucketFast(input=x, num_buckets=9)),
        [text],
    )
    yield "StringLower", "string", (lambda x: raw.StringLower(input=x)), [text]
    yield "RegexReplace", "string", (lambda x: raw.RegexReplace(input=x, pattern="a", rewrite="b")), [text]
    for name in (
        "Add",
        "Mul",
        "MatMul",
        "Sub",
        "Relu",
        "Tanh",
        "Conv2D",
    ):  # the type that edge runtimes lack most
        double = spec((8, 8), tf.float64)
        if name == "Conv2D":
            wide = spec((2, 8, 8, 4), tf.float64)
            yield (
                name,
                "double",
                (
                    lambda x: raw.Conv2D(
                        input=x, filter=tf.ones((3, 3, 4, 5), tf.float64), strides=ones, padding="SAME"
                    )
                ),
                [wide],
            )
        elif name in _BINARY.split():
            yield name, "double", (lambda x, y, n=name: _call(raw, n, x, y)), [double, double]
        else:
            yield name, "double", (lambda x, n=name: _call(raw, n, x)), [double]


def _loop(tf: Any, x: Any) -> Any:
    limit = tf.cast(tf.reduce_max(x), tf.int32)
    return tf.while_loop(lambda i, _: i < limit, lambda i, v: (i + 1, v * 1.5), (0, x))[1]


@cache
def _tensorflow_trials() -> list[tuple[str, str, Callable[..., Any], list[Any]]]:
    return list(tensorflow_trials())


def _try_tensorflow_number(number: int) -> Any:
    return try_tensorflow(*_tensorflow_trials()[number][2:])


def tensorflow_table() -> str:
    """Return what TensorFlow's converter and tf2onnx make of each operator, and what reads the results."""
    # TensorFlow is imported in the children alone: it does not live through a fork
    (names,) = isolated([lambda: [(name, element) for name, element, _, _ in _tensorflow_trials()]])
    results = isolated([partial(_try_tensorflow_number, i) for i in range(len(names))])
    lines = [
        "# TensorFlow's operators, one function each: what TensorFlow's converter (built-ins only, then with Flex), tf2onnx and",
        *_head(
            "OpenVINO's SavedModel reader make of it, and which readers take the result. 1 works, 0 is refused.",
            ["tensorflow", "tf2onnx", "ai-edge-litert", "onnxruntime", "openvino"],
        ),
    ]
    tflite: dict[str, dict[str, list[int]]] = defaultdict(
        lambda: {"litert": [0, 0], "openvino": [0, 0], "onnx": [0, 0]}
    )
    lines.append("[tensorflow]")
    for (name, element), result in zip(names, results, strict=True):
        if not isinstance(result, dict):
            print(f"{name} {element}: nothing could be tried", file=sys.stderr)
            continue
        cells = ", ".join(f"{key} = {int(result[key])}" for key in _WAYS)
        lines.append(f'"{name}:{element}" = {{ {cells} }}')
        kinds = result["kinds"]
        for kind in kinds:  # of several operators, a refusal blames none
            for reader in ("litert", "openvino", "onnx"):
                read = result[f"tflite-{reader}"]
                tflite[kind][reader][0 if read else 1] += int(read or len(kinds) == 1)
    lines += [
        "",
        "# TFLite's operators as those functions gave them: [forms that are read, forms that are not].",
        "[tflite]",
    ]
    for kind, counts in sorted(tflite.items()):
        lines.append(
            f"{kind} = {{ " + ", ".join(f"{r} = {counts[r]}" for r in ("litert", "openvino", "onnx")) + " }"
        )
    return "\n".join(lines) + "\n"


#: Columns of the table: TFLite, the same with Flex; ONNX; OpenVINO by ONNX, by TFLite, and directly; ONNX by TFLite.
_WAYS = ("tflite", "flex", "onnx", "onnx-openvino", "tflite-openvino", "openvino", "tflite-onnx")


def try_tensorflow(function: Callable[..., Any], takes: list[Any]) -> Any:
    """Convert one function every way; return what worked and the TFLite operators that came of it."""
    import tensorflow as tf

    concrete = tf.function(function, input_signature=takes).get_concrete_function()
    result: dict[str, Any] = {"kinds": ()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result["tflite"] = _works(lambda: _to_tflite(tf, concrete, folder / "a.tflite", flex=False))
        result["flex"] = not result["tflite"] and _works(
            lambda: _to_tflite(tf, concrete, folder / "b.tflite", flex=True)
        )
        result["onnx"] = _works(lambda: _to_onnx(tf, function, takes, folder / "a.onnx"))
        result["onnx-openvino"] = result["onnx"] and _works(lambda: _openvino_reads(folder / "a.onnx"))
        result["openvino"] = _works(lambda: _saved_to_openvino(tf, function, takes, folder / "saved"))
        for reader in ("litert", "openvino", "onnx"):
            result[f"tflite-{reader}"] = False
        if result["tflite"]:
            from edgekit.sources.tflite_graph import read_graph

            path = folder / "a.tflite"
            result["kinds"] = sorted({operator.kind for _, operator in read_graph(path).operators()})
            result["tflite-litert"] = _works(lambda: _litert_reads(path))
            result["tflite-openvino"] = _works(lambda: _openvino_reads(path))
            result["tflite-onnx"] = _works(lambda: _tflite_to_onnx(path))
    return result


def _works(step: Callable[[], object]) -> bool:
    try:
        step()
    except Exception:  # noqa: BLE001  # whatever a converter raises is what this measures
        return False
    return True


def _to_tflite(tf: Any, concrete: Any, path: Path, *, flex: bool) -> None:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    sets = [tf.lite.OpsSet.TFLITE_BUILTINS] + ([tf.lite.OpsSet.SELECT_TF_OPS] if flex else [])
    converter.target_spec.supported_ops = sets
    path.write_bytes(converter.convert())


def _to_onnx(tf: Any, function: Callable[..., Any], takes: list[Any], path: Path) -> None:
    import onnxruntime
    import tf2onnx

    tf2onnx.convert.from_function(
        tf.function(function, input_signature=takes), input_signature=takes, opset=17, output_path=str(path)
    )
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _litert_reads(path: Path) -> None:
    import numpy as np

    from edgekit.sources.tflite import open_interpreter

    interpreter = open_interpreter(path)
    for detail in interpreter.get_input_details():
        if detail["dtype"] is not np.bytes_:  # ones, for nothing divides by zero
            interpreter.set_tensor(detail["index"], np.ones(detail["shape"], detail["dtype"]))
    interpreter.invoke()


def _openvino_reads(path: Path) -> None:
    import openvino

    core = openvino.Core()
    core.compile_model(core.read_model(str(path)), "CPU")


def _saved_to_openvino(tf: Any, function: Callable[..., Any], takes: list[Any], folder: Path) -> None:
    module = tf.Module()
    served = tf.function(lambda *x: {"y": function(*x)}, input_signature=takes)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": served})
    _openvino_reads(folder)


def _tflite_to_onnx(path: Path) -> None:
    import onnxruntime
    import tf2onnx

    made = path.with_suffix(".from-tflite.onnx")
    tf2onnx.convert.from_tflite(str(path), opset=17, output_path=str(made))
    onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])


# PyTorch and scikit-learn: the registries of their converters.


def torch_table() -> str:
    """Return the ATen operators that the ONNX exporter and litert-torch have a translation for."""
    lines = _head(
        "ATen operators with a translation of their own: in torch.onnx's exporter, and in litert-torch.",
        ["torch", "litert-torch"],
    )
    for key, names in (("onnx", onnx_of_torch()), ("tflite", tflite_of_torch())):
        lines += [f"{key} = [", *(f'    "{name}",' for name in sorted(names)), "]"]
    return "\n".join(lines) + "\n"


def onnx_of_torch() -> set[str]:
    """Return ATen operators of the exporter's registry, without overloads."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    registry = ONNXRegistry.from_torchlib()
    return {_aten(str(target)) for target in registry.functions if "aten" in str(target)}


def tflite_of_torch() -> set[str]:
    """Return ATen operators that litert-torch lowers, without overloads."""
    import litert_torch
    from litert_torch.backend.lowerings import registry

    assert litert_torch  # its import fills the registry
    return {_aten(str(target)) for target in registry.global_registry.registered_ops if "aten" in str(target)}


def _aten(target: str) -> str:
    return target.removeprefix("torch.ops.").removeprefix("aten.").removeprefix("aten::").split(".")[0]


def sklearn_table() -> str:
    """Return the estimators that skl2onnx knows."""
    from skl2onnx._supported_operators import sklearn_operator_name_map

    lines = _head("Estimators with a translation in skl2onnx.", ["skl2onnx", "scikit-learn"])
    names = sorted({kind.__name__ for kind in sklearn_operator_name_map})
    return "\n".join([*lines, "estimators = [", *(f'    "{name}",' for name in names), "]"]) + "\n"


# Isolation: a trial may kill its process.


def isolated(trials: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return each trial's outcome; an exception, a death and a time-out are refusals."""
    outcomes: list[Any] = []
    context = multiprocessing.get_context("fork")
    while len(outcomes) < len(trials):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_run_some, args=(trials, len(outcomes), sender))
        child.start()
        sender.close()
        try:
            while len(outcomes) < len(trials) and receiver.poll(TIME_LIMIT_S):
                outcomes.append(receiver.recv())
        except EOFError:
            pass
        if len(outcomes) < len(trials):
            outcomes.append(BAD)
            print(f"trial {len(outcomes)} ended its process", file=sys.stderr)
        child.kill()
        child.join()
    return outcomes


def _run_some(trials: Sequence[Callable[[], Any]], start: int, sender: Any) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    os.dup2(quiet, 1)
    for trial in trials[start:]:
        try:
            sender.send(trial())
        except (ImportError, NameError):
            raise  # a fault of this script, not of what it measures
        except Exception:  # noqa: BLE001  # whatever a runtime raises is what this measures
            sender.send(BAD)
    sender.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
