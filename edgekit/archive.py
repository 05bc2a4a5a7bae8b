"""A zip of one fixed form: members sorted by name, stored, dated 1980, nothing between or after them.

Any zip tool reads it. Reading here is strict: each byte is either a member's content, or exactly what this
module would have written. So there is nothing to decompress, nothing overlaps or hides, the sizes are bounded
by the file's own, and a flipped byte anywhere is found. Layout: PKWARE APPNOTE 6.3, without zip64.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import msgspec

from edgekit.errors import InvalidFileError, UsageError

__all__ = ["CHUNK", "Member", "member_chunks", "read_archive", "write_archive"]

#: Bytes read or written at once.
CHUNK = 1 << 20

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 20
_UNIX = 3 << 8
_UTF8 = 0x0800
_DATE = 0x0021  # 1 January 1980, the first that a zip can hold
_MODE = 0o100644 << 16
_MOST_BYTES = 0xFFFFFFFE
_MOST_MEMBERS = 10_000
_LONGEST_NAME = 1024


class Member(msgspec.Struct, frozen=True):
    """One file of the archive: where its content starts, its size in bytes and its CRC-32."""

    name: str
    offset: int
    size: int
    crc: int


def _local(name: bytes, crc: int, size: int) -> bytes:
    fields = (_VERSION, _UTF8, 0, 0, _DATE, crc, size, size, len(name), 0)
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name


def _central(name: bytes, crc: int, size: int, start: int) -> bytes:
    fields = (
        _UNIX | _VERSION,
        _VERSION,
        _UTF8,
        0,
        0,
        _DATE,
        crc,
        size,
        size,
        len(name),
        0,
        0,
        0,
        0,
        _MODE,
        start,
    )
    return _CENTRAL.pack(b"PK\x01\x02", *fields) + name


def _end(count: int, size: int, start: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)


def write_archive(stream: BinaryIO, names: Iterable[str], chunks: Callable[[str], Iterable[bytes]]) -> None:
    """Write the archive.

    Args:
        stream: Where to; written in one go from its start.
        names: The members' names.
        chunks: Gives a member's content piece by piece; called twice for each.

    Raises:
        UsageError: More than 10,000 members, or 4 GiB and more.
    """
    members = sorted((name.encode(), name) for name in names)
    directory, position = [], 0
    for raw, name in members:
        size, crc = _measure(chunks(name))
        header = _local(raw, crc, size)
        if position + len(header) + size > _MOST_BYTES or len(members) > _MOST_MEMBERS:
            raise UsageError(
                "too much for one archive", expected="less than 4 GiB and at most 10,000 files",
                hint="Keep the folder, or slice it first.",
            )  # fmt: skip
        stream.write(header)
        stream.writelines(chunks(name))
        directory.append(_central(raw, crc, size, position))
        position += len(header) + size
    central = b"".join(directory)
    stream.write(central + _end(len(members), len(central), position))


def _measure(chunks: Iterable[bytes]) -> tuple[int, int]:
    size = crc = 0
    for chunk in chunks:
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def read_archive(stream: BinaryIO, where: str) -> tuple[Member, ...]:
    """Return the archive's members in their order.

    Args:
        stream: A seekable file.
        where: What to call it in messages.

    Raises:
        InvalidFileError: It is not a whole archive of the one form.
    """
    count, central, position = _read_end(stream, where)
    members: list[Member] = []
    start = 0
    for _ in range(count):
        name, crc, size, length = _read_entry(central, start, where)
        begin = members[-1].offset + members[-1].size if members else 0
        header = _local(name, crc, size)
        shown = name.decode("utf-8", "replace")
        if central[start : start + length] != _central(name, crc, size, begin):
            raise InvalidFileError(f"{where}: the entry of {shown!r} is damaged or foreign", hint=_HINT)
        stream.seek(begin)
        if stream.read(len(header)) != header:
            raise InvalidFileError(f"{where}: the header of {shown!r} is damaged or foreign", hint=_HINT)
        if members and name <= members[-1].name.encode():
            raise InvalidFileError(f"{where}: {shown!r} comes twice or out of order", hint=_HINT)
        members.append(Member(_decode(name, where), begin + len(header), size, crc))
        start += length
    finish = members[-1].offset + members[-1].size if members else 0
    if start != len(central) or finish != position:
        raise InvalidFileError(f"{where}: bytes that belong to no member", hint=_HINT)
    return tuple(members)


_HINT = "Make .edgekit files with `edgekit bundle pack`."


def _read_end(stream: BinaryIO, where: str) -> tuple[int, bytes, int]:
    total = stream.seek(0, 2)
    stream.seek(max(0, total - _END.size))
    tail = stream.read(_END.size)
    if len(tail) != _END.size or tail[:4] != b"PK\x05\x06":
        raise InvalidFileError(f"{where} is not an EdgeKit archive, or it is cut short", hint=_HINT)
    count, size, position = _END.unpack(tail)[4:7]
    most = _MOST_MEMBERS * (_CENTRAL.size + _LONGEST_NAME)
    if tail != _end(count, size, position) or position + size + _END.size != total or size > most:
        raise InvalidFileError(f"{where} is damaged: its directory is not where it should be", hint=_HINT)
    stream.seek(position)
    return count, stream.read(size), position


def _read_entry(central: bytes, start: int, where: str) -> tuple[bytes, int, int, int]:
    if start + _CENTRAL.size > len(central):
        raise InvalidFileError(f"{where} is damaged: its directory is cut short", hint=_HINT)
    fields = _CENTRAL.unpack_from(central, start)
    crc, size, length = fields[7], fields[8], fields[10]
    name = central[start + _CENTRAL.size : start + _CENTRAL.size + length]
    return name, crc, size, _CENTRAL.size + length


def _decode(name: bytes, where: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{where}: a name is not UTF-8", got=name) from error


def member_chunks(stream: BinaryIO, member: Member, where: str) -> Iterator[bytes]:
    """Yield a member's content piece by piece, its CRC checked at the end.

    Raises:
        InvalidFileError: The content is cut short or does not have its CRC.
    """
    stream.seek(member.offset)
    left, crc = member.size, 0
    while left:
        chunk = stream.read(min(CHUNK, left))
        if not chunk:
            raise InvalidFileError(f"{where}: {member.name} is cut short", hint=_HINT)
        left, crc = left - len(chunk), zlib.crc32(chunk, crc)
        position = stream.tell()
        yield chunk
        stream.seek(position)
    if crc != member.crc:
        raise InvalidFileError(f"{where}: {member.name} is damaged", hint="Fetch or make it again.")
