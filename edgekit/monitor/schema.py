"""The window report: what a device says about one model in one stretch of time. Wire schema 1.

It holds counters, bins and declared metadata, never an input, an output or a confidence as such.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["SCHEMA", "AccuracyEstimate", "DetectorState", "Event", "LatencyHistogram", "WindowReport"]

SCHEMA = 1


class LatencyHistogram(msgspec.Struct, frozen=True):
    """Base-2 exponential buckets: bucket i counts latencies in (2^(i/2^scale), 2^((i+1)/2^scale)] seconds.

    Attributes:
        counts: Counts of buckets `offset`, `offset + 1`, …
        offset: Index of the first count.
        scale: Buckets per doubling is 2^scale; 5 gives ±1.08 %.
        zero: Latencies of zero (a clock that did not move).
        sum_s: Sum of all latencies in seconds.
    """

    counts: tuple[int, ...] = ()
    offset: int = 0
    scale: int = 5
    zero: int = 0
    sum_s: float = 0.0


class AccuracyEstimate(msgspec.Struct, frozen=True):
    """Accuracy estimated without labels (binned CBPE), a share in [0, 1], with its 95 % interval.

    Attributes:
        valid: False when a flag says that the estimate must not be believed.
        flags: Why not, or what to keep in mind.
    """

    estimate: float
    low: float
    high: float
    n: int
    valid: bool = True
    flags: tuple[str, ...] = ()


class DetectorState(msgspec.Struct, frozen=True):
    """One e-detector at the end of the window.

    Attributes:
        log_e: Natural logarithm of its evidence.
        log_threshold: Natural logarithm of the evidence at which it alarms.
        promise: The false-alarm rate that is promised, with its conditions, in words.
    """

    name: str
    log_e: float
    log_threshold: float
    alarm: bool
    promise: str = ""


class Event(msgspec.Struct, frozen=True):
    """Something that happened once: an alarm, a golden-set failure, a start.

    Attributes:
        kind: `started`, `alarm`, `alarm-cleared`, `golden-passed`, `golden-failed`, `lost`.
    """

    unix_s: float
    kind: str
    text: str
    level: Literal["info", "warning", "critical"] = "info"


class WindowReport(msgspec.Struct, frozen=True):
    """One model, one window.

    Attributes:
        boot: Random id of the process start; (device, boot, seq) is unique.
        seq: Sequence number within the boot, from 1, over all models of the process.
        digest: The bundle's digest.
        start_unix_s: Wall clock at the start, as the device believes it.
        duration_s: Length by the monotonic clock.
        n: Inferences answered. A batch of k counts as k.
        calls: Calls of the runtime.
        errors: Inferences that failed in the runtime.
        unsampled: Inferences counted in n and latency whose statistics were not kept (the ring was full).
        confidence: Counts per reference confidence bin; the first is below, the last above all that the
            reference saw.
        classes: Counts per predicted class.
        nonfinite: Inferences whose output held NaN or infinity; they are in n, not in the bins or classes.
        lost_windows: Windows dropped by the outbox's quota or a crash before this one, cumulative.
    """

    boot: str
    seq: int
    model: str
    version: int
    digest: str
    artifact: str
    runtime: str
    device: str
    start_unix_s: float
    duration_s: float
    n: int
    calls: int = 0
    errors: int = 0
    unsampled: int = 0
    latency: LatencyHistogram = LatencyHistogram()
    confidence: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    accuracy: AccuracyEstimate | None = None
    detectors: tuple[DetectorState, ...] = ()
    events: tuple[Event, ...] = ()
    temperature_c: float | None = None
    throttled: bool = False
    nonfinite: int = 0
    lost_windows: int = 0
    schema: int = SCHEMA
