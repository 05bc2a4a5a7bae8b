from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.calibration import METHODS, Histogram, choose_range, expected_error, observe
from edgekit.errors import ConversionError, UsageError

FINITE = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
VALUES = arrays(np.float32, st.integers(1, 60), elements=FINITE)


def histogram(*parts: np.ndarray) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def state(made: Histogram) -> tuple[object, ...]:
    edges, counts = made.table()
    return made.n, made.zeros, made.low, made.high, edges.tolist(), counts.tolist()


@given(VALUES, st.integers(0, 60))
def test_parts_merge_into_the_histogram_of_the_whole(values: np.ndarray, cut: int) -> None:
    whole = histogram(values)
    merged = histogram(values[:cut])
    merged.merge(histogram(values[cut:]))
    assert state(merged) == state(whole)
    assert state(histogram(values[:cut], values[cut:])) == state(whole)


@given(VALUES, st.randoms())
def test_the_order_of_values_does_not_matter(values: np.ndarray, random: object) -> None:
    order = list(values)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert state(histogram(*(np.array([v]) for v in order))) == state(histogram(values))


@given(VALUES)
def test_every_value_is_counted_once_in_the_bin_it_lies_in(values: np.ndarray) -> None:
    made = histogram(values)
    edges, counts = made.table()
    assert (made.n, made.low, made.high) == (len(values), float(values.min()), float(values.max()))
    assert made.zeros == int((values == 0).sum())
    assert counts.sum() == made.n
    assert 1 <= len(counts) <= 2048
    where = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    assert np.array_equal(np.bincount(where, minlength=len(counts)), counts)


@given(VALUES.filter(lambda v: float(v.max() - v.min()) > 1e-3 * float(np.abs(v).max())))
def test_bins_are_as_narrow_as_their_number_allows(values: np.ndarray) -> None:
    assert len(histogram(values).table()[1]) >= 1024


@given(VALUES, st.sampled_from(sorted(METHODS)), st.sampled_from([8, 16]), st.booleans())
def test_ranges_hold_zero_and_nothing_that_was_not_seen(
    values: np.ndarray, method: str, bits: int, symmetric: bool
) -> None:
    low, high = choose_range(histogram(values), method, bits=bits, symmetric=symmetric)
    assert low <= 0.0 <= high
    most = float(np.abs(values).max())
    assert max(-low, high) <= most
    if symmetric:
        assert -low == high
    else:
        assert low >= min(0.0, float(values.min()))
        assert high <= max(0.0, float(values.max()))


@given(VALUES, st.sampled_from([4, 8]), st.booleans())
def test_the_least_error_is_never_more_than_the_extremes(
    values: np.ndarray, bits: int, symmetric: bool
) -> None:
    made = histogram(values)
    errors = []
    for method in ("mse", "minmax"):
        low, high = choose_range(made, method, bits=bits, symmetric=symmetric)
        errors.append(
            expected_error(made, np.array([low]), np.array([high]), bits=bits, symmetric=symmetric).item()
        )
    assert errors[0] <= errors[1]


def quantize(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    step = (high - low) / (2**bits - 1)
    made: np.ndarray = np.clip(np.round((values - low) / step), 0, 2**bits - 1) * step + low
    return made


@pytest.mark.parametrize("bits", [4, 8])
def test_the_expected_error_is_what_a_quantizer_makes(bits: int) -> None:
    values = np.random.default_rng(1).standard_normal(100_000)
    made = histogram(values)
    for low, high in ((-4.5, 4.4), (-2.0, 2.0), (-1.0, 3.0)):
        told = expected_error(made, np.array([low]), np.array([high]), bits=bits).item()
        seen = float(((quantize(values, low, high, bits) - values) ** 2).sum())
        assert told == pytest.approx(seen, rel=0.05)


def test_the_least_error_of_a_bell_of_four_bits_is_the_known_one() -> None:
    """The best uniform quantizer of 16 levels for a Gaussian ends near 2.6 standard deviations (Max 1960)."""
    made = histogram(np.random.default_rng(2).standard_normal(1_000_000))
    low, high = choose_range(made, "mse", bits=4)
    assert 2.3 < high < 3.0
    assert -3.0 < low < -2.3


def test_a_single_outlier_is_clipped_by_the_percentile_and_kept_by_the_extremes() -> None:
    values = np.random.default_rng(3).uniform(-1, 1, 100_000).astype(np.float32)
    values[17] = 500.0
    made = histogram(values)
    assert choose_range(made, "minmax")[1] == 500.0
    assert choose_range(made, "percentile")[1] < 2.0
    assert choose_range(made, "percentile", symmetric=True)[0] == -choose_range(made, "percentile")[1]


def test_a_channel_of_outliers_is_worth_more_than_the_small_values() -> None:
    """One value in fifty is large: clipping them all would lose more than coarse steps do."""
    values = np.random.default_rng(4).standard_normal(50_000).astype(np.float32)
    values[::50] *= 60.0
    low, high = choose_range(histogram(values), "mse")
    assert high > 60.0
    assert low < -60.0


def test_after_relu_the_lower_end_stays_zero() -> None:
    values = np.maximum(np.random.default_rng(5).standard_normal(10_000), 0).astype(np.float32)
    for method in METHODS:
        assert choose_range(histogram(values), method)[0] == 0.0


def test_a_constant_and_nothing_at_all() -> None:
    constant = histogram(np.full(10, 3.0, np.float32))
    for method in METHODS:
        low, high = choose_range(constant, method)
        assert (low, high) == (0.0, 3.0)
        assert choose_range(histogram(np.zeros(4, np.float32)), method) == (0.0, 0.0)
        assert choose_range(Histogram(), method) == (0.0, 0.0)
    empty = histogram(np.zeros((0, 3), np.float32))
    assert (empty.n, empty.low) == (0, math.inf)


def test_integers_and_half_floats_are_counted_too() -> None:
    assert histogram(np.array([1, -7, 0], np.int64)).low == -7.0
    assert histogram(np.array([0.5, 65504], np.float16)).high == 65504.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told_with_its_tensor(bad: float) -> None:
    with pytest.raises(ConversionError, match="tensor 'logits' is not finite on a calibration sample"):
        observe([{"logits": np.ones(3, np.float32)}, {"logits": np.array([1.0, bad], np.float32)}])


def test_observing_many_runs_is_observing_all_their_values() -> None:
    random = np.random.default_rng(6)
    runs = [{"a": random.standard_normal((2, 3)), "b": random.random(5)} for _ in range(20)]
    found = observe(iter(runs))
    for name in ("a", "b"):
        assert state(found[name]) == state(histogram(np.concatenate([run[name].ravel() for run in runs])))


def test_memory_is_one_histogram_however_many_values() -> None:
    made = Histogram()
    random = np.random.default_rng(7)
    for i in range(300):
        made.add(random.standard_normal(1000) * 1.1**i)
        assert len(made.table()[1]) <= 2048


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown calibration 'magic'.*minmax, percentile, mse"):
        choose_range(histogram(np.ones(1)), "magic")
