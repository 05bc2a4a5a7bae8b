"""Proving that a bundle works: its hashes, then its golden set on the plan, on this device or on an emulated one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.errors import InvalidFileError, MachineError, UnavailableError, UsageError
from edgekit.golden import GoldenOutcome, run_golden, run_samples
from edgekit.local import session_here

if TYPE_CHECKING:
    import numpy as np

    from edgekit.bundle import Bundle
    from edgekit.converters import Converted
    from edgekit.data import Dataset
    from edgekit.emulator import Emulator
    from edgekit.gate import Policy
    from edgekit.manifest import GateResult, Plan

__all__ = [
    "EmulatedProof",
    "Evaluated",
    "Proof",
    "converted_from",
    "evidence",
    "prove",
    "prove_emulated",
    "write_evidence",
]

#: Samples of the evaluation data on which every output is compared, as in `convert`.
_PARITY_SAMPLES = 256


@dataclass(frozen=True)
class Proof:
    """What the golden set showed under a plan.

    Attributes:
        placement: What really ran where.
    """

    plan: Plan
    placement: dict[str, str]
    outcome: GoldenOutcome


def prove(
    bundle: Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
) -> Proof:
    """Run the whole golden set; the arguments are those of `edgekit.local.session_here`.

    Raises:
        InvalidFileError: The bundle has no tolerance for the artifact.
    """
    with session_here(
        bundle, device=device, runtime=runtime, artifact=artifact, allow_fallback=allow_fallback
    ) as (plan, session):
        tolerance = bundle.manifest.golden.tolerance.get(plan.artifact)
        if tolerance is None:
            raise InvalidFileError(f"manifest.json has no golden tolerance of {plan.artifact}")
        outcome = run_golden(
            session,
            bundle.golden(),
            tolerance,
            task=bundle.manifest.task,
            state=bundle.manifest.state,
        )
        return Proof(plan, dict(session.placement), outcome)


@dataclass(frozen=True)
class Evaluated:
    """The gate's verdict on evaluation data, the artifact emulated.

    Attributes:
        reference: What it was compared with: an artifact of the bundle, run on this machine.
        gate: The verdict and its evidence.
    """

    reference: str
    gate: GateResult


@dataclass(frozen=True)
class EmulatedProof(Proof):
    """What the golden set and the evaluation data showed on an emulated CPU.

    Attributes:
        emulator: What emulated it.
        versions: Of the Python and the runtime that ran there.
        evaluated: None without evaluation data.
    """

    emulator: str
    versions: dict[str, str]
    evaluated: Evaluated | None


def prove_emulated(
    bundle: Bundle,
    emulator: Emulator,
    *,
    evaluation: Path | None = None,
    label_column: str | None = None,
    policy: Policy | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> EmulatedProof:
    """Run the golden set, and labelled data where there is some, under the CPU of a device; judge them by the gate.

    The plan is made there, by what is installed there. The gate compares with the bundle's own float32 artifact on this
    machine, which was held against the source model when it was made; where there is none, with the same artifact.

    Args:
        bundle: The bundle.
        emulator: The device's.
        evaluation: What `edgekit.data.read_data` reads, with labels.
        label_column: Column of a table that holds them.
        policy: What is asked of the gate.
        runtime: The only runtime to consider.
        artifact: The only artifact to consider.
        progress: Is told (phrase, steps done, steps in all).

    Raises:
        UsageError: The data does not fit the bundle, or no artifact fits the device.
        UnavailableError: No fitting runtime is in the emulator.
        MachineError: The emulated Python failed.
    """
    from edgekit.manifest import Plan

    progress("golden set", 0, 2 if evaluation else 1)
    words = ["verify", str(bundle.root), "--device", emulator.profile.id, "--allow-fallback", "--json"]
    words += ["--runtime", runtime] if runtime else []
    words += ["--artifact", artifact] if artifact else []
    said = _said(emulator, words)
    error = said["golden"]["max_error"]
    outcome = {**said["golden"], "max_error": float("inf") if error is None else error}
    plan = msgspec.convert(said["plan"], Plan)
    evaluated = None
    if evaluation is not None:
        progress("evaluation data", 1, 2)
        evaluated = _evaluate_emulated(bundle, emulator, plan, evaluation, label_column, policy)
    return EmulatedProof(
        plan=plan,
        placement=said["placement"],
        outcome=msgspec.convert(outcome, GoldenOutcome),
        emulator=emulator.name,
        versions=emulator.versions,
        evaluated=evaluated,
    )


def _said(emulator: Emulator, words: list[str]) -> dict[str, Any]:
    """Return what the emulated command printed; a golden set that failed is an answer too."""
    done = emulator.run("-m", "edgekit", *words)
    if done.returncode in (0, 4) and done.stdout.strip():
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("edgekit: error: ")
    kinds = {2: UsageError, 5: UnavailableError, 6: InvalidFileError}
    raise kinds.get(done.returncode, MachineError)(f"under {emulator.name}: {last[:400]}")


def _evaluate_emulated(
    bundle: Bundle,
    emulator: Emulator,
    plan: Plan,
    data: Path,
    label_column: str | None,
    policy: Policy | None,
) -> Evaluated:
    from edgekit.factory import Factory
    from edgekit.gate import Policy
    from edgekit.judging import Examination
    from edgekit.metrics import get_metric
    from edgekit.process import WorkerLimits

    manifest = bundle.manifest
    chosen = manifest.artifacts[plan.artifact]
    dataset = _read(bundle, data, label_column)
    reference, evaluated = _reference(bundle, plan.artifact, dataset)
    dataset = _with_classes(bundle, dataset, evaluated)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        factory = Factory(Path(scratch), WorkerLimits(), 1, prover=emulator.interpreter)
        try:
            examination = Examination(
                factory=factory,
                profile=emulator.profile,
                task=manifest.task,
                policy=policy or Policy(),
                parity={name: array[:_PARITY_SAMPLES] for name, array in dataset.inputs.items()},
                reference={name: array[:_PARITY_SAMPLES] for name, array in evaluated.items()},
                golden=bundle.golden().inputs,
                evaluation=dataset,
                evaluated=evaluated,
                metric=get_metric(None, manifest.task),
                postprocess=manifest.postprocess,
                state=manifest.state,
                timed=False,
            )
            converted = converted_from(bundle, plan.artifact)
            judged = examination.judge(converted, chosen.format, chosen.precision, calibrated=False)
        finally:
            factory.close()
    return Evaluated(reference, judged.gate)


def _read(bundle: Bundle, data: Path, label_column: str | None) -> Dataset:
    from edgekit.data import read_data
    from edgekit.metrics import labels_needed
    from edgekit.sequences import driven_inputs

    manifest = bundle.manifest
    return read_data(
        data,
        driven_inputs(manifest.inputs, manifest.state),
        preprocess=manifest.preprocess,
        label_column=label_column,
        need_labels=labels_needed(None, manifest.task),
        class_names=manifest.labels,
    )


def _with_classes(bundle: Bundle, dataset: Dataset, evaluated: Mapping[str, np.ndarray]) -> Dataset:
    """Return the data with labels that are the model's classes, where it has classes."""
    from edgekit.data import class_labels
    from edgekit.metrics import scored_output

    scores = scored_output(evaluated)
    if bundle.manifest.task != "classification" or dataset.labels is None or scores.dtype.kind != "f":
        return dataset
    return replace(dataset, labels=class_labels(dataset.labels, max(2, scores.size // len(scores))))


def _reference(bundle: Bundle, artifact: str, dataset: Dataset) -> tuple[str, dict[str, np.ndarray]]:
    """Return the artifact to compare with, and its outputs on this machine."""
    floats = [n for n, a in bundle.manifest.artifacts.items() if a.precision == "fp32" and n in bundle.kept]
    problem: Exception | None = None
    for name in (*floats, artifact):
        try:
            with session_here(bundle, artifact=name) as (_, session):
                return name, run_samples(session, dataset.inputs, None, bundle.manifest.state)
        except (UsageError, UnavailableError) as error:
            problem = problem or error
    raise UnavailableError(f"nothing of the bundle runs on this machine to compare with: {problem}")


def converted_from(bundle: Bundle, name: str) -> Converted:
    """Return an artifact of a bundle as its converter left it."""
    from edgekit.converters import Converted

    artifact = bundle.manifest.artifacts[name]
    return Converted(
        path=str(bundle.root / artifact.path),
        files=tuple(str(bundle.root / file) for file in artifact.files),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        input_names=artifact.input_names,
        output_names=artifact.output_names,
    )


def evidence(proof: EmulatedProof) -> dict[str, Any]:
    """Return what an emulated run showed, as plain data."""
    judged = proof.evaluated
    return {
        "device": proof.plan.device,
        "emulator": proof.emulator,
        "versions": proof.versions,
        "plan": msgspec.to_builtins(proof.plan),
        "placement": proof.placement,
        "golden": msgspec.to_builtins(proof.outcome),
        "reference": judged.reference if judged else None,
        "gate": msgspec.to_builtins(judged.gate) if judged else None,
    }


def write_evidence(bundle: Bundle, path: Path, proof: EmulatedProof) -> Path:
    """Write what an emulated run showed into the bundle's report folder; return the file.

    Args:
        bundle: The bundle.
        path: Where the user has it.
        proof: What was shown.
    """
    from edgekit.request import report_path
    from edgekit.state import write_durably

    folder = report_path(path.absolute())
    folder.mkdir(exist_ok=True)
    file = folder / f"emulated-{proof.plan.device}.json"
    data = {"schema": 1, "digest": bundle.digest, **evidence(proof)}
    write_durably(file, msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    return file
