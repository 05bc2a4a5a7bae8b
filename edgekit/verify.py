"""Proving that a bundle works here: its hashes, then its golden set on the plan for this device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import InvalidFileError
from edgekit.golden import GoldenOutcome, run_golden
from edgekit.local import session_here

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import Plan

__all__ = ["Proof", "prove"]


@dataclass(frozen=True)
class Proof:
    """What the golden set showed under a plan.

    Attributes:
        placement: What really ran where.
    """

    plan: Plan
    placement: dict[str, str]
    outcome: GoldenOutcome


def prove(
    bundle: Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
) -> Proof:
    """Run the whole golden set; the arguments are those of `edgekit.local.session_here`.

    Raises:
        InvalidFileError: The bundle has no tolerance for the artifact.
    """
    with session_here(
        bundle, device=device, runtime=runtime, artifact=artifact, allow_fallback=allow_fallback
    ) as (plan, session):
        tolerance = bundle.manifest.golden.tolerance.get(plan.artifact)
        if tolerance is None:
            raise InvalidFileError(f"manifest.json has no golden tolerance of {plan.artifact}")
        outcome = run_golden(
            session,
            bundle.golden(),
            tolerance,
            task=bundle.manifest.task,
            state=bundle.manifest.state,
        )
        return Proof(plan, dict(session.placement), outcome)
