"""A deployment over a real sshd: the whole way, again, refused, broken off and gone on with."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.attest import Evidence
from edgekit.bundle import open_bundle
from edgekit.deploy.address import parse_address
from edgekit.deploy.link import connected
from edgekit.deploy.steps import _stepped_down
from edgekit.manifest import Golden, GoldenTolerance, Plan
from tests.conversions import command, environment
from tests.deploy.conftest import run
from tests.deploy.quadrants import HERE, quadrants
from tests.loopback import Device


def test_the_whole_way_and_again(ready: Device, bundle: Path) -> None:
    done = run("deploy", bundle, ready.address, *ready.options(), "--json")
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
    assert (there.digest, there.kept) == (data["digest"], frozenset({"onnx-fp32"}))
    evidence = json.loads(Path(data["evidence"]).read_text())
    assert data["device_id"] in evidence["payload"]
    assert not list((ready.home / ".local/share/edgekit/incoming").iterdir())


def test_what_it_prints(ready: Device, bundle: Path) -> None:
    done = run("deploy", bundle, ready.address, *ready.options())
    lines = done.out.splitlines()
    assert lines[0] == f"{ready.address}: connected"
    assert lines[1] == f"  ok  device:          {HERE}, and the bundle was made for {HERE}"
    assert "  ok  self-test:       32 samples, off by " in done.out
    assert "none enabled (not asked for); start it there by: " in done.out
    assert lines[-2].startswith(f"deployed: quadrants 1 on {ready.address}, device d-")


def test_the_command_that_is_told_starts_the_daemon(ready: Device, bundle: Path, tmp_path: Path) -> None:
    start = run("deploy", bundle, ready.address, *ready.options(), "--json").data["start"]
    words = [*shlex.split(start), "--http", "127.0.0.1:0"]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, text=True, env={"HOME": str(ready.home)}
        )
    try:
        assert daemon.stdout is not None
        url = daemon.stdout.readline().split()[-1]
        assert "ready: quadrants version 1, onnx-fp32 on onnxruntime" in daemon.stdout.readline()
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30) as answer:
            assert answer.status == 200
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)


def test_a_dry_run_changes_nothing(ready: Device, tmp_path: Path) -> None:
    other = quadrants(tmp_path / "b", version=7)
    before = ready.snapshot()
    done = run("deploy", other, ready.address, *ready.options(), "--dry-run")
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
        (HERE, ("--runtime", "openvino"), "the bundle has no openvino artifact here"),
    ],
)
def test_a_device_that_fails_its_check_stays_as_it_was(
    device: Device, tmp_path: Path, target: str, options: tuple[str, ...], said: str
) -> None:
    made = quadrants(tmp_path / "b", target=target)
    before = device.snapshot()
    done = run("deploy", made, device.address, *device.options(), *options)
    assert done.code == 4, done.out
    assert "fails its check, and nothing was changed there" in done.err
    assert said in done.err
    assert "  no  " in done.out
    assert device.snapshot() == before


def test_a_version_with_another_content_is_refused(ready: Device, tmp_path: Path) -> None:
    other = quadrants(tmp_path / "b", labels=("a", "b", "c"))
    before = ready.snapshot()
    done = run("deploy", other, ready.address, *ready.options())
    assert done.code == 2
    assert "version 1 of quadrants is installed with another content" in done.err
    assert "--version 2" in done.err
    repository = str(ready.home / ".local/state")
    assert {k: v for k, v in ready.snapshot().items() if k.startswith(repository)} == {
        k: v for k, v in before.items() if k.startswith(repository)
    }


def test_a_golden_set_that_fails_is_refused_and_the_old_version_stays(ready: Device, tmp_path: Path) -> None:
    strict = Golden(32, "real", {"onnx-fp32": GoldenTolerance(0.01, 33)})
    broken = quadrants(tmp_path / "b", version=9, golden=strict)
    done = run("deploy", broken, ready.address, *ready.options())
    assert done.code == 4, done.err
    assert "the golden set fails" in done.err
    assert not (ready.home / ".local/state/edgekit/repository/quadrants/9").exists()
    assert not list((ready.home / ".local/share/edgekit/incoming").iterdir())


PLANNED = Plan("jetson", "onnx-fp16", "onnxruntime", ("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ({}, ""),
        ({"providers": ["CUDAExecutionProvider"]}, ""),
        ({"providers": ["CPUExecutionProvider"]}, "onnx-fp16 in onnxruntime on CPUExecutionProvider"),
        ({"artifact": "onnx-fp32"}, "onnx-fp32 in onnxruntime on CUDAExecutionProvider"),
        ({"runtime": "openvino", "providers": []}, "onnx-fp16 in openvino"),
        ({"providers": 7}, "onnx-fp16 in onnxruntime"),
    ],
)
def test_what_ran_as_planned(told: dict[str, object], lost: str) -> None:
    plan = {**json.loads(msgspec.json.encode(PLANNED)), **told}
    evidence = Evidence("n", "d-1", "jetson", "", "aarch64", "d", "b", 1, "0", {"plan": plan})
    assert _stepped_down(PLANNED, evidence) == lost
    assert _stepped_down(PLANNED, msgspec.structs.replace(evidence, verify={"plan": 7}))


def test_an_environment_that_was_not_finished_is_none(ready: Device, bundle: Path) -> None:
    (complete,) = (ready.home / ".local/share/edgekit/environments").glob("*/complete")
    complete.rename(complete.with_suffix(".not"))
    done = run("deploy", bundle, ready.address, *ready.options(), "--dry-run", "--json")
    complete.with_suffix(".not").rename(complete)
    assert "MB to send" in next(each["said"] for each in done.data["checks"] if each["name"] == "wheels")


def test_a_full_disk_is_told_and_what_came_is_kept(ready: Device, tmp_path: Path) -> None:
    made = quadrants(tmp_path / "b", name="full", more=np.random.default_rng(2).bytes(3 << 20))
    ready.behave(
        'ulimit -f 4096; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    )  # of 512 bytes: no file beyond 2 MiB
    done = run("deploy", made, ready.address, *ready.options())
    assert done.code == 1
    assert "cannot do it: File too large" in done.err
    ready.behave()
    done = run("deploy", made, ready.address, *ready.options(), "--json")
    assert done.code == 0, done.err
    assert done.data["sent"]["bundle"]["resumed"] == 1


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
    return quadrants(tmp_path / "large", name="large", more=np.random.default_rng(0).bytes(8 << 20))


def broken_off(device: Device, made: Path) -> Path:
    """Deploy over a slow line and cut it in the middle of the weights; return what came of them."""
    device.behave(SLOW)
    words = command("deploy", made, device.address, *device.options())
    deploying = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    part = half_way(device, deploying)
    assert device.cut() >= 1
    _, err = deploying.communicate(timeout=60)
    assert deploying.returncode == 7, err
    assert "broke off" in err
    assert "Run the command again: it goes on where it stopped." in err
    return settled(device, part)


def half_way(device: Device, deploying: subprocess.Popen[str]) -> Path:
    """Wait until a part of the weights has come over; return it."""
    incoming = device.home / ".local/share/edgekit/incoming"
    deadline = time.monotonic() + 120
    while not (parts := [p for p in incoming.glob("*.part") if p.stat().st_size > 2 << 20]):
        assert time.monotonic() < deadline
        assert deploying.poll() is None, deploying.communicate()
        time.sleep(0.01)
    return parts[0]


def settled(device: Device, part: Path) -> Path:
    """Wait until the other end has noticed that the link is gone."""
    device.behave()
    size = -1
    while size != (size := part.stat().st_size):
        time.sleep(0.5)
    assert 2 << 20 < size < 8 << 20
    assert not list(part.parent.rglob("weights.bin")), "no partial file stands under its own name"
    return part


def test_a_broken_copy_is_gone_on_with(ready: Device, large: Path) -> None:
    part = broken_off(ready, large)
    came = part.stat().st_size
    done = run("deploy", large, ready.address, *ready.options(), "--json")
    assert done.code == 0, done.err
    sent = done.data["sent"]["bundle"]
    assert (sent["resumed"], sent["spoilt"]) == (1, 0)
    assert sent["sent_bytes"] <= sent["bytes"] - came, "what was there was not sent again"
    assert sent["bytes"] > 8 << 20
    assert not part.exists()
    assert open_bundle(ready.home / ".local/state/edgekit/repository/large/1").digest == done.data["digest"]


def test_a_partial_file_that_was_damaged_is_noticed(ready: Device, tmp_path: Path) -> None:
    other = quadrants(
        tmp_path / "other", name="large", version=2, more=np.random.default_rng(1).bytes(8 << 20)
    )
    part = broken_off(ready, other)
    damaged = bytearray(part.read_bytes())
    damaged[1000] ^= 1
    part.write_bytes(damaged)
    done = run("deploy", other, ready.address, *ready.options(), "--json")
    assert done.code == 0, done.err
    sent = done.data["sent"]["bundle"]
    assert (sent["resumed"], sent["spoilt"]) == (0, 1)
    assert sent["sent_bytes"] > 8 << 20


def test_an_interrupted_deployment_ends_on_both_sides(ready: Device, tmp_path: Path) -> None:
    made = quadrants(tmp_path / "b", name="stopped", more=np.random.default_rng(3).bytes(8 << 20))
    ready.behave(SLOW)
    words = command("deploy", made, ready.address, *ready.options())
    deploying = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    part = half_way(ready, deploying)
    deploying.send_signal(signal.SIGINT)
    _, err = deploying.communicate(timeout=60)
    assert (deploying.returncode, err.strip()) == (130, "edgekit: interrupted")
    settled(ready, part)
    with connected(parse_address(ready.address), config=ready.config) as link:
        link.ask("begin", dict, root=".local/share/edgekit")  # the other end has let go of the folder
        link.ask("keep", dict, name="incoming", kept=[])
