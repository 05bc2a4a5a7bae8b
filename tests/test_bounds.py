from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgekit.bounds import Z_95, bootstrap_bounds, needed_samples, tango_bounds, tango_upper

Z_975 = 1.959963984540054

counts = st.integers(0, 40)


def constrained_likelihood(lost: float, gained: float, n: float, drop: float) -> float:
    """Return the share of gained pairs that makes the counts likeliest at a given true drop.

    By ternary search over the multinomial log-likelihood, not by the closed form that the code solves.
    """

    def log_likelihood(q: float) -> float:
        terms = ((lost, q + drop), (gained, q), (n - lost - gained, 1.0 - 2.0 * q - drop))
        if any(p < 0 for _, p in terms) or any(k > 0 and p <= 0 for k, p in terms):
            return -math.inf
        return sum(k * math.log(p) for k, p in terms if k > 0)

    low, high = max(0.0, -drop), (1.0 - drop) / 2.0
    for _ in range(300):
        a, b = low + (high - low) / 3.0, high - (high - low) / 3.0
        if log_likelihood(a) < log_likelihood(b):
            low = a
        else:
            high = b
    return (low + high) / 2.0


def score_at(lost: float, gained: float, n: float, drop: float) -> float:
    q = constrained_likelihood(lost, gained, n, drop)
    return (lost - gained - n * drop) / math.sqrt(n * (2.0 * q + drop - drop * drop))


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high"),
    [
        # Tango 1998, soft contact lenses: 43 pairs right on both, one discordant
        (1, 0, 44, -0.0594, 0.1181),
        # Fagerland, Lydersen and Laake 2014, airway reactivity before and after transplantation
        (1, 7, 21, -0.517, -0.026),
    ],
)
def test_two_sided_95_percent_as_published(lost: int, gained: int, n: int, low: float, high: float) -> None:
    places = 4 if n == 44 else 3
    assert round(tango_upper(lost, gained, n, Z_975), places) == high
    assert round(-tango_upper(gained, lost, n, Z_975), places) == low


def test_two_sided_90_percent_as_r_gives_it() -> None:
    """R's PropCIs::scoreci.mp(25, 28, 618, 0.90), whose estimand is (28 - 25) / 618."""
    low, high = tango_bounds(28, 25, 618)
    assert (round(low, 4), round(high, 4)) == (-0.0148, 0.0247)


def test_no_discordant_pair_has_the_closed_form() -> None:
    for n in (10, 40, 1000):
        low, high = tango_bounds(0, 0, n)
        assert high == pytest.approx(Z_95**2 / (n + Z_95**2), rel=1e-9)
        assert low == -high


def test_all_lost_is_a_drop_of_one_and_all_gained_of_minus_one() -> None:
    assert tango_upper(20, 0, 20) == 1.0
    assert tango_upper(0, 20, 20) < -0.7
    assert tango_bounds(0, 20, 20)[0] == -1.0


@given(counts, counts, st.integers(81, 400))
def test_the_bound_solves_the_score_equation(lost: int, gained: int, n: int) -> None:
    high = tango_upper(lost, gained, n)
    assert score_at(lost, gained, n, high) == pytest.approx(-Z_95, abs=2e-4)


@given(counts, counts, st.integers(81, 400), st.sampled_from([1.0, Z_95, Z_975, 2.5]))
def test_other_levels_solve_their_equation_too(lost: int, gained: int, n: int, z: float) -> None:
    assert score_at(lost, gained, n, tango_upper(lost, gained, n, z)) == pytest.approx(-z, abs=3e-4)


@given(counts, counts, st.integers(80, 400))
def test_bounds_enclose_the_drop_and_mirror(lost: int, gained: int, n: int) -> None:
    low, high = tango_bounds(lost, gained, n)
    drop = (lost - gained) / n
    assert -1.0 <= low < drop < high <= 1.0
    assert tango_bounds(gained, lost, n) == (-high, -low)


@given(counts, counts, st.integers(80, 300), st.integers(2, 20))
def test_more_samples_at_the_same_rates_narrow_the_bounds(lost: int, gained: int, n: int, times: int) -> None:
    low, high = tango_bounds(lost, gained, n)
    narrow_low, narrow_high = tango_bounds(lost * times, gained * times, n * times)
    assert low < narrow_low
    assert narrow_high < high


@given(counts, counts, st.integers(90, 300))
def test_one_more_lost_pair_raises_the_bound(lost: int, gained: int, n: int) -> None:
    assert tango_upper(lost + 1, gained, n) > tango_upper(lost, gained, n)
    assert tango_upper(lost, gained + 1, n) < tango_upper(lost, gained, n) or lost == gained == 0


def test_the_upper_bound_misses_about_one_time_in_twenty() -> None:
    random = np.random.default_rng(7)
    n, lost, gained = 1000, 0.03, 0.02
    draws = random.multinomial(n, [lost, gained, 1 - lost - gained], size=4000)
    missed = np.mean([tango_upper(a, b, n) < lost - gained for a, b, _ in draws])
    assert 0.04 < missed < 0.06


def test_bootstrap_of_a_mean_agrees_with_the_normal_bound() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = bootstrap_bounds(lambda index: float(values[index].mean()), 400)
    half = Z_95 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(3).normal(0.0, 1.0, 50)

    def mean(index: np.ndarray) -> float:
        return float(values[index].mean())

    assert bootstrap_bounds(mean, 50, 1) == bootstrap_bounds(mean, 50, 1)
    assert bootstrap_bounds(mean, 50, 0) == bootstrap_bounds(mean, 50)
    assert bootstrap_bounds(mean, 50, 1) != bootstrap_bounds(mean, 50, 2)


def test_bootstrap_draws_whole_samples_with_replacement_a_thousand_times() -> None:
    seen: list[np.ndarray] = []

    def drop(index: np.ndarray) -> float:
        seen.append(index)
        return float(len(seen))

    low, high = bootstrap_bounds(drop, 30)
    assert len(seen) == 1000
    assert (low, high) == pytest.approx((50.95, 950.05))
    together = np.concatenate(seen)
    assert {len(index) for index in seen} == {30}
    assert (together.min(), together.max()) == (0, 29)
    assert all(len(set(index.tolist())) < 30 for index in seen[:20])


@given(st.integers(1, 500), st.integers(1, 5_000_000))
def test_needed_samples_is_the_least_size_that_decides(n: int, threshold: int) -> None:
    assert needed_samples(lambda size: size >= threshold, n) == max(n, threshold)


def test_needed_samples_gives_up_beyond_ten_million() -> None:
    asked: list[int] = []

    def never(size: int) -> bool:
        asked.append(size)
        return False

    assert needed_samples(never, 100) == 0
    assert max(asked) <= 10_000_000
    assert needed_samples(lambda size: size >= 10_000_000, 10_000_000) == 10_000_000


@given(st.integers(0, 5), st.integers(0, 5), st.integers(20, 200), st.floats(0.2, 5.0))
def test_needed_samples_of_a_bound_is_where_it_first_fits(
    lost: int, gained: int, n: int, budget: float
) -> None:
    rate, back = lost / n, gained / n

    def fits(size: int) -> bool:
        return 100.0 * tango_upper(rate * size, back * size, size) <= budget

    assume(not fits(n))
    needed = needed_samples(fits, n)
    if needed:
        assert fits(needed)
        assert not fits(needed - 1)
    else:
        assert 100.0 * (rate - back) > budget - 0.05
