"""What runs on the device while a link is open: a small server on standard input and output, sent along with ssh.

It needs Python 3.7 to look around and 3.10 to install, and nothing beside the standard library; nothing of it stays on
the device. One JSON object a line each way; `put` is followed by the bytes themselves. Whatever is received goes to a
`.part` file first and takes its place by a rename after its SHA-256 was right. When the link ends, so does this process,
and the child that it was running.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import pwd
import select
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_LARGEST_LINE = 8 << 20
_LARGEST_SIGNAL = 256 << 10
_MOST_ENTRIES = 512
#: Seconds without a word after which whoever asked is gone: while it prepares, and with the folder's lock, which a
#: half-open connection must not hold for ever.
_PATIENCE_S, _IDLE_S = 3600.0, 300.0
_LOOK_S, _BEAT_S = 0.2, 5.0
_CHUNK = 1 << 18

_FILES = (
    "proc/cpuinfo",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "sys/firmware/devicetree/base/model",
    "sys/firmware/devicetree/base/compatible",
    "etc/nv_tegra_release",
)


class RefusalError(Exception):
    """The request cannot be granted; the text says why."""


class Reader:
    """Standard input, with a clock."""

    def __init__(self, handle: int) -> None:
        self._handle, self._buffer = handle, bytearray()
        self.ended, self.patience_s = False, _PATIENCE_S

    def fill(self, wait_s: float) -> bool:
        """Read what is there; False where nothing came in time or the other side has closed."""
        if not select.select([self._handle], [], [], wait_s)[0]:
            return False
        block = os.read(self._handle, _CHUNK)
        self.ended = self.ended or not block
        self._buffer += block
        return bool(block)

    def line(self) -> bytes:
        """Return the next line; empty at the end."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LARGEST_LINE or not self.fill(self.patience_s):
                return b""
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def some(self, most: int) -> bytes:
        """Return up to `most` bytes; none at the end."""
        if not self._buffer and not self.fill(self.patience_s):
            return b""
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken


def say(message: dict[str, Any]) -> None:
    """Write one answer."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


class Station:
    """The requests, one method each; `root` and the lock on it are there after `begin`."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.root, self._lock = reader, Path(), -1

    # looking around: changes nothing

    def survey(self, root: str, state: str, kinds: list[str], services: bool) -> dict[str, Any]:
        """Return what the device is and has."""
        folder = _whole(root)
        return {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "venv": importlib.util.find_spec("venv") is not None,
            "bits": struct.calcsize("P") * 8,
            "machine": platform.machine(),
            "glibc": _glibc(),
            "user": _login(),
            "home": str(Path.home()),
            "root": str(folder),
            "state": str(_whole(state)),
            "free_bytes": _free(folder),
            "ram_kib": _memory("MemAvailable"),
            "files": {name: text for name in _FILES for text in [_signal(Path("/", name))] if text},
            "pci": _pci(kinds),
            "usb": _usb(),
            "environments": _environments(folder),
            "current": _current(folder),
            "services": _services() if services else {},
        }

    # the folder

    def begin(self, root: str) -> dict[str, Any]:
        """Make the folder if need be, and take its lock."""
        self.root = _whole(root)
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        there = self.root.stat()
        if there.st_uid != os.getuid() or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RefusalError(f"{self.root} belongs to another user, or others may write there")
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.reader.patience_s = _IDLE_S
        for _ in range(12):  # an earlier link may just be noticing that it is dead
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.25)
            else:
                return {}
        raise RefusalError(f"another deployment is under way in {self.root}")

    def _inside(self, name: str) -> Path:
        """Return the path of a name below the folder; no name leads out of it, nor through a link."""
        if self._lock < 0:
            raise RefusalError("begin comes first")
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise RefusalError(f"{name!r} is no name of a file here")
        for end in range(1, len(parts)):
            if self.root.joinpath(*parts[:end]).is_symlink():
                raise RefusalError(f"{'/'.join(parts[:end])} is a symbolic link")
        return self.root.joinpath(*parts)

    def _part(self, digest: str) -> Path:
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise RefusalError("no SHA-256")
        return self._inside(f"incoming/{digest}.part")

    def have(self, files: dict[str, str]) -> dict[str, Any]:
        """Tell of each wanted file (name to SHA-256) whether it is whole, else size and hash of what came of it."""
        found = {}
        for name, wanted in files.items():
            path, part = self._inside(name), self._part(wanted)
            size, digest = 0, ""
            whole = path.is_file() and not path.is_symlink() and _sha256(path) == wanted
            if not whole and part.is_file():
                size, digest = part.stat().st_size, _sha256(part)
            found[name] = {"whole": whole, "bytes": size, "sha256": digest}
            say({"beat": True})
        return {"files": found}

    def put(self, name: str, sha256: str, offset: int, size: int) -> dict[str, Any]:
        """Take the rest of a file from `offset` on; it is there, whole and durable, or not at all."""
        path, part = self._inside(name), self._part(sha256)
        part.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.ftruncate(handle, offset)
            os.lseek(handle, offset, os.SEEK_SET)
            say({"beat": True})  # nothing is sent before the way is clear
            received = self._take(handle, size - offset)
            os.fsync(handle)
        finally:
            os.close(handle)
        if offset + received != size:
            raise SystemExit(0)  # the link has broken: what came of the file stays for the next time
        if _sha256(part) != sha256:
            part.unlink()
            return {"whole": False}
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        _fsync_folder(path.parent)
        return {"whole": True}

    def _take(self, handle: int, size: int) -> int:
        """Write what comes; of a disk that is full, read on all the same, so that the answer is understood."""
        received, problem = 0, None
        while received < size:
            block = self.reader.some(min(_CHUNK, size - received))
            if not block:
                break
            received += len(block)
            try:
                while block and problem is None:
                    block = block[os.write(handle, block) :]
            except OSError as error:
                problem = error
        if problem is not None:
            raise problem
        return received

    def write(self, name: str, text: str) -> dict[str, Any]:
        """Write a small file: whole or not at all."""
        path = self._inside(name)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _fsync_folder(path.parent)
        return {}

    def link(self, name: str, target: str) -> dict[str, Any]:
        """Point a symbolic link at something inside: in one step."""
        path, temporary = self._inside(name), self._inside(name + ".new")
        self._inside(target)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(path)
        _fsync_folder(self.root)
        return {}

    def remove(self, name: str) -> dict[str, Any]:
        """Remove a file or a folder, if it is there."""
        path = self._inside(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return {}

    def keep(self, name: str, kept: list[str]) -> dict[str, Any]:
        """Remove all of a folder but some entries."""
        folder = self._inside(name)
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for each in sorted(there - set(kept)):
            self.remove(f"{name}/{each}")
        return {}

    def interpreter(self) -> dict[str, Any]:
        """Return the path of this Python."""
        return {"path": sys.executable}

    def run(self, words: list[str], environment: dict[str, str], stop_s: float, most: int) -> dict[str, Any]:
        """Run a command to its end; it ends with the link, or at the limits of time and of what it may say."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(
                [*_launcher(words[0]), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
                cwd=self.root,
                start_new_session=True,
            )
            started = said = time.monotonic()
            ending = ""
            while child.poll() is None and not ending:
                self.reader.fill(_LOOK_S)
                now = time.monotonic()
                if self.reader.ended:
                    ending = "the link ended"
                elif now - started > stop_s:
                    ending = f"it took longer than {stop_s:g} s"
                elif os.fstat(out.fileno()).st_size + os.fstat(err.fileno()).st_size > most:
                    ending = "it said too much"
                elif now - said > _BEAT_S:
                    said = now
                    say({"beat": True})
            if ending:
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            out.seek(0)
            err.seek(max(0, os.fstat(err.fileno()).st_size - 8000))
            return {
                "code": code,
                "ending": ending,
                "out": out.read(most).decode("utf-8", "replace"),
                "err": err.read().decode("utf-8", "replace"),
            }


def _launcher(program: str) -> list[str]:
    """Return what must stand in front of a Python where this one is emulated, see `edgekit.process.python_command`."""
    emulated = os.environ.get("EDGEKIT_LAUNCHER", "") if Path(program).name.startswith("python") else ""
    return shlex.split(emulated)


def _whole(path: str) -> Path:
    return Path(os.path.normpath(Path.home() / path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _glibc() -> str:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ""
    return version if name == "glibc" else ""


def _free(path: Path) -> int:
    """Return the free bytes of the file system where `path` is or would be."""
    there = os.statvfs(next(each for each in (path, *path.parents) if each.is_dir()))
    return there.f_bavail * there.f_frsize


def _memory(name: str) -> int:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_LARGEST_SIGNAL)
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace").strip()


def _signal(path: Path) -> str:
    return base64.b64encode(_bytes(path)).decode("ascii")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MOST_ENTRIES]
    except OSError:
        return []


def _pci(kinds: list[str]) -> dict[str, Any]:
    found = {}
    for folder in _entries(Path("/sys/bus/pci/devices")):
        made = [f"{kind}/{node.name}" for kind in kinds for node in _entries(folder / kind)]
        driver = folder / "driver"
        found[folder.name] = {
            "vendor": _text(folder / "vendor"),
            "device": _text(folder / "device"),
            "driver": driver.resolve().name if driver.exists() else "",
            "nodes": {
                node: os.access(Path("/dev", node), os.R_OK | os.W_OK)
                for node in made
                if Path("/dev", node).exists()
            },
            "made": made,
        }
    return found


def _usb() -> list[Any]:
    folders = _entries(Path("/sys/bus/usb/devices"))
    pairs = ((_text(folder / "idVendor"), _text(folder / "idProduct")) for folder in folders)
    return [[vendor, product] for vendor, product in pairs if vendor and product]


def _environments(root: Path) -> list[str]:
    return [each.name for each in _entries(root / "environments") if (each / "complete").is_file()]


def _current(root: Path) -> str:
    return (root / "current").resolve().name if (root / "current").is_symlink() else ""


def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _services() -> dict[str, Any]:
    """Tell what of systemd is there: its state for the system and for this user, and whether this user may do all."""
    return {
        "system": _said(["systemctl", "is-system-running"]),
        "user": _said(["systemctl", "--user", "is-system-running"]),
        "root": os.getuid() == 0,
        "sudo": os.getuid() != 0 and _said(["sudo", "-n", "echo", "yes"]) == "yes",
    }


def _said(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:100].decode("utf-8", "replace").strip()


_REQUESTS = ("survey", "begin", "have", "put", "write", "link", "remove", "keep", "run", "interpreter")


def main() -> None:
    """Answer until the link ends."""
    os.umask(0o022)
    reader = Reader(0)
    station = Station(reader)
    say({"edgekit": 1})
    while True:
        line = reader.line()
        if not line:
            return
        request = json.loads(line)
        name = request.pop("do")
        try:
            answer = (
                getattr(station, name)(**request) if name in _REQUESTS else {"refused": "unknown request"}
            )
        except RefusalError as error:
            answer = {"refused": str(error)}
        except OSError as error:
            answer = {"refused": f"{error.strerror}: {error.filename or station.root}"}
        say({"answer": answer})


if __name__ == "__main__":
    main()
