"""The ring between the request path, which appends, and the fold, which reads: one writer, one reader, no lock.

The writer alone moves the heads and the reader alone the tails. The writer fills a slot before it moves the head
past it, the reader copies a slot before it moves the tail past it, and each sees the other's number whole: an
attribute of a Python object is read and written in one piece, in order, under the interpreter's lock and, on
builds without that lock, under the object's own. Only a call that finds the ring full takes a lock.
"""

from __future__ import annotations

import threading
from array import array

import msgspec
import numpy as np

from edgekit.monitor.buckets import LatencyBuckets, bucket_index, to_ticks

__all__ = ["Drained", "SampleRing"]


class Drained(msgspec.Struct, frozen=True):
    """What one drain took out.

    Attributes:
        calls: Calls of the runtime.
        n: Inferences: the sum of their batches.
        unsampled: Inferences whose scores were not kept.
        scores: float32 [kept, width], in the order they came.
    """

    calls: int
    n: int
    unsampled: int
    scores: np.ndarray


class _Overflow:
    """Calls that found the ring full, counted one at a time. At most one entry for each latency bucket."""

    def __init__(self) -> None:
        self.calls = self.n = self.zero = self.ticks = 0
        self.buckets: dict[int, int] = {}

    def add(self, latency_s: float, rows: int) -> None:
        self.calls += 1
        self.n += rows
        if latency_s > 0:
            index = bucket_index(latency_s)
            self.buckets[index] = self.buckets.get(index, 0) + 1
            self.ticks += to_ticks(latency_s)
        else:
            self.zero += 1


class SampleRing:
    """Latencies and scores between two folds.

    Args:
        capacity: Calls, and samples, that fit between two folds; rounded up to a power of two.
        width: Scores of a sample; 0 where the model has no confidence, and only latency is kept.
        limit_bytes: The scores take at most this much, whatever the capacity (but at least 64 samples).
    """

    def __init__(self, capacity: int, width: int, limit_bytes: int = 1 << 20) -> None:
        self.width = width
        self.calls = _power_of_two(capacity)
        self.samples = self.calls
        while self.samples > 64 and self.samples * width * 4 > limit_bytes:
            self.samples //= 2
        self._latency = array("d", bytes(8 * self.calls))
        self._batch = array("q", bytes(8 * self.calls))
        self._kept = array("q", bytes(8 * self.calls))
        self._scores = np.zeros((self.samples, width), np.float32)
        self._call_mask, self._sample_mask = self.calls - 1, self.samples - 1
        self._head = self._tail = self._sample_head = self._sample_tail = 0
        self._overflow = _Overflow()
        self._overflow_lock = threading.Lock()

    def put(self, latency_s: float, rows: int, scores: np.ndarray | None) -> None:
        """Append one call. Never blocks on the reader's work, never raises for a full ring.

        Args:
            latency_s: Of the call.
            rows: Inferences in it.
            scores: float [rows, width]; None where they are not to be kept. Copied.
        """
        head = self._head
        if head - self._tail == self.calls:
            with self._overflow_lock:
                self._overflow.add(latency_s, rows)
            return
        slot = head & self._call_mask
        kept = 0
        if scores is not None:
            first = self._sample_head
            free = self._sample_tail + self.samples - first
            kept = rows if rows <= free else free  # noqa: FURB136 - min() takes twice as long, and this is the hot path
            if kept == 1:
                self._scores[first & self._sample_mask] = scores[0]
            elif kept:
                self._scores[np.arange(first, first + kept) & self._sample_mask] = scores[:kept]
            self._sample_head = first + kept
        self._latency[slot] = latency_s
        self._batch[slot] = rows
        self._kept[slot] = kept
        self._head = head + 1

    def drain(self, latency: LatencyBuckets) -> Drained:
        """Take out what is there and count its latencies into `latency`."""
        head, tail, first = self._head, self._tail, self._sample_tail
        slots = np.arange(tail, head) & self._call_mask
        latency.add(np.frombuffer(self._latency, np.float64)[slots])
        n = int(np.frombuffer(self._batch, np.int64)[slots].sum())
        kept = int(np.frombuffer(self._kept, np.int64)[slots].sum())
        scores = self._scores[np.arange(first, first + kept) & self._sample_mask]  # a copy
        self._sample_tail = first + kept
        self._tail = head
        over = self._take_overflow()
        latency.add_counted(over.buckets, over.zero, over.ticks)
        n += over.n
        return Drained(head - tail + over.calls, n, n - kept if self.width else 0, scores)

    def _take_overflow(self) -> _Overflow:
        with self._overflow_lock:
            taken, self._overflow = self._overflow, _Overflow()
        return taken


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
