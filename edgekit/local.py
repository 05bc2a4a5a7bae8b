"""A bundle on this machine: the plan for the device, and what is opened by it, one step down at a time."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from edgekit.choose import InstalledRuntime, choose, installed_runtimes
from edgekit.detect import detect
from edgekit.devices import load_profile
from edgekit.engines import compiles, engine_options
from edgekit.errors import UnavailableError, UsageError
from edgekit.runtimes import SessionOptions, get_runtime

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.devices import DeviceProfile
    from edgekit.manifest import Option, Plan
    from edgekit.runtimes import Session

__all__ = ["open_here", "open_plan", "session_here"]

Opened = TypeVar("Opened")


def open_plan(bundle: Bundle, plan: Plan) -> Session:
    """Open the plan's artifact in the plan's runtime, on the plan's first provider and no other.

    What a provider compiles for it is kept, see `edgekit.engines`.
    """
    files, runtime = bundle.model_files(plan.artifact), get_runtime(plan.runtime)
    kept: dict[str, Option] = {}
    if compiles(plan.providers):
        path = bundle.manifest.artifacts[plan.artifact].path
        digest = bundle.manifest.files[path].sha256
        kept = engine_options(files, digest, runtime.version(), plan.providers, plan.options)
    options = SessionOptions(threads=plan.threads, providers=plan.providers, extra={**kept, **plan.options})
    return runtime.load(files, options)


def open_here(
    bundle: Bundle,
    opener: Callable[[Bundle, Plan], Opened],
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
    allow_unproven: bool = False,
    threads: int | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> tuple[Plan, Opened]:
    """Choose for this machine and open what is chosen.

    A provider can be listed and yet lack its libraries, which shows only when a model is opened: then the next
    best is chosen, with the reason in its plan, unless device or runtime were given by hand.

    Args:
        bundle: The bundle.
        opener: Opens a plan; raises `UnavailableError` where its provider does not start.
        device: Profile to go by; None for the detected device.
        runtime: The only runtime to consider.
        artifact: The only artifact to consider, even if it is unproven.
        allow_fallback: Whether a device or runtime given by hand may step down.
        allow_unproven: Whether an artifact whose accuracy is not proven counts as an accepted one.
        threads: Threads of the runtime; None for the profile's number.
        state_dir: Where a plan may be pinned (`edgekit profile --pick`), which then counts where nothing is asked for
            by hand; None for the default state folder.

    Returns:
        The plan, with each step down among its reasons, and what was opened.

    Raises:
        UsageError: The device, runtime or artifact is unknown; or `allow_fallback` with nothing given by hand,
            which it could mean nothing for.
        UnavailableError: What was asked for by hand, or every runtime that fits, is not available here.
    """
    if artifact is not None:
        bundle.model_files(artifact)  # refuses what is not there
    forced = device is not None or runtime is not None
    if allow_fallback and not forced:
        raise UsageError("--allow-fallback has no meaning here", expected="--device or --runtime with it")
    profile = load_profile(device) if device else detect().profile()
    found = installed_runtimes()
    installed: Mapping[str, InstalledRuntime] = found
    reasons: tuple[str, ...] = ()
    pin = (
        None if forced or artifact is not None or threads is not None else _pinned(bundle, profile, state_dir)
    )
    if pin is not None and pin.runtime not in found:  # not to be opened: what is broken may crash
        reasons = (f"the pinned plan does not start any more: {found.problems[pin.runtime].why}",)
    elif pin is not None:
        try:
            return pin, opener(bundle, pin)
        except UnavailableError as error:
            reasons = (f"the pinned plan does not start any more: {error}",)
    while True:
        plan = choose(
            profile,
            bundle.manifest,
            installed,
            kept=bundle.kept if artifact is None else {artifact},
            runtime=runtime,
            forced=forced,
            allow_fallback=allow_fallback,
            allow_unproven=allow_unproven or artifact is not None,
        )
        plan = msgspec.structs.replace(
            plan, threads=plan.threads if threads is None else threads, reasons=(*reasons, *plan.reasons)
        )
        try:
            return plan, opener(bundle, plan)
        except UnavailableError as error:
            if (forced and not allow_fallback) or not plan.providers:
                raise
            reasons = (*reasons, f"{plan.runtime} on {plan.providers[0]} did not start: {error}")
            installed = _without(installed, plan.runtime, plan.providers[0])


def _pinned(bundle: Bundle, profile: DeviceProfile, state_dir: str | os.PathLike[str] | None) -> Plan | None:
    """Return the plan that was pinned here for this bundle, if its artifact is here."""
    from edgekit.pins import read_pin

    try:
        pin = read_pin(bundle.digest, profile.id, state_dir)
    except UsageError:  # no home folder, so no state
        return None
    if pin is None or pin.plan.artifact not in bundle.kept:
        return None
    reason = f"pinned here by edgekit profile --pick: {pin.plan.artifact} in {pin.plan.runtime}, p50 {pin.p50_ms:.3f} ms"
    return msgspec.structs.replace(pin.plan, reasons=(reason,))


def _without(
    installed: Mapping[str, InstalledRuntime], runtime: str, provider: str
) -> Mapping[str, InstalledRuntime]:
    """Return what is installed, less one provider; the others are still imported only when asked for."""
    there = installed[runtime]
    rest = InstalledRuntime(there.version, tuple(p for p in there.providers if p != provider))
    return ChainMap({runtime: rest}, cast("MutableMapping[str, InstalledRuntime]", installed))


@contextmanager
def session_here(
    bundle: Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    artifact: str | None = None,
    allow_fallback: bool = False,
) -> Iterator[tuple[Plan, Session]]:
    """Open the bundle's session as it would run on this machine, and close it again; see `open_here`.

    Yields:
        The plan and the session.
    """
    plan, session = open_here(
        bundle, open_plan, device=device, runtime=runtime, artifact=artifact, allow_fallback=allow_fallback
    )
    try:
        yield plan, session
    finally:
        session.close()
