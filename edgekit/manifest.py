"""The bundle's manifest, schema 1: what was made, from what, how it was judged, and every file's hash.

A manifest holds no measured time and no date: the same inputs, tools, threads and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from edgekit.errors import InvalidFileError
from edgekit.tensors import TensorSpec

__all__ = [
    "SCHEMA",
    "Artifact",
    "CalibrationFit",
    "FileEntry",
    "GateResult",
    "Golden",
    "GoldenTolerance",
    "Manifest",
    "MetricEvidence",
    "ParityEvidence",
    "Plan",
    "Recipe",
    "SourceInfo",
    "decode_manifest",
    "digest_of",
    "encode_manifest",
]

SCHEMA = 1

Task = Literal[
    "classification", "detection", "segmentation", "regression", "embedding", "generation", "other"
]
Verdict = Literal["accepted", "unproven", "refused"]
Option = str | int | float | bool


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the bundle: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


class SourceInfo(msgspec.Struct, frozen=True):
    """The source model.

    Attributes:
        kind: `keras`, `savedmodel`, `onnx`.
        sha256: Of the file, or of the sorted (path, hash) list of a folder.
        tools: Version of every tool that read it.
    """

    kind: str
    sha256: str
    tools: dict[str, str] = {}


class Recipe(msgspec.Struct, frozen=True):
    """How an artifact was made, as data.

    Attributes:
        route: Converter names in the order they ran.
        precision: The artifact's precision.
        calibration: Calibration method, empty where none was needed.
        calibration_samples: How many samples calibrated it.
        options: What the converters were told (per-channel, activation type, reduce_range, …).
        float_layers: Layers kept in float.
    """

    route: tuple[str, ...]
    precision: str
    calibration: str = ""
    calibration_samples: int = 0
    options: dict[str, Option] = {}
    float_layers: tuple[str, ...] = ()


class ParityEvidence(msgspec.Struct, frozen=True):
    """Artifact against source on the same inputs. Errors are fractions of the source output's range.

    For a regression the range is that of the target, the output's column.

    Attributes:
        n: Samples compared.
        max_error: Largest absolute error.
        p95_error: 95th percentile of the absolute errors.
        argmax_agreement: Share of samples with the same argmax; None where that means nothing.
        batch2_error: Largest difference between a batch of two and the same two alone; None where the
            artifact takes no batch of two.
        batch2_p95: 95th percentile of these differences; None where the artifact takes no batch of two.
        finite: No NaN or infinity came out.
        constant: The artifact answers the same whatever goes in, while the source does not.
        float_peak: Largest absolute value inside the float network; measured where half precision must hold
            it. A host that computes float16 in float32 would not show an overflow in the outputs.
        active_error: Of a detector: the median error of the scores where the source's say something.
        cosine: Of an embedding: the cosine to the source's that all but one sample in twenty reach.
        snr_db: Of generation: the signal-to-noise ratio against the source that all but one in twenty reach.
    """

    n: int
    max_error: float
    p95_error: float
    argmax_agreement: float | None = None
    batch2_error: float | None = None
    batch2_p95: float | None = None
    finite: bool = True
    constant: bool = False
    float_peak: float | None = None
    active_error: float | None = None
    cosine: float | None = None
    snr_db: float | None = None


class MetricEvidence(msgspec.Struct, frozen=True):
    """The task's metric, source against artifact on the same labelled samples.

    Attributes:
        name: `top1`, `macro_f1`, `mae`, …
        n: Samples.
        source: The source model's value (a fraction for shares).
        artifact: The artifact's value.
        drop_pp: How much worse the artifact is, in percentage points: of a share, of the labels' range for errors
            in their units, half a decibel each for decibels (`edgekit.metrics.base.drop_in_points`).
        low_pp: One-sided 95 % lower bound of the drop, paired.
        bound_pp: One-sided 95 % upper bound of the drop, paired.
        needed_n: Samples that would decide, where this many do not; 0 where no number would.
    """

    name: str
    n: int
    source: float
    artifact: float
    drop_pp: float
    low_pp: float
    bound_pp: float
    needed_n: int | None = None


class CalibrationFit(msgspec.Struct, frozen=True):
    """The 1st and 99th percentile of one input in calibration and in evaluation data."""

    input: str
    calibration: tuple[float, float]
    evaluation: tuple[float, float]


class GateResult(msgspec.Struct, frozen=True):
    """The gate's verdict on one artifact, with its reasons and the evidence."""

    verdict: Verdict
    reasons: tuple[str, ...]
    parity: ParityEvidence | None = None
    metric: MetricEvidence | None = None
    calibration_fit: tuple[CalibrationFit, ...] = ()


class Artifact(msgspec.Struct, frozen=True):
    """One format at one precision.

    Attributes:
        format: `tflite`, `onnx` or `openvino`.
        precision: `fp32`, `fp16`, `int8-dynamic`, `int8` or `int16x8`.
        path: The file a runtime opens, relative to the bundle.
        files: Every file of the artifact, relative to the bundle.
        inputs: Specs under canonical names; shapes as this artifact takes them.
        outputs: Specs under canonical names.
        input_names: Canonical name to the artifact's own, where they differ.
        output_names: Canonical name to the artifact's own, where they differ.
        recipe: How it was made.
        gate: How it was judged.
        tools: Version of every tool that made it.
        isa: Instruction set it was judged on, such as `x86-64+avx512-vnni`.
        emulator: What emulated that, such as `qemu 10.0.13, cortex-a72`; empty for a real CPU.
    """

    format: str
    precision: str
    path: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: Recipe
    gate: GateResult
    input_names: dict[str, str] = {}
    output_names: dict[str, str] = {}
    tools: dict[str, str] = {}
    isa: str = ""
    emulator: str = ""


class Plan(msgspec.Struct, frozen=True):
    """The choice for one device, with its reasons.

    Attributes:
        device: Profile id.
        artifact: Name of the artifact, `format-precision`.
        runtime: Name of the runtime.
        providers: Execution providers or devices in the order to try; the first is what is wanted.
        threads: Intra-op threads, 0 for the runtime's own choice.
        options: Further options of the runtime.
        reasons: Why, and each step down that was taken.
    """

    device: str
    artifact: str
    runtime: str
    providers: tuple[str, ...] = ()
    threads: int = 0
    options: dict[str, Option] = {}
    reasons: tuple[str, ...] = ()


class GoldenTolerance(msgspec.Struct, frozen=True):
    """What one artifact must reach on the golden set: set from what it reached at the gate.

    Attributes:
        max_error: Largest absolute error allowed, as a fraction of the golden outputs' range.
        min_agreement: Least number of samples with the source's argmax; 0 where argmax means nothing.
    """

    max_error: float
    min_agreement: int = 0


class Golden(msgspec.Struct, frozen=True):
    """The self-test that travels with the bundle.

    `golden.npz` holds `input:<name>` and `output:<name>` arrays with n samples along the first axis; a
    float32 input whose values are all k/255 may be stored as uint8 with `scale:<name>` = 255.
    """

    n: int
    origin: Literal["real", "synthetic"]
    tolerance: dict[str, GoldenTolerance] = {}
    file: str = "golden.npz"


class Manifest(msgspec.Struct, frozen=True):
    """Everything a device must know about a bundle.

    Attributes:
        preprocess: How pictures become inputs.
        postprocess: What the outputs mean: the steps of `edgekit.postprocess`.
        state: Input name to the name of the output that it takes from the step before; empty where every sample
            stands for itself.
    """

    name: str
    version: int
    task: Task
    source: SourceInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: dict[str, Artifact]
    plan: Plan
    golden: Golden
    files: dict[str, FileEntry]
    preprocess: tuple[dict[str, Any], ...] = ()
    postprocess: tuple[dict[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    edgekit: str = ""
    reference: str = "reference.json"
    state: dict[str, str] = {}
    schema: int = SCHEMA


class _SchemaProbe(msgspec.Struct):
    schema: int = 0


def encode_manifest(manifest: Manifest) -> bytes:
    """Return canonical JSON: UTF-8, keys sorted, no white space, one newline at the end."""
    return msgspec.json.encode(msgspec.to_builtins(manifest), order="sorted") + b"\n"


def decode_manifest(data: bytes, where: str = "manifest.json") -> Manifest:
    """Read a manifest.

    Raises:
        InvalidFileError: It is not JSON, lacks a field, or its schema is newer than this EdgeKit's.
    """
    try:
        schema = msgspec.json.decode(data, type=_SchemaProbe).schema
        if schema > SCHEMA:
            raise InvalidFileError(
                f"{where} has a newer schema",
                got=schema,
                expected=f"at most {SCHEMA}",
                hint="Install a newer EdgeKit.",
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for broken UTF-8
        raise InvalidFileError(f"{where} is not a manifest: {error}") from error


def digest_of(manifest_bytes: bytes) -> str:
    """Return the bundle's digest: the SHA-256 of the manifest's bytes, in hexadecimal."""
    return hashlib.sha256(manifest_bytes).hexdigest()
