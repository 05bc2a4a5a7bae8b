from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.monitor.monitor import ModelMonitor
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import HEALTH_S, Recorder
from edgekit.monitor.reference import build_reference
from edgekit.monitor.schema import WindowReport

pytestmark = pytest.mark.device


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_monitor(clock: Clock, name: str = "digits", *, labelled: bool = False) -> ModelMonitor:
    reference = None
    if labelled:
        confidence = np.linspace(0.6, 0.9, 200)
        labels = (np.arange(200) < 30).astype(np.int64)
        scores = np.stack([confidence, 1 - confidence], axis=1)
        reference = build_reference("classification", {"p": scores}, labels)
    return ModelMonitor(
        model=name,
        version=2,
        digest="d",
        artifact="onnx-fp32",
        runtime="null",
        device="x86-64",
        task="classification" if labelled else "regression",
        reference=reference,
        clock=clock,
        wall=clock,
    )


def make(tmp_path: Path, clock: Clock, window_s: float = 60.0) -> tuple[Outbox, Recorder]:
    outbox = Outbox(tmp_path / "outbox.sqlite", boot="b")
    return outbox, Recorder(outbox, window_s, root=tmp_path, clock=clock, wall=clock)


def stored(outbox: Outbox) -> list[WindowReport]:
    rows = outbox.read(limit_windows=1000)
    reports = [msgspec.json.decode(body, type=WindowReport) for _, _, body in rows]
    assert [(r.boot, r.seq) for r in reports] == [(boot, seq) for boot, seq, _ in rows]
    return reports


def use(monitor: ModelMonitor, n: int = 1) -> None:
    monitor.record({"y": np.zeros((n, 1), np.float32)}, 0.01)


def test_windows_close_on_time_and_together(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        first, second = make_monitor(clock, "a"), make_monitor(clock, "b")
        recorder.watch(first)
        recorder.watch(second)
        use(first)
        use(second, 5)
        clock.now_s = 1059.999
        recorder.tick(clock.now_s)
        assert outbox.depth()[0] == 0
        clock.now_s = 1060.0
        recorder.tick(clock.now_s)
        use(first, 3)
        clock.now_s = 1120.0
        recorder.tick(clock.now_s)
        reports = stored(outbox)
    assert [(r.seq, r.model, r.n) for r in reports] == [(1, "a", 1), (2, "b", 5), (3, "a", 3), (4, "b", 0)]
    assert [r.start_unix_s for r in reports] == [1000.0, 1000.0, 1060.0, 1060.0]
    assert [r.duration_s for r in reports] == [60.0] * 4
    assert [e.kind for e in reports[0].events] == ["started"]
    assert reports[0].events[0].text == "a 2 runs as onnx-fp32 in null"
    assert reports[0].events[0].unix_s == 1000.0
    assert reports[2].events == ()


def test_a_tick_between_folds_the_rings(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        monitor = make_monitor(clock)
        recorder.watch(monitor)
        use(monitor)
        assert monitor._window.n == 0
        recorder.tick(1000.25)
        assert monitor._window.n == 1


def test_a_recorder_that_was_held_up_closes_one_long_window(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        recorder.watch(make_monitor(clock))
        for now in (1185.0, 1185.25, 1239.0, 1240.0):
            clock.now_s = now
            recorder.tick(now)
        assert [r.duration_s for r in stored(outbox)] == [185.0, 55.0]


def test_the_last_window_is_stored_on_stop(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    monitor = make_monitor(clock)
    recorder.watch(monitor)
    use(monitor, 4)
    clock.now_s = 1007.0
    recorder.stop()
    recorder.stop()
    ((report,), depth) = stored(outbox), outbox.depth()
    assert (report.n, report.duration_s, depth[0]) == (4, 7.0, 1)
    outbox.close()
    with Outbox(tmp_path / "outbox.sqlite") as again:
        assert again.lost() == 0


def test_a_monitor_that_comes_after_the_end_opens_no_window(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    recorder.stop()
    outbox.close()
    recorder.watch(make_monitor(clock))
    assert outbox._open_windows == 0
    outbox._disconnect()
    with sqlite3.connect(tmp_path / "outbox.sqlite") as db:
        assert db.execute("SELECT * FROM writers").fetchall() == []  # the next start counts nothing as lost
    db.close()


def test_a_monitor_that_is_let_go_reports_what_it_has(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        first, second = make_monitor(clock, "a"), make_monitor(clock, "b")
        recorder.watch(first)
        recorder.watch(second)
        use(first, 2)
        recorder.unwatch(first)
        recorder.unwatch(first)
        assert [(r.model, r.n) for r in stored(outbox)] == [("a", 2)]
        assert outbox._open_windows == 1
        recorder.stop()
        assert [r.model for r in stored(outbox)] == ["a", "b"]


def test_a_crash_counts_the_windows_that_were_open(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    recorder.watch(make_monitor(clock, "a"))
    recorder.watch(make_monitor(clock, "b"))
    outbox._db.execute("UPDATE writers SET process = '1 2 3'")  # type: ignore[union-attr]  # as if another's
    outbox._disconnect()
    after = Outbox(tmp_path / "outbox.sqlite", boot="c", wall=clock)
    restarted = Recorder(after, 60.0, root=tmp_path, clock=clock, wall=clock)
    restarted.watch(make_monitor(clock))
    restarted.stop()
    (report,) = stored(after)
    after.close()
    assert report.lost_windows == 2
    assert [e.kind for e in report.events] == ["started", "lost"]
    assert report.events[1].text.startswith("2 open window(s) were lost")
    assert report.events[1].level == "warning"


def test_detectors_share_the_promise(tmp_path: Path) -> None:
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        first, plain, second = (
            make_monitor(clock, "a", labelled=True),
            make_monitor(clock, "p"),
            make_monitor(clock, "b", labelled=True),
        )
        recorder.watch(first)
        recorder.watch(plain)
        assert "shared by 1 detector" in first.totals().detectors[0].promise
        recorder.watch(second)
        for monitor in (first, second):
            assert "shared by 2 detector" in monitor.totals().detectors[0].promise
        recorder.stop()


def test_a_window_has_the_worst_of_the_devices_health(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    firmware = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    for path, text in ((zone, "50000"), (firmware, "0")):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    clock = Clock()
    outbox, recorder = make(tmp_path, clock)
    with outbox:
        recorder.watch(make_monitor(clock))
        recorder.tick(1000.0)
        zone.write_text("81500", encoding="utf-8")
        firmware.write_text("4", encoding="utf-8")
        recorder.tick(1000.0 + HEALTH_S - 0.01)  # not yet time to look again
        zone.write_text("79000", encoding="utf-8")
        recorder.tick(1000.0 + HEALTH_S)
        zone.write_text("40000", encoding="utf-8")
        firmware.write_text("0", encoding="utf-8")
        recorder.tick(1000.0 + 2 * HEALTH_S)
        clock.now_s = 1060.0
        recorder.tick(1060.0)
        clock.now_s = 1120.0
        recorder.tick(1120.0)
        first, second = stored(outbox)
    assert (first.temperature_c, first.throttled) == (79.0, True)
    assert (second.temperature_c, second.throttled) == (40.0, False)


def test_the_thread_records_by_itself(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite") as outbox:
        recorder = Recorder(outbox, 0.05, root=tmp_path)
        clock = Clock()
        monitor = make_monitor(clock)
        recorder.watch(monitor)
        recorder.start()
        use(monitor, 3)
        deadline = time.monotonic() + 30.0
        while outbox.depth()[0] < 3 and time.monotonic() < deadline:
            use(monitor)
            time.sleep(0.01)
        recorder.stop()
        assert not [t for t in threading.enumerate() if t.name == "edgekit-recorder"]
        reports = stored(outbox)
    assert len(reports) >= 3
    assert sum(r.n for r in reports) == monitor.totals().n
    assert [r.seq for r in reports] == list(range(1, len(reports) + 1))


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_window_has_a_length(tmp_path: Path, window_s: float) -> None:
    with (
        Outbox(tmp_path / "outbox.sqlite") as outbox,
        pytest.raises(UsageError, match="a window has a length"),
    ):
        Recorder(outbox, window_s)
