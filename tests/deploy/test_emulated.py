"""A whole deployment to another instruction set: a loopback device whose Python is an emulated Cortex-A72's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.devices import load_profile
from edgekit.emulator import emulator_of
from tests.deploy.conftest import run
from tests.deploy.quadrants import quadrants
from tests.emulation import prepared
from tests.loopback import Device, loopback_device

pytestmark = pytest.mark.soak


@pytest.fixture(name="pi")
def _pi(tmp_path: Path) -> Iterator[Device]:
    """A device of its own: what is installed there runs nowhere else."""
    (tmp_path / "a pi").mkdir()
    with loopback_device(tmp_path / "a pi") as made:
        yield made


def test_an_emulated_pi(pi: Device, tmp_path: Path) -> None:
    with prepared():
        words = emulator_of(load_profile("raspberry-pi-4")).interpreter.words
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (shims / "python3").chmod(0o755)
    launcher = shlex.quote(shlex.join(words[:-1]))
    pi.behave(
        f'export EDGEKIT_LAUNCHER={launcher} PATH={shims}:$PATH\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    made = quadrants(tmp_path / "b", target="raspberry-pi-4", name="on-a-pi")
    runtime = ("--runtime", "onnxruntime")
    options = (*pi.options(), *runtime, "--to", "pi", "--state-dir", "pi-state")
    done = run("deploy", made, pi.address, *options, "--device", "raspberry-pi-4", "--json", timeout_s=500)
    assert done.code == 0, done.err
    assert done.data["device"] == "generic-aarch64", "QEMU has no device tree"
    assert list((pi.home / "pi/environments").glob("*/lib/python3.11/site-packages/numpy/**/*aarch64*.so"))
    evidence = json.loads(json.loads(Path(done.data["evidence"]).read_text())["payload"])
    assert (evidence["isa"], evidence["emulated"]) == ("aarch64", True)
    measured = run(
        "profile", made, "--on", pi.address, *runtime, "--seconds", "0.5", "--threads", "1", "--json"
    )
    assert measured.code == 0, measured.err
    assert measured.data["not_verified_because"] == "its CPU is emulated"
