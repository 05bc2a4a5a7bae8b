"""Starting children: every Python child of EdgeKit is started with the words that this module gives."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import (
    ConversionError,
    EdgeKitError,
    InvalidFileError,
    MachineError,
    UnavailableError,
    UsageError,
)
from edgekit.memory_use import resident_mib

if TYPE_CHECKING:
    from edgekit.tasks import Answer, Task

__all__ = ["Interpreter", "Worker", "WorkerDiedError", "WorkerLimits", "how_ended", "python_command"]


@dataclass(frozen=True)
class Interpreter:
    """Another Python to start workers with, an emulated one say.

    Attributes:
        words: What stands in front of its arguments.
        environment: What its environment holds instead of this one's.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]


def python_command(*arguments: str) -> list[str]:
    """Return the command that starts this Python with `arguments`.

    `EDGEKIT_LAUNCHER` goes in front of the interpreter where it is set: an emulator and its options, say,
    since a process under a user-mode emulator cannot start the emulated interpreter by its name.
    """
    return [*shlex.split(os.environ.get("EDGEKIT_LAUNCHER", "")), sys.executable, *arguments]


class WorkerDiedError(ConversionError):
    """The worker process ended, was killed or was stopped at a limit before it finished its task.

    Attributes:
        timed_out: It was stopped at the time limit, which what it was doing would reach again.
    """

    timed_out = False


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of one task in a worker.

    Attributes:
        time_s: Longest wait for the next part of a result, in seconds; None for no limit.
        memory_mib: Most resident memory in MiB; None for no limit.
    """

    time_s: float | None = None
    memory_mib: float | None = None


_KINDS: dict[int, type[EdgeKitError]] = {
    1: MachineError,
    2: UsageError,
    3: ConversionError,
    5: UnavailableError,
    6: InvalidFileError,
}

#: What a worker sees of the environment; the rest, secrets among it, stays outside.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TZ")


class Worker:
    """A `python -m edgekit.worker` child: no network, a scratch HOME, a log, limits.

    Not thread-safe: one task at a time. `peak_mib` is the largest resident memory it has told of.

    Args:
        scratch: A folder of its own.
        limits: Of each task.
        interpreter: What runs it; None for this Python.
    """

    def __init__(self, scratch: Path, limits: WorkerLimits, interpreter: Interpreter | None = None) -> None:
        self.limits, self.peak_mib = limits, 0.0
        self._interpreter = interpreter
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._answers = -1
        self._buffer = b""
        self._log = scratch / "worker.log"

    def ask(self, task: Task) -> Iterator[Answer]:
        """Send one task and yield the parts of its result.

        Raises:
            WorkerDiedError: The worker ended first; the message has the end of its log.
            EdgeKitError: The worker said no, with the kind it gave.
        """
        import msgspec

        from edgekit.tasks import Answer

        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            process.stdin.flush()
            while True:
                answer = msgspec.json.decode(self._read_line(process), type=Answer)
                self.peak_mib = max(self.peak_mib, answer.peak_mib)
                if answer.done:
                    break
                yield answer
        except BrokenPipeError as error:
            raise self._death("ended") from error
        except BaseException:
            self.close()
            raise
        if answer.error is not None:
            raise _KINDS.get(answer.error_code, ConversionError)(answer.error)

    def stop(self) -> None:
        """End the task under way, from another thread, and start no other: `ask` raises WorkerDiedError."""
        self._stopped = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop the process, if there is one."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._answers)
        self._process, self._buffer = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        if self._stopped:
            raise WorkerDiedError("the worker was stopped")
        home = self._scratch / "home"
        home.mkdir(exist_ok=True)
        reader, writer = os.pipe()
        arguments = ("-m", "edgekit.worker", str(writer))
        other = self._interpreter
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*other.words, *arguments] if other else python_command(*arguments),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                cwd=self._scratch,
                env=self._environment(home),
                start_new_session=True,
            )
        os.close(writer)
        self._answers = reader
        if self._stopped:  # while it was being started
            raise self._death("was stopped")
        return self._process

    def _environment(self, home: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith("EDGEKIT_")}
        paths = [str(Path(p).resolve()) for p in kept.get("PYTHONPATH", "").split(os.pathsep) if p]
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(paths),
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONHASHSEED": "0",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "CUDA_VISIBLE_DEVICES": "-1",
            **(self._interpreter.environment if self._interpreter else {}),
        }

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        started = time.monotonic()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], 0.1)
            if ready:
                block = os.read(self._answers, 1 << 16)
                if not block:
                    raise self._death(how_ended(process.wait()))
                self._buffer += block
            self._check_limits(process, time.monotonic() - started)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_limits(self, process: subprocess.Popen[bytes], waited_s: float) -> None:
        limits = self.limits
        if limits.time_s is not None and waited_s > limits.time_s:
            death = self._death(f"was stopped at the time limit of {limits.time_s:g} s")
            death.timed_out = True
            raise death
        if limits.memory_mib is not None:
            used = resident_mib(process.pid)
            self.peak_mib = max(self.peak_mib, used)
            if used > limits.memory_mib:
                raise self._death(
                    f"was stopped at the memory limit of {limits.memory_mib:g} MiB ({used:.0f} used)"
                )

    def _death(self, how: str) -> WorkerDiedError:
        self.close()
        tail = self._log.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return WorkerDiedError(f"the worker {how}" + (f"; its log ends: {tail[-1][:300]}" if tail else ""))


def how_ended(code: int) -> str:
    """Return how a process ended, from its exit code as `subprocess` gives it: negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
