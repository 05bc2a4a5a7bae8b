"""Where a device's evidence is kept: in the bundle's report folder, signed as it came."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.attest import Attestation
from edgekit.state import write_durably

__all__ = ["write_device_evidence"]


def write_device_evidence(path: Path, name: str, attestation: Attestation) -> Path:
    """Write what a device signed; return the file.

    Args:
        path: Where the user has the bundle.
        name: Of the file, without its suffix.
        attestation: Verified.
    """
    from edgekit.request import report_path

    folder = report_path(path.absolute())
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    write_durably(file, msgspec.json.format(msgspec.json.encode(attestation), indent=2) + b"\n")
    return file
