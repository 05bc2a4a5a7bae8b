"""What calibration has measured, kept: in memory for a conversion's ladder, on disk for the conversions after it."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit.atomic import remove
from edgekit.calibration import Histogram, Range
from edgekit.errors import UsageError
from edgekit.state import cache_folder

__all__ = ["CalibrationCache"]

_T = TypeVar("_T", dict[str, Range], dict[str, Histogram])

#: Raised when the files' form or what is measured changes: it is part of the name, so nothing older is read.
_FORM = 1
_DIGEST_BYTES = hashlib.sha256().digest_size


class CalibrationCache:
    """Ranges and histograms of tensors by key; a key names everything that the values depend on.

    On disk each lies in a file of `$XDG_CACHE_HOME/edgekit/calibration` named by its key's hash and headed by its
    content's. One that is damaged counts as absent, and a disk that cannot be written only costs the time saved.

    Args:
        most: Results kept in memory.
        most_bytes: Bytes kept on disk; beyond them, what has not been used for longest goes.
    """

    def __init__(self, most: int = 4, most_bytes: int = 256 << 20) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: Sequence[str] | None, kind: type[_T], make: Callable[[], _T]) -> _T:
        """Return what is kept under a key, made now if it is not there.

        Args:
            key: Hashes of model and data, method, tools' versions…; None where the data has no name: nothing is kept.
            kind: `dict[str, Range]` or `dict[str, Histogram]`.
            make: Measures it.
        """
        if key is None:
            return make()
        name = hashlib.sha256(msgspec.json.encode((_FORM, str(kind), tuple(key)))).hexdigest()
        if name not in self._kept:
            self._kept[name] = self._lasting(name, kind, make)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        found: _T = self._kept[name]
        return found

    def _lasting(self, name: str, kind: type[_T], make: Callable[[], _T]) -> _T:
        """Return what a file holds, made and written now if there is none."""
        try:
            file = cache_folder() / "calibration" / name
        except UsageError:  # this user has no home folder
            return make()
        found = _read(file, kind)
        if found is None:
            found = make()
            self._write(file, found)
        return found

    def _write(self, file: Path, found: _T) -> None:
        payload = msgspec.msgpack.encode(found, enc_hook=lambda histogram: histogram.state())
        temporary = file.with_name(f".{file.name}.{os.urandom(6).hex()}.tmp")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
            temporary.replace(file)
            self._tidy(file.parent)
        with suppress(OSError):
            remove(temporary)

    def _tidy(self, folder: Path) -> None:
        files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.iterdir()), reverse=True)
        total = 0
        for _, size, file in files:
            total += size
            if total > self._most_bytes:
                file.unlink(missing_ok=True)


def _read(file: Path, kind: type[_T]) -> _T | None:
    """Return what a file holds, or None where it is absent or not as it was written."""
    with suppress(OSError, msgspec.ValidationError, msgspec.DecodeError):
        data = file.read_bytes()
        payload = data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == data[:_DIGEST_BYTES]:
            os.utime(file)
            return msgspec.msgpack.decode(payload, type=kind, dec_hook=lambda _, state: Histogram.of(state))
    return None
