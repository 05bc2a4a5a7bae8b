"""Signed evidence, and what it raises."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("cryptography")

from edgekit.attest import Attestation, Evidence, sign_evidence, verify_evidence
from edgekit.errors import InvalidFileError, UsageError
from edgekit.identity import open_identity
from edgekit.standing import (
    Known,
    known_device,
    raise_standing,
    remember_device,
    standings,
    verified_as,
)
from edgekit.state import open_state

pytestmark = pytest.mark.device


def made(tmp_path: Path, **changes: Any) -> tuple[Attestation, Evidence]:
    identity = open_identity(open_state(tmp_path / "state"))
    evidence = Evidence(
        nonce="0" * 32,
        device_id=identity.device_id,
        device="raspberry-pi-4",
        board="Raspberry Pi 4 Model B",
        isa="aarch64",
        digest="ab" * 32,
        name="digits",
        version=3,
        edgekit="0.1.0",
        verify={"digest": "ab" * 32, "golden": {"passed": True}},
    )
    evidence = msgspec.structs.replace(evidence, **changes)
    return sign_evidence(identity, evidence), evidence


def test_what_was_signed_is_what_is_read(tmp_path: Path) -> None:
    attestation, evidence = made(tmp_path)
    stored = msgspec.json.decode(msgspec.json.encode(attestation), type=Attestation)
    assert verify_evidence(stored, nonce="0" * 32) == evidence
    assert verify_evidence(stored) == evidence
    assert evidence.golden_passed


def test_any_change_is_noticed(tmp_path: Path) -> None:
    attestation, _ = made(tmp_path)
    for place in range(0, len(attestation.payload), 7):
        changed = attestation.payload[:place] + "\u2603" + attestation.payload[place + 1 :]
        with pytest.raises(InvalidFileError, match=r"does not bear|cannot be read"):
            verify_evidence(msgspec.structs.replace(attestation, payload=changed))
    with pytest.raises(InvalidFileError, match="does not bear"):
        verify_evidence(msgspec.structs.replace(attestation, signature=base64.b64encode(bytes(64)).decode()))


@pytest.mark.parametrize("field", ["payload", "public_key", "signature"])
@pytest.mark.parametrize("value", ["", "é", "[" * 100_000, "{}", "AAAA"])
def test_nonsense_is_refused(tmp_path: Path, field: str, value: str) -> None:
    attestation, _ = made(tmp_path)
    with pytest.raises(InvalidFileError):
        verify_evidence(msgspec.structs.replace(attestation, **{field: value}))


def test_another_key_cannot_speak_for_a_device(tmp_path: Path) -> None:
    attestation, _ = made(tmp_path, device_id="d-aaaaaaaaaaaaaaaa")
    with pytest.raises(InvalidFileError, match="names another device"):
        verify_evidence(attestation)


def test_old_evidence_is_no_answer(tmp_path: Path) -> None:
    attestation, _ = made(tmp_path)
    with pytest.raises(InvalidFileError, match="another question"):
        verify_evidence(attestation, nonce="1" * 32)


def test_evidence_raises_its_profile_and_no_other(tmp_path: Path) -> None:
    attestation, evidence = made(tmp_path, board="Pi\x1b[2J 4")
    here = tmp_path / "here"
    assert verified_as("raspberry-pi-4", "fixture", here) == "fixture"
    for date in ("2026-11-24", "2026-11-25"):
        raise_standing(
            evidence, attestation, bundle="digits 3", address="ssh://pi", date=date, state_dir=here
        )
    (standing,) = standings("raspberry-pi-4", here)
    assert (standing.date, standing.digest, standing.board) == ("2026-11-25", "ab" * 32, "Pi?[2J 4")
    assert verified_as("raspberry-pi-4", "fixture", here) == "hardware"
    assert verified_as("raspberry-pi-5", "fixture", here) == "fixture"
    assert verify_evidence(standing.evidence) == evidence


def test_a_profile_that_is_none_becomes_no_folder(tmp_path: Path) -> None:
    attestation, evidence = made(tmp_path, device="../../escaped")
    with pytest.raises(UsageError, match="unknown device"):
        raise_standing(
            evidence, attestation, bundle="b", address="a", date="2026-11-25", state_dir=tmp_path / "here"
        )


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    attestation, evidence = made(tmp_path)
    raise_standing(
        evidence, attestation, bundle="b", address="a", date="2026-11-25", state_dir=tmp_path / "here"
    )
    folder = tmp_path / "here" / "verified" / "raspberry-pi-4"
    (folder / "half.json").write_text('{"device"')
    (folder / "other.json").write_bytes(
        (next(folder.glob("d-*.json"))).read_bytes().replace(b"-pi-4", b"-pi-5")
    )
    assert len(standings("raspberry-pi-4", tmp_path / "here")) == 1


def test_a_device_is_remembered_by_its_address(tmp_path: Path) -> None:
    known = Known("ssh://pi", "d-1", "/r", "/s", None, "/c")
    remember_device(known, tmp_path)
    assert known_device("ssh://pi", tmp_path) == known
    assert known_device("ssh://other", tmp_path) is None
    for file in (tmp_path / "devices").iterdir():
        file.write_bytes(b"{")
    assert known_device("ssh://pi", tmp_path) is None
