"""What the server knows, as it is read: by the API (these classes are its OpenAPI), the pages and the CLI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from edgekit.monitor.buckets import quantile
from edgekit.monitor.schema import WindowReport
from edgekit.sync.tables import devices, events, latest, windows

__all__ = [
    "AccuracyReading",
    "DetectorReading",
    "DeviceReading",
    "DeviceReply",
    "DevicesReply",
    "EventReading",
    "EventsReply",
    "WindowReading",
    "WindowsReply",
    "device_state",
    "model_state",
    "read_device",
    "read_devices",
    "read_events",
    "read_windows",
]

State = Literal["alarm", "ok", "stale", "waiting", "revoked"]

#: A device is stale after this many of its windows, and never before this many seconds.
STALE_WINDOWS, STALE_S = 3.0, 180.0


@dataclass(frozen=True)
class AccuracyReading:
    """Accuracy estimated without labels, a share in [0, 1], with its 95 % interval."""

    estimate: float
    low: float
    high: float
    n: int
    valid: bool
    flags: tuple[str, ...]


@dataclass(frozen=True)
class DetectorReading:
    """A detector at the end of a window; it alarms when `log_e` reaches `log_threshold`."""

    name: str
    log_e: float
    log_threshold: float
    alarm: bool
    promise: str


@dataclass(frozen=True)
class WindowReading:
    """One window of one model.

    Latencies are in seconds; null where nothing was inferred. `at_unix_s` is the server's clock,
    `device_start_unix_s` what the device said, `clock` whose word `at_unix_s` is: `device`, `corrected` or
    `server`.
    """

    boot: str
    seq: int
    model: str
    version: int
    digest: str
    artifact: str
    runtime: str
    profile: str
    at_unix_s: float
    device_start_unix_s: float
    clock: str
    received_unix_s: float
    duration_s: float
    n: int
    calls: int
    errors: int
    unsampled: int
    p50_s: float | None
    p95_s: float | None
    accuracy: AccuracyReading | None
    alarm: bool
    detectors: tuple[DetectorReading, ...]
    temperature_c: float | None
    throttled: bool


@dataclass(frozen=True)
class DeviceReading:
    """One device; `models` holds the newest window of each of its models."""

    id: str
    name: str
    state: State
    enrolled_unix_s: float
    last_seen_unix_s: float | None
    revoked_unix_s: float | None
    agent: str
    queued_windows: int
    lost_windows: int
    clock_ahead_s: float
    models: tuple[WindowReading, ...]


@dataclass(frozen=True)
class DevicesReply:
    """All devices, by name."""

    server_unix_s: float
    devices: tuple[DeviceReading, ...]


@dataclass(frozen=True)
class DeviceReply:
    """One device, and how complete its history is.

    Attributes:
        stored_windows: Windows on the server.
        missing_windows: Gaps in the sequence numbers: windows that are lost or still on the way.
    """

    server_unix_s: float
    device: DeviceReading
    stored_windows: int
    missing_windows: int


@dataclass(frozen=True)
class WindowsReply:
    """Windows of a device in the order of time."""

    server_unix_s: float
    windows: tuple[WindowReading, ...]


@dataclass(frozen=True)
class EventReading:
    """Something that happened once."""

    device_id: str
    device: str
    at_unix_s: float
    model: str
    kind: str
    level: str
    text: str


@dataclass(frozen=True)
class EventsReply:
    """Events, newest first."""

    server_unix_s: float
    events: tuple[EventReading, ...]


def read_devices(connection: Connection, now_unix_s: float) -> tuple[DeviceReading, ...]:
    """Return every device with the newest window of each of its models."""
    newest: dict[str, list[WindowReading]] = {}
    for row in connection.execute(_newest_windows()):
        newest.setdefault(row.device_id, []).append(_window(row))
    rows = connection.execute(sa.select(devices).order_by(sa.func.lower(devices.c.name), devices.c.id))
    return tuple(_device(row, newest.get(row.id, ()), now_unix_s) for row in rows)


def read_device(connection: Connection, device: str, now_unix_s: float) -> DeviceReply | None:
    """Return one device, None when there is no such."""
    row = connection.execute(sa.select(devices).where(devices.c.id == device)).one_or_none()
    if row is None:
        return None
    newest = connection.execute(_newest_windows().where(latest.c.device_id == device))
    boots = connection.execute(
        sa.select(sa.func.count().label("stored"), sa.func.max(windows.c.seq).label("last"))
        .where(windows.c.device_id == device)
        .group_by(windows.c.boot)
    ).all()
    return DeviceReply(
        now_unix_s,
        _device(row, [_window(window) for window in newest], now_unix_s),
        sum(boot.stored for boot in boots),
        sum(boot.last - boot.stored for boot in boots),
    )


def _newest_windows() -> sa.Select[Any]:
    same = (
        (windows.c.device_id == latest.c.device_id)
        & (windows.c.boot == latest.c.boot)
        & (windows.c.seq == latest.c.seq)
    )
    return sa.select(windows).select_from(latest.join(windows, same)).order_by(latest.c.model)


def read_windows(
    connection: Connection, device: str, *, model: str | None, before_unix_s: float | None, limit: int
) -> tuple[WindowReading, ...]:
    """Return the newest `limit` windows that began before `before_unix_s`, oldest first."""
    query = sa.select(windows).where(windows.c.device_id == device)
    if model is not None:
        query = query.where(windows.c.model == model)
    if before_unix_s is not None:
        query = query.where(windows.c.at_unix_s < before_unix_s)
    newest_first = query.order_by(windows.c.at_unix_s.desc(), windows.c.seq.desc()).limit(limit)
    return tuple(_window(row) for row in connection.execute(newest_first))[::-1]


def read_events(
    connection: Connection, *, device: str | None, level: str | None, limit: int
) -> tuple[EventReading, ...]:
    """Return the newest events of the fleet or of one device, newest first."""
    query = sa.select(events, devices.c.name).join(devices, devices.c.id == events.c.device_id)
    if device is not None:
        query = query.where(events.c.device_id == device)
    if level is not None:
        query = query.where(events.c.level == level)
    order = (
        events.c.at_unix_s.desc(),
        events.c.device_id,
        events.c.boot,
        events.c.seq.desc(),
        events.c.ordinal.desc(),
    )
    rows = connection.execute(query.order_by(*order).limit(limit))
    return tuple(
        EventReading(row.device_id, row.name, row.at_unix_s, row.model, row.kind, row.level, row.text)
        for row in rows
    )


def _device(row: Row[Any], models: Sequence[WindowReading], now_unix_s: float) -> DeviceReading:
    return DeviceReading(
        id=row.id,
        name=row.name,
        state=device_state(row.revoked_unix_s, row.last_seen_unix_s, models, now_unix_s),
        enrolled_unix_s=row.enrolled_unix_s,
        last_seen_unix_s=row.last_seen_unix_s,
        revoked_unix_s=row.revoked_unix_s,
        agent=row.agent,
        queued_windows=row.queued_windows,
        lost_windows=row.lost_windows,
        clock_ahead_s=row.clock_ahead_s,
        models=tuple(models),
    )


def device_state(
    revoked_unix_s: float | None,
    last_seen_unix_s: float | None,
    models: Sequence[WindowReading],
    now_unix_s: float,
) -> State:
    """Return the one word for a device: what needs a look first wins."""
    if revoked_unix_s is not None:
        return "revoked"
    if last_seen_unix_s is None:
        return "waiting"
    if any(model.alarm for model in models):
        return "alarm"
    patience_s = max([STALE_S, *(STALE_WINDOWS * model.duration_s for model in models)])
    return "stale" if now_unix_s - last_seen_unix_s > patience_s else "ok"


def model_state(device: DeviceReading, window: WindowReading, now_unix_s: float) -> State:
    """Return the one word for one of a device's models, by its newest window."""
    return device_state(device.revoked_unix_s, device.last_seen_unix_s, [window], now_unix_s)


def _window(row: Row[Any]) -> WindowReading:
    report = msgspec.json.decode(row.report, type=WindowReport)
    accuracy = report.accuracy
    return WindowReading(
        boot=row.boot,
        seq=row.seq,
        model=report.model,
        version=report.version,
        digest=report.digest,
        artifact=report.artifact,
        runtime=report.runtime,
        profile=report.device,
        at_unix_s=row.at_unix_s,
        device_start_unix_s=report.start_unix_s,
        clock=row.clock,
        received_unix_s=row.received_unix_s,
        duration_s=report.duration_s,
        n=report.n,
        calls=report.calls,
        errors=report.errors,
        unsampled=report.unsampled,
        p50_s=quantile(report.latency, 0.50),
        p95_s=quantile(report.latency, 0.95),
        accuracy=None if accuracy is None else AccuracyReading(**msgspec.structs.asdict(accuracy)),
        alarm=any(detector.alarm for detector in report.detectors),
        detectors=tuple(DetectorReading(**msgspec.structs.asdict(one)) for one in report.detectors),
        temperature_c=report.temperature_c,
        throttled=report.throttled,
    )
