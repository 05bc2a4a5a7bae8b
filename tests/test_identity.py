from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="needs the [agent] extra")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.errors import InvalidFileError, MachineError
from edgekit.identity import (
    DEVICE_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Enrolled,
    Identity,
    canonical_request,
    device_id_of,
    new_nonce,
    open_identity,
    read_enrolment,
    verify_request,
    write_enrolment,
)
from edgekit.state import StateFolder

pytestmark = pytest.mark.device

IDENTITY = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def test_canonical_request_is_the_seven_documented_lines() -> None:
    message = canonical_request(
        "post", "/api/v1/reports", b"abc", timestamp_ms=17, nonce="00ff", device_id="d-x"
    )
    assert message == (
        b"edgekit-request-1\nPOST\n/api/v1/reports\n"
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n17\n00ff\nd-x"
    )


def test_signature_is_the_same_on_every_machine() -> None:
    headers = IDENTITY.sign_request("POST", "/api/v1/reports", b"abc", unix_s=1.5, nonce="0" * 32)
    assert headers == {
        DEVICE_HEADER: "d-kzdvvj2umnduyauf",
        TIMESTAMP_HEADER: "1500",
        NONCE_HEADER: "0" * 32,
        SIGNATURE_HEADER: "DH5wbV3tMInwt4aGIqaI0/NBgGw1BLENZNGrdlt/L0HMWheQeUCKsGtX9/fEcJ5nGQD2Xt5HURB+QNmTjaZlAw==",
    }
    message = canonical_request(
        "POST", "/api/v1/reports", b"abc", timestamp_ms=1500, nonce="0" * 32, device_id=IDENTITY.device_id
    )
    assert verify_request(IDENTITY.public_key, message, headers[SIGNATURE_HEADER])


@given(body=st.binary(max_size=100), other=st.binary(max_size=100), flip=st.integers(0, 87))
def test_signature_fits_one_body_only(body: bytes, other: bytes, flip: int) -> None:
    signature = IDENTITY.sign_request("POST", "/p", body, unix_s=1.0, nonce="n")[SIGNATURE_HEADER]

    def fits(content: bytes, signed: str = signature) -> bool:
        message = canonical_request(
            "POST", "/p", content, timestamp_ms=1000, nonce="n", device_id=IDENTITY.device_id
        )
        return verify_request(IDENTITY.public_key, message, signed)

    assert fits(body)
    assert fits(other) == (other == body)
    changed = signature[:flip] + ("B" if signature[flip] != "B" else "C") + signature[flip + 1 :]
    # the last letter before the padding has four bits that base64 ignores
    assert flip == 85 or not fits(body, changed)


def test_what_is_no_signature_is_no_crash() -> None:
    for signature in ("", "%%%", "AAAA", "é", "A" * 88):
        assert not verify_request(IDENTITY.public_key, b"m", signature)


def test_id_belongs_to_one_key() -> None:
    assert device_id_of(IDENTITY.public_key) == IDENTITY.device_id
    assert device_id_of(bytes(32)) != device_id_of(bytes(31) + b"\1")


def test_key_is_made_once_and_kept(state: StateFolder) -> None:
    first = open_identity(state)
    assert open_identity(state).public_key == first.public_key


def test_key_is_its_owners_alone(state: StateFolder) -> None:
    before = os.umask(0)  # the most careless umask must not matter
    try:
        open_identity(state)
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.identity.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in state.identity.iterdir()] == [0o600]


def test_key_that_others_could_read_is_not_used(state: StateFolder) -> None:
    open_identity(state)
    (state.identity / "device.pem").chmod(0o640)
    with pytest.raises(MachineError, match="0o640"):
        open_identity(state)


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff"]
)
def test_damaged_key_is_refused_and_not_replaced(state: StateFolder, content: bytes) -> None:
    state.identity.mkdir()
    path = state.identity / "device.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidFileError, match="enrol again"):
        open_identity(state)
    assert path.read_bytes() == content


def test_key_of_another_kind_is_refused(state: StateFolder) -> None:
    state.identity.mkdir()
    path = state.identity / "device.pem"
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    with pytest.raises(InvalidFileError, match="Ed25519"):
        open_identity(state)


def test_enrolment_is_remembered(state: StateFolder) -> None:
    assert read_enrolment(state) is None
    enrolled = Enrolled("d-x", "https://fleet.example", "00")
    write_enrolment(state, enrolled)
    assert read_enrolment(state) == enrolled
    for damaged in (b'{"device_id": 3', b'{"device_id":"\xff","server":"","token_sha256":""}', b""):
        (state.identity / "enrolment.json").write_bytes(damaged)
        assert read_enrolment(state) is None


def test_secret_is_not_shown() -> None:
    secret = bytes(range(32))
    for shown in (repr(IDENTITY), str(IDENTITY), repr(vars(IDENTITY))):
        assert secret.hex() not in shown


def test_nonces_differ_and_have_the_documented_shape() -> None:
    nonces = {new_nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert all(len(nonce) == 32 and int(nonce, 16) >= 0 for nonce in nonces)
