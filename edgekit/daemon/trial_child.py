"""What a trial's child does: load a bundle as the daemon would, warm it up, run its whole golden set, and say so.

Started by `edgekit.daemon.trial`. Every line that it writes to the descriptor given is one JSON object: the steps as
they begin, then the outcome. A native library that ends the process leaves the last step that was begun.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edgekit.errors import EdgeKitError, RefusedError
from edgekit.memory_use import peak_mib, resident_mib

__all__ = ["LoadOptions", "Said", "Task", "main"]

_PR_SET_PDEATHSIG = 1
#: Whom the kernel ends first when memory is short: this one, never the daemon.
_FIRST_TO_GO = "1000"


class LoadOptions(msgspec.Struct, frozen=True):
    """How every model is loaded; see `edgekit.load`."""

    device: str | None = None
    runtime: str | None = None
    allow_fallback: bool = False
    allow_unproven: bool = False
    threads: int | None = None


class Task(msgspec.Struct, frozen=True):
    """What is tried.

    Attributes:
        bundle: Its folder.
        state: The state folder.
        options: How the daemon would load it.
    """

    bundle: str
    state: str
    options: LoadOptions


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the child.

    Attributes:
        step: What begins now, as a message ends that tells where it went wrong.
        base_mib: Its resident memory in MiB before the model.
        done: It has passed.
        runtime: The runtime that it ran in.
        memory_mib: What it has grown by, at the end.
        peak_mib: What it had grown by at most.
        error: Why it has not passed.
        hint: What to do about it.
        code: The error's exit code.
    """

    step: str = ""
    base_mib: float = 0.0
    done: bool = False
    runtime: str = ""
    memory_mib: float = 0.0
    peak_mib: float = 0.0
    error: str = ""
    hint: str = ""
    code: int = 0


def main(question: str, descriptor: int) -> None:
    """Try what is asked, a `Task` as JSON; write to the descriptor; end without the libraries' own farewell."""
    _be_expendable()
    task = msgspec.json.decode(question, type=Task)

    def say(said: Said) -> None:
        os.write(descriptor, msgspec.json.encode(said) + b"\n")

    try:
        say(_tried(task, say))
    except EdgeKitError as error:
        facts = EdgeKitError(error.what, got=error.got, expected=error.expected)
        say(Said(error=str(facts), hint=error.hint or "", code=error.exit_code))
    except Exception as error:  # noqa: BLE001  whatever a library raises is the answer
        say(Said(error=f"{type(error).__name__}: {error}"))
    sys.stderr.flush()
    os._exit(0)


def _be_expendable() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before it could be watched
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer; no file of it is wanted
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")


def _tried(task: Task, say: Callable[[Said], None]) -> Said:
    from edgekit.bundle import open_bundle
    from edgekit.model import load

    base = resident_mib()
    say(Said(step="its files were checked", base_mib=base))
    bundle = open_bundle(task.bundle)
    say(Said(step="it was loaded"))
    options = task.options
    model = load(
        bundle,
        device=options.device,
        runtime=options.runtime,
        state_dir=task.state,
        monitor=False,
        allow_fallback=options.allow_fallback,
        allow_unproven=options.allow_unproven,
        threads=options.threads,
    )
    say(Said(step="it ran its golden set"))
    outcome = model.golden_test(n=None)
    if not outcome.passed:
        raise RefusedError(
            f"{model.name} {model.version} failed its golden self-test as {model.plan.artifact} in"
            f" {model.plan.runtime} on {model.plan.device}: {outcome.reason}",
            hint="Convert again for this device.",
        )
    return Said(
        done=True,
        runtime=model.plan.runtime,
        memory_mib=max(0.0, resident_mib() - base),
        peak_mib=max(0.0, peak_mib() - base),
    )
