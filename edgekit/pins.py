"""Plans pinned by measurement: what `edgekit profile --pick` found quickest on this very device, for one bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from edgekit.manifest import Plan
from edgekit.state import open_state, state_root, write_durably

__all__ = ["Pin", "read_pin", "remove_pin", "write_pin"]

_SCHEMA = 1


class Pin(msgspec.Struct, frozen=True):
    """A plan and what it rests on.

    Attributes:
        schema: Of this file.
        digest: The bundle's: another version is measured anew.
        device: Detected when it was measured: another device's card in this reader is measured anew.
        plan: With its threads.
        p50_ms: Median latency of one call, in milliseconds.
        edgekit: Version that measured.
    """

    schema: int
    digest: str
    device: str
    plan: Plan
    p50_ms: float
    edgekit: str


def _file(root: Path, digest: str) -> Path:
    assert re.fullmatch("[0-9a-f]{64}", digest)
    return root / "pinned" / f"{digest}.json"


def read_pin(digest: str, device: str, state_dir: str | os.PathLike[str] | None = None) -> Pin | None:
    """Return the pin of a bundle on a device; None where there is none, or none that can be read.

    Args:
        digest: The bundle's, in hexadecimal.
        device: Detected here.
        state_dir: The state folder; None for the default one.
    """
    try:
        pin = msgspec.json.decode(_file(state_root(state_dir), digest).read_bytes(), type=Pin)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError):
        return None
    return pin if (pin.schema, pin.digest, pin.device) == (_SCHEMA, digest, device) else None


def write_pin(pin: Pin, state_dir: str | os.PathLike[str] | None = None) -> Path:
    """Write a pin durably and return its file; makes the state folder."""
    file = _file(open_state(state_dir).root, pin.digest)
    file.parent.mkdir(exist_ok=True)
    write_durably(file, msgspec.json.format(msgspec.json.encode(pin), indent=2) + b"\n")
    return file


def remove_pin(digest: str, state_dir: str | os.PathLike[str] | None = None) -> bool:
    """Remove a bundle's pin; return whether there was one."""
    file = _file(state_root(state_dir), digest)
    was_there = file.exists()
    file.unlink(missing_ok=True)
    return was_there
