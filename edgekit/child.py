"""A child process that is asked one thing: started, listened to while it says how far it is, ended in any case.

For what may crash, hang or grow: native libraries that are tried. What the child says are lines on a descriptor of its
own; what the libraries print beside is kept as their last words.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from edgekit.process import python_command

__all__ = ["Heard", "ask_child"]

#: Of what a child may say at most, in bytes.
_MOST_ANSWER, _MOST_WORDS = 1 << 16, 2000
#: Seconds between two looks at it.
_POLL_S = 0.05
_PROGRAM = (
    "import sys; sys.path[:] = [each for each in sys.path if each]; "
    "from {module} import main; main(sys.argv[1], int(sys.argv[2]))"
)


class Heard(msgspec.Struct):
    """What a child said, and how it ended.

    Attributes:
        answer: Its lines.
        words: The end of what else it printed.
        code: Its exit code, negative for a signal; None where the time was up first, or `stop` said so.
    """

    answer: bytes = b""
    words: bytes = b""
    code: int | None = None

    @property
    def last_words(self) -> str:
        """Return the last line that it printed."""
        return self.words.decode("utf-8", "replace").strip().rpartition("\n")[2].strip()[:300]


def ask_child(
    module: str,
    question: str,
    timeout_s: float,
    *,
    hide: Collection[str] = (),
    stop: Callable[[int, bytes], bool] = lambda *_: False,
) -> Heard:
    """Call `main(question, descriptor)` of a module in a child, and listen until that has ended or has to be ended.

    Args:
        module: Its name.
        question: The first argument.
        timeout_s: Longest wait, in seconds.
        hide: Names of the environment that the child does not see.
        stop: Is asked again and again, with the child's process id and its lines so far, whether to end it.

    Raises:
        OSError: No child can be started.
    """
    reader, writer = os.pipe()
    try:
        child = subprocess.Popen(
            python_command("-c", _PROGRAM.format(module=module), question, str(writer)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            cwd="/",
            env=_environment(os.environ, hide),
            start_new_session=True,
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as answers, _ended(child):
        return _listen(child, answers, time.monotonic() + timeout_s, stop)


def _environment(environ: Mapping[str, str], hide: Collection[str]) -> dict[str, str]:
    """Return the child's environment: it must find the packages that this process would import."""
    paths = os.pathsep.join(os.path.abspath(each) for each in sys.path)  # noqa: PTH100  an empty one is the current folder
    return {**{name: value for name, value in environ.items() if name not in hide}, "PYTHONPATH": paths}


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


def _listen(
    child: subprocess.Popen[bytes], answers: IO[bytes], deadline_s: float, stop: Callable[[int, bytes], bool]
) -> Heard:
    """Read until the child ends, the time is up, or it is to be stopped."""
    heard = Heard()
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline_s - time.monotonic()) > 0:
            ready = selector.select(min(left, _POLL_S))
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
            if stop(child.pid, heard.answer):
                return heard
    with suppress(subprocess.TimeoutExpired):
        heard.code = child.wait(max(0.0, deadline_s - time.monotonic()))
    return heard
