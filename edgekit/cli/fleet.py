"""`edgekit fleet`: tokens and revocation in the server's database, reading over its API."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click

if TYPE_CHECKING:
    from edgekit.sync.database import Database

__all__ = ["database_url", "fleet"]

_SERVER = click.option(
    "--server",
    default="http://127.0.0.1:8090",
    show_default=True,
    metavar="URL",
    help="The sync server to read from.",
)
_DB = click.option(
    "--db", metavar="URL", help="The server's database. [default: sync.sqlite in the state folder]"
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TIMEOUT_S = 30.0


@click.group()
def fleet() -> None:
    """Operate the fleet of a sync server.

    `enroll` and `revoke` write to the server's database and so run where that is; the others ask a running
    server over HTTP.
    """


@fleet.command()
@_DB
@click.option(
    "--expires-h",
    type=click.FloatRange(0.01, 24 * 365),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="How long the token is good.",
)
@click.option("--name", default="", metavar="NAME", help="What to call the device, instead of its host name.")
@_JSON
def enroll(db: str | None, expires_h: float, name: str, as_json: bool) -> None:
    """Make a one-time token for one device, and print it. It is shown only now."""
    name = _checked_name(name)
    now = time.time()
    with _Opened(database_url(db)) as database, database.write() as connection:
        from edgekit.sync.store import make_token

        token = make_token(connection, name, now, expires_h * 3600)
    if as_json:
        click.echo(json.dumps({"token": token, "name": name, "expires_unix_s": now + expires_h * 3600}))
    else:
        click.echo(token)
        click.echo(f"Good once, for {expires_h:g} h: edgekit agent --sync URL --enroll-token TOKEN", err=True)


@fleet.command()
@click.argument("device_id")
@_DB
def revoke(device_id: str, db: str | None) -> None:
    """Shut a device out for good; what it has sent stays."""
    from edgekit.errors import UsageError

    with _Opened(database_url(db)) as database, database.write() as connection:
        from edgekit.sync.store import revoke as revoke_device

        if not revoke_device(connection, device_id, time.time()):
            raise UsageError(f"there is no device {device_id}", hint="`edgekit fleet devices` lists them.")
    click.echo(f"{device_id} is revoked")


@fleet.command()
@_SERVER
@_JSON
def devices(server: str, as_json: bool) -> None:
    """List the devices, each with its models' newest window."""
    reply = _get(server, "/api/v1/devices")
    if as_json:
        click.echo(json.dumps(reply))
        return
    rows = [
        _device_row(device, window, reply["server_unix_s"])
        for device in reply["devices"]
        for window in device["models"] or [None]
    ]
    _table(
        ("state", "device", "name", "model", "last seen", "p50", "p95", "estimated accuracy", "alarm"), rows
    )


@fleet.command()
@click.argument("device_id")
@_SERVER
@click.option("--limit", type=click.IntRange(1, 2000), default=10, show_default=True, help="Windows to show.")
@_JSON
def show(device_id: str, server: str, limit: int, as_json: bool) -> None:
    """Show one device and its newest windows."""
    where = f"/api/v1/devices/{quote(device_id, safe='')}"
    reply = _get(server, where)
    reply["windows"] = _get(server, f"{where}/windows?{urlencode({'limit': limit})}")["windows"]
    if as_json:
        click.echo(json.dumps(reply))
        return
    device = reply["device"]
    click.echo(f"{device['name']} ({device['id']}): {device['state']}")
    click.echo(
        f"{reply['stored_windows']} windows stored, {reply['missing_windows']} missing, {device['lost_windows']} lost"
    )
    rows = [_window_row(window) for window in reply["windows"]]
    _table(("began (UTC)", "model", "n", "errors", "p50", "p95", "estimated accuracy", "alarm"), rows)


@fleet.command()
@_SERVER
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Events to show.")
@_JSON
def alerts(server: str, limit: int, as_json: bool) -> None:
    """List detectors in alarm now, and what was critical or a warning, newest first."""
    events = [
        event
        for level in ("critical", "warning")
        for event in _get(server, f"/api/v1/events?{urlencode({'level': level, 'limit': limit})}")["events"]
    ]
    events = sorted(events, key=lambda event: event["at_unix_s"], reverse=True)[:limit]
    alarms = [
        {"device_id": device["id"], "device": device["name"], "model": window["model"], **detector}
        for device in _get(server, "/api/v1/devices")["devices"]
        for window in device["models"]
        for detector in window["detectors"]
        if detector["alarm"]
    ]
    if as_json:
        click.echo(json.dumps({"alarms": alarms, "events": events}))
        return
    for alarm in alarms:
        click.echo(f"IN ALARM  {_plain(alarm['device'])}  {_plain(alarm['model'])}  {_plain(alarm['name'])}")
    _table(
        ("when (UTC)", "level", "device", "kind", "text"),
        [(_utc(e["at_unix_s"]), e["level"], e["device"], e["kind"], e["text"]) for e in events],
    )


class _Opened:
    """The database for one command."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> Database:
        from edgekit.errors import UnavailableError

        try:
            from edgekit.sync.database import open_database
        except ModuleNotFoundError as error:
            raise UnavailableError(
                f"the package {error.name} is missing", hint="Run: pip install 'edgekit-deploy[sync]'"
            ) from error
        self._database = open_database(self._url)
        return self._database

    def __exit__(self, *_exception: object) -> None:
        self._database.close()


def database_url(db: str | None) -> str:
    """Return the URL of the server's database: `db`, else the file in the state folder."""
    from edgekit.state import open_state

    return db or f"sqlite:///{open_state().root / 'sync.sqlite'}"


def _checked_name(name: str) -> str:
    from edgekit.errors import UsageError

    if len(name) > 200 or not name.isprintable():
        raise UsageError("--name must be one line of at most 200 characters", got=repr(name[:40]))
    return name


def _get(server: str, path: str) -> Any:
    """Return the JSON that the server answers."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    from edgekit.agent import check_url
    from edgekit.errors import NetworkError

    base = check_url(server, "--server")
    # a proxy for the outside world cannot reach this machine's loopback
    opener = build_opener(*([ProxyHandler({})] if base.startswith("http:") else []))
    try:
        with opener.open(base + path, timeout=_TIMEOUT_S) as reply:
            return json.load(reply)
    except HTTPError as error:
        raise NetworkError(f"{base} refused", got=_detail(error)) from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise NetworkError(
            f"{base} cannot be reached", got=reason, hint="Is `edgekit sync serve` running?"
        ) from error
    except ValueError as error:
        raise NetworkError(f"{base} is not a sync server", got="a reply that is not JSON") from error


def _detail(error: Any) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {error.code}"


def _device_row(device: dict[str, Any], window: dict[str, Any] | None, now: float) -> tuple[str, ...]:
    seen = device["last_seen_unix_s"]
    ago = "never" if seen is None else f"{max(0.0, now - seen):.0f} s ago"
    if window is None:
        return (device["state"], device["id"], device["name"], "–", ago, "–", "–", "–", "")
    model = f"{window['model']} v{window['version']}"
    mark = "ALARM" if window["alarm"] else ""
    return (device["state"], device["id"], device["name"], model, ago, *_numbers(window), mark)


def _window_row(window: dict[str, Any]) -> tuple[str, ...]:
    head = (_utc(window["at_unix_s"]), window["model"], str(window["n"]), str(window["errors"]))
    return (*head, *_numbers(window), "ALARM" if window["alarm"] else "")


def _numbers(window: dict[str, Any]) -> tuple[str, str, str]:
    p50, p95 = ("–" if window[key] is None else f"{window[key] * 1e3:.3g} ms" for key in ("p50_s", "p95_s"))
    seen = window["accuracy"]
    if seen is None:
        return p50, p95, "–"
    interval = f"{seen['estimate']:.1%} ({seen['low']:.1%}–{seen['high']:.1%})"
    return p50, p95, interval if seen["valid"] else f"{interval} not to be believed"


def _utc(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix_s))


def _plain(text: str) -> str:
    """Return text that a device chose without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        click.echo("none")
        return
    lines = [head, *(tuple(_plain(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
