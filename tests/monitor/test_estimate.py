from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.monitor.estimate import estimate_accuracy
from edgekit.monitor.reference import Reference

pytestmark = pytest.mark.device


def reference(counts: tuple[int, ...] = (50, 100), hits: tuple[int, ...] = (30, 95)) -> Reference:
    edges = tuple(np.linspace(0.5, 1.0, len(counts) + 1).tolist())
    return Reference("classification", sum(counts), "p", "probabilities", 10, edges, counts, hits)


def test_the_estimate_and_its_interval_are_those_of_the_formula() -> None:
    got = estimate_accuracy(reference(), [0, 40, 60, 0])
    # By hand: rates 30/50 and 95/100; variances at (30 + ½) / 51 and (95 + ½) / 101.
    r1, r2 = 30.5 / 51, 95.5 / 101
    v1, v2 = r1 * (1 - r1), r2 * (1 - r2)
    of_the_window = (40 * v1 + 60 * v2) / 100**2
    of_the_reference = 0.4**2 * v1 / 50 + 0.6**2 * v2 / 100
    reach = 1.959963984540054 * math.sqrt(of_the_window + of_the_reference)
    assert got is not None
    assert got.estimate == pytest.approx(0.4 * 0.6 + 0.6 * 0.95, abs=1e-15)
    assert got.low == pytest.approx(0.81 - reach, abs=1e-15)
    assert got.high == pytest.approx(0.81 + reach, abs=1e-15)
    assert reach == pytest.approx(0.092453, abs=1e-6)
    assert (got.n, got.valid, got.flags) == (100, True, ())


def test_an_estimate_on_the_reference_itself_is_its_accuracy() -> None:
    ref = reference((50, 50, 50), (20, 40, 49))
    got = estimate_accuracy(ref, np.array([0, 50, 50, 50, 0]))
    assert got is not None
    assert got.estimate == pytest.approx(109 / 150, abs=1e-15)


def test_a_bin_without_a_miss_is_not_a_certainty() -> None:
    got = estimate_accuracy(reference((100,), (100,)), [0, 1000, 0])
    assert got is not None
    r = 100.5 / 101
    reach = 1.959963984540054 * math.sqrt(r * (1 - r) / 1000 + r * (1 - r) / 100)
    assert got.estimate == 1.0
    assert got.high == 1.0
    assert got.low == pytest.approx(1.0 - reach, abs=1e-15)
    assert got.low < 0.99


def test_an_interval_stays_within_zero_and_one() -> None:
    got = estimate_accuracy(reference((100,), (0,)), [0, 30, 0])
    assert got is not None
    assert (got.estimate, got.low) == (0.0, 0.0)
    assert 0.0 < got.high < 0.1


def test_what_the_reference_never_saw_widens_the_interval_by_all_it_could_be() -> None:
    inside = estimate_accuracy(reference(), [0, 40, 60, 0])
    got = estimate_accuracy(reference(), [3, 40, 60, 1])
    assert inside is not None
    assert got is not None
    n = 104
    assert got.n == n
    assert got.estimate == pytest.approx((43 * 0.6 + 61 * 0.95) / n, abs=1e-15)
    reach = (inside.high - inside.low) / 2 * 100 / n  # the supported part of SE², of 104 instead of 100
    assert got.low == pytest.approx(got.estimate - reach - (3 * 0.6 + 0.95) / n, abs=1e-12)
    assert got.high == pytest.approx(got.estimate + reach + (3 * 0.4 + 0.05) / n, abs=1e-12)
    assert got.valid


@pytest.mark.parametrize(
    ("counts", "flags"),
    [
        ([0, 30, 0, 0], ()),
        ([0, 29, 0, 0], ("few-samples",)),
        ([5, 95, 0, 0], ()),
        ([0, 95, 0, 5], ()),
        ([6, 94, 0, 0], ("confidence-outside-reference",)),
        ([3, 94, 0, 3], ("confidence-outside-reference",)),
        ([6, 6, 6, 6], ("few-samples", "confidence-outside-reference")),
    ],
)
def test_flags_say_why_an_estimate_is_not_to_be_believed(counts: list[int], flags: tuple[str, ...]) -> None:
    got = estimate_accuracy(reference(), counts)
    assert got is not None
    assert got.flags == flags
    assert got.valid == (not flags)


def test_a_small_reference_carries_no_estimate() -> None:
    for seen, flags in ((100, ()), (99, ("small-reference",))):
        got = estimate_accuracy(reference((seen,), (90,)), [0, 50, 0])
        assert got is not None
        assert got.flags == flags


def test_outputs_that_are_not_finite_withdraw_the_estimate() -> None:
    for broken, flags in ((1, ()), (2, ("nonfinite-outputs",))):
        got = estimate_accuracy(reference(), [0, 99, 0, 0], nonfinite=broken)
        assert got is not None
        assert (got.flags, got.n) == (flags, 99)


def test_nothing_is_estimated_from_nothing() -> None:
    assert estimate_accuracy(reference(), [0, 0, 0, 0]) is None
    assert estimate_accuracy(reference(hits=()), [0, 40, 60, 0]) is None
    assert estimate_accuracy(Reference("regression", 5), []) is None


def test_the_interval_covers_the_accuracy_of_shifted_windows() -> None:
    """200 references and windows, drawn anew, with hard inputs eight times as common as in the reference."""
    rng = np.random.default_rng(11)
    truth = np.linspace(0.55, 0.995, 10)
    shifted = np.linspace(8.0, 1.0, 10)
    shifted /= shifted.sum()
    covered = 0
    for _ in range(200):
        hits = tuple(rng.binomial(100, truth).tolist())
        window = rng.multinomial(400, shifted)
        accuracy = rng.binomial(window, truth).sum() / 400
        got = estimate_accuracy(reference((100,) * 10, hits), [0, *window, 0])
        assert got is not None
        covered += got.low <= accuracy <= got.high
    assert 0.93 <= covered / 200 <= 0.99
