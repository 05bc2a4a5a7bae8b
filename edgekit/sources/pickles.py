"""Files that may hold code: what is in them is looked at before anything that could run it is asked to read them.

A pickle is a program for a machine that can call any function there is. PyTorch's own restricted reader
(`weights_only=True`) knows tensors, containers and numbers, and nothing else: what it cannot read is refused by name,
unless the user says `--trust-pickle`.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import InvalidFileError
from edgekit.sources.base import first_line

__all__ = ["Archive", "check_members", "check_pickle", "only_weights", "refuse"]

#: More members than any model has weights.
_MOST_MEMBERS = 200_000
#: What a compressed archive may grow to over its size in the file: text and weights stay far below.
_MOST_GROWTH = 200
#: torch reads this at every `torch.load`, also where its own code asks for unrestricted reading.
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_CLAIM = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse(path: Path, what: str, why: str) -> InvalidFileError:
    """Return the refusal of something in a file that may run code when it is read."""
    return InvalidFileError(
        f"{path.name}: {what} may run code when it is read: {why}",
        hint="Only if you trust whoever made the file, give --trust-pickle.",
    )


def check_pickle(path: Path, what: str, data: bytes) -> None:
    """Refuse a pickle that PyTorch's restricted reader does not read.

    Args:
        path: Of the file it is in, for the message.
        what: Name of the member.
        data: What `torch.save` wrote; nothing stands for nothing.

    Raises:
        InvalidFileError: Naming the member.
    """
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken pickle raises is anybody's guess
        raise refuse(path, what, first_line(error)) from error


@contextmanager
def only_weights() -> Iterator[None]:
    """Make every `torch.load` in here a restricted one, those inside torch too.

    `torch.export.load` reads example inputs restricted and, where that fails, unrestricted; weights and constants
    it reads unrestricted at once. With this variable torch itself makes all of these restricted.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _CLAIM)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip archive that has a member twice, or would grow out of all measure.

    Raises:
        InvalidFileError: Saying which.
    """
    names = [member.filename for member in members]
    size = sum(member.file_size for member in members)
    if len(members) > _MOST_MEMBERS or size > _MOST_GROWTH * path.stat().st_size:
        raise InvalidFileError(f"{path.name} would be out of all measure when unpacked")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidFileError(f"{path.name} has the member {twice!r} twice")


class Archive:
    """A zip archive as torch's own reader sees it, after Python's has found it sound.

    Two readers may see two things in one crafted file. So both must see the same names once each, and contents
    come from the reader that torch will load with.

    Args:
        path: The file.

    Attributes:
        names: Members without the archive's root folder.

    Raises:
        InvalidFileError: It is no zip archive, has a member twice, or would grow out of all measure.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                check_members(path, archive.infolist())
                seen = archive.namelist()
            self._reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001  # what torch loads with
            self.names: list[str] = list(self._reader.get_all_records())
        except (zipfile.BadZipFile, RuntimeError, ValueError, OSError) as error:
            raise InvalidFileError(f"{path.name} is damaged: {first_line(error)}") from error
        if sorted(name.partition("/")[2] for name in seen) != sorted(self.names):
            raise InvalidFileError(f"{path.name} does not show every reader the same members")

    def read(self, name: str) -> bytes:
        """Return a member's contents.

        Raises:
            InvalidFileError: It is not there, or damaged.
        """
        try:
            return bytes(self._reader.get_record(name))
        except RuntimeError as error:
            raise InvalidFileError(f"{self.path.name}: {name} cannot be read: {first_line(error)}") from error
