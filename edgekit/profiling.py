"""Latency, throughput and memory of a bundle on this machine, each candidate in a child process.

A number counts only for the place where it was taken and under the conditions that it names.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.choose import choose, installed_runtimes
from edgekit.detect import Detection, detect, isa_name
from edgekit.devices import DeviceProfile, load_profile
from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, UnavailableError, UsageError
from edgekit.manifest import Plan
from edgekit.measure import Failure, Job, Message, Progress, Sample
from edgekit.pins import Pin, write_pin
from edgekit.process import python_command
from edgekit.runtimes import SessionOptions
from edgekit.tensors import takes_whole

__all__ = [
    "Candidate",
    "Identity",
    "Measurement",
    "ProfileReport",
    "candidates",
    "default_threads",
    "identify",
    "pick",
    "place_of",
    "plan_each",
    "profile_bundle",
]

#: Called with what is being measured, the phase, and the shares done of it and of everything.
Watcher = Callable[[str, int, int], None]

_ERRORS: dict[int, type[EdgeKitError]] = {
    error.exit_code: error for error in (MachineError, UsageError, UnavailableError, InvalidFileError)
}


@dataclass(frozen=True)
class Candidate:
    """One way to run the bundle: a plan (its threads are those measured) and a batch."""

    plan: Plan
    batch: int

    def __str__(self) -> str:
        """Return it in words, for the progress bar."""
        plan = self.plan
        return f"{plan.artifact} in {plan.runtime}, {_threads(plan.threads)}, batch {self.batch}"


@dataclass(frozen=True)
class Identity:
    """What was measured where, so that two reports can be compared.

    Attributes:
        place: `device` where the bundle's target is this device, else `host`.
        target: Device that the bundle was made for.
        device: Detected device.
        board: Its model, or the CPU's name.
        isa: Its instruction set.
        cores: CPU cores.
        governor: CPU frequency governor, empty where there is none to see.
        kernel: The operating system's.
        load_average: 1, 5 and 15 minutes, before anything was measured.
        python: Version.
        edgekit: Version.
        bundle: Name and version.
        digest: The bundle's.
    """

    place: str
    target: str
    device: str
    board: str
    isa: str
    cores: int
    governor: str
    kernel: str
    load_average: tuple[float, float, float]
    python: str
    edgekit: str
    bundle: str
    digest: str


@dataclass(frozen=True)
class Measurement:
    """One candidate's numbers, or the error that it ended in."""

    candidate: Candidate
    sample: Sample | None
    error: EdgeKitError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data: the plan's words, then the sample's; the keys are there after an error too."""
        plan = self.candidate.plan
        row: dict[str, Any] = {
            "runtime": plan.runtime,
            "artifact": plan.artifact,
            "providers": list(plan.providers),
            "threads": plan.threads,
            "batch": self.candidate.batch,
            "plan_reasons": list(plan.reasons),
            "error": str(self.error) if self.error else None,
        }
        fields = [name for name in Sample.__struct_fields__ if name != "latency"]
        row |= {name: msgspec.to_builtins(getattr(self.sample, name, None)) for name in fields}
        row["latency_ms"] = msgspec.to_builtins(self.sample.latency) if self.sample else None
        return row


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
    watch: Watcher | None = None,
) -> ProfileReport:
    """Measure each candidate in a child process, one after the other.

    Args:
        bundle: What to measure.
        runtimes: Runtimes to measure; empty for the one that the device's plan names.
        artifact: The artifact; None for the plan's.
        threads: Thread counts; empty for one, two, four … up to the cores.
        batches: Samples in one call.
        seconds: Length of each steady phase.
        device: Profile to plan by; None for the detected device.
        allow_fallback: Whether what was asked for by hand may step down.
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
    todo = candidates(bundle, plans, threads or default_threads(cores), batches)
    done: list[Measurement] = []
    for rank, candidate in enumerate(todo):
        job = _job(
            bundle, candidate, seconds, identity.governor, allow_fallback=allow_fallback, progress=bool(watch)
        )
        done.append(_measure(job, candidate, _share(watch, str(candidate), rank, len(todo))))
    errors = [each.error for each in done if each.error]
    if len(errors) == len(done):
        raise errors[0]
    return ProfileReport(identity, tuple(done))


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
        job = _job(bundle, candidate, seconds, identity.governor, allow_fallback=False, progress=bool(watch))
        done.append(_measure(job, candidate, _share(watch, str(candidate), rank, len(todo))))
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


def plan_each(
    bundle: Bundle,
    profile: DeviceProfile,
    runtimes: Sequence[str],
    artifact: str | None,
    *,
    forced: bool,
    allow_fallback: bool,
) -> tuple[Plan, ...]:
    """Return the plan of each runtime, or the device's own plan where none is named.

    Args:
        bundle: The bundle.
        profile: The device to plan for.
        runtimes: Runtimes named by hand.
        artifact: The only artifact to consider, even if it is unproven; None for the plan's.
        forced: The device was named by hand.
        allow_fallback: Whether what was named by hand may step down.
    """
    if artifact is not None:
        bundle.model_files(artifact)  # refuses what is not there
    installed = installed_runtimes()
    return tuple(
        choose(
            profile,
            bundle.manifest,
            installed,
            kept=bundle.kept if artifact is None else {artifact},
            runtime=name,
            forced=forced or name is not None,
            allow_fallback=allow_fallback,
            allow_unproven=artifact is not None,
        )
        for name in (runtimes or (None,))
    )


def _share(watch: Watcher | None, what: str, rank: int, total: int) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        if watch:
            watch(f"{what}: {progress.phase}", int(100 * (rank + progress.share)), 100 * total)

    return show


def default_threads(cores: int) -> tuple[int, ...]:
    """Return one, two, four … and all of the cores.

    >>> default_threads(6)
    (1, 2, 4, 6)
    """
    return tuple(sorted({*(1 << power for power in range(cores.bit_length())), cores}))


def candidates(
    bundle: Bundle, plans: Sequence[Plan], threads: Sequence[int], batches: Sequence[int]
) -> tuple[Candidate, ...]:
    """Return plans × threads × batches, each once, in that order.

    Raises:
        UsageError: An artifact does not take a batch, or a golden set cannot feed it.
    """
    for plan in plans:
        for batch in batches:
            _check_batch(bundle, plan.artifact, batch)
    return tuple(
        Candidate(msgspec.structs.replace(plan, threads=count), batch)
        for plan in plans
        for count in dict.fromkeys(threads)
        for batch in dict.fromkeys(batches)
    )


def _check_batch(bundle: Bundle, artifact: str, batch: int) -> None:
    inputs = bundle.manifest.artifacts[artifact].inputs
    if takes_whole(inputs):
        if batch != 1:
            raise UsageError(
                f"{artifact} takes one sample in a call", got=f"--batch {batch}", expected="--batch 1"
            )
        return
    for spec in inputs:
        if spec.shape[0] not in (-1, batch):
            raise UsageError(
                f"{artifact} takes one batch size only, by its input {spec.name!r}",
                got=f"--batch {batch}",
                expected=f"--batch {spec.shape[0]}",
            )


def identify(bundle: Bundle, here: Detection, cores: int) -> Identity:
    """Return what is measured where; reads the machine's load and governor."""
    target = bundle.manifest.plan.device
    return Identity(
        place=place_of(target, here.profile_id),
        target=target,
        device=here.profile_id,
        board=here.signals.get("model") or _cpu_name(),
        isa=isa_name(here.arch, here.isa),
        cores=cores,
        governor=_governors(Path("/sys/devices/system/cpu")),
        kernel=f"{platform.system()} {platform.release()}",
        load_average=os.getloadavg(),
        python=platform.python_version(),
        edgekit=__version__,
        bundle=f"{bundle.manifest.name} {bundle.manifest.version}",
        digest=bundle.digest,
    )


def place_of(target: str, detected: str) -> str:
    """Tell what a latency measured here counts for.

    >>> place_of("raspberry-pi-4", "x86-64"), place_of("raspberry-pi", "raspberry-pi-5")
    ('host', 'device')
    """
    return "device" if target in (detected, *load_profile(detected).lineage) else "host"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _governors(folder: Path) -> str:
    """Return the frequency governor of the cores, several where they differ, nothing where none is shown."""
    found: Collection[str] = {
        path.read_text(encoding="ascii").strip() for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    return ", ".join(sorted(found))


def _job(
    bundle: Bundle,
    candidate: Candidate,
    seconds: float,
    governor: str,
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
    )


def _measure(job: Job, candidate: Candidate, show: Callable[[Progress], None]) -> Measurement:
    """Run the child; a child that dies is one measurement lost, with the name of its end."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            python_command("-m", "edgekit.measure"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        try:
            for message in _messages(child, job):
                if isinstance(message, Progress):
                    show(message)
                elif isinstance(message, Failure):
                    error = _ERRORS.get(message.code, MachineError)(message.line)
                    return Measurement(candidate, None, error)
                else:
                    return Measurement(candidate, message)
            return Measurement(candidate, None, _death(child.wait(), _read_back(log)))
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()


def _messages(child: subprocess.Popen[bytes], job: Job) -> Iterator[Message]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(msgspec.json.encode(job, enc_hook=str))
        child.stdin.close()
    except BrokenPipeError:
        return  # it died before it read the job: its end is told below
    for line in child.stdout:
        yield msgspec.json.decode(line, type=Message)


def _read_back(log: IO[bytes]) -> bytes:
    log.seek(0)
    return log.read()


def _death(code: int, log: bytes) -> UnavailableError:
    tail = log.decode("utf-8", "replace").strip().rpartition("\n")[2]
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return UnavailableError(
        f"the measurement's process ended with {ending}" + (f": {tail}" if tail else ""),
        hint="`edgekit doctor` tells whether the runtime works here.",
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}" if count else "the runtime's threads"
