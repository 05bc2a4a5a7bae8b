from __future__ import annotations

import math
import random

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.monitor.edetector import (
    BETS,
    AlarmBudget,
    EDetector,
    Thinner,
    Transition,
    log_threshold,
    null_mean,
    promise,
)
from edgekit.monitor.reference import Reference

pytestmark = pytest.mark.device


def reference(counts: tuple[int, ...], hits: tuple[int, ...]) -> Reference:
    edges = tuple(np.linspace(0.5, 1.0, len(counts) + 1).tolist())
    return Reference("classification", sum(counts), "p", "probabilities", 10, edges, counts, hits)


class OneAtATime:
    """The detector as its definition reads, without logarithms and without batches."""

    def __init__(self, mean: float, threshold: float) -> None:
        self.mean, self.threshold = mean, threshold
        self.bets = [min(bet, 0.99 / (1.0 - mean)) for bet in BETS]
        self.m = [0.0] * len(BETS)
        self.alarm = False
        self.climb = self.quiet = self.crossings = 0
        self.needed = 1000

    def feed(self, x: float) -> Transition | None:
        self.m = [(1.0 + m) * (1.0 + bet * (self.mean - x)) for m, bet in zip(self.m, self.bets, strict=True)]
        evidence = sum(self.m) / len(self.m)
        hot = evidence >= math.sqrt(self.threshold)
        self.climb = self.climb + 1 if hot else 0
        self.quiet = 0 if hot else self.quiet + 1
        if evidence >= self.threshold:
            return self.reached()
        if self.alarm and self.quiet >= self.needed:
            self.alarm = False
            return Transition("cleared", self.quiet)
        return None

    def reached(self) -> Transition | None:
        self.crossings += 1
        climb, self.climb, self.m = self.climb, 0, [0.0] * len(BETS)
        if self.alarm:
            return None
        self.alarm, self.needed = True, max(1000, 4 * climb)
        return Transition("alarm", climb)


def stream(seed: int, pieces: list[tuple[int, float]]) -> np.ndarray:
    """Draw hit rates of 20 bins, whose mean is about 0.95 less the given drop."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.clip(rng.normal(0.95 - drop, 0.06, n), 0.0, 1.0) for n, drop in pieces])


@pytest.mark.parametrize("batch", [1, 7, 250, 9000])
@pytest.mark.parametrize(
    ("seed", "drop", "threshold"), [(1, 0.05, 1e6), (2, 0.3, 1e7), (3, 0.03, 1e6), (4, 0.9, 3e8)]
)
def test_batches_do_what_the_definition_does_one_at_a_time(
    batch: int, seed: int, drop: float, threshold: float
) -> None:
    x = stream(seed, [(1500, 0.0), (800, drop), (6000, -0.01), (400, drop)])
    slow = OneAtATime(0.94, threshold)
    expected = [event for value in x if (event := slow.feed(float(value)))]
    fast = EDetector(0.94, math.log(threshold))
    got = [event for i in range(0, x.size, batch) for event in fast.update(x[i : i + batch])]
    assert got == expected
    assert [event.kind for event in got][:3] == ["alarm", "cleared", "alarm"]
    assert fast.crossings == slow.crossings
    assert fast.alarm == slow.alarm
    assert fast.log_e == pytest.approx(math.log(sum(slow.m) / len(BETS)), abs=1e-9)


def test_one_sample_by_hand() -> None:
    detector = EDetector(0.9, 20.0)
    assert detector.log_e == -math.inf
    assert detector.update(np.array([0.5])) == []
    # Each M is 1 + 0.4 λ, and Σ λ = 7.85.
    assert math.exp(detector.log_e) == pytest.approx(1.0 + 0.4 * 7.85 / 6.0, rel=1e-12)
    detector.update(np.array([1.0]))
    second = [(2.0 + 0.4 * bet) * (1.0 - 0.1 * bet) for bet in BETS]
    assert math.exp(detector.log_e) == pytest.approx(sum(second) / 6.0, rel=1e-12)


def test_no_sample_takes_all_evidence_away() -> None:
    detector = EDetector(0.5, 20.0)
    assert detector._bets.tolist() == [0.1, 0.25, 0.5, 1.0, 1.98, 1.98]
    detector.update(np.ones(2000))
    assert -10.0 < detector.log_e < 2.0
    sure = EDetector(1.0, 20.0)
    assert sure._bets.tolist() == list(BETS)
    sure.update(np.ones(100))
    assert math.exp(sure.log_e) == pytest.approx(100.0, rel=1e-9)


def test_the_evidence_that_reaches_the_threshold_raises_the_alarm() -> None:
    one_sample = math.log(1.0 + 0.4 * 7.85 / 6.0)
    at = EDetector(0.9, one_sample - 1e-12)
    assert at.update(np.array([0.5])) == [Transition("alarm", 1)]
    assert at.alarm
    assert at.crossings == 1
    assert at.log_e == -math.inf
    below = EDetector(0.9, one_sample + 1e-12)
    assert below.update(np.array([0.5])) == []
    assert not below.alarm
    assert below.crossings == 0


def test_an_alarm_is_raised_once_and_cleared_after_a_quiet_time() -> None:
    detector = EDetector(0.9, math.log(1e6))
    assert [t.kind for t in detector.update(np.full(500, 0.2))] == ["alarm"]
    assert detector.crossings > 5
    assert detector.update(np.full(999, 1.0)) == []
    assert [t.kind for t in detector.update(np.full(20, 1.0))] == ["cleared"]
    assert not detector.alarm
    assert [t.kind for t in detector.update(np.full(500, 0.2))] == ["alarm"]
    assert detector.update(np.full(500, 0.2)) == []


def test_an_alarm_that_climbed_slowly_is_quiet_for_longer_before_it_clears() -> None:
    detector = EDetector(0.9, math.log(1e8))
    x = np.full(1000, 0.895)
    (alarm,) = [t for i in range(0, 1000, 100) for t in detector.update(x[i : i + 100])]
    assert alarm.samples > 400
    events: list[Transition] = []
    while not events:
        events = detector.update(np.ones(1))
    assert events == [Transition("cleared", 4 * alarm.samples)]


def test_nothing_overflows() -> None:
    detector = EDetector(0.99, 1e9)
    for _ in range(40):
        detector.update(np.zeros(5000))
    # The largest bet takes over: ln M ≈ n ln(1 + 4 · 0.99) − ln 6.
    assert detector.log_e == pytest.approx(200_000 * math.log(4.96), rel=1e-4)
    assert math.isfinite(detector.log_e)


def test_nothing_fed_changes_nothing() -> None:
    detector = EDetector(0.9, 20.0)
    assert detector.update(np.zeros(0)) == []
    assert detector.log_e == -math.inf


def test_the_threshold_follows_from_the_promise() -> None:
    assert log_threshold(AlarmBudget()) == pytest.approx(math.log(315_576_000.0), abs=1e-12)
    assert log_threshold(AlarmBudget(), 3) == pytest.approx(math.log(946_728_000.0), abs=1e-12)
    assert log_threshold(AlarmBudget(4.0, 2.0)) == pytest.approx(math.log(15_778_800.0), abs=1e-12)


@pytest.mark.parametrize(
    ("alarms", "rate", "words"),
    [
        (0.0, 10.0, "false_alarms_per_device_year is out of range: got 0.0, expected above 0"),
        (-1.0, 10.0, "false_alarms_per_device_year"),
        (math.inf, 10.0, "false_alarms_per_device_year"),
        (math.nan, 10.0, "false_alarms_per_device_year"),
        (1.0, 0.0, "samples_per_s"),
    ],
)
def test_a_promise_nobody_can_keep_is_refused(alarms: float, rate: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AlarmBudget(alarms, rate)


def test_the_null_mean_is_a_lower_bound_of_the_references() -> None:
    # Rates .6 and 1 on 50 and 150 samples: mean .9, Σ (r − .9)² = 50 · .09 + 150 · .01 = 6.
    expected = 0.9 - 2.3263478740408408 * math.sqrt(6.0 / 199.0 / 200.0)
    assert null_mean(reference((50, 150), (30, 150))) == pytest.approx(expected, abs=1e-15)
    assert null_mean(reference((40, 40), (40, 40))) == 1.0
    assert null_mean(reference((2, 2), (0, 1))) == 0.0
    assert null_mean(reference((1,), (1,))) == 0.0


def test_the_promise_names_its_conditions() -> None:
    words = promise(reference((50, 150), (30, 150)), AlarmBudget(0.5, 4.0), 2, 0.87154)
    assert words == (
        "at most 0.5 false alarm(s) expected per device and year, shared by 2 detector(s) fed at most 4 samples/s "
        "each; holds while, without a real drop, P(correct) given the past averages at least 0.8715 (99 % lower "
        "bound from 200 reference samples): inputs that come in runs, as video frames do, and a site or an "
        "hour whose normal inputs are harder than the reference break it"
    )


def test_the_thinner_lets_a_rate_through() -> None:
    thinner = Thinner(10.0, 100.0, random.Random(1))
    assert thinner.take(50, 100.0).tolist() == []
    assert thinner.take(50, 100.25).size == 2
    assert thinner.take(50, 100.5).size == 3  # half a sample was saved
    assert thinner.take(1, 101.5).tolist() == [0]
    assert thinner.take(0, 101.5).tolist() == []
    assert thinner.take(9, 101.5).tolist() == list(range(9))
    assert thinner.take(9, 101.5).tolist() == []


def test_the_thinner_saves_ten_seconds_at_most() -> None:
    chance = random.Random(1)
    assert Thinner(10.0, 0.0, chance).take(5000, 1e6).size == 100
    assert Thinner(0.01, 0.0, chance).take(5000, 1e6).size == 1  # a slow rate still gets a whole sample
    assert Thinner(10.0, 0.0, chance).take(5000, 9.0).size == 90


def test_the_thinner_takes_every_place_as_often_and_in_order() -> None:
    thinner = Thinner(10.0, 0.0, random.Random(2))
    drawn = [thinner.take(20, float(second)) for second in range(1, 2001)]
    assert all((np.diff(places) > 0).all() for places in drawn)
    often = np.bincount(np.concatenate(drawn), minlength=20)
    assert often.size == 20
    assert 850 < often.min() <= often.max() < 1150


def test_a_year_of_thinning_keeps_the_rate() -> None:
    thinner = Thinner(10.0, 0.0, random.Random(3))
    rng = np.random.default_rng(5)
    now, fed = 0.0, 0
    for _ in range(4000):
        now += float(rng.exponential(0.3))
        fed += thinner.take(int(rng.integers(0, 40)), now).size
    assert fed <= 10.0 * now
    assert fed >= 9.0 * now


RATES = np.linspace(0.7, 1.0, 20)


def null_crossings(seed: int, threshold: float, samples: int, streams: int) -> int:
    """Count the alarms of streams on which nothing is wrong, the null mean being exactly theirs."""
    rng = np.random.default_rng(seed)
    crossings = 0
    for _ in range(streams):
        detector = EDetector(float(RATES.mean()), math.log(threshold))
        for _ in range(samples // 500):
            detector.update(RATES[rng.integers(0, 20, 500)])
        crossings += detector.crossings
    return crossings


@pytest.mark.parametrize(("threshold", "least"), [(100.0, 3600), (1000.0, 300)])
def test_false_alarms_keep_the_promise(threshold: float, least: int) -> None:
    got = null_crossings(2, threshold, 100_000, 4)
    assert least <= got <= 400_000 / threshold  # and the promise is not kept by never alarming


def test_inputs_in_runs_break_the_promise_as_its_text_says() -> None:
    """Runs of ten equal inputs: after the first of a hard run, the mean given the past is not the null's."""
    rng = np.random.default_rng(4)
    detector = EDetector(float(RATES.mean()), math.log(3000.0))
    for _ in range(20):
        detector.update(np.repeat(RATES[rng.integers(0, 20, 500)], 10))
    assert detector.crossings > 100_000 / 3000.0


def test_a_redrawn_reference_keeps_the_promise_on_nearly_every_stream() -> None:
    kept = sum(redrawn_crossings(seed, 3000.0, 30_000) <= 10 for seed in range(40))
    assert kept >= 38


def redrawn_crossings(seed: int, threshold: float, samples: int) -> int:
    """Count the false alarms where the null mean is the bound from 1,000 samples drawn anew."""
    rng = np.random.default_rng(seed)
    truth = np.array([0.6, 0.8, 0.9, 0.95] + [0.97] * 4 + [0.99] * 4 + [1.0] * 8)
    hits = rng.binomial(50, truth)
    detector = EDetector(null_mean(reference((50,) * 20, tuple(hits.tolist()))), math.log(threshold))
    mass = rng.dirichlet(
        np.full(20, 50.0)
    )  # what the world puts into bins that hold 50 of the reference each
    for _ in range(samples // 500):
        detector.update((hits / 50)[rng.choice(20, 500, p=mass)])
    return detector.crossings


@pytest.mark.parametrize(("drop_pp", "most"), [(20.0, 80), (5.0, 600), (2.0, 2500)])
def test_a_real_drop_is_found_in_time(drop_pp: float, most: int) -> None:
    """At the default promise: one false alarm a device-year at ten samples a second."""
    rng = np.random.default_rng(9)
    rates = np.array([0.6] + [0.9] * 3 + [0.99] * 16)
    mean = float(rates.mean())
    moved = drop_pp / 100.0 / (mean - 0.6)  # this share of the inputs turns hard
    detector = EDetector(mean - 0.005, log_threshold(AlarmBudget()))
    assert detector.update(rates[rng.integers(0, 20, 5000)]) == []
    x = np.where(rng.random(5000) < moved, 0.6, rates[rng.integers(0, 20, 5000)])
    delay = next(i for i in range(5000) if detector.update(x[i : i + 1]))
    assert delay < most


@pytest.mark.soak
@pytest.mark.parametrize("threshold", [1e3, 1e4, 1e5])
def test_false_alarms_keep_the_promise_for_long(threshold: float) -> None:
    assert null_crossings(6, threshold, 1_000_000, 10) <= 10_000_000 / threshold


@pytest.mark.soak
def test_redrawn_references_keep_the_promise_for_long() -> None:
    kept = sum(redrawn_crossings(seed, 3e4, 300_000) <= 10 for seed in range(200))
    assert kept >= 196
