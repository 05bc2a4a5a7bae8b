"""Judging one artifact: run it in its runtime, compare it with the source, let the gate decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.gate import (
    Policy,
    compare_ranges,
    judge,
    load_limits,
    lost_classes,
    measure_metric,
    measure_parity,
)
from edgekit.manifest import CalibrationFit, GateResult, MetricEvidence, ParityEvidence
from edgekit.metrics import detected_classes, predicted_classes
from edgekit.postprocess import finish
from edgekit.recipes import preference_for
from edgekit.sequences import with_states

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters import Converted
    from edgekit.data import Dataset
    from edgekit.devices import DeviceProfile, RuntimePreference
    from edgekit.factory import Factory
    from edgekit.manifest import Option
    from edgekit.metrics import Metric
    from edgekit.tasks import Scored

__all__ = ["Examination", "Judged"]

_TIMED_RUNS = 200
#: Precisions whose limits are narrower than those of eight bits.
_FINER = ("fp32", "fp16", "int16x8")
#: A float32 artifact may be off by this much of what the source itself moves.
_MOST_OF_OWN = 2.0


@dataclass(frozen=True)
class Judged:
    """What the examination of one artifact gave.

    Attributes:
        gate: The verdict with its evidence.
        scored: Speed and placement under the plan's options.
        answers: Outputs under the plan's options on the evaluation inputs with the golden ones behind them.
    """

    gate: GateResult
    scored: Scored
    answers: dict[str, np.ndarray]


@dataclass(frozen=True)
class Examination:
    """What all artifacts of one conversion are compared with.

    Attributes:
        factory: Runs artifacts in workers.
        profile: The target.
        task: What the model does.
        policy: What the user asked of the gate.
        parity: Inputs of the parity check, [N, …] by canonical name, without the state.
        reference: The source's outputs on them.
        golden: Inputs of the golden set.
        calibration: None where there is none.
        evaluation: Labelled where the metric needs that; None where there is none.
        evaluated: The source's outputs on the evaluation inputs.
        metric: None without evaluation data.
        noise: The parity inputs are random: there was no data.
        seed: Of the bootstrap.
        postprocess: The bundle's steps: metrics look at what they make of the outputs.
        state: Input name to the output that it takes from the step before.
        timed: Whether the time of a run says something: not where it is emulated.
        source_precision: The precision that the source itself computes in where that is a quantized one: no artifact of
            another can be nearer to it than its own rounding.
        source_moves: Returns how far the source's outputs move, as a share of their range, when its own runtime
            optimises its graph; asked only where a float32 artifact is a little too far off.
    """

    factory: Factory
    profile: DeviceProfile
    task: str
    policy: Policy
    parity: Mapping[str, np.ndarray]
    reference: Mapping[str, np.ndarray]
    golden: Mapping[str, np.ndarray]
    calibration: Dataset | None = None
    evaluation: Dataset | None = None
    evaluated: Mapping[str, np.ndarray] | None = None
    metric: Metric | None = None
    noise: bool = False
    seed: int = 0
    postprocess: tuple[dict[str, Any], ...] = ()
    state: Mapping[str, str] = field(default_factory=dict)
    timed: bool = True
    source_precision: str = ""
    source_moves: Callable[[], float] = lambda: 0.0

    def judge(self, converted: Converted, format_: str, precision: str, *, calibrated: bool) -> Judged:
        """Run an artifact and let the gate decide: parity exactly, the metric as the target's plan runs it.

        Args:
            converted: The artifact.
            format_: Its format.
            precision: Its precision.
            calibrated: Whether the calibration data went into it.

        Raises:
            EdgeKitError: The artifact does not run.
        """
        preference = preference_for(self.profile, format_)
        options = preference.options_for(precision)
        exact = dict(options)
        if format_ == "openvino":
            exact["INFERENCE_PRECISION_HINT"] = "f32"  # its CPU plugin computes in bfloat16 where it can
        parity, scored = self._compare(converted, preference, exact)
        if _in_half(self.profile, preference, format_, precision):
            parity = msgspec.structs.replace(parity, float_peak=self.factory.float_peak(self._single_steps()))
        measured, timed = self._run_as_planned(converted, preference, options)
        judged_as, moved = self._judged_as(precision, parity)
        gate = judge(
            judged_as,
            self.policy,
            load_limits(),
            parity=_rounded(parity),
            metric=self._measure(measured),
            calibration_fit=self._calibration_fit() if calibrated else (),
            noise=self.noise,
            lost=self._lost_classes(measured),
            task=self.task,
        )
        if moved and gate.verdict != "refused":
            note = f"the source's own outputs move by {moved:.2g} of their range when its runtime optimises the graph"
            gate = msgspec.structs.replace(gate, reasons=(*gate.reasons, note))
        # parity's own run proved the conversion; the timed one is what a device does
        scored = msgspec.structs.replace(scored, p50_ms=timed.p50_ms, placement=timed.placement)
        return Judged(gate, scored, measured)

    def _judged_as(self, precision: str, parity: ParityEvidence) -> tuple[str, float]:
        """Return the precision whose limits count, and how far the source itself moves where that is the reason.

        A source that computes in integers or in half precision, or whose answers hang on the order of its sums, is no
        nearer to itself.
        """
        if self.source_precision and precision in _FINER:
            return self.source_precision, 0.0
        if precision == "fp32" and any(answer.dtype.name == "float16" for answer in self.reference.values()):
            return "fp16", 0.0
        if (
            precision == "fp32"
            and not _within(parity.max_error, "fp32")
            and _within(parity.max_error, "fp16")
        ):
            moved = self.source_moves()
            if parity.max_error <= _MOST_OF_OWN * moved:
                return "fp16", moved
        return precision, 0.0

    def _compare(
        self, converted: Converted, preference: RuntimePreference, options: Mapping[str, Option]
    ) -> tuple[ParityEvidence, Scored]:
        """Run the artifact on the parity inputs, on one thread; compare with the source."""
        answers, scored = self.factory.score(
            converted, preference.runtime, 1, options, self.parity, pairs=not self.state, state=self.state
        )
        pairs = {k.removeprefix("pair:"): v for k, v in answers.items() if k.startswith("pair:")}
        parity = measure_parity(
            self.reference,
            answers,
            argmax=self.task == "classification",
            targets=self.task == "regression",
            pairs=pairs or None,
            task=self.task,
            steps=self.postprocess,
        )
        return parity, scored

    def _single_steps(self) -> dict[str, np.ndarray]:
        """Return the parity inputs of every input: with the source's own state where there is one."""
        return with_states(self.parity, self.reference, self.state)

    def _run_as_planned(
        self, converted: Converted, preference: RuntimePreference, options: Mapping[str, Option]
    ) -> tuple[dict[str, np.ndarray], Scored]:
        """Run the artifact under the plan's options on the evaluation inputs with the golden ones behind them.

        Both start a sequence of their own where there is a state.
        """
        import numpy as np

        runs = [
            self.factory.score(
                converted,
                preference.runtime,
                preference.threads,
                options,
                inputs,
                timed_runs=timed_runs,
                state=self.state,
            )
            for inputs, timed_runs in self._measured_inputs()
        ]
        answers = [run for run, _ in runs]
        joined = {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
        return joined, runs[-1][1]

    def _measured_inputs(self) -> list[tuple[Mapping[str, np.ndarray], int]]:
        """Return what is run, and how often the last of it is timed: in one go, but for sequences."""
        import numpy as np

        runs = _TIMED_RUNS if self.timed else 0
        if self.evaluation is None:
            return [(self.golden, runs)]
        inputs = self.evaluation.inputs
        if self.state:
            return [(inputs, 0), (self.golden, runs)]
        return [({k: np.concatenate([v, self.golden[k]]) for k, v in inputs.items()}, runs)]

    def _measure(self, measured: Mapping[str, np.ndarray]) -> MetricEvidence | None:
        if self.evaluation is None or self.metric is None or self.evaluated is None:
            return None
        n = self.evaluation.n
        evidence: MetricEvidence = _rounded(
            measure_metric(
                self.metric,
                finish(self.postprocess, self.evaluated),
                finish(self.postprocess, {k: v[:n] for k, v in measured.items()}),
                self.evaluation.labels,
                max_drop_pp=self.policy.max_drop_pp,
                seed=self.seed,
            )
        )
        return evidence

    def _lost_classes(self, measured: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Return the classes that the artifact never answers, or never detects, though the source does."""
        if self.evaluation is None or self.evaluated is None:
            return ()
        n, limits = self.evaluation.n, load_limits().data
        theirs, ours = self.evaluated, {name: values[:n] for name, values in measured.items()}
        if self.task == "classification":
            return lost_classes(predicted_classes(theirs), predicted_classes(ours), limits.lost_class_answers)
        if self.task == "detection" and self.metric is not None:
            seen, left = (
                detected_classes(finish(self.postprocess, outputs), limits.lost_class_score)
                for outputs in (theirs, ours)
            )
            return lost_classes(seen, left, limits.lost_class_answers)
        return ()

    def _calibration_fit(self) -> tuple[CalibrationFit, ...]:
        if self.calibration is None or self.evaluation is None:
            return ()
        return tuple(_rounded(f) for f in compare_ranges(self.calibration.values, self.evaluation.values))


def _within(error: float, precision: str) -> bool:
    most = load_limits().of(precision).max_error
    return most is not None and error <= most


def _in_half(profile: DeviceProfile, preference: RuntimePreference, format_: str, precision: str) -> bool:
    """Tell whether the target computes this artifact in float16, whatever this host does with it.

    ONNX Runtime's CPU provider does so only on Arm cores with half-precision arithmetic; elsewhere it casts to float32.
    """
    first = preference.providers[:1]
    if format_ == "openvino":
        return first in (("NPU",), ("GPU",))
    on_plain_cpu = first in ((), ("CPUExecutionProvider",)) and "asimdhp" not in profile.isa
    return format_ == "onnx" and precision == "fp16" and not on_plain_cpu


def _rounded(evidence: Any) -> Any:
    """Round a struct's floats to six significant digits: the last bits of a sum are nobody's evidence."""
    fields = msgspec.structs.asdict(evidence)
    return msgspec.structs.replace(evidence, **{k: _round(v) for k, v in fields.items()})


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return tuple(_round(v) for v in value) if isinstance(value, tuple) else value
