"""The pages: what they show, that they load nothing from elsewhere, and that a device cannot put code in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import pytest

from edgekit.monitor.schema import AccuracyEstimate, DetectorState, Event
from edgekit.sync import pages
from tests.sync.fleet import Device, ServerProcess, window

HOSTILE = """"><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'{{7*7}}"""


class _Elements(HTMLParser):
    """Collects elements with their attributes, and the text between them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get(name)) is not None]


def _page(server: ServerProcess, path: str) -> _Elements:
    status, headers, body = server.fetch(path)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    return _Elements(body)


@pytest.fixture
def hostile(server: ServerProcess) -> Device:
    """A device that puts markup wherever a device may put text."""
    device = Device(server).enrol(name=HOSTILE)
    device.send(
        window(
            1,
            model=HOSTILE,
            artifact=HOSTILE,
            runtime=HOSTILE,
            device=HOSTILE,
            digest=HOSTILE,
            accuracy=AccuracyEstimate(0.9, 0.8, 1.0, 5, valid=False, flags=(HOSTILE,)),
            detectors=(DetectorState(HOSTILE, 20.0, 17.0, alarm=True, promise=HOSTILE),),
            events=(Event(time.time(), HOSTILE[:200], HOSTILE, "critical"),),
        ),
        window(2, model="another"),
    )
    device.pool.clear()
    return device


def test_text_of_a_device_stays_text(server: ServerProcess, hostile: Device) -> None:
    paths = ("/", f"/devices/{hostile.id}", f"/devices/{hostile.id}?model={quote(HOSTILE)}")
    for path in paths:
        page = _page(server, path)
        names = [name for _, attributes in page.elements for name in attributes]
        assert not [name for name in names if name.startswith("on") or name == "style"]
        loaded = [attributes["src"] or "" for tag, attributes in page.elements if tag in ("script", "img")]
        assert loaded
        assert not [source for source in loaded if not source.startswith("/static/")]
        assert HOSTILE in page.text


def test_address_stays_text(server: ServerProcess) -> None:
    status, _, body = server.fetch(f"/devices/{quote(HOSTILE.replace('/', ''), safe='')}")
    assert status == 404
    assert [tag for tag, _ in _Elements(body).elements].count("script") == 1


def test_pages_ask_nothing_of_other_hosts(server: ServerProcess, device: Device) -> None:
    device.send(window(1))
    for path in ("/", f"/devices/{device.id}"):
        page = _page(server, path)
        references = page.attributes("src") + page.attributes("href")
        assert references
        assert [one for one in references if not re.match(r"/(?!/)|#|\?", one)] == []
        for reference in references:
            if reference.startswith("/static/"):
                assert server.fetch(reference)[0] == 200
    for item in (files("edgekit.sync") / "static").iterdir():
        if item.name.endswith((".css", ".svg")):
            assert not re.search(r"url\(|@import", item.read_text())


def test_every_reply_forbids_what_the_pages_do_not_need(server: ServerProcess) -> None:
    for path in ("/", "/api/v1/devices", "/static/fleet.js", "/nothing"):
        _, headers, _ = server.fetch(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_fleet_page_tells_the_state_of_each_device(server: ServerProcess, device: Device) -> None:
    (detector,) = window().detectors
    alarm = DetectorState(detector.name, 20.0, 17.3, alarm=True)
    text = f"accuracy has fallen on {device.id}"
    device.send(window(1, detectors=(alarm,), events=(Event(time.time(), "alarm", text, "critical"),)))
    page = _page(server, "/")
    row = re.sub(r"\s+", " ", _row_of(server, device))
    for shown in (
        "alarm",
        "bench",
        "raspberry-pi-4",
        "digits",
        "tflite-int8 · litert",
        "97.0 %",
        "95.0 % – 99.0 %",
        "2.92 ms",
    ):
        assert shown in row
    assert text in page.text


def test_of_two_models_the_one_in_alarm_is_shown(server: ServerProcess, device: Device) -> None:
    alarm = DetectorState("error-probability", 20.0, 17.3, alarm=True)
    device.send(window(1, model="bad", detectors=(alarm,)), window(2, model="well"))
    _, _, body = server.fetch("/")
    rows = [row for row in re.findall(r"<tr.*?</tr>", body.decode(), re.DOTALL) if device.id in row]
    states = {model: state for row in rows for state in ("alarm", "ok") for model in ("bad", "well")
              if f'class="badge {state}"' in row and f"?model={model}" in row}  # fmt: skip
    assert states == {"bad": "alarm", "well": "ok"}
    _, _, body = server.fetch(f"/devices/{device.id}")
    assert '<a href="?model=bad" aria-current="page">' in body.decode()
    assert "alarmed at e<sup>17.3</sup> and counts anew: evidence" in body.decode()


def _row_of(server: ServerProcess, device: Device) -> str:
    _, _, body = server.fetch("/")
    (row,) = [row for row in re.findall(r"<tr.*?</tr>", body.decode(), re.DOTALL) if device.id in row]
    return re.sub(r"<[^>]*>", " ", row)


def test_device_page_shows_windows_detectors_and_events(server: ServerProcess, device: Device) -> None:
    device.send(window(1, n=4321, errors=7, throttled=True, lost_windows=0))
    page = _page(server, f"/devices/{device.id}")
    words = re.sub(r"\s+", " ", page.text)
    for shown in (
        "4 321",
        "throttled",
        "error-probability",
        "1 a year",
        "the daemon started",
        device.id,
    ):
        assert shown in words
    assert {"latency-chart", "accuracy-chart"} <= set(page.attributes("id"))


def test_device_that_has_sent_nothing_has_a_page(server: ServerProcess) -> None:
    device = Device(server).enrol()
    assert "has sent no window yet" in _page(server, f"/devices/{device.id}").text
    assert "no report yet" in _row_of(server, device)


def test_unknown_device_has_none(server: ServerProcess) -> None:
    status, _, body = server.fetch("/devices/d-nobody")
    assert status == 404
    assert b"No such device" in body


def test_tables_keep_their_roles_where_the_style_makes_them_blocks(
    server: ServerProcess, device: Device
) -> None:
    device.send(window(1))
    page = _page(server, f"/devices/{device.id}")
    roles = {"table": "table", "tr": "row", "td": "cell"}
    tables = [(tag, attributes.get("role")) for tag, attributes in page.elements if tag in roles]
    assert tables
    assert all(roles[tag] == role for tag, role in tables)
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert {attributes.get("scope") for attributes in headers} == {"col", "row"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0.00 µs"),
        (9.99e-4, "999 µs"),
        (0.0123, "12.3 ms"),
        (0.4567, "457 ms"),
        (2.0, "2.00 s"),
    ],
)
def test_latency_in_words(seconds: float | None, text: str) -> None:
    assert pages.format_latency(seconds) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [(-5.0, "0 s ago"), (59.9, "60 s ago"), (60.0, "1 min ago"), (3600.0, "1 h ago"), (2e5, "2 d ago")],
)
def test_age_in_words(age: float, text: str) -> None:
    assert pages.format_ago(1e9 - age, 1e9) == text


@pytest.mark.parametrize("unix_s", [1e18, -1e18, float("inf")])
def test_time_beyond_the_calendar_does_not_break_the_page(unix_s: float) -> None:
    assert pages.format_iso(unix_s)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_browser_draws_the_charts_and_runs_nothing_hostile(
    server: ServerProcess, hostile: Device, tmp_path: Path
) -> None:
    assert BROWSER is not None
    for path in ("/", f"/devices/{hostile.id}?model=another"):
        drawn = subprocess.run(
            [
                BROWSER,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-sync"),
                *(
                    "--disable-background-networking",
                    "--no-first-run",
                    f"--user-data-dir={tmp_path / 'profile'}",
                ),
                *("--virtual-time-budget=8000", "--dump-dom", server.url + path),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert drawn.returncode == 0, drawn.stderr
        title = re.search(r"<title>(.*?)</title>", drawn.stdout)
        assert title
        assert title[1] != "owned"
        assert title[1].endswith("· EdgeKit")
        assert drawn.stdout.count("<canvas") == (2 if "devices" in path else 0)
