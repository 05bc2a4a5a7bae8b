"""Running a measurement's child process: a job goes in, what it tells of its progress and its answer come out."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

import msgspec

from edgekit.daemon_cost import DaemonCost
from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, UnavailableError, UsageError
from edgekit.measure import Failure, Job, Message, Progress, Sample
from edgekit.op_table import OpTable
from edgekit.process import python_command

__all__ = ["Answer", "run_job"]

_ERRORS: dict[int, type[EdgeKitError]] = {
    error.exit_code: error for error in (MachineError, UsageError, UnavailableError, InvalidFileError)
}

Answer = Sample | OpTable | DaemonCost


def run_job(job: Job, show: Callable[[Progress], None]) -> Answer | EdgeKitError:
    """Run the child; what goes wrong there, its death included, is returned as an error, with its name."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            python_command("-m", "edgekit.measure"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        try:
            for message in _messages(child, job):
                if isinstance(message, Progress):
                    show(message)
                elif isinstance(message, Failure):
                    return _ERRORS.get(message.code, MachineError)(message.line)
                else:
                    return message
            return _death(child.wait(), _read_back(log))
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()


def _messages(child: subprocess.Popen[bytes], job: Job) -> Iterator[Message]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(msgspec.json.encode(job, enc_hook=str))
        child.stdin.close()
    except BrokenPipeError:
        return  # it died before it read the job: its end is told below
    for line in child.stdout:
        yield msgspec.json.decode(line, type=Message)


def _read_back(log: IO[bytes]) -> bytes:
    log.seek(0)
    return log.read()


def _death(code: int, log: bytes) -> UnavailableError:
    tail = log.decode("utf-8", "replace").strip().rpartition("\n")[2]
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return UnavailableError(
        f"the measurement's process ended with {ending}" + (f": {tail}" if tail else ""),
        hint="`edgekit doctor` tells whether the runtime works here.",
    )
