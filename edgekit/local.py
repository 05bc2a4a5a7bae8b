"""A bundle on this machine: the plan for the detected device, and a session that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.runtimes import SessionOptions, get_runtime

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import Plan
    from edgekit.runtimes import Session

__all__ = ["open_session", "plan_here"]


def plan_here(
    bundle: Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
) -> Plan:
    """Choose how the bundle runs on this machine.

    Args:
        bundle: The bundle.
        device: Profile to go by; None for the detected device.
        runtime: The only runtime to consider.
        artifact: The only artifact to consider, even if it is unproven.
        allow_fallback: Whether a device or runtime given by hand may step down.

    Raises:
        UsageError: The device, runtime or artifact is unknown.
        UnavailableError: What was asked for by hand, or every runtime that fits, is not available here.
    """
    from edgekit.choose import choose, installed_runtimes
    from edgekit.detect import detect
    from edgekit.devices import load_profile

    if artifact is not None:
        bundle.model_files(artifact)  # refuses what is not there
    profile = load_profile(device) if device else detect().profile()
    return choose(
        profile,
        bundle.manifest,
        installed_runtimes(),
        kept=bundle.kept if artifact is None else {artifact},
        runtime=runtime,
        forced=device is not None or runtime is not None,
        allow_fallback=allow_fallback,
        allow_unproven=artifact is not None,
    )


def open_session(bundle: Bundle, plan: Plan, *, allow_fallback: bool = False) -> Session:
    """Load the plan's artifact in the plan's runtime."""
    options = SessionOptions(plan.threads, plan.providers, allow_fallback, plan.options)
    return get_runtime(plan.runtime).load(bundle.model_files(plan.artifact), options)
