from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.monitor.buckets import (
    HIGHEST_S,
    LOWEST_S,
    LatencyBuckets,
    bucket_index,
    bucket_indices,
    cumulative,
    downscale,
    merge,
    observations,
    quantile,
    relative_error,
    to_ticks,
)
from edgekit.monitor.schema import LatencyHistogram

pytestmark = pytest.mark.device

latencies = st.lists(st.floats(LOWEST_S * 1.001, HIGHEST_S, allow_nan=False) | st.just(0.0), max_size=30)


def counted(*seconds: float) -> LatencyHistogram:
    buckets = LatencyBuckets()
    buckets.add(np.array(seconds, np.float64))
    return buckets.histogram()


def cut(seconds: list[float], scale: int) -> LatencyHistogram:
    return downscale(counted(*seconds), scale)


histograms = st.builds(cut, latencies, st.integers(0, 5))


@pytest.mark.parametrize(
    ("seconds", "index"),
    [
        (1.0, -1),  # upper edges belong to the bucket
        (math.nextafter(1.0, 2.0), 0),
        (2.0 ** (1 / 32), 0),
        (math.nextafter(2.0 ** (1 / 32), 2.0), 1),
        (2.0, 31),
        (0.5, -33),
        (0.001, -319),
        (LOWEST_S / 1e3, -24 * 32),
        (LOWEST_S, -24 * 32),
        (LOWEST_S * 1.03, -24 * 32 + 1),
        (HIGHEST_S, 12 * 32 - 1),
        (1e9, 12 * 32 - 1),
        (math.inf, 12 * 32 - 1),
    ],
)
def test_a_latency_falls_in_the_bucket_whose_edges_enclose_it(seconds: float, index: int) -> None:
    assert bucket_index(seconds) == index
    assert bucket_indices(np.array([seconds])).tolist() == [index]


@given(st.floats(LOWEST_S * 1.03, HIGHEST_S))
def test_the_edges_enclose_every_latency(seconds: float) -> None:
    index = bucket_index(seconds)
    assert 2.0 ** (index / 32) < seconds * (1 + 1e-15)
    assert seconds <= 2.0 ** ((index + 1) / 32) * (1 + 1e-15)
    assert bucket_indices(np.array([seconds])).tolist() == [index]


def test_counts_offset_zero_and_sum_are_exact() -> None:
    assert counted(0.5, 0.5, 0.0, -1.0, math.nan, 2.0**-10) == LatencyHistogram(
        counts=(1, *[0] * (9 * 32 - 1), 2), offset=-10 * 32 - 1, scale=5, zero=3, sum_s=1.0 + 2.0**-10
    )
    assert counted() == LatencyHistogram()
    assert counted(0.0) == LatencyHistogram(zero=1)


def test_a_sum_is_kept_in_units_of_2_to_the_minus_30_seconds() -> None:
    assert to_ticks(2.0**-30) == 1
    assert to_ticks(1.0) == 2**30
    assert to_ticks(0.6 * 2.0**-30) == 1
    assert to_ticks(math.inf) == 2**42
    assert counted(1.0, 2.0**-30).sum_s == 1.0 + 2.0**-30
    assert counted(0.6 * 2.0**-30, 1.0).sum_s == 1.0 + 2.0**-30
    assert counted(math.inf).sum_s == HIGHEST_S


def test_a_histogram_grows_to_both_sides_and_no_wider_than_it_must() -> None:
    buckets = LatencyBuckets()
    assert buckets.nbytes == 0
    buckets.add(np.array([1.0]))
    assert buckets.nbytes == 4
    buckets.add(np.array([2.0]))
    assert buckets.nbytes == 4 * 33
    buckets.add(np.array([0.5, 1.5]))
    assert buckets.nbytes == 4 * 65
    assert buckets.histogram() == counted(0.5, 1.0, 1.5, 2.0)


def test_the_widest_histogram_stays_below_5_kilobytes() -> None:
    buckets = LatencyBuckets()
    buckets.add(np.array([1e-12, 1e12]))
    assert buckets.nbytes == 36 * 32 * 4


def test_latencies_counted_one_at_a_time_are_the_same() -> None:
    seconds = [0.0, 0.003, 0.003, 1.0, 7e-5]
    buckets = LatencyBuckets()
    one_by_one: dict[int, int] = {}
    for s in seconds[1:]:
        one_by_one[bucket_index(s)] = one_by_one.get(bucket_index(s), 0) + 1
    buckets.add_counted(one_by_one, 1, sum(map(to_ticks, seconds)))
    assert buckets.histogram() == counted(*seconds)


@given(latencies, latencies)
def test_adding_another_is_counting_both(a: list[float], b: list[float]) -> None:
    first, second = LatencyBuckets(np.int64), LatencyBuckets()
    first.add(np.array(a))
    second.add(np.array(b))
    before = second.histogram()
    first.add_all(second)
    assert merge(first.histogram(), LatencyHistogram()) == counted(*a, *b)
    assert second.histogram() == before


@given(latencies, latencies)
def test_merging_is_counting_together(a: list[float], b: list[float]) -> None:
    assert merge(counted(*a), counted(*b)) == counted(*a, *b)


@given(histograms, histograms)
def test_merging_commutes(a: LatencyHistogram, b: LatencyHistogram) -> None:
    assert merge(a, b) == merge(b, a)


@given(histograms, histograms, histograms)
def test_merging_associates_across_scales(
    a: LatencyHistogram, b: LatencyHistogram, c: LatencyHistogram
) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b).scale == min(a.scale, b.scale)


@given(latencies)
def test_nothing_is_neutral(a: list[float]) -> None:
    assert merge(counted(*a), LatencyHistogram()) == counted(*a)


@given(latencies, st.integers(0, 5), st.integers(0, 5))
def test_downscaling_in_steps_is_downscaling_at_once(a: list[float], x: int, y: int) -> None:
    fine, coarse = max(x, y), min(x, y)
    assert downscale(downscale(counted(*a), fine), coarse) == downscale(counted(*a), coarse)


def test_downscaling_keeps_each_latency_between_the_wider_edges() -> None:
    histogram = counted(0.5, 0.51, 1.0, 1.01, 2.0)
    assert downscale(histogram, 0) == LatencyHistogram((1, 2, 2), -2, 0, 0, histogram.sum_s)
    assert downscale(histogram, 5) == histogram


def test_a_histogram_cannot_be_refined() -> None:
    with pytest.raises(ValueError, match="scale 0 cannot be refined to 1"):
        downscale(downscale(counted(1.0), 0), 1)


def test_merging_drops_empty_ends() -> None:
    padded = LatencyHistogram((0, 0, 3, 0, 2, 0), offset=4)
    assert merge(padded, LatencyHistogram()) == LatencyHistogram((3, 0, 2), offset=6)
    assert merge(LatencyHistogram((0, 0), 7), LatencyHistogram(zero=2)) == LatencyHistogram(zero=2)


def test_observations_include_zero() -> None:
    assert observations(counted(0.0, 0.0, 1.0)) == 3


def test_the_relative_error_is_the_stated_one() -> None:
    assert relative_error() == pytest.approx(0.010830, abs=1e-6)
    assert relative_error(0) == pytest.approx(1 / 3)
    assert relative_error(3) == pytest.approx(0.0433, abs=1e-4)


@given(st.lists(st.floats(LOWEST_S * 1.03, HIGHEST_S), min_size=1, max_size=40), st.floats(0, 1))
def test_a_quantile_is_within_the_relative_error(seconds: list[float], q: float) -> None:
    exact = sorted(seconds)[max(1, math.ceil(q * len(seconds) - 1e-9)) - 1]
    got = quantile(counted(*seconds), q)
    assert got is not None
    assert abs(got - exact) <= exact * relative_error() * (1 + 1e-9)


def test_a_quantile_is_the_nearest_rank() -> None:
    histogram = counted(0.0, 1.0, 2.0, 4.0)
    factor = 2.0 / (2.0 ** (1 / 32) + 1.0)
    expected = [(0.0, 0.0), (0.25, 0.0), (0.2501, 1.0), (0.5, 1.0), (0.75, 2.0), (0.76, 4.0), (1.0, 4.0)]
    for q, value in expected:
        assert quantile(histogram, q) == pytest.approx(value * factor, rel=1e-12)
    assert quantile(LatencyHistogram(), 0.5) is None
    assert quantile(counted(*[1.0] * 3, *[2.0] * 27), 0.1) == pytest.approx(factor, rel=1e-12)
    assert quantile(counted(1.0, 2.0), 0.0) == pytest.approx(factor, rel=1e-12)


def test_a_quantile_of_a_coarse_histogram_uses_its_own_edges() -> None:
    assert quantile(downscale(counted(0.75), 0), 0.5) == pytest.approx(2 / 3)
    assert quantile(downscale(counted(0.75), 1), 1.0) == pytest.approx(2.0 / (math.sqrt(2.0) + 1.0))


def test_the_cumulative_counts_are_exact_at_each_bound() -> None:
    rows = cumulative(counted(0.0, 0.25, 0.2500001, 1.0, 64.0), lowest_exponent=-3, highest_exponent=1)
    assert rows == [(0.125, 1), (0.25, 2), (0.5, 3), (1.0, 4), (2.0, 4), (math.inf, 5)]


def test_the_cumulative_bounds_do_not_depend_on_what_was_counted() -> None:
    empty = cumulative(LatencyHistogram())
    assert [le for le, _ in empty] == [2.0**k for k in range(-17, 6)] + [math.inf]
    assert {n for _, n in empty} == {0}
    assert [le for le, _ in cumulative(counted(1e-9, 5.0))] == [le for le, _ in empty]


@given(latencies)
def test_cumulative_counts_are_those_of_the_latencies(seconds: list[float]) -> None:
    rows = cumulative(counted(*seconds), scale=2, lowest_exponent=-4, highest_exponent=3)
    assert len(rows) == 7 * 4 + 2
    for le, n in rows:
        near = sum(abs(s / le - 1.0) < 1e-12 for s in seconds if s and math.isfinite(le))
        assert abs(n - sum(s <= le for s in seconds)) <= near
    assert all(a[1] <= b[1] for a, b in pairwise(rows))


def test_many_histograms_merge_to_one() -> None:
    rng = np.random.default_rng(3)
    parts = [np.abs(rng.lognormal(-6, 1, 50)) for _ in range(20)]
    assert reduce(merge, (counted(*part) for part in parts)) == counted(*np.concatenate(parts))
