"""The recorder: one thread that folds the rings, closes the windows on time and puts them into the outbox."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.monitor.health import DeviceHealth, read_health
from edgekit.monitor.monitor import ModelMonitor
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.schema import Event, WindowReport

__all__ = ["FOLD_S", "HEALTH_S", "Recorder"]

#: Seconds between folds, and between looks at the device's health.
FOLD_S, HEALTH_S = 0.25, 5.0


class Recorder:
    """Watch the monitors of a process.

    All windows close together, on the monotonic clock, and are stored in one commit.

    Args:
        outbox: Where closed windows go; closed by its owner, after `stop`.
        window_s: Length of a window.
        root: Where the device's files are; another than `/` in tests.
        clock: Monotonic, in seconds.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        window_s: float = 60.0,
        *,
        root: str | Path = "/",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not 0.0 < window_s < float("inf"):
            raise UsageError("a window has a length", got=window_s, expected="seconds above 0")
        self.window_s = window_s
        self._outbox, self._root, self._clock, self._wall = outbox, root, clock, wall
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._monitors: list[ModelMonitor] = []
        self._close_at_s = clock() + window_s
        self._health_at_s = clock()
        self._health = DeviceHealth()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, monitor: ModelMonitor) -> None:
        """Begin to fold and report a monitor, and share the device's false alarms with it; not after `stop`."""
        with self._lock:
            if self._stop.is_set():  # a model that was still being loaded: nobody would close its window
                return
            self._monitors.append(monitor)
            monitor.add_event(Event(self._wall(), "started", _started(monitor)))
            self._share()
            self._outbox.set_open_windows(len(self._monitors))

    def unwatch(self, monitor: ModelMonitor) -> None:
        """Close the monitor's last window, store it and let the monitor go."""
        with self._lock:
            if monitor in self._monitors:
                report = self._report(monitor)
                self._monitors.remove(monitor)
                self._outbox.append(report, open_windows=len(self._monitors))

    def start(self) -> None:
        """Start the thread. It is stopped, and the last windows stored, at exit at the latest."""
        self._thread = threading.Thread(target=self._run, name="edgekit-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stop the thread, close every open window and store it. A second call does nothing."""
        if os.getpid() != self._process:
            return  # forked: thread and windows are the parent's, and the lock may be held for ever
        self._stop.set()
        atexit.unregister(self.stop)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            self._close_windows(still_open=0)
            self._monitors.clear()

    def tick(self, now_s: float) -> None:
        """Do what is due: a look at the device, a fold, and closing the windows when their time is up.

        Args:
            now_s: The monotonic clock.
        """
        with self._lock:
            if now_s >= self._health_at_s:
                self._health_at_s = now_s + HEALTH_S
                self._look()
            if now_s >= self._close_at_s:
                self._close_windows(still_open=len(self._monitors))
                # A recorder that was held up closes one long window, not many empty ones.
                behind = max(0.0, now_s - self._close_at_s) // self.window_s
                self._close_at_s += self.window_s * (behind + 1)
            else:
                for monitor in self._monitors:
                    monitor.fold()

    def _run(self) -> None:
        while not self._stop.wait(min(FOLD_S, max(0.0, self._close_at_s - self._clock()))):
            self.tick(self._clock())

    def _share(self) -> None:
        detectors = sum(monitor.has_detector for monitor in self._monitors)
        for monitor in self._monitors:
            monitor.share(detectors)

    def _look(self) -> None:
        """Keep the worst of the window: the highest temperature, and whether it was ever throttled."""
        seen, before = read_health(self._root), self._health
        degrees = [t for t in (seen.temperature_c, before.temperature_c) if t is not None]
        self._health = DeviceHealth(max(degrees, default=None), seen.throttled or before.throttled)

    def _close_windows(self, *, still_open: int) -> None:
        if not self._monitors:
            return
        reports = [self._report(monitor) for monitor in self._monitors]
        self._outbox.append(*reports, open_windows=still_open)
        self._health = DeviceHealth()
        self._look()

    def _report(self, monitor: ModelMonitor) -> WindowReport:
        for event in self._outbox.take_events():
            monitor.add_event(event)
        return monitor.close_window(
            self._outbox.boot,
            self._outbox.next_seq(),
            temperature_c=self._health.temperature_c,
            throttled=self._health.throttled,
            lost_windows=self._outbox.lost(),
        )


def _started(monitor: ModelMonitor) -> str:
    return f"{monitor.model} {monitor.version} runs as {monitor.artifact} in {monitor.runtime}"
