"""What this machine knows of devices that it has met: where they are, which key they have, what was proven on them.

Profiles are shipped data and say how far they were tried by those who wrote them. What was seen on a device of one's own
is kept here, in the state folder: it raises that profile's `verified` to `hardware` on this machine, and says by what.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.attest import Attestation, Evidence
from edgekit.devices import load_profile
from edgekit.errors import UsageError
from edgekit.state import open_state, state_root, write_durably

__all__ = [
    "Known",
    "Standing",
    "known_device",
    "raise_standing",
    "remember_device",
    "standings",
    "verified_as",
]

_SCHEMA = 1


class Known(msgspec.Struct, frozen=True):
    """A device that something was deployed to.

    Attributes:
        address: As it was given.
        device_id: Follows from its key.
        root: EdgeKit's folder there.
        state: The state folder there.
        identity: File of the ssh key that was given by hand, if one was.
        config: The ssh configuration that was given by hand, if one was.
    """

    address: str
    device_id: str
    root: str
    state: str
    identity: str | None = None
    config: str | None = None


class Standing(msgspec.Struct, frozen=True):
    """One device's evidence that a profile works on the hardware.

    Attributes:
        device: The profile.
        device_id: Of the device.
        board: Its model.
        isa: Its instruction set.
        bundle: Name and version.
        digest: The bundle's.
        date: When it was seen, UTC, by this machine's clock: `2026-11-25`.
        address: Where the device was.
        evidence: What it signed.
        schema: Of this file.
    """

    device: str
    device_id: str
    board: str
    isa: str
    bundle: str
    digest: str
    date: str
    address: str
    evidence: Attestation
    schema: int = _SCHEMA


def remember_device(known: Known, state_dir: str | os.PathLike[str] | None = None) -> None:
    """Write down where a device is and which key it has."""
    folder = open_state(state_dir).root / "devices"
    folder.mkdir(exist_ok=True)
    write_durably(folder / _file(known.address), msgspec.json.encode(known), mode=0o600)


def known_device(address: str, state_dir: str | os.PathLike[str] | None = None) -> Known | None:
    """Return what is known of the device at an address; None where nothing is."""
    try:
        found = msgspec.json.decode(
            (state_root(state_dir) / "devices" / _file(address)).read_bytes(), type=Known
        )
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    return found if found.address == address else None


def _file(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:24] + ".json"


def raise_standing(
    evidence: Evidence,
    attestation: Attestation,
    *,
    bundle: str,
    address: str,
    date: str,
    state_dir: str | os.PathLike[str] | None = None,
) -> Standing:
    """Keep a device's evidence; the newest of each device counts.

    Args:
        evidence: Verified, and with a golden set that passed.
        attestation: What was signed.
        bundle: Name and version.
        address: Where the device is.
        date: Today, UTC.
        state_dir: The state folder; None for the default one.
    """
    from edgekit.deploy.link import plain

    assert evidence.golden_passed
    load_profile(evidence.device)  # it becomes a folder's name
    standing = Standing(
        device=evidence.device,
        device_id=evidence.device_id,
        board=plain(evidence.board),
        isa=plain(evidence.isa),
        bundle=bundle,
        digest=evidence.digest,
        date=date,
        address=address,
        evidence=attestation,
    )
    folder = open_state(state_dir).root / "verified" / evidence.device
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{evidence.device_id}.json", msgspec.json.encode(standing))
    return standing


def standings(profile_id: str, state_dir: str | os.PathLike[str] | None = None) -> tuple[Standing, ...]:
    """Return the evidence for a profile, newest first; what cannot be read is left out."""
    try:
        root = state_root(state_dir)
    except UsageError:  # no home folder, so no state
        return ()
    return tuple(sorted(_read(profile_id, root), key=lambda each: each.date, reverse=True))


def _read(profile_id: str, root: Path) -> Iterator[Standing]:
    for path in sorted((root / "verified" / profile_id).glob("*.json")):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Standing)
        except (OSError, msgspec.MsgspecError, ValueError):
            continue
        if found.schema == _SCHEMA and found.device == profile_id:
            yield found


def verified_as(profile_id: str, shipped: str, state_dir: str | os.PathLike[str] | None = None) -> str:
    """Return how far a profile was tried, by its authors or here."""
    return "hardware" if standings(profile_id, state_dir) else shipped
