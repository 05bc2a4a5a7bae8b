"""One measurement in a process of its own: `python -m edgekit.measure`, a job on stdin, JSON lines on stdout.

Its memory is then the model's, and a native library that crashes takes this process only. The phases have the same
names whatever the runtime: import, load (and what of it was compiling), first, warm-up, steady; see docs/profile.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

import msgspec
import numpy as np

from edgekit.daemon_cost import DaemonCost, Served, daemon_cost
from edgekit.endurance import GapLatency, Sustained, probe_gaps, sustain
from edgekit.engines import compiles, engine_options
from edgekit.errors import EdgeKitError
from edgekit.memory_use import peak_mib, pss_mib, resident_mib
from edgekit.op_table import OpTable, time_ops
from edgekit.runtimes import ModelFiles, Runtime, SessionOptions, get_runtime
from edgekit.sensors import Heat
from edgekit.stability import Stability, judge_stability
from edgekit.steady import run_steady, warm_up
from edgekit.tensors import one_sample, sample_shape, takes_whole
from edgekit.timing import Latency, Slice, slices, summarise

__all__ = ["Failure", "Job", "Message", "Progress", "Sample", "measure"]

#: The warm-up ends here, settled or not, unless the measurement itself is longer.
_LEAST_WARM_UP_S = 2.0
_MOST_TIMES = 5000
_MOST_SLICES = 200

#: Options that name a folder in which a provider keeps what it compiled, and what it calls its files.
_CACHES = {"CACHE_DIR": "*.blob", "trt_engine_cache_path": "*.engine"}


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
        sha256: Of the artifact's file: the key of what is compiled for it.
        gaps_s: Pauses after which single calls are timed.
        sustain_s: Length of the sustained run after everything else; 0 for none.
        top_ops: Rows of the table of operators; 0 for a measurement of latency.
        served: A daemon that serves the same plan: what it adds is measured, and nothing else.
        root: Where sensors are looked for.
    """

    runtime: str
    options: SessionOptions
    files: ModelFiles
    origin: str
    batch: int
    seconds: float
    governor: str = ""
    progress: bool = False
    sha256: str = ""
    gaps_s: tuple[float, ...] = ()
    sustain_s: float = 0.0
    top_ops: int = 0
    served: Served | None = None
    root: str = "/"


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
        load_ms: Opening the artifact, compiling included.
        compile_ms: How much of it was compiling; None where the library does both in one call.
        cache: Whether what was compiled was kept from before: `hit`, `miss`, or `none` where nothing is kept.
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
        pss_mib: After the steady phase, pages shared with other processes divided among them; None where the kernel
            does not tell.
        settings: How it ran, in the library's own words.
        stability: Whether to believe it.
        heat: What the sensors said.
        times_us: Every k-th call's latency in µs, in order, `_MOST_TIMES` at most: what `edgekit compare` draws from.
        over_time: The steady phase in stretches.
        idle_gaps: Single calls after pauses.
        sustained: The run of minutes; None where none was wanted.
    """

    version: str
    placement: dict[str, str]
    import_ms: float
    load_ms: float
    compile_ms: float | None
    cache: str
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
    pss_mib: float | None
    settings: dict[str, str]
    stability: Stability
    heat: Heat
    times_us: list[float]
    over_time: tuple[Slice, ...]
    idle_gaps: tuple[GapLatency, ...]
    sustained: Sustained | None


Message = Progress | Failure | Sample | OpTable | DaemonCost
Tell = Callable[[str, float], None]


def measure(job: Job, tell: Tell) -> Sample:
    """Load, run once, warm up, then run for the time given; then pauses and the sustained run, where wanted.

    Args:
        job: What to measure.
        tell: Called with the phase and its share now and then, never while a call is timed.
    """
    feed = _feed(job)
    before_mib = resident_mib()
    begin = perf_counter_ns()
    runtime = get_runtime(job.runtime)
    version = runtime.version()
    imported = perf_counter_ns()
    options = _with_engines(job, runtime)
    kept = set(_kept(options))
    opening = perf_counter_ns()
    session = runtime.load(job.files, options)
    loaded = perf_counter_ns()
    loaded_mib = resident_mib()
    try:
        begin_first = perf_counter_ns()
        session.run(feed)
        first = perf_counter_ns()
        cache = _cache_state(kept, set(_kept(options)))
        warm_up_runs, settled = warm_up(session, feed, max(_LEAST_WARM_UP_S, job.seconds), tell)
        warm = perf_counter_ns()
        steady = run_steady(
            session, feed, job.seconds, tell, governor=job.governor, settled=settled, root=job.root
        )
        most_mib, own_mib = peak_mib(), pss_mib()
        gaps = probe_gaps(session, feed, job.gaps_s, tell)
        sustained = sustain(session, feed, job.sustain_s, tell, root=job.root) if job.sustain_s else None
        placement, settings = dict(session.placement), session.settings()
    finally:
        session.close()
    return Sample(
        version=version,
        placement=placement,
        import_ms=(imported - begin) / 1e6,
        load_ms=(loaded - opening) / 1e6,
        compile_ms=session.compile_ms,
        cache=cache,
        first_ms=(first - begin_first) / 1e6,
        warm_up_s=(warm - first) / 1e9,
        warm_up_runs=warm_up_runs,
        settled=settled,
        steady_s=steady.wall_s,
        latency=summarise(steady.durations_ns, steady.starts_ns),
        throughput_per_s=len(steady.durations_ns) * job.batch / steady.wall_s,
        before_mib=before_mib,
        loaded_mib=loaded_mib,
        peak_mib=most_mib,
        pss_mib=own_mib,
        settings=settings,
        stability=judge_stability(steady.durations_ns, steady.conditions),
        heat=steady.heat,
        times_us=_thinned(steady.durations_ns),
        over_time=slices(steady.durations_ns, steady.starts_ns, _MOST_SLICES),
        idle_gaps=gaps,
        sustained=sustained,
    )


def _with_engines(job: Job, runtime: Runtime) -> SessionOptions:
    """Return the options under which the daemon would open the model: with the engines that are kept for it."""
    options = job.options
    if not compiles(options.providers):
        return options
    kept = engine_options(
        job.files, job.sha256, runtime.version(), options.providers, options.extra, root=job.root
    )
    return msgspec.structs.replace(options, extra={**kept, **options.extra})


def _kept(options: SessionOptions) -> Iterator[tuple[str, int]]:
    """Yield name and time of change of what the provider has kept."""
    for option, pattern in _CACHES.items():
        folder = options.extra.get(option)
        if folder:
            yield from ((path.name, path.stat().st_mtime_ns) for path in Path(str(folder)).glob(pattern))


def _cache_state(before: set[tuple[str, int]], after: set[tuple[str, int]]) -> str:
    """Tell whether opening the model compiled anything, by what is kept before and after.

    >>> _cache_state(set(), set()), _cache_state(set(), {("a", 1)}), _cache_state({("a", 1)}, {("a", 1)})
    ('none', 'miss', 'hit')
    """
    if after - before:
        return "miss"
    return "hit" if after else "none"


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


def _answer(job: Job, tell: Tell) -> Sample | OpTable | DaemonCost:
    """Do what the job wants."""
    if not job.top_ops and job.served is None:
        return measure(job, tell)
    runtime = get_runtime(job.runtime)
    options, feed = _with_engines(job, runtime), _feed(job)
    if job.served is None:
        return time_ops(runtime, job.files, options, feed, seconds=job.seconds, top=job.top_ops, tell=tell)
    session = runtime.load(job.files, options)
    try:
        return daemon_cost(session, feed, job.served, seconds=job.seconds, tell=tell)
    finally:
        session.close()


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
            write(_answer(job, tell))
        except EdgeKitError as error:
            write(Failure(error.exit_code, str(error)))


def _decode_path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


if __name__ == "__main__":
    _main()
