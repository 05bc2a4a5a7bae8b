"""Samples that are read one at a time: memory stays bounded, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NO_SAMPLES", "SampleFolder", "Samples", "store_samples"]

_INDEX = "samples.json"


class Samples(Protocol):
    """Inputs of a model, by number: what calibration reads, as often as it likes, one sample at a time."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one sample, arrays [1, …] by canonical input name, which the caller may keep."""
        ...

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield every sample in order."""
        ...


class _NoSamples:
    """No calibration data."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        raise IndexError(index)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(())


#: What a converter gets whose recipe needs no calibration data.
NO_SAMPLES: Samples = _NoSamples()


class _Entry(msgspec.Struct, frozen=True):
    """Where one input's samples lie: raw little-endian values, sample after sample."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


class SampleFolder:
    """Samples in a folder, one file for each input, read by offset: nothing is mapped, nothing kept.

    Args:
        folder: What `store_samples` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries = msgspec.json.decode((folder / _INDEX).read_bytes(), type=list[_Entry])

    def __len__(self) -> int:
        """Return how many there are."""
        return self._entries[0].shape[0]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one sample, arrays [1, …] by canonical input name."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {entry.name: self._read(entry, index) for entry in self._entries}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield every sample in order."""
        return (self[index] for index in range(len(self)))

    def _read(self, entry: _Entry, index: int) -> np.ndarray:
        import numpy as np

        count = int(np.prod(entry.shape[1:], dtype=np.int64))
        width = np.dtype(entry.dtype).itemsize
        with (self._folder / entry.file).open("rb", buffering=0) as stream:
            stream.seek(index * count * width)
            data = stream.read(count * width)
        return np.frombuffer(bytearray(data), entry.dtype).reshape(1, *entry.shape[1:])


def store_samples(folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays [N, …] by canonical name into a new folder, a block at a time, for `SampleFolder` to read."""
    folder.mkdir()
    entries = []
    for number, (name, array) in enumerate(arrays.items()):
        entry = _Entry(name, f"{number}.raw", array.dtype.str, tuple(int(size) for size in array.shape))
        with (folder / entry.file).open("wb") as stream:
            for row in array:
                stream.write(row.tobytes())
        entries.append(entry)
    (folder / _INDEX).write_bytes(msgspec.json.encode(entries))
    return folder
