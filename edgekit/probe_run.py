"""The child process of a probe, seen from the parent: started, listened to, judged, ended."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from edgekit.probe import Finding
from edgekit.probe_child import STEPS
from edgekit.process import how_ended, python_command

__all__ = ["ask"]

#: Of what a child may say at most, in bytes.
_MOST_ANSWER, _MOST_WORDS = 1 << 16, 2000
_PROGRAM = (
    "import sys; sys.path[:] = [each for each in sys.path if each]; "
    "from edgekit.probe_child import main; main(sys.argv[1], int(sys.argv[2]))"
)


def ask(name: str, timeout_s: float) -> Finding | None:
    """Let a child try the runtime; None where no child can be started."""
    if not sys.executable or getattr(
        sys, "frozen", False
    ):  # that would start this program again, not a Python
        return None
    reader, writer = os.pipe()
    try:
        child = subprocess.Popen(
            python_command("-c", _PROGRAM, name, str(writer)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            cwd="/",
            env=_environment(os.environ),
            start_new_session=True,
        )
    except OSError:
        os.close(reader)
        return None
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as answers, _ended(child):
        return _judge(_listen(child, answers, time.monotonic() + timeout_s), timeout_s)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: it must find the packages that this process would import."""
    return {**environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in sys.path)}  # noqa: PTH100  an empty one is the current folder


@contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the child and whatever it has started."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


class _Message(msgspec.Struct):
    """One line of a child: a step that begins, or the finding."""

    step: str = ""
    finding: Finding | None = None


class _Heard(msgspec.Struct):
    """What a child said, and how it ended.

    Attributes:
        answer: Its lines of JSON.
        words: The end of what else it printed.
        code: Its exit code, negative for a signal; None where the time was up first.
    """

    answer: bytes = b""
    words: bytes = b""
    code: int | None = None


def _listen(child: subprocess.Popen[bytes], answers: IO[bytes], deadline: float) -> _Heard:
    """Read until the child ends or the time is up."""
    heard = _Heard()
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            ready = selector.select(min(left, 0.1))
            if not ready and child.poll() is not None:  # a child of its own holds the pipes
                break
            for event, _ in ready:
                block = os.read(event.fd, 1 << 16)
                if not block:
                    selector.unregister(event.fileobj)
                elif event.fileobj is answers:
                    heard.answer = (heard.answer + block)[:_MOST_ANSWER]
                else:
                    heard.words = (heard.words + block)[-_MOST_WORDS:]
    with suppress(subprocess.TimeoutExpired):
        heard.code = child.wait(max(0.0, deadline - time.monotonic()))
    return heard


def _judge(heard: _Heard, timeout_s: float) -> Finding:
    """Return the finding in what a child said and how it ended."""
    messages = [_message(line) for line in heard.answer.splitlines()]
    finding = next((each.finding for each in messages if each.finding), None)
    if finding is not None:
        return finding
    step = next((each.step for each in reversed(messages) if each.step), STEPS[0])
    if heard.code is None:
        return Finding(problem=f"it gave no answer within {timeout_s:g} s while {step}")
    said = heard.words.decode("utf-8", "replace").strip().rpartition("\n")[2].strip()
    return Finding(problem=f"it {how_ended(heard.code)} while {step}" + (f": {said[:300]}" if said else ""))


def _message(line: bytes) -> _Message:
    try:
        return msgspec.json.decode(line, type=_Message)
    except msgspec.DecodeError:  # a library wrote into a descriptor that is not its own, or was cut off
        return _Message()
