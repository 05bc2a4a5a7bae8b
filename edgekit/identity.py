"""The device's Ed25519 key, its enrolment, and how its requests are signed.

A signed request carries four headers:

    EdgeKit-Device: <device id>
    EdgeKit-Timestamp: <Unix time in milliseconds, decimal>
    EdgeKit-Nonce: <32 hexadecimal digits, never used before by this device>
    EdgeKit-Signature: <base64 of the Ed25519 signature>

The signature is over the UTF-8 bytes of these seven lines, joined by one line feed, none at the end:

    edgekit-request-1
    <method, upper case>
    <path, from /api/ on, without the prefix that a proxy may add>
    <SHA-256 of the body as it travels, that is compressed, in lower-case hexadecimal>
    <timestamp>
    <nonce>
    <device id>

A device's id is `d-` and the first 16 characters of the base32 form (lower case) of the SHA-256 of its raw
public key: nobody can take the id of another key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import InvalidFileError, MachineError, UnavailableError
from edgekit.state import StateFolder, fsync_folder, write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "DEVICE_HEADER",
    "NONCE_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "Enrolled",
    "Identity",
    "canonical_request",
    "device_id_of",
    "new_nonce",
    "open_identity",
    "read_enrolment",
    "verify_request",
    "write_enrolment",
]

DEVICE_HEADER = "EdgeKit-Device"
TIMESTAMP_HEADER = "EdgeKit-Timestamp"
NONCE_HEADER = "EdgeKit-Nonce"
SIGNATURE_HEADER = "EdgeKit-Signature"

_KEY_FILE = "device.pem"
_ENROLMENT_FILE = "enrolment.json"


def device_id_of(public_key: bytes) -> str:
    """Return the id of the device that has this raw public key (32 bytes).

    >>> device_id_of(bytes(32))
    'd-mzuhvlpymk6xo3ep'
    """
    digest = hashlib.sha256(public_key).digest()
    return "d-" + base64.b32encode(digest).decode("ascii")[:16].lower()


def canonical_request(
    method: str, path: str, body: bytes, *, timestamp_ms: int, nonce: str, device_id: str
) -> bytes:
    """Return the bytes that are signed: the seven lines of the module's docstring."""
    digest = hashlib.sha256(body).hexdigest()
    lines = ("edgekit-request-1", method.upper(), path, digest, str(timestamp_ms), nonce, device_id)
    return "\n".join(lines).encode()


@dataclass(frozen=True)
class Identity:
    """A device's key. Its secret part is never shown, logged or sent."""

    _key: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    @property
    def device_id(self) -> str:
        """The id that follows from the key."""
        return device_id_of(self.public_key)

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, in base64; what it is for must stand in its first line."""
        return base64.b64encode(self._key.sign(message)).decode("ascii")

    def sign_request(
        self, method: str, path: str, body: bytes, *, unix_s: float, nonce: str, device_id: str | None = None
    ) -> dict[str, str]:
        """Return the four headers of a signed request.

        Args:
            method: `POST`, say.
            path: From `/api/` on.
            body: The body as it will travel.
            unix_s: Unix time in seconds, corrected by what the server said of it.
            nonce: 32 hexadecimal digits, fresh.
            device_id: The id under which the server knows this key; by default the key's own.
        """
        timestamp_ms, device = int(unix_s * 1000), device_id or self.device_id
        message = canonical_request(
            method, path, body, timestamp_ms=timestamp_ms, nonce=nonce, device_id=device
        )
        return {
            DEVICE_HEADER: device,
            TIMESTAMP_HEADER: str(timestamp_ms),
            NONCE_HEADER: nonce,
            SIGNATURE_HEADER: self.sign(message),
        }


def verify_request(public_key: bytes, message: bytes, signature: str) -> bool:
    """Tell whether `signature` (base64) is that of `public_key` (32 raw bytes) over `message`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(raw, message)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def open_identity(state: StateFolder) -> Identity:
    """Return the device's key, made and written durably at the first call.

    Raises:
        MachineError: Others than its owner can read the key.
        InvalidFileError: The file holds no Ed25519 key.
        UnavailableError: The `[agent]` extra is missing.
    """
    path = _private_folder(state) / _KEY_FILE
    return Identity(_read_key(path) if path.exists() else _make_key(path))


def _private_folder(state: StateFolder) -> Path:
    folder = state.identity
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
        fsync_folder(folder.parent)
    folder.chmod(0o700)
    return folder


def _make_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _no_cryptography() from error
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(path, pem, mode=0o600)
    return key


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise _no_cryptography() from error
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise MachineError(
            f"others can read the device's key {path}",
            got=oct(mode),
            expected="0o600",
            hint="If nobody has copied it: chmod 600. Else revoke the device, delete the key, enrol again.",
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged(path, "a file that is no private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path, "another kind of key")
    return key


def _damaged(path: Path, got: str) -> InvalidFileError:
    return InvalidFileError(
        f"the device's key {path} cannot be used",
        got=got,
        expected="an Ed25519 key in PEM",
        hint="Restore it, or delete it and enrol again with --enroll-token.",
    )


def _no_cryptography() -> UnavailableError:
    return UnavailableError(
        "the package cryptography is missing", hint="Run: pip install 'edgekit-deploy[agent]'"
    )


class Enrolled(msgspec.Struct, frozen=True):
    """What the device remembers of its enrolment.

    Attributes:
        device_id: The id that the server gave.
        server: Where it enrolled.
        token_sha256: Hash of the token it used, so that a start with the same token enrols only once.
    """

    device_id: str
    server: str
    token_sha256: str


def read_enrolment(state: StateFolder) -> Enrolled | None:
    """Return the enrolment, None when there is none or its file is damaged (a token repairs that)."""
    try:
        return msgspec.json.decode((state.identity / _ENROLMENT_FILE).read_bytes(), type=Enrolled)
    except (FileNotFoundError, ValueError):  # not JSON, not UTF-8, not an enrolment
        return None


def write_enrolment(state: StateFolder, enrolled: Enrolled) -> None:
    """Remember the enrolment durably."""
    write_durably(_private_folder(state) / _ENROLMENT_FILE, msgspec.json.encode(enrolled), mode=0o600)


def new_nonce() -> str:
    """Return 32 random hexadecimal digits."""
    return os.urandom(16).hex()
