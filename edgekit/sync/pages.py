"""The server's pages: rendered here, refreshed in place, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from edgekit import __version__
from edgekit.sync import readings
from edgekit.sync.database import Database

__all__ = ["add_pages"]

_URGENCY = ("alarm", "stale", "ok", "waiting", "revoked")
_RECENT_EVENTS, _DEVICE_EVENTS, _DEVICE_WINDOWS = 12, 25, 20


def add_pages(app: FastAPI, database: Database, clock: Callable[[], float]) -> None:
    """Add the fleet's page and the devices' pages."""
    environment = _environment()

    def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(template).render(version=__version__, **values), status)

    @app.get("/", include_in_schema=False)
    def fleet() -> HTMLResponse:
        now = clock()
        with database.read() as connection:
            devices = readings.read_devices(connection, now)
            events = readings.read_events(connection, device=None, level=None, limit=_RECENT_EVENTS)
        urgent_first = sorted(devices, key=lambda device: _URGENCY.index(device.state))
        return render(
            "fleet.html",
            now=now,
            devices=urgent_first,
            state_of=readings.model_state,
            events=events,
            counts=_counts(devices),
        )

    @app.get("/devices/{device_id}", include_in_schema=False)
    def device_page(
        device_id: str, model: Annotated[str | None, Query(max_length=200)] = None
    ) -> HTMLResponse:
        now = clock()
        with database.read() as connection:
            reply = readings.read_device(connection, device_id, now)
            if reply is None:
                return render("missing.html", 404, now=now, device_id=device_id)
            current = _current(reply.device, model)
            windows = readings.read_windows(
                connection,
                device_id,
                model=current.model if current else None,
                before_unix_s=None,
                limit=_DEVICE_WINDOWS,
            )
            events = readings.read_events(connection, device=device_id, level=None, limit=_DEVICE_EVENTS)
        return render(
            "device.html", now=now, reply=reply, current=current, windows=windows[::-1], events=events
        )


def _current(device: readings.DeviceReading, model: str | None) -> readings.WindowReading | None:
    """Return the newest window of the model asked for, else of one in alarm, else of the one heard of last."""
    asked = [window for window in device.models if window.model == model]
    return max(asked or device.models, key=lambda window: (window.alarm, window.at_unix_s), default=None)


def _counts(devices: tuple[readings.DeviceReading, ...]) -> dict[str, int]:
    counts = {"alarm": 0, "stale": 0, "ok": 0, "other": 0}
    for device in devices:
        counts[device.state if device.state in counts else "other"] += 1
    return counts


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("edgekit.sync"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        latency=format_latency, percent=format_percent, ago=format_ago, iso=format_iso, count=format_count
    )
    environment.globals["asset"] = _asset_versions()
    return environment


def _asset_versions() -> dict[str, str]:
    """Return each static file's path with a mark that changes with its content, for the browser's cache."""
    import hashlib

    folder = files("edgekit.sync") / "static"
    return {
        item.name: f"/static/{item.name}?{hashlib.sha256(item.read_bytes()).hexdigest()[:8]}"
        for item in folder.iterdir()
        if item.is_file()
    }


def format_latency(seconds: float | None) -> str:
    """Return seconds with three digits and a fitting unit.

    >>> format_latency(0.00321), format_latency(0.000_087), format_latency(1.5), format_latency(None)
    ('3.21 ms', '87.0 µs', '1.50 s', '–')
    """
    if seconds is None:
        return "–"
    factor, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    value = seconds * factor
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def format_percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal.

    >>> format_percent(0.9812), format_percent(None)
    ('98.1 %', '–')
    """
    return "–" if share is None else f"{share * 100:.1f} %"


def format_ago(unix_s: float | None, now_unix_s: float) -> str:
    """Return how long ago that was, in words.

    >>> format_ago(100.0, 112.0), format_ago(0.0, 7200.0), format_ago(None, 0.0)
    ('12 s ago', '2 h ago', 'never')
    """
    if unix_s is None:
        return "never"
    age = max(0.0, now_unix_s - unix_s)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= size:
            return f"{age // size:.0f} {unit} ago"
    return f"{age:.0f} s ago"


def format_iso(unix_s: float) -> str:
    """Return the UTC time in ISO 8601, whole seconds; of a time out of range, the bare number."""
    try:
        return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{unix_s:.0f}"


def format_count(value: int) -> str:
    """Return an integer with thin spaces between thousands.

    >>> format_count(1234567) == '1\u202f234\u202f567'
    True
    """
    return f"{value:,}".replace(",", "\u202f")
