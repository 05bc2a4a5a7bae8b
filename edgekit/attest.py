"""Evidence that a device signs: what ran there, under its Ed25519 key, in answer to a question that nobody has asked before.

The signature is over `edgekit-evidence-1`, one line feed, and the payload's UTF-8 bytes. The payload is kept as text, so
that what was signed is what is read.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from edgekit.errors import InvalidFileError
from edgekit.identity import Identity, device_id_of, verify_request

__all__ = ["Attestation", "Evidence", "sign_evidence", "verify_evidence"]

_DOMAIN = b"edgekit-evidence-1\n"
_SCHEMA = 1


class Attestation(msgspec.Struct, frozen=True):
    """Signed evidence, as it is kept.

    Attributes:
        payload: JSON of `Evidence`.
        public_key: The device's, 32 raw bytes in base64.
        signature: Ed25519, in base64.
        schema: Of this form.
    """

    payload: str
    public_key: str
    signature: str
    schema: int = _SCHEMA


class Evidence(msgspec.Struct, frozen=True):
    """What ran on a device.

    Attributes:
        nonce: The question's, 32 hexadecimal digits.
        device_id: Follows from the key.
        device: Profile detected there.
        board: Its model, or the CPU's name.
        isa: Its instruction set.
        digest: The bundle's.
        name: The bundle's name.
        version: The bundle's version.
        edgekit: Version that ran.
        verify: What `edgekit verify --json` printed.
        profile: What `edgekit profile --json` printed; None where only the self-test ran.
        emulated: By its own word, its CPU is emulated.
    """

    nonce: str
    device_id: str
    device: str
    board: str
    isa: str
    digest: str
    name: str
    version: int
    edgekit: str
    verify: dict[str, Any]
    profile: dict[str, Any] | None = None
    emulated: bool = False

    @property
    def golden_passed(self) -> bool:
        """Whether the golden set passed, of the very bundle that the evidence speaks of."""
        golden = self.verify.get("golden")
        right = self.verify.get("digest") == self.digest
        return right and isinstance(golden, dict) and golden.get("passed") is True


def sign_evidence(identity: Identity, evidence: Evidence) -> Attestation:
    """Return the evidence signed by the device's key."""
    payload = msgspec.json.encode(evidence).decode()
    return Attestation(
        payload=payload,
        public_key=base64.b64encode(identity.public_key).decode("ascii"),
        signature=identity.sign(_DOMAIN + payload.encode()),
    )


def verify_evidence(attestation: Attestation, *, nonce: str | None = None) -> Evidence:
    """Return what was signed.

    Args:
        attestation: As it came.
        nonce: What was asked with; None for evidence that is read again later.

    Raises:
        InvalidFileError: The signature is wrong, the key is not the named device's, or the question was another.
        UnavailableError: The `[agent]` extra is missing.
    """
    try:
        key = base64.b64decode(attestation.public_key, validate=True)
        evidence = msgspec.json.decode(attestation.payload, type=Evidence)
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidFileError("the device's evidence cannot be read") from error
    if not verify_request(key, _DOMAIN + attestation.payload.encode(), attestation.signature):
        raise InvalidFileError("the device's evidence does not bear the device's signature")
    if evidence.device_id != device_id_of(key):
        raise InvalidFileError("the device's evidence names another device than its key does")
    if nonce is not None and evidence.nonce != nonce:
        raise InvalidFileError("the device's evidence answers another question: it may be an old one")
    return evidence
