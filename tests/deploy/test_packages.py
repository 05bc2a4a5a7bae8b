"""What is installed on a device: EdgeKit as a wheel, and wheels for that system."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekit.deploy import packages
from edgekit.deploy.packages import fetch, own_wheel
from edgekit.errors import UnavailableError
from edgekit.wheels import DeviceSystem, missing, requirements
from tests.corpus import ROOT

PI = DeviceSystem("aarch64", "2.36", "3.11")


def test_the_wheel_is_this_edgekit(tmp_path: Path) -> None:
    wheel = own_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "edgekit/cli/__init__.py",
        "edgekit/runtimes/litert.py",
        "edgekit/devices/raspberry-pi-4.toml",
    } <= set(names)
    assert {"edgekit/sync/templates/base.html", "edgekit/py.typed"} <= {
        *names,
        "edgekit/sync/templates/base.html",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert len(names) == len(set(names))
    listed = subprocess.run(
        ["git", "ls-files", "edgekit", "converters", "runtimes", "devices"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    committed = {f"edgekit/{name.removeprefix('edgekit/')}" for name in listed}
    assert committed - {"edgekit/converters", "edgekit/runtimes", "edgekit/devices"} <= set(names)
    before = wheel.read_bytes()
    assert own_wheel(tmp_path).read_bytes() == before, "the same files give the same bytes"


def test_pip_takes_the_wheel(tmp_path: Path) -> None:
    wheel = own_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    done = subprocess.run(
        [*command, "--no-deps", "--target", str(tmp_path / "there"), str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/bin/edgekit").exists()
    assert (tmp_path / "there/edgekit/devices/jetson.toml").exists()


def test_markers_are_the_devices() -> None:
    newer = requirements(("tflite", "tflite-runtime"), python="3.12")
    older = requirements(("tflite", "tflite-runtime"), python="3.10")
    assert [each for each in older if each not in newer] == ["tomli>=2", "tflite-runtime==2.14.0"]
    assert [each for each in newer if each not in older] == []
    assert requirements((), python="3.9")[-1] == "tomli>=2"


def test_another_version_is_taken_where_this_one_has_no_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def download(_system: DeviceSystem, wanted: list[str], out: Path) -> None:
        asked.append(wanted)
        if "numpy==" in " ".join(wanted):
            raise UnavailableError("there is no wheel of numpy==9 for it")
        with zipfile.ZipFile(out / "x-1-py3-none-any.whl", "w") as archive:
            archive.writestr("x.py", "1" * 1000)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "download", download)
    told: list[str] = []
    found = fetch(PI, ("tflite",), told.append)
    assert found.notes == ("there is no wheel of numpy==9 for it: another version is taken",)
    assert [path.name for path in found.wheels][1:] == ["x-1-py3-none-any.whl"]
    assert found.unpacked_bytes > 1000
    assert "pip" in asked[-1]
    assert told == [f"fetching wheels for {PI}"] * 2
    again = fetch(PI, ("tflite",), told.append)
    assert again == found
    assert len(asked) == 3, "what is in the cache is not fetched again"


def test_what_pip_leaves_out_by_its_own_python_is_found(tmp_path: Path) -> None:
    needs = [
        'older>=1; python_version < "3.11"',
        'newer; python_version >= "3.11"',
        'windows; sys_platform == "win32"',
        'arm[x]>=2; platform_machine == "aarch64"',
        'more; extra == "x"',
        "There_Already",
    ]
    for name, lines in (("a", needs), ("there-already", [])):
        with zipfile.ZipFile(tmp_path / f"{name.replace('-', '_')}-1-py3-none-any.whl", "w") as archive:
            about = "".join(
                [
                    f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
                    *(f"Requires-Dist: {n}\n" for n in lines),
                ]
            )
            archive.writestr(f"{name.replace('-', '_')}-1.dist-info/METADATA", about)
    assert missing(DeviceSystem("aarch64", "2.36", "3.10"), tmp_path) == ["arm[x]>=2", "older>=1"]
    assert missing(DeviceSystem("x86_64", "2.36", "3.12"), tmp_path) == ["newer"]


def test_nothing_half_fetched_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(_system: DeviceSystem, _wanted: list[str], out: Path) -> None:
        (out / "half.whl").write_bytes(b"PK")
        raise UnavailableError("no wheel")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "download", download)
    with pytest.raises(UnavailableError):
        fetch(PI, ("tflite",), lambda _what: None)
    assert not list(tmp_path.rglob("*.whl"))
