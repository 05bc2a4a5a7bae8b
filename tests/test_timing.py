from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.timing import needed_samples, order_interval, slices, summarise

pytestmark = pytest.mark.device


def ns(*milliseconds: float) -> np.ndarray:
    return (np.array(milliseconds) * 1e6).astype(np.int64)


def test_percentiles_are_samples_by_nearest_rank() -> None:
    found = summarise(ns(*range(1, 1001)))
    assert found.percentiles == {"p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 990.0}
    assert found.refused == {"p99.9": "needs 10000 samples, got 1000"}
    assert (found.n, found.min, found.mean, found.max, found.mad) == (1000, 1.0, 500.5, 1000.0, 250.0)


@pytest.mark.parametrize(
    ("n", "given_", "refused"),
    [
        (5, [], ["p50", "p90", "p95", "p99", "p99.9"]),
        (19, [], ["p50", "p90", "p95", "p99", "p99.9"]),
        (20, ["p50"], ["p90", "p95", "p99", "p99.9"]),
        (199, ["p50", "p90"], ["p95", "p99", "p99.9"]),
        (999, ["p50", "p90", "p95"], ["p99", "p99.9"]),
        (1000, ["p50", "p90", "p95", "p99"], ["p99.9"]),
        (10000, ["p50", "p90", "p95", "p99", "p99.9"], []),
    ],
)
def test_a_percentile_is_refused_where_the_sample_does_not_support_it(
    n: int, given_: list[str], refused: list[str]
) -> None:
    found = summarise(np.ones(n, np.int64))
    assert list(found.percentiles) == given_
    assert list(found.refused) == refused
    assert all(str(n) in why for why in found.refused.values())


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=1500))
def test_a_summary_is_in_order(durations: list[int]) -> None:
    found = summarise(np.array(durations, np.int64))
    values = [found.min, *found.percentiles.values(), found.max]
    assert values == sorted(values)
    assert found.min <= found.mean * (1 + 1e-12)
    assert found.mean <= found.max * (1 + 1e-12)
    assert len(found.percentiles) + len(found.refused) == 5


def test_ten_samples_must_lie_beyond_a_percentile() -> None:
    assert [needed_samples(p) for p in (50.0, 90.0, 95.0, 99.0, 99.9)] == [20, 100, 200, 1000, 10000]


def test_an_interval_holds_the_true_percentile_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for percentile, n in ((50.0, 60), (90.0, 200), (99.0, 1000)):
        ranks = order_interval(n, percentile)
        assert ranks is not None
        drawn = np.sort(random.random((4000, n)), axis=1)
        low, high = drawn[:, ranks[0] - 1], drawn[:, ranks[1] - 1]
        held = np.mean((low <= percentile / 100) & (percentile / 100 <= high))
        assert 0.94 <= held <= 0.985  # discrete ranks hold a little more than 95 %


def test_every_percentile_that_is_given_lies_in_its_interval() -> None:
    for n in (20, 21, 100, 200, 1000, 10_000, 54_321):
        found = summarise(np.random.default_rng(n).lognormal(13, 1, n).astype(np.int64))
        assert found.intervals.keys() == found.percentiles.keys()
        for name, (low, high) in found.intervals.items():
            assert found.min <= low <= found.percentiles[name] <= high <= found.max


def test_a_sample_without_two_such_values_has_no_interval() -> None:
    assert order_interval(5, 50.0) is None
    assert order_interval(6, 50.0) == (1, 6)
    assert order_interval(100, 99.0) is None


def test_spread_and_the_time_of_the_slowest_call() -> None:
    durations = ns(1.0, 1.0, 3.0, 1.0)
    found = summarise(durations, ns(5.0, 6.0, 7.0, 10.0))
    assert found.max_at_s == pytest.approx(0.002)
    assert found.cov == pytest.approx(np.std([1, 1, 3, 1]) / 1.5)
    assert summarise(durations).max_at_s is None


def test_stretches_hold_every_call_once() -> None:
    durations = ns(*range(1, 101))
    starts = np.cumsum(durations) - durations[0]
    found = slices(durations, starts, 7)
    assert sum(each.n for each in found) == 100
    assert [each.at_s for each in found] == sorted(each.at_s for each in found)
    assert (found[0].min, found[-1].max) == (1.0, 100.0)
    assert all(each.min <= each.p50 <= each.max for each in found)
    gap = slices(ns(1.0, 1.0), ns(0.0, 1000.0), 10)
    assert [(each.at_s, each.n) for each in gap] == [(0.0, 1), (0.5, 1)]
    assert len(slices(ns(1.0), ns(0.0), 5)) == 1
