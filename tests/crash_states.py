"""What a power cut may leave on a disk: every state that a program's operations on files allow.

The operations are recorded by `tests.system_calls`. From their list a small model of a file system builds the states
that a cut after any of them may leave:

- what a file was told is safe once `fsync` or `fdatasync` of that file has returned; a folder's entries are safe once
  `fsync` of that folder has returned, and not by `fsync` of the file that they name;
- of everything else any part may be there and any part may be missing, in any combination, so later operations may
  survive earlier ones; a write may be there to half, or as zeros of its length;
- a rename, and an exchange of two names, is there as a whole or not at all, and only where what it moves is there.

That is less than any file system in use promises. What holds for all these states does not rest on a mount option.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = [
    "Bench",
    "Change",
    "Disk",
    "Entries",
    "Mark",
    "Operation",
    "Resize",
    "State",
    "Sync",
    "Trace",
    "Write",
]

# What happens


@dataclass(frozen=True)
class Entries:
    """Names of folders that change together.

    Attributes:
        changes: (folder, name, what it names then; None for nothing).
        needs: (folder, name, what it must name before): else the whole does not happen.
    """

    changes: tuple[tuple[int, str, int | None], ...]
    needs: tuple[tuple[int, str, int], ...] = ()

    def concerns(self, node: int) -> bool:
        return any(folder == node for folder, _, _ in self.changes)


@dataclass(frozen=True)
class Write:
    """Bytes in a file."""

    node: int
    offset: int
    data: bytes

    def concerns(self, node: int) -> bool:
        return node == self.node


@dataclass(frozen=True)
class Resize:
    """A file's new length in bytes."""

    node: int
    size: int

    def concerns(self, node: int) -> bool:
        return node == self.node


@dataclass(frozen=True)
class Sync:
    """A file or folder made durable; None for everything."""

    node: int | None
    call: str = ""


@dataclass(frozen=True)
class Mark:
    """A point that the program has come to."""

    label: str


Change = Entries | Write | Resize
Operation = Change | Sync | Mark

#: What may become of a change that nothing has made durable.
_WAYS: dict[type, tuple[str, ...]] = {
    Entries: ("no", "yes"),
    Resize: ("no", "yes"),
    Write: ("no", "yes", "half", "zeros"),
}


class Disk:
    """Files and folders by number; folder 0 is the root."""

    def __init__(self, folders: Mapping[int, Mapping[str, int]], files: Mapping[int, bytes]) -> None:
        self.folders = {node: dict(names) for node, names in folders.items()}
        self.files = {node: bytearray(data) for node, data in files.items()}

    def apply(self, change: Change, way: str = "yes") -> None:
        if way == "no":
            return
        if isinstance(change, Entries):
            if all(self.folders[folder].get(name) == node for folder, name, node in change.needs):
                for folder, name, node in change.changes:
                    if node is None:
                        self.folders[folder].pop(name, None)
                    else:
                        self.folders[folder][name] = node
        elif isinstance(change, Resize):
            _resize(self.files[change.node], change.size)
        else:
            data = change.data
            if way == "half":
                data = data[: len(data) // 2]
            elif way == "zeros":
                data = bytes(len(data))
            content = self.files[change.node]
            _resize(content, max(len(content), change.offset + len(data)))
            content[change.offset : change.offset + len(data)] = data

    def tree(self, node: int = 0, path: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Yield (path, content) of all that can be found, None for a folder."""
        for name, child in sorted(self.folders[node].items()):
            if child in self.folders:
                yield path + name, None
                yield from self.tree(child, f"{path}{name}/")
            else:
                yield path + name, bytes(self.files[child])


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(frozen=True)
class State:
    """What a power cut has left.

    Attributes:
        tree: Content by path, None for a folder.
        marks: The points that the program had come to.
        after: How many operations it had made.
    """

    tree: Mapping[str, bytes | None]
    marks: tuple[str, ...]
    after: int

    @property
    def key(self) -> bytes:
        """A digest: two states of one key are the same."""
        digest = hashlib.blake2b(repr(self.marks).encode(), digest_size=16)
        for path, content in self.tree.items():
            digest.update(f"\0{path}\0{'' if content is None else len(content)}\0".encode())
            digest.update(content or b"")
        return digest.digest()


class Bench:
    """A folder that shows one state after another, by what is different.

    Args:
        folder: Where; best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown: Mapping[str, bytes | None] = {}
        folder.mkdir(parents=True)

    def show(self, state: State) -> None:
        """Make the folder hold the state and nothing else.

        What was removed or added there meanwhile is put right; what was changed within a file is not seen.
        """
        there = dict(self._walk(str(self.folder), ""))
        for path, is_folder in reversed(list(there.items())):
            if path not in state.tree or is_folder != (state.tree[path] is None):
                del there[path]
                (self.folder / path).rmdir() if is_folder else (self.folder / path).unlink()
        for path, content in state.tree.items():
            if content is None:
                if path not in there:
                    (self.folder / path).mkdir()
            elif path not in there or self._shown.get(path) != content:
                (self.folder / path).write_bytes(content)
        self._shown = state.tree

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[str, bool]]:
        for entry in os.scandir(folder):
            is_folder = entry.is_dir(follow_symlinks=False)
            yield prefix + entry.name, is_folder
            if is_folder:
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")


@dataclass(frozen=True)
class Trace:
    """What a program did below a folder.

    Attributes:
        folders: Entries of every folder that was there or was made, as they were at first.
        files: Content of every file, likewise.
        operations: In their order.
    """

    folders: Mapping[int, Mapping[str, int]]
    files: Mapping[int, bytes]
    operations: tuple[Operation, ...] = field(default=())

    def syncs(self) -> list[int]:
        """Return where in `operations` something is made durable."""
        return [index for index, operation in enumerate(self.operations) if isinstance(operation, Sync)]

    def without(self, index: int) -> Trace:
        """Return the same as if the program had not made that call."""
        return replace(self, operations=self.operations[:index] + self.operations[index + 1 :])

    def last(self) -> State:
        """Return what is there where no power was cut."""
        return self._state(len(self.operations), {})

    def states(self, chance: random.Random, *, drawn: int) -> Iterator[State]:
        """Yield the states that a cut may leave, each once, those after the last operations first.

        Args:
            chance: Draws where there are too many.
            drawn: How many combinations to draw at each operation, besides the systematic ones.
        """
        seen: set[bytes] = set()
        for after in range(len(self.operations), -1, -1):
            pending = self._pending(after)
            for ways in _combinations([_WAYS[type(self.operations[i])] for i in pending], chance, drawn):
                state = self._state(after, dict(zip(pending, ways, strict=True)))
                if state.key not in seen:
                    seen.add(state.key)
                    yield state

    def _pending(self, after: int) -> list[int]:
        """Return which of the first operations nothing has made durable."""
        pending: list[int] = []
        for index, operation in enumerate(self.operations[:after]):
            if isinstance(operation, Sync):
                pending = [i for i in pending if not self._is_settled(i, operation)]
            elif not isinstance(operation, Mark):
                pending.append(index)
        return pending

    def _is_settled(self, index: int, sync: Sync) -> bool:
        change = self.operations[index]
        assert isinstance(change, (Entries, Write, Resize))
        return sync.node is None or change.concerns(sync.node)

    def _state(self, after: int, ways: Mapping[int, str]) -> State:
        disk = Disk(self.folders, self.files)
        marks: list[str] = []
        for index, operation in enumerate(self.operations[:after]):
            if isinstance(operation, Mark):
                marks.append(operation.label)
            elif not isinstance(operation, Sync):
                disk.apply(operation, ways.get(index, "yes"))
        return State(dict(disk.tree()), tuple(marks), after)


def _combinations(
    ways: Sequence[tuple[str, ...]], chance: random.Random, drawn: int
) -> Iterator[tuple[str, ...]]:
    """Yield what may become of the pending changes: everything, or the telling ones and as many by chance."""
    size = 1
    for each in ways:
        size *= len(each)
    if size <= 64 + drawn:
        yield from itertools.product(*ways)
        return
    n = len(ways)
    for kept in range(n + 1):
        yield ("yes",) * kept + ("no",) * (n - kept)
    for index, each in enumerate(ways):
        for way in each:
            yield ("yes",) * index + (way,) + ("yes",) * (n - index - 1)
        yield ("no",) * index + ("yes",) + ("no",) * (n - index - 1)
    for _ in range(drawn):
        yield tuple(chance.choice(each) for each in ways)
