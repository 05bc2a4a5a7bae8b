"""Latency, throughput and memory of a bundle on this machine, each candidate in a child process.

A number counts only for the place where it was taken and under the conditions that it names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.candidates import Candidate, candidates, default_threads, plan_each
from edgekit.choose import choose, installed_runtimes
from edgekit.daemon_cost import DaemonCost
from edgekit.detect import detect
from edgekit.devices import DeviceProfile, load_profile
from edgekit.errors import EdgeKitError, UnavailableError, UsageError
from edgekit.manifest import Plan
from edgekit.measure import Job, Progress, Sample
from edgekit.measuring import Answer, run_job
from edgekit.op_table import OpTable
from edgekit.pins import Pin, write_pin
from edgekit.profile_identity import Identity, identify
from edgekit.runtimes import SessionOptions, get_runtime

__all__ = ["Measurement", "Probes", "ProfileReport", "pick", "profile_bundle"]

#: Called with what is being measured, the phase, and the shares done of it and of everything.
Watcher = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Probes:
    """What is measured beside latency, throughput and memory.

    Attributes:
        top_ops: Rows of the table of operators; 0 for none.
        gaps_s: Pauses after which single calls are timed.
        sustain_s: Length of the sustained run; 0 for none.
        daemon: Whether the same calls go through the daemon too.
    """

    top_ops: int = 0
    gaps_s: tuple[float, ...] = ()
    sustain_s: float = 0.0
    daemon: bool = False

    def jobs(self) -> int:
        """Return how many processes one candidate takes."""
        return 1 + bool(self.top_ops) + self.daemon


@dataclass(frozen=True)
class Measurement:
    """One candidate's numbers, or the error that it ended in.

    Attributes:
        candidate: What was measured.
        sample: Latency, throughput, memory and conditions.
        error: Why there is no sample.
        model: Of the artifact: `sha256` of its file, `precision`, `inputs`: name to shape in this batch.
        ops: The table of operators, or why there is none; None where none was wanted.
        daemon: The daemon's cost, or why there is none; None where it was not wanted.
    """

    candidate: Candidate
    sample: Sample | None
    error: EdgeKitError | None = None
    model: dict[str, Any] | None = None
    ops: OpTable | EdgeKitError | None = None
    daemon: DaemonCost | EdgeKitError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data: the plan's words, then the sample's; the keys are there after an error too."""
        plan = self.candidate.plan
        row: dict[str, Any] = {
            "runtime": plan.runtime,
            "artifact": plan.artifact,
            "providers": list(plan.providers),
            "threads": plan.threads,
            "batch": self.candidate.batch,
            "options": dict(plan.options),
            "model": self.model,
            "plan_reasons": list(plan.reasons),
            "error": str(self.error) if self.error else None,
        }
        fields = [name for name in Sample.__struct_fields__ if name != "latency"]
        row |= {name: msgspec.to_builtins(getattr(self.sample, name, None)) for name in fields}
        row["latency_ms"] = msgspec.to_builtins(self.sample.latency) if self.sample else None
        return row | {"ops": _plain(self.ops), "through_daemon": _plain(self.daemon)}


def _plain(found: OpTable | DaemonCost | EdgeKitError | None) -> Any:
    """Return plain data; of an error, `{"error": …}`."""
    if isinstance(found, EdgeKitError):
        return {"error": str(found)}
    if found is None:
        return None
    return {name: msgspec.to_builtins(getattr(found, name)) for name in found.__struct_fields__}


@dataclass(frozen=True)
class ProfileReport:
    """Everything that `edgekit profile` found."""

    identity: Identity
    measurements: tuple[Measurement, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {
            "schema": 1,
            "identity": asdict(self.identity),
            "measurements": [each.as_json() for each in self.measurements],
        }


def profile_bundle(
    bundle: Bundle,
    *,
    runtimes: Sequence[str] = (),
    artifact: str | None = None,
    threads: Sequence[int] = (),
    batches: Sequence[int] = (1,),
    seconds: float = 3.0,
    device: str | None = None,
    allow_fallback: bool = False,
    probes: Probes | None = None,
    watch: Watcher | None = None,
) -> ProfileReport:
    """Measure each candidate in a child process, one after the other.

    Args:
        bundle: What to measure.
        runtimes: Runtimes to measure; empty for the one that the device's plan names.
        artifact: The artifact; None for the plan's.
        threads: Thread counts; empty for one, two, four … up to the cores, or, of a sustained run, the plan's.
        batches: Samples in one call.
        seconds: Length of each steady phase.
        device: Profile to plan by; None for the detected device.
        allow_fallback: Whether what was asked for by hand may step down.
        probes: What else is measured; None for nothing.
        watch: Told how far it is.

    Raises:
        UsageError: A runtime, an artifact or a batch does not fit the bundle.
        UnavailableError: A runtime is not here. Where every measurement failed, the first one's error.
    """
    if allow_fallback and not (runtimes or device):
        raise UsageError("--allow-fallback has no meaning here", expected="--device or --runtime with it")
    here = detect()
    cores = os.cpu_count() or 1
    identity = identify(bundle, here, cores)
    profile = load_profile(device) if device else here.profile()
    plans = plan_each(bundle, profile, runtimes, artifact, forced=bool(device), allow_fallback=allow_fallback)
    probes = probes or Probes()
    _check_ops(plans, probes)
    own = tuple(dict.fromkeys(plan.threads for plan in plans)) if probes.sustain_s else default_threads(cores)
    todo = candidates(bundle, plans, threads or own, batches)
    if probes.sustain_s and not threads:
        todo = tuple(each for each in todo if each.plan.threads in own)
    done: list[Measurement] = []
    for rank, candidate in enumerate(todo):
        job = _job(
            bundle,
            candidate,
            seconds,
            identity.governor,
            probes,
            allow_fallback=allow_fallback,
            progress=bool(watch),
        )
        show = _Shares(watch, str(candidate), rank * probes.jobs(), len(todo) * probes.jobs())
        found = _measure(job, candidate, show)
        found = replace(found, model=_model(bundle, candidate))
        done.append(_probed(found, bundle, job, here.profile_id, probes, show))
    errors = [each.error for each in done if each.error]
    if len(errors) == len(done):
        raise errors[0]
    return ProfileReport(identity, tuple(done))


def _check_ops(plans: Sequence[Plan], probes: Probes) -> None:
    """Refuse a table of operators that none of the runtimes can fill."""
    reasons = {plan.runtime: get_runtime(plan.runtime).no_op_times for plan in plans}
    if probes.top_ops and all(reasons.values()):
        raise UnavailableError(
            "; ".join(
                f"{name} cannot tell the time of single operators: {why}" for name, why in reasons.items()
            ),
            hint="Leave --ops out, or name a --runtime that can: onnxruntime, openvino.",
        )


def _probed(
    found: Measurement, bundle: Bundle, job: Job, device: str, probes: Probes, show: _Shares
) -> Measurement:
    """Add what is measured in further processes, each on its own: none touches the latencies."""
    if found.sample is None:
        return found
    plan = found.candidate.plan
    ops: Answer | EdgeKitError | None = None
    daemon: Answer | EdgeKitError | None = None
    if probes.top_ops:
        show.next()
        why = get_runtime(plan.runtime).no_op_times
        told = f"{plan.runtime} cannot tell the time of single operators: {why}"
        ops = (
            UnavailableError(told)
            if why
            else run_job(msgspec.structs.replace(job, top_ops=probes.top_ops), show)
        )
    if probes.daemon:
        show.next()
        daemon = _through_daemon(bundle, plan, device, job, show)
    assert ops is None or isinstance(ops, OpTable | EdgeKitError)
    assert daemon is None or isinstance(daemon, DaemonCost | EdgeKitError)
    return replace(found, ops=ops, daemon=daemon)


def _through_daemon(
    bundle: Bundle, plan: Plan, device: str, job: Job, show: _Shares
) -> Answer | EdgeKitError:
    from edgekit.served import served

    try:
        with served(bundle, plan, device) as running:
            return run_job(msgspec.structs.replace(job, served=running), show)
    except EdgeKitError as error:
        return error


def pick(
    bundle: Bundle,
    *,
    threads: Sequence[int] = (),
    seconds: float = 3.0,
    state_dir: str | None = None,
    watch: Watcher | None = None,
) -> tuple[ProfileReport, Plan | None]:
    """Measure every accepted artifact that can run here, and pin the quickest that answers rightly.

    A candidate must pass the golden set before it is measured. The quickest is the one with the smallest median of
    one call; a measurement on a machine that was not at rest decides nothing, so nothing is pinned then.

    Args:
        bundle: The bundle.
        threads: Thread counts; empty for one, two, four … up to the cores.
        seconds: Length of each steady phase.
        state_dir: Where the plan is pinned; None for the default state folder.
        watch: Told how far it is.

    Returns:
        What was measured, and the plan that is pinned now; None where the machine was not at rest.

    Raises:
        UnavailableError: Nothing of the bundle runs here.
    """
    here = detect()
    cores = os.cpu_count() or 1
    identity = identify(bundle, here, cores)
    plans = _right_plans(bundle, here.profile())
    todo = candidates(bundle, plans, threads or default_threads(cores), (1,))
    done = []
    for rank, candidate in enumerate(todo):
        job = _job(
            bundle,
            candidate,
            seconds,
            identity.governor,
            Probes(),
            allow_fallback=False,
            progress=bool(watch),
        )
        found = _measure(job, candidate, _Shares(watch, str(candidate), rank, len(todo)))
        done.append(replace(found, model=_model(bundle, candidate)))
    report = ProfileReport(identity, tuple(done))
    samples = [
        (m.sample.latency.percentiles["p50"], m)
        for m in done
        if m.sample and "p50" in m.sample.latency.percentiles
    ]
    if not samples or any(m.sample.stability.verdict != "stable" for _, m in samples if m.sample):
        return report, None
    p50_ms, best = min(samples, key=lambda pair: pair[0])
    write_pin(Pin(1, bundle.digest, here.profile_id, best.candidate.plan, p50_ms, __version__), state_dir)
    return report, best.candidate.plan


def _right_plans(bundle: Bundle, profile: DeviceProfile) -> tuple[Plan, ...]:
    """Return a plan for each accepted artifact that runs here and passes the golden set."""
    from edgekit.verify import prove

    plans, problem = [], None
    for name, artifact in bundle.manifest.artifacts.items():
        if name not in bundle.kept or artifact.gate.verdict != "accepted":
            continue
        try:
            plan = choose(profile, bundle.manifest, installed_runtimes(), kept={name})
            if prove(bundle, runtime=plan.runtime, artifact=name).outcome.passed:
                plans.append(plan)
        except (UsageError, UnavailableError) as error:
            problem = problem or error
    if not plans:
        raise UnavailableError(
            f"no accepted artifact of the bundle passes its golden set here: {problem or 'none fits'}"
        )
    return tuple(plans)


class _Shares:
    """Tells the watcher how far a candidate's processes are, as a share of everything.

    Args:
        watch: Who is told; None for nobody.
        what: The candidate, in words.
        done: Processes before this one.
        total: Of all candidates.
    """

    def __init__(self, watch: Watcher | None, what: str, done: int, total: int) -> None:
        self._watch, self._what, self._done, self._total = watch, what, done, total

    def next(self) -> None:
        """One process more has ended."""
        self._done += 1

    def __call__(self, progress: Progress) -> None:
        if self._watch:
            share = int(100 * (self._done + progress.share))
            self._watch(f"{self._what}: {progress.phase}", share, 100 * self._total)


def _job(
    bundle: Bundle,
    candidate: Candidate,
    seconds: float,
    governor: str,
    probes: Probes,
    *,
    allow_fallback: bool,
    progress: bool,
) -> Job:
    plan = candidate.plan
    return Job(
        runtime=plan.runtime,
        options=SessionOptions(plan.threads, plan.providers, allow_fallback, plan.options),
        files=bundle.model_files(plan.artifact),
        origin=bundle.manifest.golden.origin,
        batch=candidate.batch,
        seconds=seconds,
        governor=governor,
        progress=progress,
        sha256=_sha256(bundle, plan.artifact),
        gaps_s=probes.gaps_s,
        sustain_s=probes.sustain_s,
    )


def _sha256(bundle: Bundle, artifact: str) -> str:
    return bundle.manifest.files[bundle.manifest.artifacts[artifact].path].sha256


def _model(bundle: Bundle, candidate: Candidate) -> dict[str, Any]:
    """Return what of the artifact belongs to the identity of a measurement."""
    artifact = bundle.manifest.artifacts[candidate.plan.artifact]
    return {
        "sha256": _sha256(bundle, candidate.plan.artifact),
        "precision": artifact.precision,
        "inputs": {
            spec.name: {
                "dtype": spec.dtype,
                "shape": [
                    candidate.batch if i == 0 and size == -1 else size for i, size in enumerate(spec.shape)
                ],
            }
            for spec in artifact.inputs
        },
    }


def _measure(job: Job, candidate: Candidate, show: Callable[[Progress], None]) -> Measurement:
    """Run the child; a child that dies is one measurement lost, with the name of its end."""
    answer = run_job(job, show)
    if isinstance(answer, EdgeKitError):
        return Measurement(candidate, None, answer)
    assert isinstance(answer, Sample)
    return Measurement(candidate, answer)
