"""The monitor of one model: a cheap `record` on the request path, everything else off it.

Threads: `record` and `record_error` are called by whoever holds the model's lock, one at a time; `fold`,
`totals`, `close_window` and `add_event` may be called from any thread and take the monitor's own lock, which
`record` never touches.

Memory beyond the ring, for one open window: 4 bytes for each latency bucket between the fastest and the slowest
call (32 a doubling, at most 1,152), 8 for each confidence bin and 8 for each class. Ten classes: 0.9 KB for
latencies that span a factor of 32, 5 KB at the very worst.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgekit.monitor.buckets import LatencyBuckets
from edgekit.monitor.edetector import (
    AlarmBudget,
    EDetector,
    Thinner,
    Transition,
    log_threshold,
    null_mean,
    promise,
)
from edgekit.monitor.estimate import estimate_accuracy
from edgekit.monitor.reference import Reference, bin_confidences, classify, confidence_output
from edgekit.monitor.ring import SampleRing
from edgekit.monitor.schema import AccuracyEstimate, DetectorState, Event, LatencyHistogram, WindowReport

__all__ = ["MAX_EVENTS", "ModelMonitor", "Totals"]

#: Events that one window carries at most; of more, the latest.
MAX_EVENTS = 32
#: The logarithm of no evidence at all, which a detector has before its first sample, as it travels: JSON has no
#: infinity. With any sample the evidence is above this.
_NO_EVIDENCE = -10.0
_DEFAULT_BUDGET = AlarmBudget()


class Totals(msgspec.Struct, frozen=True):
    """A model's counts since its monitor began, for `/metrics`.

    Attributes:
        n: Inferences answered.
        calls: Calls of the runtime.
        errors: Inferences that failed.
        unsampled: Inferences whose statistics were not kept.
        nonfinite: Inferences whose output held NaN or infinity.
        latency: Of all calls.
        confidence: Counts per confidence bin.
        classes: Counts per predicted class.
        accuracy: Of the last closed window that had an estimate; before there is one, of the open window.
        detectors: As they are now.
    """

    n: int
    calls: int
    errors: int
    unsampled: int
    nonfinite: int
    latency: LatencyHistogram
    confidence: tuple[int, ...]
    classes: tuple[int, ...]
    accuracy: AccuracyEstimate | None
    detectors: tuple[DetectorState, ...]


class _Counts:
    """Counters over some stretch of time: an open window, or everything before it."""

    def __init__(self, bins: int, classes: int, dtype: type[np.uint32 | np.int64]) -> None:
        self.n = self.calls = self.errors = self.unsampled = self.nonfinite = 0
        self.latency = LatencyBuckets(dtype)
        self.confidence = np.zeros(bins, np.int64)
        self.classes = np.zeros(classes, np.int64)

    def add(self, other: _Counts) -> None:
        self.n += other.n
        self.calls += other.calls
        self.errors += other.errors
        self.unsampled += other.unsampled
        self.nonfinite += other.nonfinite
        self.latency.add_all(other.latency)
        self.confidence += other.confidence
        self.classes += other.classes

    @property
    def nbytes(self) -> int:
        return self.latency.nbytes + self.confidence.nbytes + self.classes.nbytes


class ModelMonitor:
    """Watch one model.

    Args:
        model: Its name.
        version: The bundle's.
        digest: The bundle's.
        artifact: The artifact that runs.
        runtime: What it runs in.
        device: Profile id of this device.
        task: The bundle's; a classification has confidences, other tasks latency and counts.
        reference: Of the artifact; without one there are classes but no confidence bins.
        capacity: Calls, and samples, kept between two folds; more are counted as unsampled.
        ring_bytes: The kept scores take at most this much, which lowers the samples for many classes.
        budget: The false alarms that this device may cost.
        chance: What draws the samples that the detector is fed.
        clock: Monotonic, in seconds.
        wall: Unix time in seconds, as the device believes it.
    """

    def __init__(
        self,
        *,
        model: str,
        version: int,
        digest: str,
        artifact: str,
        runtime: str,
        device: str,
        task: str,
        reference: Reference | None,
        capacity: int = 4096,
        ring_bytes: int = 1 << 20,
        budget: AlarmBudget = _DEFAULT_BUDGET,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.model, self.version, self.digest = model, version, digest
        self.artifact, self.runtime, self.device, self.task = artifact, runtime, device, task
        self.reference = reference if reference is not None and reference.bins else None
        self._capacity, self._ring_bytes, self._budget = capacity, ring_bytes, budget
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._ring: SampleRing | None = None
        self._output = ""
        self._errors = self._errors_seen = 0
        self._edges = np.array(self.reference.edges if self.reference else ())
        self._rates = self.reference.rates() if self.reference and self.reference.labelled else None
        self._detector = _detector(self.reference, budget)
        self._sharing = 1
        self._thinner = Thinner(budget.samples_per_s, clock(), chance or random.Random())  # noqa: S311 - no secret
        classes = self.reference.classes if self.reference else 0
        self._bins = self.reference.bins + 2 if self.reference else 0
        self._total = _Counts(self._bins, classes, np.int64)
        self._latest: AccuracyEstimate | None = None
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._open_window(classes)

    def _open_window(self, classes: int) -> None:
        self._window = _Counts(self._bins, classes, np.uint32)
        self._start_s, self._start_unix_s = self._clock(), self._wall()

    # The request path.

    def record(self, outputs: Mapping[str, np.ndarray], latency_s: float) -> None:
        """Append one answered call to the ring.

        Args:
            outputs: Arrays by canonical output name, samples along the first axis; what is kept is copied.
            latency_s: Of the call.
        """
        ring = self._ring or self._make_ring(outputs)
        if ring.width:
            scores = outputs[self._output]
            shape = scores.shape
            if len(shape) == 2 and shape[1] == ring.width:
                ring.put(latency_s, shape[0], scores)
                return
        ring.put(latency_s, _batch(outputs), None)

    def record_error(self) -> None:
        """Count one inference that failed in the runtime."""
        self._errors += 1

    def _make_ring(self, outputs: Mapping[str, np.ndarray]) -> SampleRing:
        """Make the ring once the first outputs show where the confidence is, and how wide."""
        known = self.reference.output if self.reference else confidence_output(self.task, outputs)
        scores = outputs.get(known)
        wide = scores is not None and scores.ndim == 2 and scores.dtype.kind == "f"
        self._output = known if wide else ""
        width = scores.shape[1] if scores is not None and wide else 0
        if width and self.reference and max(2, width) != self.reference.classes:
            width = self.reference.classes  # not the outputs it was made from: nothing fits, all is unsampled
        self._ring = SampleRing(self._capacity, width, self._ring_bytes)
        return self._ring

    # Off the request path.

    @property
    def has_detector(self) -> bool:
        """Whether it takes a share of the device's false alarms."""
        return self._detector is not None

    @property
    def window_nbytes(self) -> int:
        """Bytes of the open window's counters."""
        return self._window.nbytes

    @property
    def opened_s(self) -> float:
        """The monotonic clock at the start of the open window."""
        return self._start_s

    def share(self, detectors: int) -> None:
        """Share the device's false alarms with others: this is one of `detectors`.

        A threshold only rises: to lower it under evidence that is already there would break the promise.
        """
        with self._lock:
            self._sharing = max(self._sharing, detectors)
            if self._detector is not None:
                self._detector.log_threshold = log_threshold(self._budget, self._sharing)

    def add_event(self, event: Event) -> None:
        """Put an event into the open window."""
        with self._lock:
            self._events.append(event)

    def fold(self) -> None:
        """Take what the ring holds into the open window's statistics and the detectors."""
        with self._lock:
            self._fold()

    def totals(self) -> Totals:
        """Return the counts up to now."""
        with self._lock:
            self._fold()
            total = _Counts(self._bins, self._window.classes.size, np.int64)
            total.add(self._total)
            total.add(self._window)
            return Totals(
                n=total.n,
                calls=total.calls,
                errors=total.errors,
                unsampled=total.unsampled,
                nonfinite=total.nonfinite,
                latency=total.latency.histogram(),
                confidence=tuple(total.confidence.tolist()),
                classes=tuple(total.classes.tolist()),
                accuracy=self._latest or self._estimate(),
                detectors=self._detector_states(),
            )

    def close_window(
        self,
        boot: str,
        seq: int,
        *,
        temperature_c: float | None = None,
        throttled: bool = False,
        lost_windows: int = 0,
    ) -> WindowReport:
        """Return the open window's report and open the next one; each call is in exactly one window.

        Args:
            boot: Of the outbox.
            seq: The next one of the outbox.
            temperature_c: Highest in the window.
            throttled: Whether the device was, in the window.
            lost_windows: As the outbox counts them.
        """
        with self._lock:
            self._fold()
            report = self._report(boot, seq, temperature_c, throttled, lost_windows)
            self._latest = report.accuracy or self._latest
            self._total.add(self._window)
            self._events.clear()
            self._open_window(self._window.classes.size)
            return report

    def _report(
        self, boot: str, seq: int, temperature_c: float | None, throttled: bool, lost_windows: int
    ) -> WindowReport:
        window = self._window
        return WindowReport(
            boot=boot,
            seq=seq,
            model=self.model,
            version=self.version,
            digest=self.digest,
            artifact=self.artifact,
            runtime=self.runtime,
            device=self.device,
            start_unix_s=self._start_unix_s,
            duration_s=self._clock() - self._start_s,
            n=window.n,
            calls=window.calls,
            errors=window.errors,
            unsampled=window.unsampled,
            nonfinite=window.nonfinite,
            latency=window.latency.histogram(),
            confidence=tuple(window.confidence.tolist()),
            classes=tuple(window.classes.tolist()),
            accuracy=self._estimate(),
            detectors=self._detector_states(),
            events=tuple(self._events),
            temperature_c=temperature_c,
            throttled=throttled,
            lost_windows=lost_windows,
        )

    def _fold(self) -> None:
        errors = self._errors
        self._window.errors += errors - self._errors_seen
        self._errors_seen = errors
        if self._ring is None:
            return
        drained = self._ring.drain(self._window.latency)
        self._window.calls += drained.calls
        self._window.n += drained.n
        self._window.unsampled += drained.unsampled
        if len(drained.scores):
            self._fold_scores(drained.scores)

    def _fold_scores(self, scores: np.ndarray) -> None:
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            self._window.nonfinite += int(finite.size - finite.sum())
            scores = scores[finite]
            if not len(scores):
                return
        activation = self.reference.activation if self.reference else "probabilities"
        predicted, confidence = classify(scores, activation)
        self._count_classes(predicted, max(2, scores.shape[1]))
        if self.reference is None:
            return
        bins = bin_confidences(self._edges, confidence)
        self._window.confidence += np.bincount(bins, minlength=self._bins)
        if self._detector is not None and self._rates is not None:
            fed = self._thinner.take(bins.size, self._clock())
            for transition in self._detector.update(self._rates[bins[fed]]):
                self._events.append(self._alarm_event(transition))

    def _count_classes(self, predicted: np.ndarray, classes: int) -> None:
        if not self._window.classes.size:  # no reference told how many there are
            self._window.classes = np.zeros(classes, np.int64)
            self._total.classes = np.zeros(classes, np.int64)
        self._window.classes += np.bincount(predicted, minlength=classes)

    def _estimate(self) -> AccuracyEstimate | None:
        if self.reference is None:
            return None
        return estimate_accuracy(self.reference, self._window.confidence, self._window.nonfinite)

    def _detector_states(self) -> tuple[DetectorState, ...]:
        detector = self._detector
        if detector is None or self.reference is None:
            return ()
        words = promise(self.reference, self._budget, self._sharing, detector.null_mean)
        log_e = max(detector.log_e, _NO_EVIDENCE)
        return (DetectorState("accuracy", log_e, detector.log_threshold, detector.alarm, words),)

    def _alarm_event(self, transition: Transition) -> Event:
        assert self._detector is not None
        estimate = self._estimate()
        now = "" if estimate is None else f"; this window's estimate so far is {estimate.estimate:.3f}"
        if transition.kind == "alarm":
            text = (
                f"{self.model}: the estimated accuracy has dropped below {self._detector.null_mean:.3f}{now}"
            )
            return Event(self._wall(), "alarm", text, "critical")
        text = f"{self.model}: no sign of an accuracy drop in {transition.samples} samples{now}"
        return Event(self._wall(), "alarm-cleared", text, "info")


def _detector(reference: Reference | None, budget: AlarmBudget) -> EDetector | None:
    """Return the accuracy detector; None without hit rates, or where a drop could not show in them."""
    if reference is None or not reference.labelled or not np.ptp(reference.rates()):
        return None
    return EDetector(null_mean(reference), log_threshold(budget))


def _batch(outputs: Mapping[str, np.ndarray]) -> int:
    """Return the number of inferences in one call: the first axis of the outputs."""
    for array in outputs.values():
        return int(array.shape[0]) if array.ndim else 1
    return 0
