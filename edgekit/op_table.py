"""Where a model's time goes, operator by operator: a run of its own, so that its cost does not touch the latencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns

import msgspec
import numpy as np

from edgekit.runtimes import ModelFiles, OpTime, Runtime, Session, SessionOptions

__all__ = ["OpRow", "OpTable", "tabulate", "time_ops", "unit_of"]

#: Calls with the profiler on, in blocks, each beside a block without it.
_BLOCKS = 10
_LEAST_CALLS, _MOST_CALLS = 3, 50  # of a block
_WARM_UP = 5
#: Operators of all calls together that a library's trace may hold: ONNX Runtime stops at a million.
_MOST_EVENTS = 200_000

#: What a provider or device computes on, by the beginning of its name.
_UNITS = {
    "CPU": "CPU", "XNNPACK": "CPU", "NPU": "NPU", "GPU": "GPU", "CUDA": "GPU", "Tensorrt": "GPU", "NvTensorRT": "GPU",
    "OpenVINO": "NPU or CPU", "VitisAI": "FPGA or NPU", "QNN": "NPU", "DML": "GPU", "ROCM": "GPU", "MIGraphX": "GPU",
    "WebGpu": "GPU", "ACL": "CPU", "ArmNN": "CPU", "Dnnl": "CPU", "Xnnpack": "CPU",
}  # fmt: skip

Tell = Callable[[str, float], None]


class OpRow(msgspec.Struct, frozen=True):
    """One operator.

    Attributes:
        name: Of the node.
        kind: Of the operator.
        kernel: What computed it, in the library's words; empty where it does not tell.
        place: Provider or device.
        unit: `CPU`, `GPU`, `NPU`, or the place where that is not known.
        fallback: It ran elsewhere than the plan's first provider.
        us: Of one call, in microseconds: the mean of the middle half of all calls.
        share: Of the time of all operators.
        cumulative: The same with all rows before it.
    """

    name: str
    kind: str
    kernel: str
    place: str
    unit: str
    fallback: bool
    us: float
    share: float
    cumulative: float


class OpTable(msgspec.Struct, frozen=True, tag="ops"):
    """The operators that take most, and what it cost to find out.

    Attributes:
        calls: With the profiler on.
        operators: In one call, all of them.
        total_us: Their time together, in one call.
        rows: The slowest, slowest first.
        fallbacks: Operators that ran elsewhere than the plan's first provider.
        fallback_share: Their share of the time.
        plain_p50_ms: Median call without the profiler, in the same run, taken in turns.
        profiled_p50_ms: With it.
        cost: profiled / plain - 1: what the profiler added to a call.
    """

    calls: int
    operators: int
    total_us: float
    rows: tuple[OpRow, ...]
    fallbacks: int
    fallback_share: float
    plain_p50_ms: float
    profiled_p50_ms: float
    cost: float


def unit_of(place: str) -> str:
    """Return what a provider or device computes on; its own name where that is not known.

    >>> unit_of("CPUExecutionProvider"), unit_of("TensorrtExecutionProvider"), unit_of("NPU.0"), unit_of("Acme")
    ('CPU', 'GPU', 'NPU', 'Acme')
    """
    return next((unit for prefix, unit in _UNITS.items() if place.startswith(prefix)), place)


def tabulate(times: Sequence[OpTime], wanted: str, top: int) -> tuple[tuple[OpRow, ...], int, float, float]:
    """Return the rows, how many fell back, their share, and the time of all operators in microseconds.

    Args:
        times: Every operator.
        wanted: The plan's first provider; empty for the CPU.
        top: Rows at most.
    """
    total = sum(each.us for each in times)
    whole = total or 1.0
    rows, seen = [], 0.0
    for each in sorted(times, key=lambda one: -one.us):
        seen += each.us
        rows.append(
            OpRow(
                name=each.name,
                kind=each.kind,
                kernel=each.kernel,
                place=each.place,
                unit=unit_of(each.place),
                fallback=_fell_back(each.place, wanted),
                us=each.us,
                share=each.us / whole,
                cumulative=seen / whole,
            )
        )
    astray = [row for row in rows if row.fallback]
    return tuple(rows[:top]), len(astray), sum(row.share for row in astray), total


def _fell_back(place: str, wanted: str) -> bool:
    """Tell whether a place is not the one that was wanted: `NPU.0` is `NPU`, and a part of `AUTO:NPU,CPU`."""
    if not wanted:
        return unit_of(place) != "CPU"
    first = wanted.partition(":")[2].partition(",")[0] or wanted
    return not (place == first or place.startswith(f"{first}."))


def time_ops(
    runtime: Runtime,
    files: ModelFiles,
    options: SessionOptions,
    feed: Mapping[str, np.ndarray],
    *,
    seconds: float,
    top: int,
    tell: Tell,
) -> OpTable:
    """Run with and without the library's profiler, in turns, and tabulate what it told.

    Args:
        runtime: One that has a profiler.
        files: The artifact.
        options: As in the measurement.
        feed: Inputs.
        seconds: About how long.
        top: Rows at most.
        tell: Called with the phase and its share.

    Raises:
        UnavailableError: The runtime has no profiler, or is not here.
    """
    profiler = runtime.profile_ops(files, options)
    plain = runtime.load(files, options)
    try:
        for _ in range(_WARM_UP):
            plain.run(feed)
            profiler.session.run(feed)
            profiler.collect()
        calls = _calls(plain, feed, seconds)
        bare: list[int] = []
        watched: list[int] = []
        for block in range(_BLOCKS):
            tell("operators", block / _BLOCKS)
            bare += _timed(plain, feed, calls)
            for _ in range(calls):
                watched += _timed(profiler.session, feed, 1)
                profiler.collect()
    finally:
        plain.close()
    times = profiler.finish(len(watched))
    rows, fallbacks, share, total = tabulate(times, next(iter(options.providers), ""), top)
    without, with_it = float(np.median(bare)) / 1e6, float(np.median(watched)) / 1e6
    return OpTable(
        len(watched), len(times), total, rows, fallbacks, share, without, with_it, with_it / without - 1
    )


def _calls(session: Session, feed: Mapping[str, np.ndarray], seconds: float) -> int:
    """Return how many calls fill a block: by their time, and by what a trace may hold."""
    took_ns = sorted(_timed(session, feed, 3))[1]
    nodes = sum(
        int(word) for text in session.placement.values() for word in text.split()[:1] if word.isdigit()
    )
    by_time = int(seconds * 1e9 / (2 * _BLOCKS * max(1, took_ns)))
    by_events = _MOST_EVENTS // (_BLOCKS * max(nodes, 1))
    return max(_LEAST_CALLS, min(_MOST_CALLS, by_time, by_events))


def _timed(session: Session, feed: Mapping[str, np.ndarray], n: int) -> list[int]:
    times = []
    for _ in range(n):
        begin = perf_counter_ns()
        session.run(feed)
        times.append(perf_counter_ns() - begin)
    return times
