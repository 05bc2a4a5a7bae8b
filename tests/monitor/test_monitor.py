from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from edgekit.monitor.buckets import observations
from edgekit.monitor.edetector import AlarmBudget, Transition
from edgekit.monitor.estimate import estimate_accuracy
from edgekit.monitor.monitor import MAX_EVENTS, ModelMonitor
from edgekit.monitor.reference import Reference, build_reference
from edgekit.monitor.schema import Event

pytestmark = pytest.mark.device


class Clocks:
    """A monotonic clock and a wall clock that move when told."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return 1_000_000.0 + self.now_s


def make(reference: Reference | None, clocks: Clocks | None = None, **changes: Any) -> ModelMonitor:
    clocks = clocks or Clocks()
    words: dict[str, Any] = {
        "model": "digits",
        "version": 3,
        "digest": "d" * 64,
        "artifact": "tflite-int8",
        "runtime": "litert",
        "device": "raspberry-pi-4",
        "task": "classification",
        "reference": reference,
        "clock": clocks.monotonic,
        "wall": clocks.wall,
        "chance": random.Random(1),
    }
    return ModelMonitor(**{**words, **changes})


def rows(*confidences: float, classes: int = 3) -> np.ndarray:
    """Probabilities whose class 1 has the given confidence."""
    rest = (1.0 - np.array(confidences)) / (classes - 1)
    scores = np.repeat(rest[:, None], classes, axis=1)
    scores[:, 1] = confidences
    return scores.astype(np.float32)


def lab() -> Reference:
    """Four bins of 100: .6, .7, .8, .9 confident, right 50, 80, 90 and 100 times."""
    confidence = np.repeat([0.6, 0.7, 0.8, 0.9], 100)
    labels = np.concatenate([np.repeat([1, 0], [right, 100 - right]) for right in (50, 80, 90, 100)])
    order = np.argsort(np.tile(np.arange(100), 4), kind="stable")  # bins would not notice: order is free
    reference = build_reference("classification", {"p": rows(*confidence[order])}, labels[order])
    assert reference.counts == (100,) * 4
    assert reference.hits == (50, 80, 90, 100)
    return reference


def test_a_window_reports_what_was_recorded() -> None:
    clocks = Clocks()
    monitor = make(lab(), clocks)
    monitor.record({"p": rows(0.6)}, 0.25)
    monitor.record({"p": rows(0.9, 0.8, 0.4)}, 0.5)
    monitor.record_error()
    monitor.add_event(Event(7.0, "golden-passed", "8 of 8"))
    clocks.now_s = 110.5
    report = monitor.close_window("boot", 4, temperature_c=61.5, throttled=True, lost_windows=2)
    assert (report.boot, report.seq, report.model, report.version) == ("boot", 4, "digits", 3)
    assert (report.digest, report.artifact) == ("d" * 64, "tflite-int8")
    assert (report.runtime, report.device) == ("litert", "raspberry-pi-4")
    assert (report.start_unix_s, report.duration_s) == (1_000_050.0, 60.5)
    assert (report.n, report.calls, report.errors, report.unsampled, report.nonfinite) == (4, 2, 1, 0, 0)
    assert report.latency.sum_s == 0.75
    assert observations(report.latency) == 2
    assert report.confidence == (1, 1, 0, 1, 1, 0)
    assert report.classes == (0, 4, 0)
    assert (report.temperature_c, report.throttled, report.lost_windows) == (61.5, True, 2)
    assert report.events == (Event(7.0, "golden-passed", "8 of 8"),)
    assert report.accuracy == estimate_accuracy(lab(), (1, 1, 0, 1, 1, 0))
    (state,) = report.detectors
    assert (state.name, state.alarm) == ("accuracy", False)
    assert state.log_threshold == pytest.approx(math.log(315_576_000.0))
    assert state.promise.startswith(
        "at most 1 false alarm(s) expected per device and year, shared by 1 detector"
    )


def test_each_call_is_in_exactly_one_window() -> None:
    clocks = Clocks()
    monitor = make(lab(), clocks)
    monitor.record({"p": rows(0.6)}, 0.25)
    monitor.record_error()
    monitor.fold()
    monitor.record({"p": rows(0.7)}, 0.25)
    first = monitor.close_window("b", 1)
    clocks.now_s += 60.0
    monitor.record({"p": rows(0.8)}, 0.5)
    second = monitor.close_window("b", 2)
    third = monitor.close_window("b", 3)
    assert [r.n for r in (first, second, third)] == [2, 1, 0]
    assert [r.errors for r in (first, second, third)] == [1, 0, 0]
    assert [r.confidence for r in (first, second)] == [(0, 1, 1, 0, 0, 0), (0, 0, 0, 1, 0, 0)]
    assert [r.latency.sum_s for r in (first, second, third)] == [0.5, 0.5, 0.0]
    assert [r.start_unix_s for r in (first, second, third)] == [1_000_050.0, 1_000_050.0, 1_000_110.0]
    assert [r.duration_s for r in (first, second, third)] == [0.0, 60.0, 0.0]
    assert third.accuracy is None
    assert monitor.opened_s == 110.0


def test_totals_are_the_windows_together() -> None:
    monitor = make(lab())
    for confidence in (0.6, 0.7, 0.9):
        monitor.record({"p": rows(*[confidence] * 40)}, 0.125)
        monitor.record_error()
        monitor.close_window("b", 1)
    monitor.record({"p": rows(0.9)}, 0.5)
    totals = monitor.totals()
    assert (totals.n, totals.calls, totals.errors, totals.unsampled, totals.nonfinite) == (121, 4, 3, 0, 0)
    assert totals.confidence == (0, 40, 40, 0, 41, 0)
    assert totals.classes == (0, 121, 0)
    assert totals.latency.sum_s == 0.875
    assert totals.accuracy == estimate_accuracy(lab(), (0, 0, 0, 0, 40, 0))
    assert len(totals.detectors) == 1
    assert monitor.totals() == totals  # looking changes nothing
    monitor.close_window("b", 2)
    monitor.close_window("b", 3)
    assert monitor.totals().accuracy == estimate_accuracy(lab(), (0, 0, 0, 0, 1, 0))
    assert monitor.totals().n == 121


def test_before_the_first_window_closes_the_open_one_is_estimated() -> None:
    monitor = make(lab())
    assert monitor.totals().accuracy is None
    monitor.record({"p": rows(0.6)}, 0.1)
    assert monitor.totals().accuracy == estimate_accuracy(lab(), (0, 1, 0, 0, 0, 0))


def test_outputs_that_are_not_finite_are_counted_apart() -> None:
    monitor = make(lab())
    broken = rows(0.6, 0.7, 0.8)
    broken[0, 2] = np.nan
    broken[2, 0] = np.inf
    monitor.record({"p": broken}, 0.1)
    report = monitor.close_window("b", 1)
    assert (report.n, report.unsampled, report.nonfinite) == (3, 0, 2)
    assert report.confidence == (0, 0, 1, 0, 0, 0)
    assert report.classes == (0, 1, 0)
    assert report.accuracy is not None
    assert "nonfinite-outputs" in report.accuracy.flags
    monitor.record({"p": broken[:1]}, 0.1)
    report = monitor.close_window("b", 2)
    assert (report.n, report.nonfinite, sum(report.classes)) == (1, 1, 0)
    assert monitor.totals().nonfinite == 3


def test_a_full_ring_is_counted_as_unsampled() -> None:
    monitor = make(lab(), capacity=2)
    for _ in range(5):
        monitor.record({"p": rows(0.6)}, 0.25)
    report = monitor.close_window("b", 1)
    assert (report.n, report.calls, report.unsampled) == (5, 5, 3)
    assert report.latency.sum_s == 1.25
    assert sum(report.confidence) == 2
    assert monitor.totals().unsampled == 3


def test_the_kept_scores_take_a_bounded_share_of_memory() -> None:
    monitor = make(None, ring_bytes=100 * 4 * 100)
    monitor.record({"p": np.zeros((200, 100), np.float32)}, 0.1)
    assert monitor.close_window("b", 1).unsampled == 200 - 64


def test_without_a_reference_there_are_classes_but_no_confidence() -> None:
    monitor = make(None)
    monitor.record({"label": np.zeros(1, np.int64), "p": rows(0.6)}, 0.1)
    report = monitor.close_window("b", 1)
    assert report.classes == (0, 1, 0)
    assert (report.confidence, report.accuracy, report.detectors) == ((), None, ())
    assert monitor.totals().classes == (0, 1, 0)
    assert not monitor.has_detector
    monitor.record({"p": rows(0.1)}, 0.1)
    assert monitor.close_window("b", 2).classes == (1, 0, 0)
    assert monitor.totals().classes == (1, 1, 0)


def test_other_tasks_have_latency_and_counts() -> None:
    monitor = make(build_reference("regression", {"y": np.zeros((9, 1))}), task="regression")
    monitor.record({"y": np.zeros((4, 2), np.float32), "z": np.zeros(7)}, 0.1)
    monitor.record({"y": np.zeros((), np.float32)}, 0.1)
    monitor.record({}, 0.1)
    report = monitor.close_window("b", 1)
    assert (report.n, report.calls, report.unsampled) == (5, 3, 0)
    assert (report.confidence, report.classes, report.accuracy, report.detectors) == ((), (), None, ())


def test_outputs_of_another_shape_than_the_references_are_unsampled() -> None:
    monitor = make(lab())
    monitor.record({"p": np.zeros((2, 5), np.float32)}, 0.1)
    monitor.record({"p": np.zeros((2, 3, 1), np.float32)}, 0.1)
    monitor.record({"p": rows(0.6)}, 0.1)
    report = monitor.close_window("b", 1)
    assert (report.n, report.unsampled, sum(report.confidence)) == (5, 4, 1)


def test_a_reference_for_an_output_that_is_not_there_gives_only_latency() -> None:
    monitor = make(lab())
    monitor.record({"q": rows(0.6)}, 0.1)
    assert (monitor.totals().n, sum(monitor.totals().confidence)) == (1, 0)


def test_integer_outputs_have_no_confidence() -> None:
    monitor = make(None)
    monitor.record({"p": np.zeros((1, 3), np.uint8)}, 0.1)
    assert monitor.close_window("b", 1).classes == ()


def test_logits_are_binned_by_their_softmax() -> None:
    logits = np.stack([np.linspace(0.5, 4.0, 100), np.zeros(100)], axis=1).astype(np.float32)
    reference = build_reference("classification", {"z": logits}, np.zeros(100, np.int64))
    monitor = make(reference)
    monitor.record({"z": logits}, 0.1)
    assert monitor.close_window("b", 1).confidence == (0, 25, 25, 25, 25, 0)


def test_binary_probabilities_have_two_classes() -> None:
    scores = np.linspace(0.01, 0.99, 100)[:, None].astype(np.float32)
    monitor = make(build_reference("classification", {"p": scores}, np.zeros(100, np.int64)))
    monitor.record({"p": scores}, 0.1)
    report = monitor.close_window("b", 1)
    assert report.classes == (50, 50)
    assert sum(report.confidence) == 100
    unknown = make(None)
    unknown.record({"p": scores}, 0.1)
    assert unknown.close_window("b", 1).classes == (50, 50)


def feed_seconds(monitor: ModelMonitor, clocks: Clocks, seconds: int, *confidences: float) -> None:
    for _ in range(seconds):
        clocks.now_s += 1.0
        monitor.record({"p": rows(*confidences)}, 0.01)
        monitor.fold()


def test_a_drop_raises_one_alarm_and_its_end_clears_it() -> None:
    clocks = Clocks()
    monitor = make(lab(), clocks)
    usual = (0.9, 0.6, 0.7, 0.8) * 5
    feed_seconds(monitor, clocks, 60, *usual)
    assert monitor.close_window("b", 1).events == ()
    feed_seconds(monitor, clocks, 120, *[0.6] * 20)
    report = monitor.close_window("b", 2)
    (event,) = report.events
    assert (event.kind, event.level) == ("alarm", "critical")
    assert event.text.startswith(
        "digits: the estimated accuracy has dropped below 0.778; this window's estimate"
    )
    assert event.text.endswith("so far is 0.500")
    assert 1_000_110.0 < event.unix_s < 1_000_230.0
    assert report.detectors[0].alarm
    feed_seconds(monitor, clocks, 60, *[0.6] * 20)
    assert monitor.close_window("b", 3).events == ()
    feed_seconds(monitor, clocks, 150, *[0.9] * 20)
    report = monitor.close_window("b", 4)
    (event,) = report.events
    assert (event.kind, event.level) == ("alarm-cleared", "info")
    assert "digits: no sign of an accuracy drop in 10" in event.text
    assert not report.detectors[0].alarm


def test_a_detector_is_fed_at_most_the_promised_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monitor = make(lab(), clocks, budget=AlarmBudget(1.0, 5.0))
    assert monitor._detector is not None
    fed: list[int] = []
    update = monitor._detector.update

    def counting(x: np.ndarray) -> list[Transition]:
        fed.append(x.size)
        return update(x)

    monkeypatch.setattr(monitor._detector, "update", counting)
    feed_seconds(monitor, clocks, 20, *[0.7] * 50)
    assert sum(fed) == 100
    assert math.log(5.0 * 31_557_600.0) == pytest.approx(monitor._detector.log_threshold)


def test_detectors_share_the_devices_false_alarms_and_a_threshold_never_falls() -> None:
    monitor = make(lab())
    assert monitor.has_detector
    monitor.share(4)
    (state,) = monitor.totals().detectors
    assert state.log_threshold == pytest.approx(math.log(4 * 315_576_000.0))
    assert "shared by 4 detector(s)" in state.promise
    monitor.share(2)
    assert monitor.totals().detectors == (state,)
    make(None).share(2)


def test_no_evidence_is_a_number_that_json_can_carry() -> None:
    assert make(lab()).totals().detectors[0].log_e == -10.0


def test_a_reference_in_which_a_drop_cannot_show_has_no_detector() -> None:
    always_right = build_reference(
        "classification", {"p": rows(*np.linspace(0.6, 0.9, 200))}, np.ones(200, np.int64)
    )
    assert not make(always_right).has_detector
    unlabelled = build_reference("classification", {"p": rows(*np.linspace(0.6, 0.9, 200))})
    monitor = make(unlabelled)
    monitor.record({"p": rows(0.7)}, 0.1)
    report = monitor.close_window("b", 1)
    assert (report.detectors, report.accuracy, sum(report.confidence)) == ((), None, 1)


def test_a_window_carries_a_bounded_number_of_events() -> None:
    monitor = make(None)
    for k in range(MAX_EVENTS + 8):
        monitor.add_event(Event(float(k), "golden-passed", ""))
    events = monitor.close_window("b", 1).events
    assert [event.unix_s for event in events] == [float(k) for k in range(8, MAX_EVENTS + 8)]
    assert monitor.close_window("b", 2).events == ()


def test_an_open_window_of_ten_classes_stays_below_8_kib() -> None:
    confidence = np.linspace(0.3, 0.9, 1000)
    monitor = make(
        build_reference("classification", {"p": rows(*confidence, classes=10)}, np.ones(1000, np.int64))
    )
    assert monitor.window_nbytes == 8 * 22 + 8 * 10
    monitor.record({"p": rows(0.5, classes=10)}, 0.001)
    monitor.record({"p": rows(0.5, classes=10)}, 0.0319)
    monitor.fold()
    assert monitor.window_nbytes == 8 * 22 + 8 * 10 + 4 * 160
    monitor.record({"p": rows(0.5, classes=10)}, 1e-12)
    monitor.record({"p": rows(0.5, classes=10)}, 1e12)
    monitor.fold()
    assert monitor.window_nbytes == 8 * 22 + 8 * 10 + 4 * 1152 <= 8 << 10
