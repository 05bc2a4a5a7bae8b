"""The report of a profile: a page that fetches nothing, plots, and the JSON that `compare` reads."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.compare import compare_profiles, read_profile_file
from edgekit.errors import MachineError, UnavailableError, UsageError
from edgekit.profile_page import profile_page
from edgekit.profile_report import check_folder, write_profile
from tests.conversions import run_main
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import runtime_or_skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole of it, by the command."""
    pytest.importorskip("matplotlib", reason="needs edgekit-deploy[profile]")
    runtime_or_skip("onnxruntime")
    folder = tmp_path_factory.mktemp("profile")
    bundle = write_tiny(folder / "tiny")
    words = "--runtime onnxruntime --threads 1 --threads 2 --seconds 0.2 --ops --top 4 --through-daemon --sustain 1s"
    given = ["edgekit", "profile", str(bundle.root), *words.split(), "--report", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", given)
        from edgekit.cli import main

        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "out"


class _Page(HTMLParser):
    """Notes tags that do not match, what would be fetched, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.wrong += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "onclick", "style")
        ]
        if tag != "!doctype":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_well_formed_and_fetches_nothing(report: Path) -> None:
    text = (report / "profile.html").read_text(encoding="utf-8")
    found = _Page(text)
    assert (found.wrong, found.open) == ([], [])
    assert not found.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme:dark" in text


def test_the_page_shows_what_was_measured(report: Path) -> None:
    text = " ".join(_Page((report / "profile.html").read_text(encoding="utf-8")).text)
    data = json.loads((report / "profile.json").read_bytes())
    row = next(each for each in data["measurements"] if each["runtime"] == "onnxruntime")
    for said in (
        "onnx-fp32 in onnxruntime, 1 thread", row["model"]["sha256"], row["version"], row["stability"]["verdict"],
        row["ops"]["rows"][0]["name"], "The daemon's cost:", "Sustained, 1 s", "Sweep", "CPUExecutionProvider",
        data["identity"]["isa"],
    ):  # fmt: skip
        assert said in text, said
    assert "Not read" in text or not row["heat"]["absent"]


def test_the_plots_are_pictures(report: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs edgekit-deploy[image]")
    for name in ("cdf.png", "over-time.png", "ops.png", "sweep.png"):
        with image.open(report / name) as picture:
            assert picture.width >= 800
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_the_json_is_what_compare_reads(report: Path) -> None:
    data = read_profile_file(report / "profile.json")
    found = compare_profiles(data, data)
    assert found.differences == ()
    assert len(found.pairs) == 2


def test_an_earlier_report_is_kept_unless_told_otherwise(report: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds profile\.json already"):
        check_folder(report, overwrite=False)
    check_folder(report, overwrite=True)
    data = json.loads((report / "profile.json").read_bytes())
    for row in data["measurements"]:
        row["ops"] = None
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "ops.png").write_bytes(b"of an earlier run")
    (folder / "mine.txt").write_text("stays")
    write_profile(folder, data)
    assert not (folder / "ops.png").exists()
    assert (folder / "mine.txt").exists()


def test_what_cannot_hold_a_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs edgekit-deploy[profile]")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "file", overwrite=False)
    with pytest.raises(MachineError, match="cannot make"):
        check_folder(tmp_path / "file" / "below", overwrite=False)


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("edgekit.profiling.run_job", lambda *_: pytest.fail("something was measured"))
    said = run_main(["profile", bundle.root, "--report", tmp_path / "out"], capsys)
    assert said.code == 5
    assert "pip install 'edgekit-deploy[profile]'" in said.line
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnavailableError):
        check_folder(tmp_path, overwrite=True)


def test_hostile_names_and_missing_numbers(report: Path) -> None:
    data: dict[str, Any] = json.loads((report / "profile.json").read_bytes())
    evil = "<script>alert(1)</script>'\"&"
    data["identity"]["board"] = evil
    data["measurements"] += json.loads((report / "profile.json").read_bytes())["measurements"]
    first, failed, quiet, odd = data["measurements"]
    failed["ops"] = {"error": evil}
    first["artifact"] = evil
    first["ops"]["rows"][0] |= {"name": evil, "kind": evil, "fallback": True}
    first["stability"] = {"verdict": "unstable", "reasons": [evil]}
    failed |= {"error": evil}
    quiet |= {
        "settled": False,
        "compile_ms": 1.0,
        "cache": "hit",
        "pss_mib": None,
        "through_daemon": {"error": evil},
    }
    quiet["latency_ms"] |= {"percentiles": {}, "intervals": {}, "max_at_s": None}
    heat = {
        "start_c": 40.0, "end_c": 50.0, "max_c": 60.0, "zones_c": {evil: 50.0}, "clock_min_mhz": 600.0,
        "clock_mean_mhz": 1500.0, "module_mw": 5000.0, "rails_mw": {evil: 5000.0}, "package_w": 3.0,
        "throttled": [evil], "absent": {evil: evil},
    }  # fmt: skip
    odd["heat"] = heat
    odd["sustained"] |= {
        "temperatures_c": [50.0],
        "heat": heat,
        "energy_j": 3.0,
        "energy_of": evil,
        "rest_w": 1.0,
    }
    odd["sustained"]["energy_per_run_mj"] = 2.0
    odd["idle_gaps"] = [
        {"gap_s": 1.0, "n": 3, "min_ms": 1.0, "median_ms": 2.0, "max_ms": 3.0, "over_hot": None},
    ]
    page = profile_page(data)
    assert "<script" not in page
    found = _Page(page)
    assert (found.wrong, found.open) == ([], [])
    text = " ".join(found.text)
    for said in (
        "1500 MHz on average",
        "2.000 mJ above the 1.00 W",
        "5.00 W",
        "fallback",
        "without settling",
    ):
        assert said in text, said


def test_a_single_measurement_has_no_sweep(report: Path, tmp_path: Path) -> None:
    data = json.loads((report / "profile.json").read_bytes())
    data["measurements"] = data["measurements"][:1]
    (tmp_path / "one").mkdir()
    write_profile(tmp_path / "one", data)
    assert "Sweep" not in (tmp_path / "one" / "profile.html").read_text(encoding="utf-8")
    assert not (tmp_path / "one" / "sweep.png").exists()
    assert msgspec.json.decode((tmp_path / "one" / "profile.json").read_bytes()) == data
