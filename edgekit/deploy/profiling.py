"""`edgekit profile` on a device that something was deployed to: measured there, signed there, believed here with reason."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from edgekit.attest import Attestation, Evidence, verify_evidence
from edgekit.bundle import Bundle
from edgekit.deploy.link import Link
from edgekit.deploy.steps import ask_installed, environment_of
from edgekit.deploy.survey import look
from edgekit.deploy.there import Installed, Request
from edgekit.errors import NetworkError, RefusedError, UnavailableError
from edgekit.standing import Known

__all__ = ["Measured", "profile_there", "why_not_hardware"]

#: Seconds for everything on the device: a sweep over threads and batches takes minutes.
_PROFILE_S, _HOLDS_S = 4 * 3600.0, 600.0


class Measured(msgspec.Struct, frozen=True):
    """What came back.

    Attributes:
        evidence: Verified.
        attestation: As it was signed.
        obstacle: Why it does not raise the profile's `verified`; empty where it does.
    """

    evidence: Evidence
    attestation: Attestation
    obstacle: str


def profile_there(
    bundle: Bundle, link: Link, known: Known, verify: tuple[str, ...], profile: tuple[str, ...]
) -> Measured:
    """Run the golden set and then the measurement on the device.

    Args:
        bundle: That was deployed there.
        link: To the device.
        known: What is remembered of it.
        verify: Further words for `edgekit verify`.
        profile: Further words for `edgekit profile`.

    Raises:
        UnavailableError: The bundle is not on the device.
        RefusedError: The device signs with another key than at its deployment, or its golden set fails.
        EdgeKitError: What the commands raise there.
    """
    survey = look(link, known.root, known.state, services=False)
    hint = f"Put it there first: edgekit deploy {bundle.root} {link.address}."
    if survey.current not in survey.environments:
        raise UnavailableError(f"EdgeKit is not installed on {link.address}", hint=hint)
    python = environment_of(survey.root, survey.current)
    name, nonce = f"{bundle.manifest.name}/{bundle.manifest.version}", secrets.token_hex(16)
    holds = Request("holds", survey.state, name, bundle.digest)
    if not ask_installed(link, python, holds, Installed, _HOLDS_S).path:
        raise UnavailableError(f"{name} is not on {link.address}", hint=hint)
    request = Request(
        "profile", survey.state, name, bundle.digest, nonce=nonce, verify=verify, profile=profile
    )
    attestation = ask_installed(link, python, request, Attestation, _PROFILE_S)
    evidence = verify_evidence(attestation, nonce=nonce)
    if evidence.device_id != known.device_id:
        raise RefusedError(
            f"{link.address} signs with another key than at its deployment",
            got=evidence.device_id,
            expected=known.device_id,
            hint=f"If it was set up anew: edgekit deploy {bundle.root} {link.address}.",
        )
    if evidence.digest != bundle.digest:
        raise NetworkError(f"{link.address} has measured another bundle", got=evidence.digest[:12])
    return Measured(evidence, attestation, why_not_hardware(evidence, survey.detection.profile_id))


def why_not_hardware(evidence: Evidence, detected: str) -> str:
    """Return why evidence does not show that a profile works on the hardware; empty where it does.

    Args:
        evidence: What the device signed.
        detected: The profile that the device was recognised as from here.
    """
    plan = _table(evidence.verify, "plan")
    proven = (plan.get("runtime"), plan.get("artifact"))
    if not evidence.golden_passed:
        return "the golden set did not pass there"
    if proven[0] == "null":
        return "the null runtime computes nothing"
    if evidence.emulated:
        return "its CPU is emulated"
    if evidence.device != detected:
        return f"it says that it is {evidence.device}, and looks like {detected} from here"
    rows = (evidence.profile or {}).get("measurements")
    measured = [
        (row.get("runtime"), row.get("artifact"))
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and not row.get("error")
    ]
    return "" if proven in measured else "what passed the golden set there was not measured"


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}
