from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from edgekit.monitor.buckets import LatencyBuckets, observations
from edgekit.monitor.ring import Drained, SampleRing

pytestmark = pytest.mark.device


def scores(*firsts: float) -> np.ndarray:
    """Rows of two scores, told apart by the first."""
    return np.array([[first, -first] for first in firsts], np.float32)


def firsts(drained: Drained) -> list[float]:
    return [float(x) for x in drained.scores[:, 0]]


def numbers(drained: Drained) -> tuple[int, int, int]:
    return drained.calls, drained.n, drained.unsampled


def test_what_is_put_comes_out_once_and_in_order() -> None:
    ring, latency = SampleRing(8, 2), LatencyBuckets()
    ring.put(0.5, 1, scores(1.0))
    ring.put(1.0, 3, scores(2.0, 3.0, 4.0))
    drained = ring.drain(latency)
    assert numbers(drained) == (2, 4, 0)
    assert firsts(drained) == [1.0, 2.0, 3.0, 4.0]
    assert drained.scores[:, 1].tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert (observations(latency.histogram()), latency.histogram().sum_s) == (2, 1.5)
    assert numbers(ring.drain(latency)) == (0, 0, 0)
    assert observations(latency.histogram()) == 2


def test_scores_are_copied() -> None:
    ring = SampleRing(8, 2)
    mine = scores(1.0)
    ring.put(0.5, 1, mine)
    mine[:] = 9.0
    drained = ring.drain(LatencyBuckets())
    ring.put(0.5, 1, scores(5.0))
    assert firsts(drained) == [1.0]


@pytest.mark.parametrize(("capacity", "calls"), [(1, 1), (2, 2), (5, 8), (64, 64), (65, 128), (4096, 4096)])
def test_the_capacity_is_a_power_of_two(capacity: int, calls: int) -> None:
    ring = SampleRing(capacity, 2)
    assert (ring.calls, ring.samples) == (calls, calls)


@pytest.mark.parametrize(
    ("width", "limit", "samples"),
    [(10, 1 << 20, 4096), (64, 1 << 20, 4096), (65, 1 << 20, 2048), (1000, 1 << 20, 256), (10**6, 1, 64)],
)
def test_many_classes_leave_room_for_fewer_samples(width: int, limit: int, samples: int) -> None:
    ring = SampleRing(4096, 0, limit)
    assert ring.samples == 4096
    if width < 10**6:
        assert SampleRing(4096, width, limit).samples == samples
    assert SampleRing(128, 10, 1).samples == 64


def test_a_full_ring_still_counts_calls_and_latencies() -> None:
    ring, latency = SampleRing(2, 2), LatencyBuckets()
    for k in range(5):
        ring.put(0.25 * k, 1, scores(float(k)))
    ring.put(1.0, 7, scores(*[9.0] * 7))
    drained = ring.drain(latency)
    assert numbers(drained) == (6, 12, 10)
    assert firsts(drained) == [0.0, 1.0]
    histogram = latency.histogram()
    assert (observations(histogram), histogram.zero, histogram.sum_s) == (6, 1, 3.5)
    again = LatencyBuckets()
    again.add(np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]))
    assert histogram == again.histogram()
    ring.put(2.0, 1, scores(3.0))
    after = ring.drain(LatencyBuckets())
    assert numbers(after) == (1, 1, 0)
    assert firsts(after) == [3.0]


def test_zero_latencies_of_a_full_ring_count_as_zero() -> None:
    ring, latency = SampleRing(1, 2), LatencyBuckets()
    for _ in range(3):
        ring.put(0.0, 1, None)
    ring.drain(latency)
    assert latency.histogram().zero == 3


def test_of_a_batch_that_does_not_fit_the_first_are_kept() -> None:
    ring = SampleRing(4, 2)
    ring.put(0.1, 3, scores(1.0, 2.0, 3.0))
    ring.put(0.1, 3, scores(4.0, 5.0, 6.0))
    ring.put(0.1, 2, scores(7.0, 8.0))
    drained = ring.drain(LatencyBuckets())
    assert numbers(drained) == (3, 8, 4)
    assert firsts(drained) == [1.0, 2.0, 3.0, 4.0]


def test_batches_wrap_around_the_end() -> None:
    ring = SampleRing(4, 2)
    got: list[float] = []
    for start in range(0, 30, 3):
        ring.put(0.1, 3, scores(start, start + 1.0, start + 2.0))
        got += firsts(ring.drain(LatencyBuckets()))
    assert got == [float(k) for k in range(30)]


def test_without_scores_nothing_is_unsampled() -> None:
    ring = SampleRing(4, 0)
    for _ in range(6):
        ring.put(0.1, 2, None)
    assert numbers(ring.drain(LatencyBuckets())) == (6, 12, 0)


def test_scores_that_did_not_fit_the_ring_are_unsampled() -> None:
    ring = SampleRing(4, 2)
    ring.put(0.1, 2, None)
    ring.put(0.1, 0, np.zeros((0, 2), np.float32))
    assert numbers(ring.drain(LatencyBuckets())) == (2, 2, 2)


def test_a_writer_and_a_reader_lose_nothing_and_tear_nothing() -> None:
    """A small ring, a switch interval that forces switches everywhere, and rows that must not be mixed."""
    ring, latency = SampleRing(32, 64), LatencyBuckets(np.int64)
    puts, before = 20_000, sys.getswitchinterval()
    done = threading.Event()
    totals = np.zeros(3, np.int64)
    seen: list[np.ndarray] = []

    def drain() -> None:
        drained = ring.drain(latency)
        totals[:] += numbers(drained)
        assert (drained.scores == drained.scores[:, :1]).all()
        seen.append(drained.scores[:, 0])

    def read() -> None:
        while not done.is_set():
            drain()

    sys.setswitchinterval(1e-6)
    try:
        reader = threading.Thread(target=read)
        reader.start()
        for k in range(puts):
            rows = 1 + k % 3
            ring.put(2.0**-10, rows, np.full((rows, 64), float(k), np.float32))
        done.set()
        reader.join()
    finally:
        sys.setswitchinterval(before)
    drain()
    kept = np.concatenate(seen)
    n = sum(1 + k % 3 for k in range(puts))
    assert totals.tolist() == [puts, n, n - kept.size]
    assert (np.diff(kept) >= 0).all()
    assert kept.size > 32
    assert latency.histogram().counts == (puts,)
    assert latency.histogram().sum_s == puts * 2.0**-10
