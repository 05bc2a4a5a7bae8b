from __future__ import annotations

import math
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.monitor.schema import (
    AccuracyEstimate,
    DetectorState,
    Event,
    LatencyHistogram,
    WindowReport,
)
from edgekit.sync import intake
from edgekit.sync.problems import ProblemError
from edgekit.sync.wire import MAX_WINDOWS, Enrolment, Reports, SentWindow
from tests.sync.fleet import BOOT, window

NOW = 1_790_000_000.0
DAY = 86400.0


def _judge(report: bytes, boot: str = BOOT, seq: int = 1, sent: float = NOW) -> intake.Judged:
    return intake.judge(Reports(sent, (SentWindow(boot, seq, msgspec.Raw(report)),)), NOW)


def _changed(**changes: Any) -> bytes:
    fields = msgspec.to_builtins(window(start_unix_s=NOW - 60))
    return msgspec.json.encode({**fields, **changes})


def test_bounds_cover_every_field_of_a_window() -> None:
    pairs: list[tuple[type[msgspec.Struct], type[msgspec.Struct]]] = [
        (intake._Window, WindowReport),
        (intake._Latency, LatencyHistogram),
        (intake._Accuracy, AccuracyEstimate),
        (intake._Detector, DetectorState),
        (intake._Event, Event),
    ]
    for bounded, declared in pairs:
        assert _names(bounded) == _names(declared)


def _names(struct: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(struct)]


def test_good_window_is_kept_as_it_came() -> None:
    report = msgspec.json.encode(window(start_unix_s=NOW - 60))
    judged = _judge(report)
    assert not judged.refused
    (placed,) = judged.windows
    assert (placed.boot, placed.seq, placed.model) == (BOOT, 1, "digits")
    assert (placed.report, placed.clock, placed.at_unix_s) == (report, "device", NOW - 60)
    assert placed.events == (intake.PlacedEvent(NOW - 59, "started", "info", "the daemon started"),)


def test_a_field_of_the_future_in_the_same_schema_does_no_harm() -> None:
    assert _judge(_changed(humidity=0.4)).windows


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n": -1}, "n"),
        ({"n": 2**60}, "n"),
        ({"model": ""}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "a\u0000b"}, "model"),
        ({"runtime": 7}, "runtime"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"duration_s": 1e9}, "duration_s"),
        ({"latency": {"counts": [1] * 4097}}, "latency.counts"),
        ({"latency": {"counts": [-1]}}, "latency.counts"),
        ({"latency": {"counts": [1], "scale": 21}}, "latency.scale"),
        ({"latency": {"counts": [1], "offset": 5000}}, "latency"),
        ({"latency": {"counts": [1], "offset": -5000}}, "latency"),
        ({"confidence": [1] * 257}, "confidence"),
        ({"classes": [1] * 65537}, "classes"),
        ({"accuracy": {"estimate": 1.2, "low": 0.1, "high": 1.0, "n": 1}}, "accuracy.estimate"),
        ({"accuracy": {"estimate": 0.5, "low": 0.6, "high": 0.9, "n": 1}}, "interval"),
        (
            {"detectors": [{"name": "d", "log_e": 0.0, "log_threshold": 1.0, "alarm": False}] * 65},
            "detectors",
        ),
        ({"events": [{"unix_s": 1.0, "kind": "k", "text": "t", "level": "fatal"}]}, "level"),
        ({"events": [{"unix_s": 1.0, "kind": "k", "text": "t" * 1001}]}, "text"),
        ({"events": [{"unix_s": 1.0, "kind": "k", "text": "t"}] * 65}, "events"),
        ({"temperature_c": -300.0}, "temperature_c"),
        ({"schema": "1"}, "schema"),
    ],
)
def test_window_out_of_bounds_is_refused_with_the_reason(changes: dict[str, Any], word: str) -> None:
    judged = _judge(_changed(**changes))
    assert not judged.windows
    (refused,) = judged.refused
    assert (refused.boot, refused.seq, refused.code) == (BOOT, 1, "invalid")
    assert word in refused.detail


@pytest.mark.parametrize(
    "report", [b"[]", b"null", b"3", b'{"schema":1}', b'"x"', b'{"boot":"\xff"}', b'{"boot":"\\ud800"}']
)
def test_what_is_no_window_is_refused(report: bytes) -> None:
    assert [one.code for one in _judge(report).refused] == ["invalid"]


def test_number_beyond_float64_is_refused() -> None:
    report = _changed(start_unix_s=0).replace(b'"start_unix_s":0', b'"start_unix_s":1e999')
    assert b"1e999" in report
    assert [one.code for one in _judge(report).refused] == ["invalid"]


def test_newer_window_is_not_refused_for_good() -> None:
    judged = _judge(_changed(schema=2, n="a field whose meaning has changed"))
    assert [one.code for one in judged.refused] == ["newer-schema"]


def test_window_under_another_windows_key_is_refused() -> None:
    assert "sent as" in _judge(_changed(), seq=2).refused[0].detail
    assert "sent as" in _judge(_changed(), boot="other").refused[0].detail


def test_one_bad_window_takes_no_other_with_it() -> None:
    rows = [(1, _changed(seq=1)), (2, b"{}"), (3, _changed(seq=3))]
    sent = tuple(SentWindow(BOOT, seq, msgspec.Raw(report)) for seq, report in rows)
    judged = intake.judge(Reports(NOW, sent), NOW)
    assert [one.seq for one in judged.windows] == [1, 3]
    assert [one.seq for one in judged.refused] == [2]


_times = st.floats(min_value=-1e11, max_value=1e11)


@given(start=_times, duration=st.floats(0, DAY), sent=_times)
def test_window_is_never_placed_in_the_future_or_beyond_its_age(
    start: float, duration: float, sent: float
) -> None:
    at, clock = intake.place(start, duration, sent, NOW)
    assert NOW - intake.MAX_AGE_S - DAY <= at <= NOW + intake.CLOCK_TOLERANCE_S
    assert clock in ("device", "corrected", "server")


@given(error=st.floats(-3e8, 3e8), age=st.floats(120, 29 * DAY))
def test_wrong_clock_does_not_move_a_window_by_more_than_the_tolerance(error: float, age: float) -> None:
    at, _ = intake.place(NOW - age + error, 60.0, NOW + error, NOW)
    assert abs(at - (NOW - age)) <= intake.CLOCK_TOLERANCE_S


@pytest.mark.parametrize(
    ("start", "sent", "expected", "clock"),
    [
        (NOW - 60, NOW, NOW - 60, "device"),
        (NOW - 29 * DAY, NOW, NOW - 29 * DAY, "device"),
        (NOW + 599, NOW, NOW + 599, "device"),
        (NOW + 601, NOW, NOW - 60, "server"),
        (NOW - 31 * DAY, NOW, NOW - 60, "server"),
        (NOW + 10 * 365 * DAY - 60, NOW + 10 * 365 * DAY, NOW - 60, "corrected"),
        (NOW - 365 * DAY - 3600, NOW - 365 * DAY, NOW - 3600, "corrected"),
        (math.inf, NOW, NOW - 60, "server"),
    ],
)
def test_clock_rules(start: float, sent: float, expected: float, clock: str) -> None:
    at, word = intake.place(start, 60.0, sent, NOW)
    assert at == pytest.approx(expected, abs=1e-3)
    assert word == clock


def test_event_outside_its_window_is_put_at_the_nearer_end() -> None:
    events = [{"unix_s": at, "kind": "k", "text": ""} for at in (NOW - 1e9, NOW - 30, NOW + 1e9)]
    (placed,) = _judge(_changed(events=events)).windows
    assert [event.at_unix_s for event in placed.events] == [NOW - 60, NOW - 30, NOW]


@given(st.binary(max_size=2000))
def test_inflate_undoes_zlib(content: bytes) -> None:
    assert intake.inflate(zlib.compress(content), "deflate") == content
    assert intake.inflate(content, "") == content


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False), (50_000_000, False)])
def test_inflate_stops_at_the_limit(size: int, fits: bool) -> None:
    bomb = zlib.compress(bytes(size))
    if fits:
        assert len(intake.inflate(bomb, "deflate", 1000)) == size
        return
    with pytest.raises(ProblemError) as caught:
        intake.inflate(bomb, "deflate", 1000)
    assert (caught.value.code, caught.value.status) == ("too-large", 413)


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (zlib.compress(b"{}")[:-1], "deflate", "bad-request"),
        (zlib.compress(b"{}") + b"x", "deflate", "bad-request"),
        (b"no zlib", "deflate", "bad-request"),
        (b"", "deflate", "bad-request"),
        (b"{}", "gzip", "encoding"),
        (b"{}", "deflate, deflate", "encoding"),
    ],
)
def test_inflate_refuses(body: bytes, encoding: str, code: str) -> None:
    with pytest.raises(ProblemError) as caught:
        intake.inflate(body, encoding)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "bad-request"),
        (b"{", "bad-request"),
        (b"\xff\xfe", "bad-request"),
        (b"{}", "bad-request"),
        (b'{"sent_unix_s":"now"}', "bad-request"),
        (b'{"sent_unix_s":1,"windows":[{"boot":"b","seq":0,"report":{}}]}', "bad-request"),
        (b'{"sent_unix_s":1,"windows":[{"boot":"../b","seq":1,"report":{}}]}', "bad-request"),
        (b'{"sent_unix_s":1,"queued_windows":-1}', "bad-request"),
        (b'{"sent_unix_s":1,"agent":"\xff"}', "bad-request"),
        (b"[" * 100_000, "bad-request"),
        (b'{"schema":2}', "newer-schema"),
    ],
)
def test_envelope_is_refused(content: bytes, code: str) -> None:
    with pytest.raises(ProblemError) as caught:
        intake.decode_body(content, Reports)
    assert caught.value.code == code


def test_envelope_holds_a_bounded_number_of_windows() -> None:
    def content(windows: int) -> bytes:
        one = SentWindow("b", 1, msgspec.Raw(b"{}"))
        return msgspec.json.encode(Reports(1.0, (one,) * windows))

    assert len(intake.decode_body(content(MAX_WINDOWS), Reports).windows) == MAX_WINDOWS
    with pytest.raises(ProblemError):
        intake.decode_body(content(MAX_WINDOWS + 1), Reports)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_more_than_be_refused(content: bytes) -> None:
    for kind in (Reports, Enrolment):
        with pytest.raises(ProblemError):
            intake.decode_body(content, kind)


@pytest.mark.parametrize("missing", range(4))
def test_each_header_is_needed_and_has_a_shape(missing: int) -> None:
    good = {
        "EdgeKit-Device": "d-abc",
        "EdgeKit-Timestamp": "1790000000000",
        "EdgeKit-Nonce": "0" * 32,
        "EdgeKit-Signature": "A" * 86 + "==",
    }
    assert intake.read_headers(good).timestamp_ms == 1790000000000
    name = list(good)[missing]
    for bad in ({k: v for k, v in good.items() if k != name}, {**good, name: good[name] + "\n"}):
        with pytest.raises(ProblemError, match=name):
            intake.read_headers(bad)
