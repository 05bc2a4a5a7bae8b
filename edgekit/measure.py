"""One measurement in a process of its own: `python -m edgekit.measure`, a job on stdin, JSON lines on stdout.

Its memory is then the model's, and a native library that crashes takes this process only.
"""

from __future__ import annotations

import os
import resource
import sys
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns

import msgspec
import numpy as np

from edgekit.errors import EdgeKitError
from edgekit.runtimes import ModelFiles, Session, SessionOptions, get_runtime
from edgekit.tensors import one_sample, sample_shape, takes_whole
from edgekit.timing import Conditions, Latency, Stability, is_settled, judge_stability, summarise

__all__ = ["Failure", "Job", "Message", "Progress", "Sample", "measure"]

#: A block of the warm-up lasts at least this long, so that its median means something for quick models.
_BLOCK_NS = 20_000_000
#: The warm-up ends here, settled or not, unless the measurement itself is longer.
_LEAST_WARM_UP_S = 2.0
_LEAST_RUNS = 5
_TICK_NS = 250_000_000
_MOST_TIMES = 5000

Option = str | int | float | bool


class Job(msgspec.Struct, frozen=True):
    """What to measure.

    Attributes:
        runtime: Name of the runtime.
        options: How to run it.
        files: What to open; the golden set is where the inputs come from.
        origin: The golden set's: `real` or `synthetic`.
        batch: Samples in one call.
        seconds: Length of the steady phase, in seconds.
        governor: CPU frequency governor, for the verdict.
        progress: Whether to tell how far it is.
    """

    runtime: str
    options: SessionOptions
    files: ModelFiles
    origin: str
    batch: int
    seconds: float
    governor: str = ""
    progress: bool = False


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far it is: the phase and the share of its time, in [0, 1]."""

    phase: str
    share: float


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """An error of ours: its exit code and its line."""

    code: int
    line: str


class Sample(msgspec.Struct, frozen=True, tag="sample"):
    """What was measured. Times in the unit of their name, memory in MiB of resident set.

    Attributes:
        version: The runtime's.
        placement: What really ran where.
        import_ms: Importing the runtime's library.
        load_ms: Opening the artifact.
        first_ms: The first call.
        warm_up_s: Until the medians of blocks stopped moving, or the limit.
        warm_up_runs: Calls in that time.
        settled: Whether they did stop.
        steady_s: Length of the steady phase.
        latency: Of its calls.
        throughput_per_s: Samples (not calls) per second, one caller.
        before_mib: Memory before the runtime was imported.
        loaded_mib: Memory after the artifact was opened.
        peak_mib: The most that it ever took.
        stability: Whether to believe it.
        times_us: Every k-th call's latency in µs, in order, `_MOST_TIMES` at most: what `edgekit compare` draws from.
    """

    version: str
    placement: dict[str, str]
    import_ms: float
    load_ms: float
    first_ms: float
    warm_up_s: float
    warm_up_runs: int
    settled: bool
    steady_s: float
    latency: Latency
    throughput_per_s: float
    before_mib: float
    loaded_mib: float
    peak_mib: float
    stability: Stability
    times_us: list[float]


Message = Progress | Failure | Sample
Tell = Callable[[str, float], None]


def measure(job: Job, tell: Tell) -> Sample:
    """Load, run once, warm up, then run for the time given.

    Args:
        job: What to measure.
        tell: Called with the phase and its share now and then, never while a call is timed.
    """
    feed = _feed(job)
    before_mib = _status_mib("VmRSS")
    begin = perf_counter_ns()
    runtime = get_runtime(job.runtime)
    version = runtime.version()
    imported = perf_counter_ns()
    session = runtime.load(job.files, job.options)
    loaded = perf_counter_ns()
    loaded_mib = _status_mib("VmRSS")
    try:
        session.run(feed)
        first = perf_counter_ns()
        warm_up_runs, settled = _warm_up(session, feed, max(_LEAST_WARM_UP_S, job.seconds), tell)
        warm = perf_counter_ns()
        durations, wall_s, conditions = _steady(session, feed, job, settled=settled, tell=tell)
        placement = dict(session.placement)
    finally:
        session.close()
    return Sample(
        version=version,
        placement=placement,
        import_ms=(imported - begin) / 1e6,
        load_ms=(loaded - imported) / 1e6,
        first_ms=(first - loaded) / 1e6,
        warm_up_s=(warm - first) / 1e9,
        warm_up_runs=warm_up_runs,
        settled=settled,
        steady_s=wall_s,
        latency=summarise(durations),
        throughput_per_s=len(durations) * job.batch / wall_s,
        before_mib=before_mib,
        loaded_mib=loaded_mib,
        peak_mib=_status_mib("VmHWM"),
        stability=judge_stability(durations, conditions),
        times_us=_thinned(durations),
    )


def _thinned(durations_ns: np.ndarray) -> list[float]:
    """Return every k-th latency in µs, as many as `_MOST_TIMES` allows."""
    step = -(-len(durations_ns) // _MOST_TIMES)
    return [round(float(each) / 1e3, 2) for each in durations_ns[::step]]


def _feed(job: Job) -> dict[str, np.ndarray]:
    """Return the golden set's first inputs, repeated as far as the batch needs."""
    from edgekit.golden import read_golden

    assert job.files.golden is not None
    inputs = read_golden(job.files.golden, job.origin).inputs
    if takes_whole(job.files.inputs):
        return one_sample(job.files.inputs, inputs, 0)
    state = {  # the golden set holds no state: a sequence starts from zeros
        spec.name: np.zeros(sample_shape(spec, job.batch), spec.dtype)
        for spec in job.files.inputs
        if spec.name not in inputs
    }
    return state | {
        name: np.ascontiguousarray(np.take(array_, np.arange(job.batch) % len(array_), axis=0))
        for name, array_ in inputs.items()
    }


def _warm_up(
    session: Session, feed: Mapping[str, np.ndarray], limit_s: float, tell: Tell
) -> tuple[int, bool]:
    """Run until the medians of blocks stop moving, or the limit; return the calls and whether they did."""
    medians: list[float] = []
    runs, start = 0, perf_counter_ns()
    while not is_settled(medians):
        spent_s = (perf_counter_ns() - start) / 1e9
        if spent_s > limit_s:
            return runs, False
        tell("warm-up", spent_s / limit_s)
        block: list[int] = []
        until = perf_counter_ns() + _BLOCK_NS
        now = perf_counter_ns()
        while now < until:
            session.run(feed)
            then = perf_counter_ns()
            block.append(then - now)
            now = then
        medians.append(float(np.median(block)))
        runs += len(block)
    return runs, True


def _steady(
    session: Session, feed: Mapping[str, np.ndarray], job: Job, *, settled: bool, tell: Tell
) -> tuple[np.ndarray, float, Conditions]:
    """Run for the time given and time each call; return int64 [n] nanoseconds, the wall time and the conditions."""
    durations = array("q")
    run, clock = session.run, perf_counter_ns
    busy_before, stolen_before = _machine_cpu_s()
    own_before = _own_cpu_s()
    start = now = tick = clock()
    end = start + int(job.seconds * 1e9)
    while now < end or len(durations) < _LEAST_RUNS:
        begin = clock()
        run(feed)
        now = clock()
        durations.append(now - begin)
        if now - tick > _TICK_NS:
            tell("measuring", (now - start) / (end - start))
            tick = now
    wall_s = (now - start) / 1e9
    busy, stolen = _machine_cpu_s()
    cores = os.cpu_count() or 1
    others = (busy - busy_before - (_own_cpu_s() - own_before)) / wall_s
    conditions = Conditions(
        settled=settled,
        cores=cores,
        others_cores=max(0.0, others),
        stolen=(stolen - stolen_before) / wall_s / cores,
        governor=job.governor,
    )
    return np.frombuffer(durations, dtype=np.int64), wall_s, conditions


def _machine_cpu_s() -> tuple[float, float]:
    """Return the seconds that all cores were busy, and those that the hypervisor kept, since boot.

    The fields of /proc/stat's first line are in proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
    """
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, stolen = (int(each) / ticks for each in fields)
    return user + nice + system + irq + softirq, stolen


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status_mib(field: str) -> float:
    """Return one size of /proc/self/status in MiB; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _main() -> None:
    """Read the job, measure, write messages; whatever native code prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job, dec_hook=_decode_path)

        def write(message: Message) -> None:
            out.write(msgspec.json.encode(message) + b"\n")

        def tell(phase: str, share: float) -> None:
            if job.progress:
                write(Progress(phase, min(1.0, share)))

        try:
            write(measure(job, tell))
        except EdgeKitError as error:
            write(Failure(error.exit_code, str(error)))


def _decode_path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


if __name__ == "__main__":
    _main()
