"""A deployment over a real sshd: the whole way, again, refused, broken off and gone on with."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import open_bundle
from edgekit.manifest import Plan
from tests.bundle_samples import artifact, files, golden, manifest, write
from tests.conversions import command, environment
from tests.deploy.conftest import HERE, run
from tests.loopback import Device

NULL = ("--runtime", "null")


def test_the_whole_way_and_again(ready: Device, bundle: Path) -> None:
    done = run("deploy", bundle, ready.address, *ready.options(), *NULL, "--json")
    assert done.code == 0, done.err
    data = done.data
    assert all(each["passed"] for each in data["checks"] + data["steps"])
    assert [each["name"] for each in data["steps"]] == [
        "environment",
        "bundle",
        "self-test",
        "installed",
        "service",
    ]
    assert {each["said"] for each in data["steps"][:2]} == {"installed there already"}
    assert data["sent"] == {}, "what is there is not sent again"
    there = open_bundle(ready.home / ".local/state/edgekit/repository/quadrants/1")
    assert (there.digest, there.kept) == (data["digest"], frozenset({"tflite-fp32"}))
    evidence = json.loads(Path(data["evidence"]).read_text())
    assert data["device_id"] in evidence["payload"]
    assert not list((ready.home / ".local/share/edgekit/incoming").iterdir())


def test_what_it_prints(ready: Device, bundle: Path) -> None:
    done = run("deploy", bundle, ready.address, *ready.options(), *NULL)
    lines = done.out.splitlines()
    assert lines[0] == f"{ready.address}: connected"
    assert lines[1] == f"  ok  device:          {HERE.device}, and the bundle was made for {HERE.device}"
    assert "  ok  self-test:       32 samples, off by 0 of the range" in done.out
    assert "none enabled (not asked for); start it there by: " in done.out
    assert lines[-2].startswith(f"deployed: quadrants 1 on {ready.address}, device d-")


def test_the_command_that_is_told_starts_the_daemon(ready: Device, bundle: Path, tmp_path: Path) -> None:
    start = run("deploy", bundle, ready.address, *ready.options(), *NULL, "--json").data["start"]
    words = [*shlex.split(start), "--http", "127.0.0.1:0"]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, text=True, env={"HOME": str(ready.home)}
        )
    try:
        assert daemon.stdout is not None
        url = daemon.stdout.readline().split()[-1]
        assert "ready: quadrants version 1, tflite-fp32 on null" in daemon.stdout.readline()
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30) as answer:
            assert answer.status == 200
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)


def test_a_dry_run_changes_nothing(ready: Device, tmp_path: Path) -> None:
    other = write(tmp_path / "b", plan=HERE, version=7).root
    before = ready.snapshot()
    done = run("deploy", other, ready.address, *ready.options(), *NULL, "--dry-run")
    assert done.code == 0, done.err
    assert (
        done.out.splitlines()[-1]
        == f"{ready.address} passes its check; nothing was changed there (--dry-run)"
    )
    assert ready.snapshot() == before


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("raspberry-pi-4", (), "Convert again with --target"),
        (
            "raspberry-pi-4",
            ("--device", "raspberry-pi-4"),
            "the userland is 64-bit x86-64, raspberry-pi-4 is 64-bit aarch64",
        ),
        ("jetson-nano", ("--device", "jetson-nano"), "export-only"),
        (HERE.device, ("--runtime", "openvino"), "the bundle has no openvino artifact here"),
    ],
)
def test_a_device_that_fails_its_check_stays_as_it_was(
    device: Device, tmp_path: Path, target: str, options: tuple[str, ...], said: str
) -> None:
    made = write(tmp_path / "b", plan=Plan(target, "tflite-fp32", "null")).root
    before = device.snapshot()
    done = run("deploy", made, device.address, *device.options(), *(options or NULL))
    assert done.code == 4, done.out
    assert "fails its check, and nothing was changed there" in done.err
    assert said in done.err
    assert "  no  " in done.out
    assert device.snapshot() == before


def test_a_version_with_another_content_is_refused(ready: Device, tmp_path: Path) -> None:
    other = write(tmp_path / "b", plan=HERE, labels=("a", "b", "c")).root
    before = ready.snapshot()
    done = run("deploy", other, ready.address, *ready.options(), *NULL)
    assert done.code == 2
    assert "version 1 of quadrants is installed with another content" in done.err
    assert "--version 2" in done.err
    repository = str(ready.home / ".local/state")
    assert {k: v for k, v in ready.snapshot().items() if k.startswith(repository)} == {
        k: v for k, v in before.items() if k.startswith(repository)
    }


def test_a_golden_set_that_fails_is_refused_and_the_old_version_stays(ready: Device, tmp_path: Path) -> None:
    from edgekit.bundle import write_bundle
    from edgekit.manifest import Golden, GoldenTolerance

    chosen = golden()
    strict = Golden(chosen.n, "real", {"tflite-fp32": GoldenTolerance(0.01, chosen.n + 1)})
    made = manifest(chosen, ("tflite-fp32",), plan=HERE, version=9, golden=strict)
    broken = write_bundle(tmp_path / "b", made, files(chosen, made)).root
    done = run("deploy", broken, ready.address, *ready.options(), *NULL)
    assert done.code == 4, done.err
    assert "the golden set fails" in done.err
    assert not (ready.home / ".local/state/edgekit/repository/quadrants/9").exists()
    assert not list((ready.home / ".local/share/edgekit/incoming").iterdir())


# A link that breaks

SLOW = r"""
python3 -u -c '
import os, time
while block := os.read(0, 65536):
    time.sleep(0.02)
    while block:
        block = block[os.write(1, block):]
' | /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A bundle with eight megabytes of weights."""
    from edgekit.bundle import write_bundle

    chosen = golden()
    named = {"tflite-fp32": artifact("tflite-fp32")}
    made = manifest(chosen, ("tflite-fp32",), plan=HERE, name="large", artifacts=named)
    weights = np.random.default_rng(0).bytes(8 << 20)
    contents = files(chosen, made) | {"artifacts/tflite-fp32/weights.bin": weights}
    return write_bundle(tmp_path / "large", made, contents).root


def broken_off(device: Device, made: Path) -> Path:
    """Deploy over a slow line and cut it in the middle of the weights; return what came of them."""
    device.behave(SLOW)
    words = command("deploy", made, device.address, *device.options(), *NULL)
    deploying = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    incoming = device.home / ".local/share/edgekit/incoming"
    deadline = time.monotonic() + 120
    while not (parts := [p for p in incoming.glob("*.part") if p.stat().st_size > 2 << 20]):
        assert time.monotonic() < deadline
        assert deploying.poll() is None, deploying.communicate()
        time.sleep(0.01)
    assert device.cut() >= 1
    _, err = deploying.communicate(timeout=60)
    assert deploying.returncode == 7, err
    assert "broke off" in err
    assert "Run the command again: it goes on where it stopped." in err
    device.behave()
    size = -1
    while size != (size := parts[0].stat().st_size):  # the other end has noticed
        time.sleep(0.5)
    assert 2 << 20 < size < 8 << 20
    assert not list(incoming.rglob("weights.bin")), "no partial file stands under its own name"
    return parts[0]


def test_a_broken_copy_is_gone_on_with(ready: Device, large: Path) -> None:
    part = broken_off(ready, large)
    came = part.stat().st_size
    done = run("deploy", large, ready.address, *ready.options(), *NULL, "--json")
    assert done.code == 0, done.err
    sent = done.data["sent"]["bundle"]
    assert (sent["resumed"], sent["spoilt"]) == (1, 0)
    assert sent["sent_bytes"] <= sent["bytes"] - came, "what was there was not sent again"
    assert sent["bytes"] > 8 << 20
    assert not part.exists()
    assert open_bundle(ready.home / ".local/state/edgekit/repository/large/1").digest == done.data["digest"]


def test_a_partial_file_that_was_damaged_is_noticed(ready: Device, large: Path, tmp_path: Path) -> None:
    part = broken_off(ready, renamed(large, tmp_path / "other"))
    damaged = bytearray(part.read_bytes())
    damaged[1000] ^= 1
    part.write_bytes(damaged)
    done = run("deploy", tmp_path / "other", ready.address, *ready.options(), *NULL, "--json")
    assert done.code == 0, done.err
    sent = done.data["sent"]["bundle"]
    assert (sent["resumed"], sent["spoilt"]) == (0, 1)
    assert sent["sent_bytes"] > 8 << 20


def renamed(made: Path, out: Path) -> Path:
    """Return the bundle as version 2, which the device does not have yet."""
    import msgspec

    from edgekit.bundle import write_bundle

    opened = open_bundle(made)
    contents: dict[str, Path | bytes] = {name: opened.root / name for name in opened.manifest.files}
    return write_bundle(out, msgspec.structs.replace(opened.manifest, version=2), contents).root
