"""Trying a bundle in a child process before it may be served: what crashes there takes nobody with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.child import Heard, ask_child
from edgekit.daemon.trial_child import LoadOptions, Said, Task
from edgekit.errors import (
    EdgeKitError,
    InvalidFileError,
    MachineError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgekit.memory_use import resident_mib
from edgekit.process import how_ended

__all__ = ["TIME_LIMIT_S", "Trial", "try_bundle"]

#: An engine may be compiled for minutes on a small device; more than this is a hang. Less than the start limit of the
#: daemon's unit, so that a start can still come to the version before.
TIME_LIMIT_S = 600.0
#: The child has nothing to tell systemd.
_HIDDEN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_KINDS: dict[int, type[EdgeKitError]] = {
    kind.exit_code: kind
    for kind in (MachineError, UsageError, RefusedError, UnavailableError, InvalidFileError)
}


class Trial(msgspec.Struct, frozen=True):
    """What a bundle that has passed took.

    Attributes:
        runtime: The runtime that it ran in.
        memory_mib: What the child had grown by at the end, in MiB: runtime, model and buffers.
        peak_mib: What it had grown by at most.
    """

    runtime: str
    memory_mib: float
    peak_mib: float


def try_bundle(
    bundle: Path,
    state: Path,
    options: LoadOptions,
    *,
    what: str,
    room_mib: float = float("inf"),
    time_limit_s: float = TIME_LIMIT_S,
) -> Trial:
    """Load a bundle in a child process as the daemon would, warm it up and run its whole golden set.

    Args:
        bundle: Its folder.
        state: The state folder.
        options: How to load it.
        what: What to call it in messages.
        room_mib: What it may grow by at most, in MiB; a child that grows further is ended at once.
        time_limit_s: Longest wait, in seconds.

    Raises:
        RefusedError: It ended the process, hung, grew too large, or failed its golden set.
        EdgeKitError: What checking or loading it raises.
        MachineError: No child can be started.
    """
    most_mib = 0.0

    def too_large(pid: int, answer: bytes) -> bool:
        nonlocal most_mib
        base = next((said.base_mib for said in _read(answer) if said.base_mib), None)
        if base is not None:
            most_mib = max(most_mib, resident_mib(pid) - base)
        return most_mib > room_mib

    task = msgspec.json.encode(Task(str(bundle.resolve()), str(state.resolve()), options)).decode()
    try:
        heard = ask_child("edgekit.daemon.trial_child", task, time_limit_s, hide=_HIDDEN, stop=too_large)
    except OSError as error:
        raise MachineError(f"cannot start a process to try {what} in: {error.strerror}") from error
    said = _read(heard.answer)
    step = next((each.step for each in reversed(said) if each.step), "it was started")
    most_mib = max([most_mib, *(each.peak_mib for each in said)])  # and between two looks
    if most_mib > room_mib:
        raise RefusedError(
            f"{what} is too large: it grew beyond the memory that is left for it while {step}",
            got=f"{most_mib:.0f} MiB",
            expected=f"at most {room_mib:.0f} MiB",
            hint="Unload another model, allow more, or convert to a smaller precision.",
        )
    return _judge(heard, said, what, step, time_limit_s)


def _read(answer: bytes) -> list[Said]:
    found = []
    for line in answer.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Said))
        except (
            msgspec.DecodeError
        ):  # a library wrote into a descriptor that is not its own, or it was cut off
            continue
    return found


def _judge(heard: Heard, said: Sequence[Said], what: str, step: str, time_limit_s: float) -> Trial:
    """Return what a child that has passed took, or raise why it has not."""
    end = next((each for each in said if each.done or each.error), None)
    if end is not None and end.done:
        return Trial(end.runtime, end.memory_mib, end.peak_mib)
    if end is not None:
        raise _KINDS.get(end.code, RefusedError)(end.error, hint=end.hint or None)
    if heard.code is None:
        raise RefusedError(f"{what} gave no answer within {time_limit_s:g} s while {step}, in its trial")
    words = heard.last_words
    raise RefusedError(
        f"the process in which {what} was tried {how_ended(heard.code)} while {step}"
        + (f": {words}" if words else ""),
        hint="Convert again for this device, or try another runtime with --runtime.",
    )
