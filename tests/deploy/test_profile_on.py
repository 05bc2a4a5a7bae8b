"""`edgekit profile --on` over a real sshd: evidence comes back signed, and raises a profile only where it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.attest import Attestation, Evidence, verify_evidence
from edgekit.deploy.profiling import why_not_hardware
from edgekit.devices import load_profile
from edgekit.standing import known_device, remember_device, standings
from tests.conversions import run_main
from tests.deploy.conftest import run
from tests.deploy.quadrants import HERE, quadrants
from tests.loopback import Device

QUICK = ("--seconds", "0.2", "--threads", "1")


def test_a_device_is_measured_and_believed(
    ready: Device,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = known_device(ready.address)
    assert known is not None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remember_device(known)
    assert standings(HERE) == ()
    done = run("profile", bundle, "--on", ready.address, *QUICK, "--json")
    assert done.code == 0, done.err
    data = done.data
    assert data["golden_passed"] is True
    assert (data["measurements"][0]["runtime"], data["measurements"][0]["artifact"]) == (
        "onnxruntime",
        "onnx-fp32",
    )
    assert data["verified"]["device"] == HERE
    attestation = msgspec.json.decode(Path(data["evidence"]).read_bytes(), type=Attestation)
    evidence = verify_evidence(attestation)
    assert evidence.profile is not None
    assert evidence.profile["measurements"] == data["measurements"]
    assert evidence.device_id == known.device_id == data["device_id"]
    (standing,) = standings(HERE)
    assert (standing.digest, standing.evidence, standing.address) == (
        evidence.digest,
        attestation,
        ready.address,
    )
    shown = run_main(["devices", "show", HERE], capsys).out
    assert f"hardware, by your own evidence (shipped: {load_profile(HERE).verified})" in shown
    assert f"digest {evidence.digest[:12]}, on {data['verified']['date']}" in shown
    told = json.loads(run_main(["devices", "show", HERE, "--json"], capsys).out)
    assert told["verified_here"][0]["digest"] == evidence.digest
    listed = run_main(["devices", "list"], capsys).out
    assert next(line for line in listed.splitlines() if line.startswith(f"{HERE} ")).endswith("hardware")


def test_what_it_prints(ready: Device, bundle: Path) -> None:
    done = run("profile", bundle, "--on", ready.address, *QUICK)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("quadrants 1, digest ")
    assert lines[2].split() == ["runtime", "artifact", "threads", "batch", "p50", "ms", "verdict"]
    assert lines[3].split()[:4] == ["onnxruntime", "onnx-fp32", "1", "1"]
    assert lines[-1] == f"{HERE} counts as verified on hardware here: edgekit devices show {HERE}"


def test_the_null_runtime_raises_nothing(ready: Device, bundle: Path) -> None:
    done = run("profile", bundle, "--on", ready.address, *QUICK, "--runtime", "null", "--json")
    assert done.code == 0, done.err
    assert done.data["verified"] is None
    assert done.data["not_verified_because"] == "the null runtime computes nothing"


def test_another_key_is_refused(
    ready: Device, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_device(ready.address)
    assert known is not None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remember_device(msgspec.structs.replace(known, device_id="d-aaaaaaaaaaaaaaaa"))
    done = run("profile", bundle, "--on", ready.address, *QUICK)
    assert done.code == 4
    assert f"signs with another key than at its deployment: got {known.device_id}" in done.err
    assert standings(HERE) == ()


def test_what_was_not_deployed_is_not_measured(
    ready: Device, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = quadrants(tmp_path / "b", name="other")
    said = run_main(["profile", other, "--on", ready.address], capsys)
    assert said.code == 5
    assert "other/1 is not on" in said.line
    assert "edgekit deploy" in said.line
    said = run_main(["profile", bundle, "--on", "ssh://elsewhere"], capsys)
    assert said.code == 2
    assert "nothing was deployed to ssh://elsewhere from here" in said.line


@pytest.mark.parametrize("option", [("--unpin",), ("--state-dir", "x")])
def test_an_option_that_means_nothing_there(
    bundle: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_main(["profile", bundle, "--on", "ssh://elsewhere", *option], capsys)
    assert said.code == 2
    assert f"{option[0]} has no meaning with --on" in said.line


def evidence(**changes: Any) -> Evidence:
    verify = {
        "digest": "d",
        "golden": {"passed": True},
        "plan": {"runtime": "litert", "artifact": "tflite-int8"},
    }
    row = {"runtime": "litert", "artifact": "tflite-int8", "error": None}
    made = Evidence(
        "n", "d-1", "raspberry-pi-4", "Pi", "aarch64", "d", "b", 1, "0.1.0", verify, {"measurements": [row]}
    )
    return msgspec.structs.replace(made, **changes)


RIGHT = evidence()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (RIGHT, ""),
        (
            evidence(device="raspberry-pi-5"),
            "it says that it is raspberry-pi-5, and looks like raspberry-pi-4",
        ),
        (evidence(verify={**RIGHT.verify, "golden": {"passed": False}}), "did not pass"),
        (evidence(verify={**RIGHT.verify, "golden": {"passed": "yes"}}), "did not pass"),
        (evidence(verify={**RIGHT.verify, "golden": None}), "did not pass"),
        (evidence(verify={**RIGHT.verify, "digest": "other"}), "did not pass"),
        (evidence(verify={**RIGHT.verify, "plan": {"runtime": "null", "artifact": "tflite-int8"}}), "null"),
        (evidence(emulated=True), "its CPU is emulated"),
        (evidence(profile=None), "was not measured"),
        (evidence(profile={"measurements": 7}), "was not measured"),
        (evidence(profile={"measurements": [7]}), "was not measured"),
        (
            evidence(profile={"measurements": [{"runtime": "litert", "artifact": "tflite-fp32"}]}),
            "was not measured",
        ),
        (
            evidence(
                profile={"measurements": [{"runtime": "litert", "artifact": "tflite-int8", "error": "died"}]}
            ),
            "was not measured",
        ),
    ],
)
def test_only_what_passed_and_was_measured_counts(given: Evidence, why: str) -> None:
    found = why_not_hardware(given, "raspberry-pi-4")
    assert why in found
    assert bool(found) == bool(why)
