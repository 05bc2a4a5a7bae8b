"""Whether a runtime takes an operator: pure decisions on what a survey found and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from edgekit.check.survey import OpUse, Surveyed
from edgekit.check.tables import table

__all__ = ["REASONS", "STATUSES", "OpVerdict", "Status", "judge_ops", "worst_of"]

Status = Literal["supported", "rewritten", "fallback", "unknown", "unsupported"]
#: From best to worst.
STATUSES: tuple[Status, ...] = ("supported", "rewritten", "fallback", "unknown", "unsupported")

#: Reason code to what it means; docs/check.md lists them, and a test holds the two together.
REASONS: Mapping[str, str] = {
    "computed-inputs": "its axes, sizes or the like are computed, and OpenVINO refused that where it was tried",
    "flex-op": "TFLite has no such operator: it would need TensorFlow's own (Flex), which device runtimes lack",
    "custom-op": "an operator of somebody's own: no runtime has it",
    "control-flow": "a branch or a loop: what stands inside decides, and only a conversion tells",
    "conv-in-if": "a convolution inside a branch, on what has no fixed number of dimensions: OpenVINO takes none",
    "free-rank": "a convolution on what has no number of dimensions here: OpenVINO takes it only if it finds one out",
    "resource-variable": "the model keeps state in variables, which this format does not have",
    "lookup-table": "a table to look up text or numbers, which this format does not have",
    "opset-too-new": "the operator is newer than the target's runtime reads, and has no older form",
    "opset-lowered": "written for the older opset that the target's runtime reads",
    "by-function": "the runtime has no kernel of its own and takes the operator by its definition",
    "ai-onnx-ml": "one of ONNX's operators for classical models, which only ONNX Runtime has",
    "contrib-op": "one of ONNX Runtime's own operators, which no other runtime has",
    "no-kernel": "the runtime has no kernel for the operator",
    "no-kernel-for-type": "the runtime has no kernel for this element type",
    "no-attribute": "the runtime has the operator, without this attribute's value",
    "computed-in-float32": "no 16-bit kernel: the runtime casts, and computes in 32 bits",
    "double": "64-bit floats, which edge runtimes mostly lack",
    "refused-when-tried": "the reader refused every form of it that was tried",
    "some-forms": "the reader took some forms of it that were tried and refused others",
    "odd-answers": "some forms of it that were tried gave another answer: the gate will tell",
    "not-tried": "nobody tried it",
    "no-translation": "the converter has no translation for it",
    "decomposed": "the exporter takes it apart into operators that it has translations for",
    "no-translation-known": "no translation of its own is known: only the conversion tells",
    "provider-falls-back": "the target's first provider may leave it to the CPU",
}

#: OpenVINO's reader turns constructs like these into its own, body and all.
_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_CONVS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")
#: Operators of which ONNX Runtime takes some forms, by the machine's locale or by values that no schema tells.
_DOUBTED = ("StringNormalizer", "OptionalHasElement", "OptionalGetElement")
#: Likewise once they are written for an older opset: the number of parts changed.
_DOUBTED_LOWERED = ("Split",)
#: Domains whose operators ONNX Runtime knows.
_KNOWN = ("", "ai.onnx.ml", "com.microsoft")
_RECURRENT = ("RNN", "LSTM", "GRU")
#: Element types that a reader takes like the ones that were tried: shapes, indices and masks are of these.
_PLAIN_TYPES = ("float", "int32", "int64", "bool", "float16", "")
#: TensorFlow's operators that leave nothing behind, or that the freezing of weights removes.
_STRUCTURE = [
    "Placeholder",
    "Const",
    "NoOp",
    "PartitionedCall",
    "StatefulPartitionedCall",
    "VarHandleOp",
    "ReadVariableOp",
    "Assert",
    "_Arg",
    "_Retval",
    "ReadVariableOp",
    "Identity",
    "IdentityN",
    "StopGradient",
    "DisableCopyOnRead",
]
_STATE = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceGather", "VariableV2")
#: TensorFlow's operators that were tried under another name.
_TWINS = {
    "While": "StatelessWhile",
    "If": "StatelessIf",
    "Case": "StatelessIf",
    "StatelessCase": "StatelessIf",
}
_TF_FLOW = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")
#: TFLite's operators that keep state or text.
_TFLITE_STATE = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


class OpVerdict(msgspec.Struct, frozen=True):
    """What a runtime makes of one operator of the model.

    Attributes:
        op: Its name.
        count: How many there are.
        status: `supported`, `rewritten`, `fallback`, `unknown` or `unsupported`.
        reason: A key of `REASONS`; empty where nothing is to be said.
        detail: What it is about: a type, a version, counts.
    """

    op: str
    count: int
    status: Status
    reason: str = ""
    detail: str = ""


def judge_ops(
    surveyed: Surveyed, format_: str, via: str = "", providers: Sequence[str] = ()
) -> tuple[OpVerdict, ...]:
    """Return the verdict on every operator for one format, worst first; the same verdicts are counted together.

    Args:
        surveyed: The source.
        format_: `tflite`, `onnx` or `openvino`.
        via: Format that the route makes first, where that is another.
        providers: Of the target's runtime, in order of preference.
    """
    way = f"{via}-{format_}" if via not in ("", format_, surveyed.dialect) else format_
    judge = _JUDGES.get((surveyed.dialect, way))
    if judge is None:
        return ()
    found = [judge(op, surveyed) for op in surveyed.ops]
    if format_ == "onnx" and providers and providers[0] != "CPUExecutionProvider":
        found = [_off_the_cpu(verdict, op) for verdict, op in zip(found, surveyed.ops, strict=True)]
    return _merged(found)


def worst_of(verdicts: Iterable[OpVerdict]) -> Status:
    """Return the worst status; `supported` of none."""
    return max((verdict.status for verdict in verdicts), key=STATUSES.index, default="supported")


def _merged(verdicts: Iterable[OpVerdict]) -> tuple[OpVerdict, ...]:
    counts: dict[OpVerdict, int] = {}
    for verdict in verdicts:
        key = msgspec.structs.replace(verdict, count=0)
        counts[key] = counts.get(key, 0) + verdict.count
    found = [msgspec.structs.replace(key, count=count) for key, count in counts.items()]
    return tuple(sorted(found, key=lambda v: (-STATUSES.index(v.status), -v.count, v.op, v.detail)))


def _say(op: OpUse, status: Status, reason: str = "", detail: str = "") -> OpVerdict:
    return OpVerdict(op.name, op.count, status, reason, detail)


def _off_the_cpu(verdict: OpVerdict, op: OpUse) -> OpVerdict:
    """Mark what accelerators leave to the CPU: classical models, text, 64-bit floats."""
    leaves = ":" in op.name or op.form.split(">")[0] in ("string", "double")
    if leaves and verdict.status in ("supported", "rewritten"):
        return msgspec.structs.replace(verdict, status="fallback", reason="provider-falls-back")
    return verdict


# ONNX sources.


def _onnx_for_onnxruntime(op: OpUse, surveyed: Surveyed) -> OpVerdict:
    if op.name == "Constant":  # folded into the weights
        return _say(op, "supported")
    if op.name in _DOUBTED or (op.name in _DOUBTED_LOWERED and op.lowered):
        return _say(op, "unknown", "some-forms")
    if op.name in _RECURRENT and "/" in op.form:
        return _say(op, "unsupported", "no-attribute", "layout")
    if surveyed.lowering and op.name in surveyed.lowering.split():
        return _say(op, "unsupported", "opset-too-new", f"opset {op.since}")
    kernels = table("onnxruntime").get(op.name)
    if kernels is None:
        return _without_kernel(op)
    fitting = [types for first, last, types in kernels if first == op.since or first < op.since <= last]
    if not fitting and ":" not in op.name:
        return _without_kernel(op, f"version {op.since}")
    lacking = [_lacking(op, types) for types in fitting or [types for _, _, types in kernels]]
    if all(lacking):
        return _without_type(op, lacking[0], fitting)
    return _say(op, "rewritten", "opset-lowered") if op.lowered else _say(op, "supported")


def _without_type(op: OpUse, element: str, fitting: Sequence[Mapping[str, Sequence[str]]]) -> OpVerdict:
    if op.function:
        return _say(op, "rewritten", "by-function")
    types = {key: "float" if value == "float16" else value for key, value in op.types.items()}
    wider = msgspec.structs.replace(op, types=types)
    if element == "float16" and not all(_lacking(wider, kernel) for kernel in fitting):
        return _say(op, "rewritten", "computed-in-float32")
    return _say(op, "unsupported", "double" if element == "double" else "no-kernel-for-type", element)


def _lacking(op: OpUse, types: Mapping[str, Sequence[str]]) -> str:
    """Return the type that a kernel does not take; empty where it takes all that are known."""
    for constraint, element in op.types.items():
        if constraint in types and element not in types[constraint] and element != "other":
            return element
    return ""


def _without_kernel(op: OpUse, detail: str = "") -> OpVerdict:
    domain = op.name.partition(":")[0] if ":" in op.name else ""
    if op.function and domain in _KNOWN:  # the runtime reads no definition of a domain that it does not know
        return _say(op, "rewritten", "by-function")
    return _say(op, "unsupported", "no-kernel" if domain in _KNOWN else "custom-op", detail)


def _onnx_for_openvino(op: OpUse, surveyed: Surveyed) -> OpVerdict:
    source = _onnx_for_onnxruntime(op, surveyed)  # it runs the source, and its answers are the reference
    if source.status == "unsupported":
        return source
    if op.free_rank and op.name in _CONVS:
        where = f"inside {op.inside}"
        return _say(op, "unsupported", "conv-in-if", where) if op.inside else _say(op, "unknown", "free-rank")
    if op.computed and op.name.startswith(
        "Reduce"
    ):  # without kept axes, the answer has no number of dimensions
        return _say(op, "unknown", "computed-inputs")
    if op.name in _FLOW:
        return _say(op, "unknown", "control-flow")
    verdict = _tried(op, table("openvino"))
    return source if verdict.status == "supported" and op.lowered else verdict


def _tried(op: OpUse, tried: Mapping[str, Mapping[str, Mapping[str, Sequence[int]]]]) -> OpVerdict:
    versions = tried.get(op.name)
    if versions is None:
        return _foreign(op)
    nearest = [str(v) for v in sorted(int(v) for v in versions) if v >= op.since] or [max(versions, key=int)]
    forms = next((versions[v] for v in nearest if op.form in versions[v]), versions[nearest[0]])
    counts = forms.get(op.form)
    if op.computed and any(refused for form, (_, refused, _) in forms.items() if form.endswith("+computed")):
        return _say(op, "unknown", "computed-inputs")
    if counts is None:
        return _untried_form(op, forms)
    works, refused, wrong = counts
    if refused and not works:
        return _say(op, "unsupported", _refusal(op), op.form)
    if refused:
        return _say(op, "unknown", "some-forms", f"{op.form}: {works} of {works + refused + wrong}")
    if wrong:
        return _say(op, "supported", "odd-answers", f"{op.form}: {wrong} of {works + wrong}")
    return _say(op, "supported")


def _refusal(op: OpUse) -> str:
    if op.name.startswith("ai.onnx.ml:"):
        return "ai-onnx-ml"
    return "double" if op.form == "double" else "refused-when-tried"


def _foreign(op: OpUse) -> OpVerdict:
    if op.name.startswith("ai.onnx.ml:"):
        return _say(op, "unsupported", "ai-onnx-ml")
    if op.name.startswith("com.microsoft:"):
        return _say(op, "unknown", "contrib-op")
    if ":" in op.name:
        return _say(op, "unsupported", "custom-op")
    return _say(op, "unknown", "not-tried")


def _untried_form(op: OpUse, forms: Mapping[str, Sequence[int]]) -> OpVerdict:
    """Judge by the other forms: shapes and masks go the way of floats where those all went."""
    plain = (*_PLAIN_TYPES, "int8", "uint8") if ">" in op.form else _PLAIN_TYPES

    def is_plain(form: str) -> bool:
        return all(part in plain for part in form.split(">"))

    alike = [counts for form, counts in forms.items() if is_plain(form)]
    if is_plain(op.form) and alike and not any(refused for _, refused, _ in alike):
        return _say(op, "supported")
    return _say(op, "unknown", "double" if "double" in op.form else "not-tried", op.form)


# TFLite sources.


def _tflite_for_litert(op: OpUse, surveyed: Surveyed) -> OpVerdict:  # noqa: ARG001  one of a table of judges
    if op.form == "custom":
        return _say(op, "unsupported", "flex-op" if op.name.startswith("Flex") else "custom-op")
    return _say(op, "supported")


def _tflite_for(reader: str) -> Callable[[OpUse, Surveyed], OpVerdict]:
    def judge(op: OpUse, surveyed: Surveyed) -> OpVerdict:
        own = _tflite_for_litert(op, surveyed)
        if own.status == "unsupported":
            return own
        if op.name in _TFLITE_STATE:
            return _say(op, "unsupported", "resource-variable")
        if op.name in ("WHILE", "IF"):
            return _say(op, "unknown", "control-flow")
        counts = table("tensorflow")["tflite"].get(op.name)
        if counts is None:
            return _say(op, "unknown", "not-tried")
        works, refused = counts[reader]
        if refused and not works:
            return _say(op, "unsupported", "refused-when-tried")
        if refused:
            return _say(op, "unknown", "some-forms", f"{works} of {works + refused}")
        return _say(op, "supported")

    return judge


# TensorFlow sources: Keras and SavedModel.


def _tensorflow_for(way: str) -> Callable[[OpUse, Surveyed], OpVerdict]:
    keeps_state = way == "tflite"

    def judge(op: OpUse, surveyed: Surveyed) -> OpVerdict:  # noqa: ARG001  one of a table of judges
        if op.name in _STRUCTURE:
            return _say(op, "supported")
        if op.name in _STATE:
            return _say(op, "unknown" if keeps_state else "unsupported", "resource-variable")
        if "HashTable" in op.name or op.name.startswith("LookupTable"):
            return _say(op, "unknown" if keeps_state else "unsupported", "lookup-table")
        name = "TensorListReserve" if op.name.startswith("TensorList") else _TWINS.get(op.name, op.name)
        return _by_trial(op, name, way)

    return judge


def _by_trial(op: OpUse, name: str, way: str) -> OpVerdict:
    tried = table("tensorflow")["tensorflow"]
    element = op.form if op.form in ("double", "string") else ""
    trial = tried.get(f"{name}:{element}") if element else _any_trial(tried, name)
    if trial is None:
        return _say(op, "unknown", "double" if element == "double" else "not-tried", element)
    if trial[way]:
        flows = name == "TensorListReserve" or op.name in _TF_FLOW
        taken: Status = "unknown" if "openvino" in way else "rewritten"  # OpenVINO takes some loops
        return _say(op, taken, "control-flow") if flows else _say(op, "supported")
    if way.startswith("tflite") and not trial["tflite"]:
        return _say(op, "unsupported", "flex-op" if trial["flex"] else "custom-op")
    untranslated = not trial["onnx"] and way.startswith("onnx")
    return _say(op, "unsupported", "no-translation" if untranslated else "refused-when-tried")


def _any_trial(tried: Mapping[str, Any], name: str) -> Any:
    return next(
        (tried[key] for e in ("float", "int32", "bool", "string") if (key := f"{name}:{e}") in tried), None
    )


# PyTorch and scikit-learn sources.


def _aten_for(key: str) -> Callable[[OpUse, Surveyed], OpVerdict]:
    def judge(op: OpUse, surveyed: Surveyed) -> OpVerdict:
        if ":" in op.name:
            return _say(op, "unsupported", "custom-op")
        if op.form == "double":
            return _say(op, "unknown", "double")
        known = table("torch")[key]
        if op.name in known:
            return _say(op, "supported")
        lacking = [name for name in surveyed.decomposed if name not in known]
        if op.function and not lacking:
            return _say(op, "rewritten", "decomposed")
        return _say(op, "unknown", "no-translation-known", ", ".join(lacking)[:80])

    return judge


def _sklearn(op: OpUse, surveyed: Surveyed) -> OpVerdict:  # noqa: ARG001  one of a table of judges
    if op.form == "custom":
        return _say(op, "unsupported", "custom-op")
    if op.name not in table("sklearn")["estimators"]:
        return _say(op, "unsupported", "no-translation")
    return _say(op, "supported")


#: (Dialect, way) to who judges; a way is the format, with the one made first in front where that is another.
_JUDGES: Mapping[tuple[str, str], Callable[[OpUse, Surveyed], OpVerdict]] = {
    ("onnx", "onnx"): _onnx_for_onnxruntime,
    ("onnx", "openvino"): _onnx_for_openvino,
    ("tflite", "tflite"): _tflite_for_litert,
    ("tflite", "onnx"): _tflite_for("onnx"),
    ("tflite", "openvino"): _tflite_for("openvino"),
    **{
        ("tensorflow", way): _tensorflow_for(way)
        for way in ("tflite", "onnx", "openvino", "onnx-openvino", "tflite-openvino", "tflite-onnx")
    },
    **{("aten", way): _aten_for("tflite") for way in ("tflite", "tflite-openvino", "tflite-onnx")},
    **{("aten", way): _aten_for("onnx") for way in ("onnx", "onnx-openvino")},
    ("sklearn", "onnx"): _sklearn,
}
