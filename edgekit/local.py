"""A bundle on this machine: the plan for the detected device, and a session that runs it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from edgekit.choose import InstalledRuntime, choose, installed_runtimes
from edgekit.detect import detect
from edgekit.devices import load_profile
from edgekit.errors import UnavailableError, UsageError
from edgekit.runtimes import SessionOptions, get_runtime

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import Plan
    from edgekit.runtimes import Session

__all__ = ["session_here"]


class _Planning(Protocol):
    def __call__(self, *, installed: Mapping[str, InstalledRuntime]) -> Plan: ...


@contextmanager
def session_here(
    bundle: Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
) -> Iterator[tuple[Plan, Session]]:
    """Open the bundle as it would run on this machine, and close it again.

    Args:
        bundle: The bundle.
        device: Profile to go by; None for the detected device.
        runtime: The only runtime to consider.
        artifact: The only artifact to consider, even if it is unproven.
        allow_fallback: Whether a device or runtime given by hand may step down.

    Yields:
        The plan, with each step down among its reasons, and the session.

    Raises:
        UsageError: The device, runtime or artifact is unknown.
        UnavailableError: What was asked for by hand, or every runtime that fits, is not available here.
    """
    if artifact is not None:
        bundle.model_files(artifact)  # refuses what is not there
    forced = device is not None or runtime is not None
    if allow_fallback and not forced:
        raise UsageError("--allow-fallback has no meaning here", expected="--device or --runtime with it")
    planning = partial(
        choose,
        load_profile(device) if device else detect().profile(),
        bundle.manifest,
        kept=bundle.kept if artifact is None else {artifact},
        runtime=runtime,
        forced=forced,
        allow_fallback=allow_fallback,
        allow_unproven=artifact is not None,
    )
    plan, session = _open_first(bundle, planning, installed_runtimes(), strict=forced and not allow_fallback)
    try:
        yield plan, session
    finally:
        session.close()


def _open_first(
    bundle: Bundle, planning: _Planning, installed: Mapping[str, InstalledRuntime], *, strict: bool
) -> tuple[Plan, Session]:
    """Open the best plan; where its provider is listed but does not start, the next best, and say so."""
    plan = planning(installed=installed)
    options = SessionOptions(threads=plan.threads, providers=plan.providers, extra=plan.options)
    try:
        return plan, get_runtime(plan.runtime).load(bundle.model_files(plan.artifact), options)
    except UnavailableError as error:
        if strict or not plan.providers:
            raise
        reason = f"{plan.runtime} on {plan.providers[0]} did not start: {error}"
    there = installed[plan.runtime]
    others = tuple(provider for provider in there.providers if provider != plan.providers[0])
    rest = ChainMap(
        {plan.runtime: InstalledRuntime(there.version, others)},
        cast("MutableMapping[str, InstalledRuntime]", installed),
    )
    plan, session = _open_first(bundle, planning, rest, strict=strict)
    return msgspec.structs.replace(plan, reasons=(reason, *plan.reasons)), session
