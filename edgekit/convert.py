"""Convert: a trained model in, a bundle of judged artifacts out, or a refusal with reasons.

The order of things: describe the source, read the data, run the source for reference, convert, score every
artifact, judge it, choose the plan, seal the bundle. Frameworks and runtimes live in worker processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from edgekit import __version__
from edgekit.assembly import Assembly, assemble
from edgekit.converters import Converted
from edgekit.data import Dataset, class_labels, has_columns, read_data
from edgekit.detect import host_isa, isa_name
from edgekit.devices import DeviceProfile, load_target
from edgekit.emulator import Emulator, emulator_of
from edgekit.errors import (
    ConversionError,
    EdgeKitError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgekit.factory import Factory
from edgekit.gate import load_limits, measure_parity
from edgekit.judging import Examination
from edgekit.making import Bench, Kept, make_all
from edgekit.manifest import Artifact, Plan, SourceInfo
from edgekit.metrics import Metric, get_metric, infer_task, labels_needed, scored_output
from edgekit.postprocess import check_postprocess, finish
from edgekit.preprocess import Preprocessor
from edgekit.recipes import Wanted, check_formats, check_recipes, wanted_artifacts
from edgekit.report import Row, write_report
from edgekit.request import ConvertRequest, bundle_name, check_request, report_path
from edgekit.routes import converters, start_of
from edgekit.samples import gather_samples
from edgekit.sequences import check_state, driven_inputs, with_states
from edgekit.sources import check_options, hash_source, identify
from edgekit.tensors import check_specs, takes_whole

if TYPE_CHECKING:
    import numpy as np

    from edgekit.bundle import Bundle

__all__ = ["ConvertOutcome", "ConvertRequest", "Verdicts", "convert"]

#: Inputs on which the layers of a quantized artifact are compared with the float ones.
_LAYER_SAMPLES = 8

#: Says what is going on: a phrase, steps done, steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verdicts:
    """What became of every artifact.

    Attributes:
        rows: One for each artifact.
        task: As given or inferred.
        notes: What was not measured, what was inferred.
        report: The report's folder.
    """

    rows: tuple[Row, ...]
    task: str
    notes: tuple[str, ...]
    report: Path


@dataclass(frozen=True)
class ConvertOutcome(Verdicts):
    """The result of a conversion that left a bundle."""

    bundle: Bundle

    @property
    def plan(self) -> Plan:
        """The choice for the target."""
        return self.bundle.manifest.plan


def convert(
    request: ConvertRequest,
    progress: Progress = lambda _what, _done, _all: None,
    judged: Callable[[Verdicts], None] = lambda _verdicts: None,
) -> ConvertOutcome:
    """Convert a model and write the bundle and the report.

    Args:
        request: What to do.
        progress: Called as work goes on.
        judged: Called once, before a bundle is written or refused.

    Raises:
        UsageError: Unknown target, format or precision; bad data; the output exists.
        UnavailableError: A converter's package is missing.
        InvalidFileError: The model file is not what its name says.
        ConversionError: An artifact asked for by name could not be made, or none could.
        RefusedError: The gate refused an artifact asked for by name, or accepted none; the report is written.
        MachineError: The disk is full.
    """
    profile = load_target(request.target)
    kind = identify(request.model)
    check_options(kind, request.source_options)
    check_request(request)
    emulator = emulator_of(profile) if request.prove == "emulated" else None
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-") as scratch,
        _factory(request, scratch, emulator) as factory,
    ):
        conversion = _Conversion(request, profile, kind, factory, progress, emulator)
        verdicts = conversion.run()
        judged(verdicts)
        refusal = conversion.refusal()
        bundle = conversion.seal() if refusal is None else None
        conversion.report(bundle, time.monotonic() - started)
    if bundle is None:
        assert refusal is not None
        raise refusal
    return ConvertOutcome(verdicts.rows, verdicts.task, verdicts.notes, verdicts.report, bundle)


@contextmanager
def _factory(request: ConvertRequest, scratch: str, emulator: Emulator | None) -> Iterator[Factory]:
    prover = emulator.interpreter if emulator else None
    factory = Factory(Path(scratch), request.limits, request.jobs, request.source_options, prover)
    try:
        yield factory
    finally:
        factory.close()


class _Conversion:
    """One run of `convert`: what it knows so far."""

    def __init__(
        self,
        request: ConvertRequest,
        profile: DeviceProfile,
        kind: str,
        factory: Factory,
        progress: Progress,
        emulator: Emulator | None,
    ) -> None:
        self.request, self.profile, self.kind = request, profile, kind
        self.factory, self.progress, self.emulator = factory, progress, emulator
        self.isa = isa_name(profile.arch, profile.isa) if emulator else host_isa()
        self.notes: list[str] = []
        self.rows: dict[str, Row] = {}
        self.made: dict[str, Kept] = {}

    def run(self) -> Verdicts:
        """Do everything but write."""
        request = self.request
        wanted = self._wanted("")
        check_formats(self.profile, request.formats)
        _check_installed([w for w in wanted if not w.skipped])
        self.progress("reading the model", 0, 1)
        self.source = self.factory.describe(self.kind, request.model)
        check_specs(self.source.inputs, self.source.outputs)
        self.notes += self.source.notes
        if self.source.quantized:
            wanted = self._wanted(self.source.quantized)
        elif request.source_options.requantize:
            raise UsageError("--requantize means nothing: the source is not quantized", hint="Leave it out.")
        check_recipes(request.recipes, wanted, start_of(self.kind), self.profile)
        Preprocessor(request.preprocess, driven_inputs(self.source.inputs, request.state))
        check_postprocess(request.postprocess, self.source.outputs)
        check_state(request.state, self.source.inputs, self.source.outputs)
        self.calibration = self._read(
            request.calibration, "calibration data", scratch=self.factory.new_path("calibration")
        )
        self.evaluation = self._read(
            request.evaluation, "evaluation data", labels=labels_needed(request.metric, request.task)
        )
        self.samples = gather_samples(
            driven_inputs(self.source.inputs, request.state),
            self.calibration,
            self.evaluation,
            load_limits().data,
            request.seed,
            request.state,
        )
        self._say_what_was_not_measured()
        self._run_source()
        self.stored = self._store_calibration()
        outcomes = make_all(self._bench(), wanted)
        self.rows = {name: outcome.row for name, outcome in outcomes.items()}
        self.made = {name: o.kept for name, o in outcomes.items() if o.kept is not None}
        self._say_what_is_fixed()
        report = report_path(request.out)
        return Verdicts(tuple(self.rows.values()), self.task, tuple(self.notes), report)

    def _wanted(self, quantized: str) -> list[Wanted]:
        request = self.request
        return wanted_artifacts(
            self.profile,
            self.kind,
            converters(),
            formats=request.formats,
            precisions=request.precisions,
            calibrated=request.calibration is not None,
            quantized=quantized,
            requantize=request.source_options.requantize,
        )

    def _bench(self) -> Bench:
        whole = with_states(self.samples.parity, self.reference, self.request.state)
        few = {name: values[:_LAYER_SAMPLES] for name, values in whole.items()}
        calibrated = self.calibration.n if self.calibration is not None else 0
        return Bench(
            factory=self.factory,
            examination=self.examination,
            profile=self.profile,
            kind=self.kind,
            model=self.request.model,
            source=self.source,
            calibration=self.stored,
            calibrated=calibrated,
            few=self.factory.store_calibration(few, whole=takes_whole(self.source.inputs)),
            fixed={  # as they were given, on the data that is given now
                name: structs.replace(recipe, calibration_samples=calibrated if recipe.calibration else 0)
                for name, recipe in self.request.recipes.items()
            },
            progress=self.progress,
        )

    def _store_calibration(self) -> Path | None:
        """Give the converters the calibration data, with the state that the source reaches on it."""
        if self.calibration is None:
            return None
        state, stream = self.request.state, self.calibration.stream
        assert stream is not None
        if not state:
            return stream.folder
        inputs = self.calibration.inputs
        return self.factory.store_calibration(
            with_states(inputs, self._answers(inputs), state), whole=takes_whole(self.source.inputs)
        )

    def _answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the source's outputs, in its own framework."""
        request = self.request
        return self.factory.run_source(self.kind, request.model, inputs, request.state)

    def _read(
        self, path: Path | None, what: str, *, labels: bool = False, scratch: Path | None = None
    ) -> Dataset | None:
        if path is None:
            return None
        request = self.request
        return read_data(
            path,
            driven_inputs(self.source.inputs, request.state),
            preprocess=request.preprocess,
            label_column=request.label_column if labels or has_columns(path) else None,
            need_labels=labels,
            what=what,
            class_names=request.labels,
            scratch=scratch,
            seed=request.seed,
        )

    def _say_what_was_not_measured(self) -> None:
        if self.evaluation is None:
            self.notes.append("accuracy not measured: no --eval")
        if self.samples.origin == "synthetic":
            free = [spec.name for spec in self.source.inputs if -1 in spec.shape[1:]]
            sizes = (
                f"; free sizes of {', '.join(free)} are taken as 1: --calibration shows real ones"
                if free
                else ""
            )
            self.notes.append(f"no data at all: parity on seeded random inputs in [0, 1){sizes}")

    def _run_source(self) -> None:
        """Get the source's answers on the parity inputs, the evaluation inputs and the golden inputs."""
        self.progress("running the source model", 0, 1)
        self.reference = self._answers(self.samples.parity)
        _check_finite(self.reference)
        self.task = self.request.task or self._infer_task()
        self._check_class_names()
        self.metric = self._metric()
        self.evaluated = self._answers(self.evaluation.inputs) if self.evaluation is not None else None
        _check_finite(self.evaluated or {})
        self._check_scores()
        self._say_what_is_odd()
        self.golden = self.samples.choose_golden(
            self.request.golden,
            self.task,
            self.reference,
            self.evaluated,
            self._answers,
        )
        self.examination = Examination(
            factory=self.factory,
            profile=self.profile,
            task=self.task,
            policy=self.request.policy,
            parity=self.samples.parity,
            reference=self.reference,
            golden=self.golden.inputs,
            calibration=self.calibration,
            evaluation=self.evaluation,
            evaluated=self.evaluated,
            metric=self.metric,
            noise=self.samples.origin == "synthetic",
            seed=self.request.seed,
            postprocess=self.request.postprocess,
            state=self.request.state,
            timed=self.emulator is None,
            # LiteRT computes a quantized file in integers; the others are read with their weights as they are
            source_precision=self.source.quantized if self.kind == "tflite" else "",
            source_moves=self._source_moves,
        )

    def _source_moves(self) -> float:
        """Return how far an ONNX source's outputs move when ONNX Runtime optimises its graph; nothing for another kind.

        The reference is run without optimisations, and some graphs amplify the last bit: a spectrogram's logarithm, say.
        """
        if self.kind != "onnx" or self.request.state:
            return 0.0
        model = str(self.request.model.absolute())
        itself = Converted(model, (model,), self.source.inputs, self.source.outputs)
        answers, _ = self.factory.score(itself, "onnxruntime", 1, {}, self.samples.parity)
        return measure_parity(self.reference, answers, argmax=False).max_error

    def _infer_task(self) -> str:
        """Return what the model seems to do, and say so."""
        labels = self.evaluation.labels if self.evaluation is not None else None
        task = infer_task(self.reference, labels, self.request.postprocess)
        self.notes.append(f"task: {task} (inferred; --task says otherwise)")
        return task

    def _metric(self) -> Metric | None:
        name = self.request.metric
        if self.evaluation is None:
            for option, given in (("--metric", name), ("--min-metric", self.request.policy.min_metric)):
                if given is not None:
                    raise UsageError(f"{option} needs labelled data", hint="Give --eval.")
            return None
        metric = get_metric(name, self.task)
        if self.task == "classification":
            assert self.evaluation.labels is not None
            classes = self._class_count()
            labels = (
                self.evaluation.labels if classes is None else class_labels(self.evaluation.labels, classes)
            )
            self.evaluation = replace(self.evaluation, labels=labels)
        return metric

    def _class_count(self) -> int | None:
        """Return how many classes the scores tell apart; None where the output is the class itself."""
        scores = scored_output(self.reference)
        # one score is the positive class's share: two classes
        return max(2, scores.size // len(scores)) if scores.dtype.kind == "f" else None

    def _check_class_names(self) -> None:
        """Refuse names that cannot be those of the model's classes: each would stand for another class."""
        names = self.request.labels or (self.evaluation.class_names if self.evaluation else ())
        classes = self._class_count() if self.task == "classification" and names else None
        if classes is None:
            return
        if len(names) != classes:
            raise UsageError(
                "the class names do not fit the model",
                got=f"{len(names)} ({', '.join(names)[:80]})",
                expected=f"{classes}, one for each score",
                hint="Give a file with all of them, in the model's order, with --labels.",
            )
        if not self.request.labels:
            self.notes.append(
                f"classes in alphabetical order: {', '.join(names)[:200]} (--labels says otherwise)"
            )

    def _check_scores(self) -> None:
        """Score the source itself once: outputs or labels that the metric cannot read are told before any work."""
        if self.metric is None or self.metric.target != "labels":
            return
        assert self.evaluation is not None
        assert self.evaluation.labels is not None
        self.metric.value(finish(self.request.postprocess, self.evaluated or {}), self.evaluation.labels)

    def _say_what_is_odd(self) -> None:
        """Note what makes the evidence weak: labels that do not seem to fit, answers that never vary."""
        if all((values == values[:1]).all() for values in self.reference.values()):
            self.notes.append(
                f"the source gives the same answer to all {self.samples.n} parity inputs: parity shows little"
            )
        if self.metric is None or self.metric.name != "top1" or self.evaluation is None:
            return
        assert self.evaluated is not None
        assert self.evaluation.labels is not None
        share, classes = self.metric.value(self.evaluated, self.evaluation.labels), self._class_count()
        if classes is not None and share <= 1.0 / classes:
            self.notes.append(
                f"the source itself has top1 {share:.3g}, no better than guessing one of {classes} classes: "
                "do the labels fit the model?"
            )

    def _say_what_is_fixed(self) -> None:
        """Note which artifacts take fewer shapes than the source, for a target that needs it."""
        fixed = [n for n, each in self.made.items() if each.converted.inputs != self.source.inputs]
        if fixed and self.profile.static_shapes:
            self.notes.append(
                f"{self.profile.id} takes fixed shapes only: a batch of 1 in {', '.join(fixed)}"
            )

    def _kept(self) -> dict[str, Row]:
        return {n: r for n, r in self.rows.items() if r.status in ("accepted", "unproven")}

    def seal(self) -> Bundle:
        """Write the bundle."""
        self.progress("sealing the bundle", 0, 1)
        artifacts = {name: self._artifact(self.made[name], row) for name, row in self._kept().items()}
        return assemble(
            self._assembly(artifacts),
            self.profile,
            self.request.out,
            allow_unproven=self.request.allow_unproven,
            overwrite=self.request.overwrite,
        )

    def _assembly(self, artifacts: Mapping[str, Artifact]) -> Assembly:
        request, evaluation = self.request, self.evaluation
        model = request.model
        names = evaluation.class_names if evaluation is not None else ()
        return Assembly(
            name=bundle_name(request),
            version=request.version,
            task=self.task,
            source=SourceInfo(self.kind, hash_source(model, self.source.files), self.source.tools),
            inputs=self.source.inputs,
            outputs=self.source.outputs,
            artifacts=artifacts,
            files={
                target: Path(file)
                for name, artifact in artifacts.items()
                for target, file in zip(artifact.files, self.made[name].converted.files, strict=True)
            },
            golden=self.golden,
            answers={name: kept.answers for name, kept in self.made.items()},
            labels=evaluation.labels if evaluation is not None else None,
            evaluated=evaluation.n if evaluation is not None else 0,
            class_names=request.labels or names,
            preprocess=request.preprocess,
            postprocess=request.postprocess,
            state=request.state,
        )

    def refusal(self) -> EdgeKitError | None:
        """Return why there must be no bundle: a by-name artifact that failed, or nothing that may ship."""
        kept = self._kept()
        report = f"The report is in {report_path(self.request.out)}."
        if self.request.precisions:
            for row in self.rows.values():
                if row.status == "refused":
                    return RefusedError(
                        f"{row.name} was asked for and refused: {row.reasons[0].rstrip('.')}", hint=report
                    )
                if row.status == "failed":
                    return ConversionError(
                        f"{row.name} was asked for and failed: {row.reasons[0].rstrip('.')}", hint=report
                    )
        elif not any(r.status == "accepted" for r in kept.values()) and not (
            kept and self.request.allow_unproven
        ):
            refused = [r for r in self.rows.values() if r.status in ("refused", "unproven")]
            if refused:
                return RefusedError(
                    f"no artifact was accepted: {refused[0].name}: {refused[0].reasons[0]}", hint=report
                )
            failed = next((r for r in self.rows.values() if r.status == "failed"), None)
            why = (
                f"{failed.name}: {failed.reasons[0]}" if failed else "no route leads to the target's formats"
            )
            return ConversionError(f"no artifact was made: {why}", hint=report)
        return None

    def _artifact(self, made: Kept, row: Row) -> Artifact:
        converted, scored = made.converted, made.scored
        folder = f"artifacts/{made.wanted.name}"
        runtime, _, number = scored.runtime.rpartition(" ")
        assert row.gate is not None
        return Artifact(
            format=made.wanted.format,
            precision=made.wanted.precision,
            path=f"{folder}/{Path(converted.path).name}",
            files=tuple(f"{folder}/{Path(file).name}" for file in converted.files),
            inputs=converted.inputs,
            outputs=converted.outputs,
            input_names=converted.input_names,
            output_names=converted.output_names,
            recipe=made.recipe,
            gate=row.gate,
            tools={**converted.tools, runtime or "runtime": number, "edgekit": __version__},
            isa=self.isa,
            emulator=self.emulator.name if self.emulator else "",
        )

    def report(self, bundle: Bundle | None, seconds: float) -> None:
        """Write the report beside the bundle, on refusal too."""
        write_report(
            report_path(self.request.out),
            rows=[self._illustrated(row) for row in self.rows.values()],
            plan=bundle.manifest.plan if bundle else None,
            digest=bundle.digest if bundle else None,
            source={
                "file": self.request.model.name,
                "sha256": hash_source(self.request.model, self.source.files),
                **self.source.tools,
            },
            target=self.profile.id,
            task=self.task,
            notes=self.notes,
            seconds=seconds,
            isa=self.isa + (f", emulated ({self.emulator.name})" if self.emulator else ""),
            labels=self._class_names(),
        )

    def _class_names(self) -> tuple[str, ...]:
        return self.request.labels or (self.evaluation.class_names if self.evaluation is not None else ())

    def _illustrated(self, row: Row) -> Row:
        """Return an artifact's row with what became of each class, and the samples furthest from the source."""
        from edgekit.evidence import confusion, worst_samples

        kept, evaluation, source = self.made.get(row.name), self.evaluation, self.evaluated
        if kept is None or evaluation is None or source is None:
            return row
        answers = {name: values[: evaluation.n] for name, values in kept.answers.items()}
        return replace(
            row,
            confusion=confusion(source, answers) if self.task == "classification" else None,
            worst=worst_samples(
                source, answers, evaluation.inputs, evaluation.labels, self.task, names=self._class_names()
            ),
        )


def _check_finite(outputs: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RefusedError(f"the source model itself answers NaN or infinity in {name!r}")


def _check_installed(wanted: Sequence[Wanted]) -> None:
    from importlib.util import find_spec

    table = converters()
    for name in dict.fromkeys(step for w in wanted for route in w.routes[:1] for step in route):
        missing = [module for module in table[name].needs if find_spec(module) is None]
        if missing:
            raise UnavailableError(
                f"converter {name} needs {', '.join(missing)}",
                hint=f"Install it: pip install 'edgekit-deploy[{table[name].extra}]'",
            )
