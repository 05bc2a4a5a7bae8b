"""Reading `.npy` and `.npz` files that nobody vouches for: no pickles, no more memory than the file justifies."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekit.archive import write_archive

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ArrayFileError",
    "StoredArray",
    "encode_npz",
    "load_own",
    "open_arrays",
    "read_npy",
    "read_npz",
    "save_own",
    "text_as_objects",
    "text_as_units",
]

#: Deflate cannot shrink anything further than this (zlib's technical details: 1032 to 1).
_DEFLATE_RATIO = 1032
_MOST_MEMBERS = 10_000
#: What zipfile raises for files that are no zip, damaged or encrypted, or of a newer kind.
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ArrayFileError(Exception):
    """The file is not a well-formed array file; the callers say whose fault that is."""


@contextmanager
def _damage_told(what: str) -> Iterator[None]:
    """Raise `ArrayFileError` for what zipfile raises; a place in the file that cannot be is damage too."""
    try:
        yield
    except _DAMAGE as error:
        raise ArrayFileError(f"{what} ({error})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ArrayFileError(f"{what} ({error})") from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` by name.

    Raises:
        ArrayFileError: It is no zip, an array is pickled, or a header claims more than its member holds.
    """
    with _damage_told("it is not an .npz, or it is damaged"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(members, Path(path).stat().st_size)
        return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which only the header has been read.

    Attributes:
        name: Its name in the `.npz`; the file's of an `.npy`.
        shape: Its sizes.
        dtype: Numbers or text.
        fortran: Whether its last axis is the slowest: such an array is read whole.
        path: The file.
        member: Where in the `.npz`; None in an `.npy`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    path: Path
    member: zipfile.ZipInfo | None

    @property
    def offset(self) -> int | None:
        """Where in the file its values lie, row after row; None where they are compressed or not by rows."""
        if self.fortran or (self.member is not None and self.member.compress_type != zipfile.ZIP_STORED):
            return None
        with self.path.open("rb") as stream:
            if self.member is not None:
                _enter_stored(stream, self.member)
            _read_header(stream, self.name)
            return stream.tell()

    def whole(self) -> np.ndarray:
        """Return all of it.

        Raises:
            ArrayFileError: It is damaged.
        """
        with self._open() as (stream, size):
            return _read_array(stream, size, self.name)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield it from the start, some rows at a time, [at most `rows`, …].

        Raises:
            ArrayFileError: It is damaged.
        """
        import numpy as np

        if self.fortran:
            array = self.whole()
            yield from (array[i : i + rows] for i in range(0, len(array), rows))
            return
        with self._open() as (stream, _):
            _read_header(stream, self.name)
            for first in range(0, self.shape[0], rows):
                block = np.empty((min(rows, self.shape[0] - first), *self.shape[1:]), self.dtype)
                if block.size:
                    _fill(stream, block.reshape(-1).view(np.uint8).data, self.name)
                yield block
            stream.read(1)  # at the end of a member its checksum is compared

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """Give the stream of the array's file or member, and its size in bytes."""
        if self.member is None:
            with self.path.open("rb") as stream:
                yield stream, os.fstat(stream.fileno()).st_size
            return
        with (
            _damage_told("it is damaged"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.member) as stream,
        ):
            yield stream, self.member.file_size


def _enter_stored(stream: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Go to the first byte of a member that is not compressed: behind its local header."""
    stream.seek(member.header_offset)
    local = stream.read(30)
    stream.seek(sum(struct.unpack("<HH", local[26:30])), os.SEEK_CUR)


def open_arrays(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """Return the arrays of an `.npz` by name, or the one of an `.npy` under its file's name; nothing but headers is read.

    Raises:
        ArrayFileError: It is neither, an array is pickled, or a header claims more than the file holds.
    """
    source = Path(path)
    if source.suffix.lower() != ".npz":
        with source.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return {source.name: _open_array(stream, size, source.name, source, None)}
    found = {}
    with _damage_told("it is not an .npz, or it is damaged"), zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        _check_members(members, source.stat().st_size)
        for member in members:
            if not member.filename.endswith(".npy"):
                raise ArrayFileError(f"{member.filename} is not an array")
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                found[name] = _open_array(stream, member.file_size, name, source, member)
    return found


def _open_array(
    stream: IO[bytes], size: int, name: str, path: Path, member: zipfile.ZipInfo | None
) -> StoredArray:
    shape, fortran, dtype = _read_header(stream, name)
    claimed, left = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if claimed != left:
        raise ArrayFileError(f"array {name!r} claims {claimed} bytes, the file holds {left}")
    return StoredArray(name, shape, dtype, fortran and len(shape) > 1, path, member)


def _check_members(members: list[zipfile.ZipInfo], total: int) -> None:
    names = {member.filename for member in members}
    if len(names) != len(members) or len(members) > _MOST_MEMBERS:
        raise ArrayFileError("an array comes twice, or there are far too many")
    if sum(member.compress_size for member in members) > total:
        raise ArrayFileError("its members overlap")
    for member in members:
        ratio = _DEFLATE_RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1
        if member.compress_type not in _METHODS or member.file_size > ratio * member.compress_size:
            raise ArrayFileError(f"{member.filename} claims more bytes than the file can hold")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if not member.filename.endswith(".npy"):
        raise ArrayFileError(f"{member.filename} is not an array")
    with archive.open(member) as stream:
        return _read_array(stream, member.file_size, member.filename.removesuffix(".npy"))


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of an `.npy`.

    Raises:
        ArrayFileError: It is no `.npy`, it is pickled, or its header claims more than the file holds.
    """
    with Path(path).open("rb") as stream:
        return _read_array(stream, os.fstat(stream.fileno()).st_size, Path(path).name)


def _read_array(stream: IO[bytes], size: int, name: str) -> np.ndarray:
    """Read one array; `size` is how many bytes the stream has, header included."""
    import numpy as np

    shape, fortran, dtype = _read_header(stream, name)
    count = 1
    for length in shape:
        count *= length
    claimed = count * dtype.itemsize
    left = size - stream.tell()
    if claimed != left:
        raise ArrayFileError(f"array {name!r} claims {claimed} bytes, the file holds {left}")
    array = np.empty(shape[::-1] if fortran else shape, dtype)
    if claimed:
        _fill(stream, array.reshape(-1).view(np.uint8).data, name)
    return array.transpose() if fortran else array


def _read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ArrayFileError(f"array {name!r} has the unknown format {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ArrayFileError(f"{name!r} is not an array ({error})") from error
    if dtype.hasobject or dtype.names or dtype.subdtype or dtype.kind not in "biufUS" or not dtype.itemsize:
        raise ArrayFileError(
            f"array {name!r} has the dtype {dtype}, expected numbers or text, never pickled objects"
        )
    if any(length < 0 for length in shape):
        raise ArrayFileError(f"array {name!r} has the shape {shape}")
    return shape, fortran, dtype


def _fill(stream: IO[bytes], view: memoryview, name: str) -> None:
    position = 0
    while position < len(view):
        chunk = stream.read(min(1 << 20, len(view) - position))
        if not chunk:
            raise ArrayFileError(f"array {name!r} is cut short")
        view[position : position + len(chunk)] = chunk
        position += len(chunk)


def save_own(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` for `load_own`, from one process of EdgeKit to another. Text goes as text, never pickled."""
    import numpy as np

    plain = {name: text_as_units(array) for name, array in arrays.items()}
    np.savez(path, **plain)  # type: ignore[arg-type]  # numpy's stub takes the names for options


def load_own(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return what `save_own` wrote, text as runtimes take it."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name: text_as_objects(array) for name, array in archive.items()}


def text_as_objects(array: np.ndarray) -> np.ndarray:
    """Return text as numpy `object`, as runtimes take it; anything else as it is."""
    return array.astype(object) if array.dtype.kind == "U" else array


def text_as_units(array: np.ndarray) -> np.ndarray:
    """Return an array as files hold it without pickles: text in numpy's own units, all of one width."""
    return array.astype(str) if array.dtype == object else array


def encode_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return an uncompressed `.npz` whose bytes depend on nothing but the arrays."""
    import numpy as np

    members = {}
    for name, array in arrays.items():
        stream = io.BytesIO()
        np.lib.format.write_array(
            stream,
            np.ascontiguousarray(text_as_units(array)).reshape(array.shape),
            (1, 0),
            allow_pickle=False,
        )
        members[name + ".npy"] = stream.getvalue()
    out = io.BytesIO()
    write_archive(out, members, lambda name: (members[name],))
    return out.getvalue()
