"""What a program does to files, recorded with strace: the list of operations for `tests.crash_states`.

Only the calling thread of the program is recorded, or with `follow` all of its threads, not other processes. Writes
into mapped memory are not seen (SQLite keeps nothing there that must survive).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash_states import Change, Disk, Entries, Mark, Operation, Resize, Sync, Trace, Write

__all__ = ["mark", "record", "require_strace"]

_CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,sendfile,copy_file_range,"
    "truncate,ftruncate,fallocate,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,"
    "symlink,symlinkat,fsync,fdatasync,sync,syncfs,msync,chdir"
)
_MARK = b"mark:"


def mark(label: str) -> None:
    """Say, in a program that is recorded, that it has come to a point: what it promises holds from here on."""
    with Path(os.devnull).open("wb", buffering=0) as stream:
        stream.write(_MARK + label.encode())


def require_strace() -> str:
    """Return strace's path, or skip the test; in CI that is a failure, see tests/conftest.py."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("no strace here: system calls cannot be recorded, see .ci/run [strace]")
    return found


def record(
    command: Sequence[str], root: Path, *, follow: bool = False, env: Mapping[str, str] | None = None
) -> Trace:
    """Run a program to its end and return what it did below `root`.

    Args:
        command: The program and its arguments; it must name files by absolute paths or open folders.
        root: The folder, as it is now; nothing else is looked at.
        follow: Whether its other threads are recorded too; it must then start no process that changes files.
        env: Its environment.

    Raises:
        subprocess.CalledProcessError: The program failed.
    """
    reader = _Reader(root.resolve())
    log = root.parent / f".{root.name}.strace"
    strace = [
        require_strace(),
        *(["-f"] if follow else []),
        "-xx",
        "-a1",
        "-s",
        str(1 << 26),
        "-e",
        f"trace={_CALLS}",
    ]
    subprocess.run([*strace, "-o", str(log), *command], check=True, env=env)
    with log.open(encoding="ascii") as lines:
        for name, arguments, result in _calls(lines, numbered=follow):
            reader.call(name, arguments, result)
    log.unlink()
    return Trace(reader.folders, reader.files, tuple(reader.operations))


_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")


def _calls(lines: Iterator[str], *, numbered: bool) -> Iterator[tuple[str, list[str], int]]:
    """Yield (call, arguments, result) of the calls that succeeded, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        thread, text = line.rstrip("\n").split(maxsplit=1) if numbered else ("", line.rstrip("\n"))
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            text = begun.pop(thread) + resumed[1]
        found = _CALL.match(text)
        if found is not None and int(found[3]) >= 0:
            yield found[1], _split(found[2]), int(found[3])


def _split(arguments: str) -> list[str]:
    """Split at the commas that are in no bracket; strings hold none, for every byte is written as \\xNN."""
    parts, depth, begin = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            parts.append(arguments[begin:index].strip())
            begin = index + 1
    return [*parts, arguments[begin:].strip()]


def _bytes(text: str) -> bytes:
    assert text.endswith('"'), f"strace cut this off: {text[:80]}"
    return bytes.fromhex(text[1:-1].replace("\\x", ""))


@dataclass
class _Open:
    """An open file: its node below the root, or where else it is."""

    node: int | None
    path: str
    position: int = 0
    appends: bool = False


class _Reader:
    """Turns system calls into operations, by a file system in memory that follows them."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.folders: dict[int, dict[str, int]] = {0: {}}
        self.files: dict[int, bytes] = {}
        self.operations: list[Operation] = []
        self._fds: dict[int, _Open] = {}
        self._next = itertools.count(1)
        self._take(root, 0)
        self._now = Disk(self.folders, self.files)

    def _take(self, folder: Path, node: int) -> None:
        for entry in sorted(folder.iterdir()):
            assert not entry.is_symlink(), f"{entry}: links are not modelled"
            child = self.folders[node][entry.name] = next(self._next)
            if entry.is_dir():
                self.folders[child] = {}
                self._take(entry, child)
            else:
                self.files[child] = entry.read_bytes()

    def call(self, name: str, arguments: list[str], result: int) -> None:
        act: Callable[[list[str], int], None] | None = getattr(self, f"_{name}", None)
        if act is not None:
            act(arguments, result)

    # names

    def _place(self, path: str, at: str = "AT_FDCWD") -> tuple[int, str] | None:
        """Return (folder, name) of a path below the root; None for any other."""
        text = os.fsdecode(_bytes(path))
        if not text.startswith("/"):
            base = self._fds.get(int(at)) if at != "AT_FDCWD" else None
            if base is None or base.node is None:
                assert at != "AT_FDCWD" or not text.startswith(".."), f"a relative path: {text}"
                return None
            folder, parts = base.node, text.split("/")
        elif text == self.root:
            return 0, ""
        elif text.startswith(self.root + "/"):
            folder, parts = 0, text[len(self.root) + 1 :].split("/")
        else:
            return None
        assert ".." not in parts, text
        parts = [part for part in parts if part not in ("", ".")]
        for part in parts[:-1]:
            folder = self._now.folders[folder][part]
        return folder, parts[-1] if parts else ""

    def _find(self, place: tuple[int, str] | None) -> int | None:
        if place is None:
            return None
        return self._now.folders[place[0]].get(place[1]) if place[1] else place[0]

    def _do(self, change: Change) -> None:
        self._now.apply(change)
        self.operations.append(change)

    def _make(self, place: tuple[int, str], *, folder: bool) -> int:
        node = next(self._next)
        if folder:
            self.folders[node], self._now.folders[node] = {}, {}
        else:
            self.files[node], self._now.files[node] = b"", bytearray()
        self._do(Entries(((*place, node),)))
        return node

    # opening

    def _openat(self, arguments: list[str], result: int) -> None:
        place, flags = self._place(arguments[1], arguments[0]), arguments[2].split("|")
        node = self._find(place)
        if place is not None:
            assert "O_TMPFILE" not in flags
            if node is None:
                node = self._make(place, folder=False)
            elif "O_TRUNC" in flags and self._now.files[node]:
                self._do(Resize(node, 0))
        self._fds[result] = _Open(node, os.fsdecode(_bytes(arguments[1])), appends="O_APPEND" in flags)

    def _open(self, arguments: list[str], result: int) -> None:
        self._openat(["AT_FDCWD", *arguments], result)

    def _creat(self, arguments: list[str], result: int) -> None:
        self._openat(["AT_FDCWD", arguments[0], "O_CREAT|O_TRUNC"], result)

    def _close(self, arguments: list[str], _: int) -> None:
        self._fds.pop(int(arguments[0]), None)

    def _dup(self, arguments: list[str], result: int) -> None:
        known = self._fds.get(int(arguments[0]))
        if known is not None:
            self._fds[result] = known
        else:
            self._fds.pop(result, None)

    _dup2 = _dup3 = _dup

    def _fcntl(self, arguments: list[str], result: int) -> None:
        if arguments[1].startswith("F_DUPFD"):
            self._dup(arguments, result)

    def _lseek(self, arguments: list[str], result: int) -> None:
        if int(arguments[0]) in self._fds:
            self._fds[int(arguments[0])].position = result

    def _chdir(self, _: list[str], __: int) -> None:
        raise AssertionError("a program that is recorded stays in its folder")

    # contents

    def _put(self, file: _Open | None, data: bytes, offset: int | None) -> None:
        """Write; at the position, which moves, where no offset is given."""
        if file is None:
            return
        if file.node is None:
            if file.path == os.devnull and data.startswith(_MARK):
                self.operations.append(Mark(data[len(_MARK) :].decode()))
            return
        if offset is None:
            offset = len(self._now.files[file.node]) if file.appends else file.position
            file.position = offset + len(data)
        if data:
            self._do(Write(file.node, offset, data))

    def _write(self, arguments: list[str], result: int) -> None:
        self._put(self._fds.get(int(arguments[0])), _bytes(arguments[1])[:result], None)

    def _pwrite64(self, arguments: list[str], result: int) -> None:
        self._put(self._fds.get(int(arguments[0])), _bytes(arguments[1])[:result], int(arguments[3]))

    def _writev(self, arguments: list[str], result: int) -> None:
        data = b"".join(_bytes(text) for text in re.findall(r'iov_base=("[^"]*")', arguments[1]))
        offset = int(arguments[3]) if len(arguments) > 3 else None
        self._put(self._fds.get(int(arguments[0])), data[:result], offset)

    _pwritev = _writev

    def _content(self, file: _Open, offset: int | None, count: int) -> bytes:
        begin = file.position if offset is None else offset
        if offset is None:
            file.position += count
        if file.node is not None:
            return bytes(self._now.files[file.node][begin : begin + count])
        with Path(file.path).open("rb") as stream:  # what is copied from elsewhere is still there
            stream.seek(begin)
            return stream.read(count)

    def _sendfile(self, arguments: list[str], result: int) -> None:
        source, target = self._fds.get(int(arguments[1])), self._fds.get(int(arguments[0]))
        if source is not None and target is not None and target.node is not None:
            self._put(target, self._content(source, _offset(arguments[2]), result), None)

    def _copy_file_range(self, arguments: list[str], result: int) -> None:
        source, target = self._fds.get(int(arguments[0])), self._fds.get(int(arguments[2]))
        if source is not None and target is not None and target.node is not None:
            self._put(target, self._content(source, _offset(arguments[1]), result), _offset(arguments[3]))

    def _resize(self, node: int | None, size: int) -> None:
        if node is not None and size != len(self._now.files[node]):
            self._do(Resize(node, size))

    def _ftruncate(self, arguments: list[str], _: int) -> None:
        file = self._fds.get(int(arguments[0]))
        self._resize(file.node if file else None, int(arguments[1]))

    def _truncate(self, arguments: list[str], _: int) -> None:
        self._resize(self._find(self._place(arguments[0])), int(arguments[1]))

    def _fallocate(self, arguments: list[str], _: int) -> None:
        file = self._fds.get(int(arguments[0]))
        if file is not None and file.node is not None:
            assert arguments[1] == "0", "holes are not modelled"
            size = int(arguments[2]) + int(arguments[3])
            self._resize(file.node, max(size, len(self._now.files[file.node])))

    # entries

    def _mkdirat(self, arguments: list[str], _: int) -> None:
        place = self._place(arguments[1], arguments[0])
        if place is not None:
            self._make(place, folder=True)

    def _mkdir(self, arguments: list[str], result: int) -> None:
        self._mkdirat(["AT_FDCWD", *arguments], result)

    def _unlinkat(self, arguments: list[str], _: int) -> None:
        place = self._place(arguments[1], arguments[0])
        node = self._find(place)
        if place is not None and node is not None:
            self._do(Entries(((*place, None),), ((*place, node),)))

    def _unlink(self, arguments: list[str], result: int) -> None:
        self._unlinkat(["AT_FDCWD", *arguments], result)

    _rmdir = _unlink

    def _renameat2(self, arguments: list[str], _: int) -> None:
        old, new = self._place(arguments[1], arguments[0]), self._place(arguments[3], arguments[2])
        if old is None and new is None:
            return
        assert old is not None, "a rename into the folder"
        assert new is not None, "a rename out of the folder"
        node, other = self._find(old), self._find(new)
        assert node is not None
        if len(arguments) > 4 and "RENAME_EXCHANGE" in arguments[4]:
            assert other is not None
            self._do(Entries(((*old, other), (*new, node)), ((*old, node), (*new, other))))
        else:
            self._do(Entries(((*old, None), (*new, node)), ((*old, node),)))

    _renameat = _renameat2

    def _rename(self, arguments: list[str], result: int) -> None:
        self._renameat2(["AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]], result)

    def _linkat(self, arguments: list[str], _: int) -> None:
        old, new = self._place(arguments[1], arguments[0]), self._place(arguments[3], arguments[2])
        node = self._find(old)
        if new is not None:
            assert node is not None
            assert old is not None
            self._do(Entries(((*new, node),), ((*old, node),)))

    def _link(self, arguments: list[str], result: int) -> None:
        self._linkat(["AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]], result)

    def _symlinkat(self, arguments: list[str], _: int) -> None:
        assert self._place(arguments[2], arguments[1]) is None, "links are not modelled"

    def _symlink(self, arguments: list[str], _: int) -> None:
        assert self._place(arguments[1]) is None, "links are not modelled"

    # durability

    def _fsync(self, arguments: list[str], _: int, call: str = "fsync") -> None:
        file = self._fds.get(int(arguments[0]))
        if file is not None and file.node is not None:
            self.operations.append(Sync(file.node, f"{call} of {file.path.removeprefix(self.root)}"))

    def _fdatasync(self, arguments: list[str], result: int) -> None:
        self._fsync(arguments, result, "fdatasync")

    def _sync(self, _: list[str], __: int) -> None:
        self.operations.append(Sync(None, "sync"))

    _syncfs = _sync


def _offset(text: str) -> int | None:
    """Read `NULL`, `[5]` or `[5] => [8]`."""
    return None if text == "NULL" else int(text.partition("=>")[0].strip().strip("[]"))
