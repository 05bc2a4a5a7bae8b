"""System shared memory: tensors that a client of this machine leaves in `/dev/shm`, and takes from there.

Nothing is mapped: a client may cut its file short at any time, and whoever then touches a mapped page dies of SIGBUS.
`pread` and `pwrite` cost one copy, and come back short instead.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

from edgekit.daemon.http1 import HttpError

__all__ = ["Regions", "Slice"]

#: Each holds a file descriptor.
_MOST_REGIONS = 64
_MOST_NAME = 256
# what shm_open takes: one leading slash, and none after it
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._-]{0,249})")


class Slice(NamedTuple):
    """Where a tensor lies: `byte_size` bytes of a region, from `offset`."""

    region: str
    offset: int
    byte_size: int


class _Region:
    """One registered region; its file is closed when nobody uses it any more."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        self.name, self.key, self.offset, self.byte_size = name, key, offset, byte_size
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def status(self) -> dict[str, object]:
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class Regions:
    """The registered regions; used by any thread.

    Args:
        tensor_bytes: The largest tensor that is read from a region: as much as a request's body may hold.
        folder: Where POSIX shared memory lives.
    """

    def __init__(self, tensor_bytes: int, folder: Path = Path("/dev/shm")) -> None:  # noqa: S108  that is its place
        self._tensor_bytes, self._folder = tensor_bytes, folder
        self._regions: dict[str, _Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Take note of a region.

        Raises:
            HttpError: 400, a name or a size that cannot be, or no such shared memory; 409, the name is taken.
        """
        matched = _KEY.fullmatch(key)
        if matched is None or not name or len(name) > _MOST_NAME:
            raise HttpError(
                400, "not a region of shared memory: expected a name, and a key such as /my_region"
            )
        if offset < 0 or byte_size < 1:
            raise HttpError(
                400, f"region {name!r}: expected an offset of at least 0 and a size of at least 1"
            )
        with self._lock:
            if name in self._regions:
                raise HttpError(409, f"region {name!r} is registered: unregister it first")
            if len(self._regions) >= _MOST_REGIONS:
                raise HttpError(400, f"{_MOST_REGIONS} regions are registered: unregister one first")
            descriptor = self._open(matched[1], offset + byte_size)
            self._regions[name] = _Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str) -> None:
        """Forget a region, or all of them without a name; one that is not there is forgotten already."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def status(self, name: str = "") -> list[dict[str, object]]:
        """Return what is registered, or that of one region.

        Raises:
            HttpError: 404, there is no such region.
        """
        if name:
            return [self._find(name).status()]
        with self._lock:
            return [region.status() for _, region in sorted(self._regions.items())]

    def check(self, piece: Slice) -> None:
        """Refuse a slice that is not within its region.

        Raises:
            HttpError: 400 or 404.
        """
        region = self._find(piece.region)
        if piece.offset + piece.byte_size > region.byte_size:
            raise HttpError(
                400,
                f"region {piece.region!r} ends before the tensor: got offset {piece.offset} and size "
                f"{piece.byte_size}, expected at most {region.byte_size} bytes",
            )
        if piece.byte_size > self._tensor_bytes:
            raise HttpError(413, f"the tensor is larger than {self._tensor_bytes} bytes")

    def read(self, piece: Slice) -> bytearray:
        """Return a copy of what lies there.

        Raises:
            HttpError: 400, 404 or 413; the memory has become shorter is a 400 too.
        """
        self.check(piece)
        region = self._find(piece.region)
        data = bytearray(piece.byte_size)
        try:
            got = os.preadv(region.descriptor, [data], region.offset + piece.offset)
        except OSError as error:
            raise HttpError(400, f"region {piece.region!r} cannot be read: {error.strerror}") from error
        if got < piece.byte_size:
            raise HttpError(400, f"region {piece.region!r} has become shorter than it was registered")
        return data

    def write(self, piece: Slice, data: bytes | memoryview) -> None:
        """Put a tensor there.

        Raises:
            HttpError: 400, it does not fit, or the memory cannot be written.
        """
        size = memoryview(data).nbytes
        if size > piece.byte_size:
            raise HttpError(
                400,
                f"the output does not fit into region {piece.region!r}: "
                f"got {size} bytes, expected at most {piece.byte_size}",
            )
        self.check(piece)
        region = self._find(piece.region)
        try:
            put = os.pwrite(region.descriptor, data, region.offset + piece.offset)
        except OSError as error:
            raise HttpError(400, f"region {piece.region!r} cannot be written: {error.strerror}") from error
        if put < size:
            raise HttpError(400, f"region {piece.region!r} took {put} of {size} bytes")

    def _find(self, name: str) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise HttpError(404, f"there is no region {name[:_MOST_NAME]!r}: register it first")
        return region

    def _open(self, name: str, size: int) -> int:
        """Return a descriptor of a file in shared memory that has at least `size` bytes."""
        try:
            # a link could lead out of the folder, a pipe could block
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._folder / name, flags)
        except OSError as error:
            raise HttpError(400, f"shared memory {name!r} cannot be opened: {error.strerror}") from error
        state = os.fstat(descriptor)
        if stat.S_ISREG(state.st_mode) and size <= state.st_size:
            return descriptor
        os.close(descriptor)
        raise HttpError(
            400, f"shared memory {name!r} is too short: got {state.st_size} bytes, expected at least {size}"
        )
