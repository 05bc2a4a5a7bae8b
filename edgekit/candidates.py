"""What is measured: plans × threads × batches, as far as the bundle takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgekit.bundle import Bundle
from edgekit.choose import choose, installed_runtimes
from edgekit.devices import DeviceProfile
from edgekit.errors import UsageError
from edgekit.manifest import Plan
from edgekit.tensors import takes_whole

__all__ = ["Candidate", "candidates", "default_threads", "plan_each"]


@dataclass(frozen=True)
class Candidate:
    """One way to run the bundle: a plan (its threads are those measured) and a batch."""

    plan: Plan
    batch: int

    def __str__(self) -> str:
        """Return it in words, for the progress bar."""
        plan = self.plan
        return f"{plan.artifact} in {plan.runtime}, {_threads(plan.threads)}, batch {self.batch}"


def plan_each(
    bundle: Bundle,
    profile: DeviceProfile,
    runtimes: Sequence[str],
    artifact: str | None,
    *,
    forced: bool,
    allow_fallback: bool,
) -> tuple[Plan, ...]:
    """Return the plan of each runtime, or the device's own plan where none is named.

    Args:
        bundle: The bundle.
        profile: The device to plan for.
        runtimes: Runtimes named by hand.
        artifact: The only artifact to consider, even if it is unproven; None for the plan's.
        forced: The device was named by hand.
        allow_fallback: Whether what was named by hand may step down.
    """
    if artifact is not None:
        bundle.model_files(artifact)  # refuses what is not there
    installed = installed_runtimes()
    return tuple(
        choose(
            profile,
            bundle.manifest,
            installed,
            kept=bundle.kept if artifact is None else {artifact},
            runtime=name,
            forced=forced or name is not None,
            allow_fallback=allow_fallback,
            allow_unproven=artifact is not None,
        )
        for name in (runtimes or (None,))
    )


def default_threads(cores: int) -> tuple[int, ...]:
    """Return one, two, four … and all of the cores.

    >>> default_threads(6)
    (1, 2, 4, 6)
    """
    return tuple(sorted({*(1 << power for power in range(cores.bit_length())), cores}))


def candidates(
    bundle: Bundle, plans: Sequence[Plan], threads: Sequence[int], batches: Sequence[int]
) -> tuple[Candidate, ...]:
    """Return plans × threads × batches, each once, in that order.

    Raises:
        UsageError: An artifact does not take a batch, or a golden set cannot feed it.
    """
    for plan in plans:
        for batch in batches:
            _check_batch(bundle, plan.artifact, batch)
    return tuple(
        Candidate(msgspec.structs.replace(plan, threads=count), batch)
        for plan in plans
        for count in dict.fromkeys(threads)
        for batch in dict.fromkeys(batches)
    )


def _check_batch(bundle: Bundle, artifact: str, batch: int) -> None:
    inputs = bundle.manifest.artifacts[artifact].inputs
    if takes_whole(inputs):
        if batch != 1:
            raise UsageError(
                f"{artifact} takes one sample in a call", got=f"--batch {batch}", expected="--batch 1"
            )
        return
    for spec in inputs:
        if spec.shape[0] not in (-1, batch):
            raise UsageError(
                f"{artifact} takes one batch size only, by its input {spec.name!r}",
                got=f"--batch {batch}",
                expected=f"--batch {spec.shape[0]}",
            )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}" if count else "the runtime's threads"
