"""The link to a device: one process of the system's ssh, and on its other end `edgekit.deploy.far`.

Keys, host keys, jump hosts and aliases are the user's ssh configuration's business. ssh never asks here (BatchMode).
What comes back is another machine's word: each line has a limit and a deadline, and decodes into a type or is refused.
"""

from __future__ import annotations

import base64
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from edgekit.deploy.address import Address
from edgekit.errors import MachineError, NetworkError, UnavailableError

__all__ = ["Link", "Ran", "connected", "plain"]

#: Bytes before the first answer: what a login script says. An answer, at most. A command's output, at most.
_MOST_NOISE, _LARGEST_ANSWER = 64 << 10, 32 << 20
#: Seconds: until the device answers at all; without progress while something is sent.
_GREETING_S, _STALL_S = 60.0, 120.0
_CHUNK = 1 << 18

_OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "EscapeChar": "none",
    "ForwardAgent": "no",
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": "4",
    "ServerAliveInterval": "15",
}

#: Constant, and without a quote of either kind but its own: a login shell of any kind hands it to sh. The first Python
#: that could make an environment, else any that can tell what the device is.
_START = (
    """
run="import base64,sys,zlib;exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
for p in python3 python3.13 python3.12 python3.11 python3.10; do
$p -I -c "import sys,venv;sys.exit(sys.version_info<(3,10))" 2>/dev/null && exec $p -I -c "$run" "$1"; done
python3 -I -c "import sys;sys.exit(sys.version_info<(3,7))" 2>/dev/null && exec python3 -I -c "$run" "$1"
echo edgekit-no-python; python3 --version 2>&1
""".strip()
    .replace("\n", " ; ")
    .replace("do ;", "do")
)

#: What ssh says, what that means, and what to do.
_CAUSES = (
    (
        r"IDENTIFICATION HAS CHANGED",
        "the host key of {host} is not the one that your ssh knows",
        "If the device was set up anew: ssh-keygen -R {host}; if it was not, somebody is in between.",
    ),
    (
        r"Host key verification failed|host key is known",
        "the host key of {host} is not known here",
        "Connect once by hand and compare it: {hand}.",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "{host} refused this login",
        "Give it your key: ssh-copy-id {hand_copy}; passwords are never asked for here.",
    ),
    (r"Could not resolve hostname", "the name {host} is not known", "Check the name, or give the address."),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable|Connection closed|Connection reset",
        "{host} cannot be reached",
        "Check that it is on and that its ssh answers: {hand}.",
    ),
)

_T = TypeVar("_T")


class Ran(msgspec.Struct, frozen=True):
    """A command that ran on the device.

    Attributes:
        code: Its exit code.
        ending: Why it was stopped, empty where it was not.
        out: Its standard output.
        err: The end of its standard error.
    """

    code: int
    ending: str
    out: str
    err: str


def plain(text: str, most: int = 300) -> str:
    """Return a device's words in one line, fit for a terminal: no control characters, bounded."""
    line = " ".join(text[: 4 * most].split())
    return "".join(each if each.isprintable() else "?" for each in line)[:most]


@contextmanager
def connected(
    address: Address, *, identity: Path | None = None, config: Path | None = None
) -> Iterator[Link]:
    """Connect to a device; at the end, what runs there ends.

    Args:
        address: The device.
        identity: A private key's file, in place of those that ssh would offer.
        config: An ssh configuration file, in place of the user's.

    Yields:
        The link.

    Raises:
        NetworkError: The device cannot be reached, its host key is not the one known, or it refuses the login.
        UnavailableError: The `[deploy]` extra or ssh is missing here, or a Python that would do on the device.
    """
    if find_spec("packaging") is None or find_spec("cryptography") is None:
        raise UnavailableError(
            "deploying needs the packages cryptography and packaging",
            hint="Run: pip install 'edgekit-deploy[deploy]'",
        )
    ssh = shutil.which("ssh")
    if ssh is None:
        raise UnavailableError(
            "ssh is not installed here", hint="Install OpenSSH's client (Debian: openssh-client)."
        )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [ssh, *_words(address, identity, config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # no terminal to ask at, and Ctrl-C is ours
        )
        link = Link(address, process, log)
        try:
            link.greet()
            yield link
        finally:
            link.close()


def _words(address: Address, identity: Path | None, config: Path | None) -> list[str]:
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    key = ["-i", str(identity), "-o", "IdentitiesOnly=yes"] if identity else []
    other = ["-F", str(config)] if config else []
    source = (Path(__file__).parent / "far.py").read_bytes()
    program = base64.b64encode(zlib.compress(source, 9)).decode("ascii")
    return [*other, *options, *key, *address.words(), f"exec sh -c {shlex.quote(_START)} sh {program}"]


class Link:
    """A connection to a device, see `connected`.

    Args:
        address: The device.
        process: ssh, with pipes.
        log: What it says on standard error.
    """

    def __init__(self, address: Address, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.address, self._process, self._log = address, process, log
        self._in, self._out = process.stdin, process.stdout
        self._buffer, self._greeted = bytearray(), False
        os.set_blocking(self._in.fileno(), False)

    def greet(self) -> None:
        """Wait for the other side's first word; a login script may speak before."""
        noise = 0
        while noise < _MOST_NOISE:
            line = self._line(_GREETING_S, _MOST_NOISE)
            if line == b'{"edgekit": 1}':
                self._greeted = True
                return
            if line.strip() == b"edgekit-no-python":
                raise UnavailableError(
                    f"{self.address} has no Python that would do",
                    got=plain(self._line(_GREETING_S, _MOST_NOISE).decode("utf-8", "replace")),
                    expected="Python 3.10 or newer",
                    hint="Install it there (Debian, Raspberry Pi OS: apt-get install python3 python3-venv).",
                )
            noise += len(line) + 1
        raise self._nonsense("its login says too much")

    def close(self) -> None:
        """Disconnect; what runs there ends."""
        self._in.close()
        self._out.close()
        try:
            self._process.wait(3 if self._greeted else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # asking

    def ask(
        self,
        do: str,
        kind: type[_T],
        *,
        limit_s: float = 120.0,
        whole_s: float = 3600.0,
        body: Iterator[bytes] | None = None,
        **fields: Any,
    ) -> _T:
        """Make one request and return the answer.

        Args:
            do: A method of `edgekit.deploy.far.Station`.
            kind: What the answer must decode into.
            limit_s: Longest wait for a sign of life, in seconds.
            whole_s: Longest wait for the answer, in seconds, after all was sent.
            body: What is sent once the other side is ready for it.
            fields: The method's arguments.

        Raises:
            NetworkError: The link broke, or what came back is no answer.
            MachineError: The device could not do it; says why.
        """
        self._write(msgspec.json.encode({"do": do, **fields}) + b"\n")
        deadline = time.monotonic() + whole_s
        while time.monotonic() < deadline:
            line = self._line(limit_s, _LARGEST_ANSWER)
            if line != b'{"beat": true}':
                return self._answer(line, kind)
            if body is not None:
                for block in body:
                    self._write(block)
                body, deadline = None, time.monotonic() + whole_s
        raise self._nonsense("it never comes to an end")

    def _answer(self, line: bytes, kind: type[_T]) -> _T:
        class Refused(msgspec.Struct):
            refused: str = ""

        try:
            raw = msgspec.json.decode(line, type=dict[str, msgspec.Raw])["answer"]
            refused = msgspec.json.decode(raw, type=Refused).refused
            if not refused:
                return msgspec.json.decode(raw, type=kind)
        except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
            raise self._nonsense("an answer cannot be read") from error
        raise MachineError(f"{self.address} cannot do it: {plain(refused)}")

    def run(self, words: list[str], *, limit_s: float, environment: dict[str, str] | None = None) -> Ran:
        """Run a command on the device, without any shell.

        Args:
            words: The command; paths as they are there.
            limit_s: After which it is stopped, in seconds.
            environment: What is set besides.
        """
        return self.ask(
            "run",
            Ran,
            whole_s=limit_s + 60.0,
            words=words,
            environment=environment or {},
            stop_s=limit_s,
            most=_LARGEST_ANSWER // 8,
        )

    # bytes

    def _write(self, data: bytes) -> None:
        handle = self._in.fileno()
        view = memoryview(data)
        while view:
            if not select.select([], [handle], [], _STALL_S)[1]:
                raise self._broken(f"nothing was taken for {_STALL_S:g} s")
            try:
                view = view[os.write(handle, view[:_CHUNK]) :]
            except BrokenPipeError as error:
                raise self._broken("") from error

    def _line(self, wait_s: float, most: int) -> bytes:
        """Return the next line without its end."""
        handle, searched = self._out.fileno(), 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > most:
                raise self._nonsense("it says too much")
            if not select.select([handle], [], [], wait_s)[0]:
                raise self._broken(f"no answer within {wait_s:g} s")
            block = os.read(handle, _CHUNK)
            if not block:
                raise self._broken("")
            self._buffer += block
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _nonsense(self, what: str) -> NetworkError:
        return NetworkError(f"{self.address} does not answer as EdgeKit would: {what}")

    def _broken(self, why: str) -> NetworkError:
        """Return what became of the link, by what ssh said last."""
        said = "" if why else self._last_words()
        host, hand = self.address.host, self.address.by_hand()
        for pattern, what, hint in () if self._greeted else _CAUSES:
            if re.search(pattern, said):
                words = {"host": host, "hand": hand, "hand_copy": hand.removeprefix("ssh ")}
                last = said.strip().splitlines()[-1]
                return NetworkError(what.format(**words), got=plain(last), hint=hint.format(**words))
        reason = why or plain(said.strip().rpartition("\n")[2]) or "ssh ended"
        return NetworkError(
            f"the connection to {host} broke off: {reason.rstrip('.')}",
            hint="Run the command again: it goes on where it stopped.",
        )

    def _last_words(self) -> str:
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            return ""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode("utf-8", "replace")
