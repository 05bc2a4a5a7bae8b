"""The outlook: per runtime of the target, which artifacts can be made, on which route, and what stands in the way."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from edgekit.check.survey import Surveyed
from edgekit.check.verdicts import STATUSES, OpVerdict, Status, judge_ops, worst_of
from edgekit.converters import Converter
from edgekit.devices import DeviceProfile, load_target
from edgekit.factory import Factory
from edgekit.process import WorkerLimits
from edgekit.recipes import Wanted, check_formats, preference_for, recipe_for, wanted_artifacts
from edgekit.routes import Route, converters
from edgekit.sources import SourceOptions, check_options, identify
from edgekit.tensors import DTYPES

__all__ = ["ArtifactOutlook", "Layout", "Memory", "Outlook", "RuntimeOutlook", "Versions", "check", "decide"]

#: Bytes of one weight by precision; a scale for each channel is small beside them.
_WIDTHS: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1, "int8-dynamic": 1, "int16x8": 1}
#: Channels stand last in these dialects, and second in what these formats' convolutions take.
_LAST, _SECOND = ("tensorflow", "tflite"), ("onnx", "openvino")
_PICTURE = 4
#: Share of the memory that weights may take before a warning: the values between layers need some too.
_TIGHT = 0.5
_MIB = 1 << 20


@dataclass(frozen=True)
class ArtifactOutlook:
    """What would become of one artifact.

    Attributes:
        possible: A route exists, everything on it is installed, and no operator is known to be refused on it.
        route: The shortest route, empty where there is none.
        reasons: Why not.
        needs: What to give, such as `--calibration`.
        size_bytes: An estimate: the weights at this precision's width.
    """

    name: str
    possible: bool
    route: Route
    reasons: tuple[str, ...]
    needs: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Versions:
    """ONNX's versions in the model, and the newest that the target reads.

    Attributes:
        verdict: `as-is`, `lowered` or `refused`.
        reason: Why it is refused.
    """

    opset: int
    opset_read: int
    ir: int
    ir_read: int
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Layout:
    """What the order of axes costs.

    Attributes:
        transposes_at_least: Transpositions that conversion adds at pictures that go in or out.
        in_source: Those that the source has itself.
        bytes_per_sample: What the added ones move.
    """

    transposes_at_least: int
    in_source: int
    bytes_per_sample: int


@dataclass(frozen=True)
class Memory:
    """The largest artifact's weights against the device's memory, in MiB; the memory is None where unknown."""

    weights_mib: float
    ram_mib: int | None
    verdict: str


@dataclass(frozen=True)
class RuntimeOutlook:
    """One runtime of the target.

    Attributes:
        status: The worst of its operators.
        ops: Every operator's verdict, worst first.
        artifacts: Those made for it.
        notes: Shapes and the like.
    """

    runtime: str
    format: str
    status: Status
    possible: bool
    artifacts: tuple[ArtifactOutlook, ...]
    ops: tuple[OpVerdict, ...]
    layout: Layout
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What `convert` would do."""

    kind: str
    target: str
    possible: bool
    source: Surveyed
    runtimes: tuple[RuntimeOutlook, ...]
    versions: Versions | None
    memory: Memory
    free_sizes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    next_step: str


@dataclass(frozen=True)
class _Case:
    """What the decisions are made on."""

    profile: DeviceProfile
    source: Surveyed
    table: Mapping[str, Converter]
    versions: Versions | None = None
    faults: Sequence[str] = field(default_factory=tuple)


def check(
    model: Path,
    target: str,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    options: SourceOptions | None = None,
) -> Outlook:
    """Tell what `convert` would make of `model` for `target`.

    Args:
        model: The source.
        target: A device profile's id, or a family's.
        formats: As for `convert`: empty for those of the target's runtimes.
        precisions: As for `convert`: empty for the target's.
        options: What the user says about the source.

    Raises:
        UsageError: No such model, target, format or precision; an option that means nothing here.
        InvalidFileError: The model file is not what its name says.
        ConversionError: The source cannot be read far enough to say anything.
    """
    profile = load_target(target)
    kind = identify(model)
    options = options or SourceOptions()
    check_options(kind, options)
    check_formats(profile, formats)
    source = _survey(kind, model, profile, options)
    wanted = wanted_artifacts(
        profile,
        kind,
        converters(),
        formats=formats,
        precisions=precisions,
        calibrated=True,
        quantized=source.quantized,
        requantize=options.requantize,
    )
    return decide(kind, profile, source, wanted)


def _survey(kind: str, model: Path, profile: DeviceProfile, options: SourceOptions) -> Surveyed:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        factory = Factory(Path(scratch), WorkerLimits(), jobs=1, options=options)
        try:
            return factory.survey(kind, model, _read_versions(profile)[0])
        finally:
            factory.close()


def _read_versions(profile: DeviceProfile) -> tuple[int, int]:
    """Return the opset and the IR version that the user's own ONNX is lowered to, where its own are higher."""
    options = recipe_for(profile, ("onnx-fp32",), "onnx", "fp32", 0).options
    return int(options["opset"]), int(options["ir"])


def decide(kind: str, profile: DeviceProfile, source: Surveyed, wanted: Sequence[Wanted]) -> Outlook:
    """Return the outlook on what is wanted of a source; pure but for asking what is installed.

    Args:
        kind: The source's kind.
        profile: The target.
        source: What a survey found.
        wanted: The artifacts.
    """
    case = _Case(profile, source, converters(), _versions(source, profile), _faults(source, profile))
    formats = list(dict.fromkeys(item.format for item in wanted))
    runtimes = tuple(_runtime(case, form, [w for w in wanted if w.format == form]) for form in formats)
    memory = _memory(source, profile, [a for r in runtimes for a in r.artifacts if a.possible])
    possible = any(r.possible for r in runtimes) and memory.verdict != "too-large"
    return Outlook(
        kind=kind,
        target=profile.id,
        possible=possible,
        source=source,
        runtimes=runtimes,
        versions=case.versions,
        memory=memory,
        free_sizes={s.name: s.shape for s in (*source.inputs, *source.outputs) if -1 in s.shape},
        notes=_notes(source, profile),
        next_step=_next_step(possible, runtimes, memory),
    )


def _runtime(case: _Case, form: str, wanted: Sequence[Wanted]) -> RuntimeOutlook:
    preference = preference_for(case.profile, form)
    ways = dict.fromkeys(case.table[route[0]].format for item in wanted for route in item.routes)
    judged = {way: judge_ops(case.source, form, way, preference.providers) for way in ways}
    # what fails on one route is tried on the next: the best of them counts, the shortest of equals
    via = min(judged, key=lambda way: STATUSES.index(worst_of(judged[way])), default="")
    ops = judged.get(via, ())
    artifacts = tuple(_artifact(case, item, ops, _route(case, item, via)) for item in wanted)
    return RuntimeOutlook(
        runtime=preference.runtime,
        format=form,
        status=worst_of(ops) if judged else "unsupported",
        possible=any(a.possible for a in artifacts),
        artifacts=artifacts,
        ops=ops,
        layout=_layout(case.source, form),
    )


def _route(case: _Case, item: Wanted, via: str) -> Route:
    on_the_way = [route for route in item.routes if case.table[route[0]].format == via]
    return next(iter([*on_the_way, *item.routes]), ())


def _artifact(case: _Case, item: Wanted, ops: Sequence[OpVerdict], route: Route) -> ArtifactOutlook:
    missing = sorted({m for step in route for m in case.table[step].needs if find_spec(m) is None})
    reasons = [item.skipped] if item.skipped else []
    reasons += [f"needs {m}: pip install 'edgekit-deploy[{case.table[route[-1]].extra}]'" for m in missing]
    reasons += case.faults
    if case.versions is not None and case.versions.verdict == "refused":
        reasons.append(case.versions.reason)
    refused = [v.op for v in ops if v.status == "unsupported"]
    if refused and not item.skipped:
        reasons.append("operators that are refused: " + ", ".join(dict.fromkeys(refused)))
    calibrated = item.precision in ("int8", "int16x8") and not item.as_is
    return ArtifactOutlook(
        name=item.name,
        possible=not reasons,
        route=route,
        reasons=tuple(reasons),
        needs=("--calibration",) if calibrated and not reasons else (),
        size_bytes=_size(case.source, item),
    )


def _size(source: Surveyed, item: Wanted) -> int:
    if item.as_is:
        return source.parameter_bytes
    return source.parameters * _WIDTHS[item.precision]


def _versions(source: Surveyed, profile: DeviceProfile) -> Versions | None:
    if not source.opset:
        return None
    opset, ir = _read_versions(profile)
    lowered = source.opset > opset or source.ir > ir
    verdict = "refused" if source.lowering else ("lowered" if lowered else "as-is")
    return Versions(source.opset, opset, source.ir, ir, verdict, source.lowering)


def _faults(source: Surveyed, profile: DeviceProfile) -> list[str]:
    """Return what stands in the way of every artifact: types that no array has, free sizes."""
    strange = [
        f"{spec.name!r} is {spec.dtype}, which no input or output can be"
        for spec in (*source.inputs, *source.outputs)
        if spec.dtype not in DTYPES
    ]
    if not profile.static_shapes:
        return strange
    return strange + [
        f"{profile.id} takes fixed shapes only, and input {spec.name!r} has free sizes beyond the batch: "
        f"{list(spec.shape)}"
        for spec in source.inputs
        if -1 in spec.shape[1:]
    ]


def _layout(source: Surveyed, form: str) -> Layout:
    """Return what turning pictures costs: channels stand last in TensorFlow and TFLite, second in the others."""
    turned = (source.dialect in _LAST and form in _SECOND) or (source.dialect == "aten" and form == "tflite")
    pictures = [s for s in (*source.inputs, *source.outputs) if len(s.shape) == _PICTURE] if turned else []
    moved = 0
    for spec in pictures:
        size = 4
        for side in spec.shape[1:]:
            size *= max(side, 1)
        moved += size
    return Layout(len(pictures), source.transposes, moved)


def _memory(source: Surveyed, profile: DeviceProfile, artifacts: Sequence[ArtifactOutlook]) -> Memory:
    smallest = min((a.size_bytes for a in artifacts), default=source.parameter_bytes) / _MIB
    largest = max((a.size_bytes for a in artifacts), default=source.parameter_bytes) / _MIB
    if profile.ram_mib is None:
        verdict = "unknown"
    elif smallest > profile.ram_mib:
        verdict = "too-large"
    else:
        verdict = "tight" if largest > _TIGHT * profile.ram_mib else "fits"
    return Memory(round(largest, 2), profile.ram_mib, verdict)


def _notes(source: Surveyed, profile: DeviceProfile) -> tuple[str, ...]:
    notes = list(source.notes)
    if source.quantized:
        notes.append(f"the source is quantized already: {source.quantized}; it goes through as it is")
    if source.free_inside:
        notes.append(f"{source.free_inside} values inside have sizes that only a run tells")
    if profile.static_shapes and any(spec.shape[:1] == (-1,) for spec in source.inputs):
        notes.append(f"the batch would be fixed at 1: {profile.id} takes fixed shapes only")
    if profile.install == "export-only":
        notes.append(f"{profile.id} can only be exported to: EdgeKit itself does not run there")
    return tuple(notes)


def _next_step(possible: bool, runtimes: Sequence[RuntimeOutlook], memory: Memory) -> str:
    if memory.verdict == "too-large":
        return "The weights are larger than the device's memory: take a smaller model."
    if possible:
        unknown = any(v.status == "unknown" for r in runtimes if r.possible for v in r.ops)
        more = " What is unknown, only the conversion tells." if unknown else ""
        static = any(a.needs for r in runtimes for a in r.artifacts if a.possible)
        return f"Run edgekit convert with {'--calibration and ' if static else ''}--eval." + more
    first = next((r for r in runtimes for a in r.artifacts if a.route), None)
    if first is None:
        return "Export the model in another format: no converter leads from this one to the target's."
    refused = [v.op for v in first.ops if v.status == "unsupported"]
    if refused:
        return f"Export the model without {', '.join(dict.fromkeys(refused))}, or choose another target."
    return "Mend what is said under why, and check again."
