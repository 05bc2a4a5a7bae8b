"""Where a bundle's files come from: a folder, an archive, or bytes and paths in hand."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit.archive import CHUNK, Member, member_chunks, read_archive
from edgekit.errors import InvalidFileError, UsageError

__all__ = ["ArchiveContents", "Contents", "FolderContents", "GivenContents", "read_member"]

#: More files or folders than any bundle has; a folder that holds more is not read to its end.
_MOST_FILES = 10_000


class Contents(Protocol):
    """Files by name, `/` between folders.

    Attributes:
        where: What to call the whole in messages.
    """

    where: str

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece."""


class FolderContents:
    """The files of a folder; links, devices and empty folders are refused."""

    def __init__(self, root: Path, where: str | None = None) -> None:
        self.root, self.where = root, where or str(root)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file under the root."""
        found: dict[str, int] = {}
        self._walk(self.root, "", found)
        return found

    def _walk(self, folder: Path, prefix: str, found: dict[str, int]) -> None:
        with os.scandir(folder) as entries:
            listing = list(entries)
        if prefix and not listing:
            raise InvalidFileError(f"{self.where}: folder {prefix} is empty", hint="Remove it.")
        for entry in listing:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                self._walk(Path(entry.path), name + "/", found)
            elif entry.is_file(follow_symlinks=False):
                found[name] = entry.stat(follow_symlinks=False).st_size
            else:
                kind = "a symbolic link" if entry.is_symlink() else "a special file"
                raise InvalidFileError(f"{self.where}: {name} is {kind}", expected="a regular file")
            if len(found) > _MOST_FILES:
                raise InvalidFileError(f"{self.where} is not a bundle: more than {_MOST_FILES} files")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece."""
        return _file_chunks(self.root / name, f"{self.where}: {name}")


class ArchiveContents:
    """The files of an `.edgekit` archive, read without unpacking it."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self.where = where
        self._stream = stream
        self._members: dict[str, Member] = {m.name: m for m in read_archive(stream, where)}

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every member."""
        return {name: member.size for name, member in self._members.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a member's content piece by piece."""
        return member_chunks(self._stream, self._members[name], self.where)


class GivenContents:
    """Files given as bytes, or as paths to read."""

    def __init__(self, files: Mapping[str, Path | bytes], where: str) -> None:
        self.where = where
        self._files = dict(files)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file.

        Raises:
            UsageError: A path is not a regular file.
        """
        return {name: self._size(name, given) for name, given in self._files.items()}

    @staticmethod
    def _size(name: str, given: Path | bytes) -> int:
        if isinstance(given, bytes):
            return len(given)
        if not given.is_file():
            raise UsageError(f"the file for {name} is missing", got=str(given))
        return given.stat().st_size

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece."""
        given = self._files[name]
        return iter((given,)) if isinstance(given, bytes) else _file_chunks(given, str(given), follow=True)


def _file_chunks(path: Path, where: str, *, follow: bool = False) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOENT):
            raise
        raise InvalidFileError(f"{where} has vanished or become a symbolic link") from error
    with os.fdopen(handle, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise InvalidFileError(f"{where} is not a regular file")
        while chunk := stream.read(CHUNK):
            yield chunk


def read_member(contents: Contents, name: str, size: int, most: int) -> bytes:
    """Return a small file whole.

    Args:
        contents: Where from.
        name: Which.
        size: Its size in bytes, as the listing has it.
        most: The most bytes that are believable.

    Raises:
        InvalidFileError: It is bigger than `most`.
    """
    if size > most:
        raise InvalidFileError(
            f"{contents.where}: {name} is too big", got=size, expected=f"at most {most} bytes"
        )
    data = b"".join(contents.chunks(name))
    if len(data) != size:
        raise InvalidFileError(f"{contents.where}: {name} changed while it was read")
    return data
