"""Samples that are read one at a time: memory stays bounded, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import msgspec

from edgekit.arrays import text_as_units
from edgekit.errors import MachineError
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NO_SAMPLES", "Entry", "SampleFolder", "SampleWriter", "Samples", "store_samples"]

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


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one input's samples lie: raw values, sample after sample.

    Attributes:
        name: The input's.
        file: In the folder, or the path of the user's own file.
        stored: Their dtype there, by numpy's string.
        shape: Their shape there, samples first.
        offset: Where they begin, in bytes.
        dtype: What they become when they are read, by numpy's name, `bytes` for text; empty for what they are.
        picture: How they become the input, where they are pixels: the arguments of `edgekit.images.Picture`.
    """

    name: str
    file: str
    stored: str
    shape: tuple[int, ...]
    offset: int = 0
    dtype: str = ""
    picture: tuple[TensorSpec, dict[str, Any]] | None = None


class _Index(msgspec.Struct, frozen=True):
    """What a folder holds, a hash of all its values and of how they are read, and whether a call takes a sample whole."""

    entries: list[Entry]
    digest: str
    whole: bool = False


class SampleFolder:
    """Samples in a folder, one file for each input, read by offset: nothing is mapped, nothing kept.

    Args:
        folder: What `store_samples` or a `SampleWriter` wrote.

    Attributes:
        folder: The same.
        digest: SHA-256, in hexadecimal, of the samples and of how they are read: equal data, equal digest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Index)
        self._entries, self.digest, self._whole = index.entries, index.digest, index.whole
        self._readers = {entry.name: _reader(entry) for entry in self._entries}

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs that it has samples of."""
        return tuple(self._readers)

    def __len__(self) -> int:
        """Return how many there are."""
        return self._entries[0].shape[0]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one sample, arrays [1, …] by canonical input name; without that axis where the model has none."""
        import numpy as np

        if not 0 <= index < len(self):
            raise IndexError(index)
        found = self.rows(index, index + 1)
        return {name: np.asarray(array[0]) for name, array in found.items()} if self._whole else found

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield every sample in order."""
        return (self[index] for index in range(len(self)))

    def rows(self, first: int, end: int) -> dict[str, np.ndarray]:
        """Return consecutive samples, arrays [end - first, …] by canonical input name."""
        return {entry.name: self._read(entry, first, end) for entry in self._entries}

    def _read(self, entry: Entry, first: int, end: int) -> np.ndarray:
        import numpy as np

        count = int(np.prod(entry.shape[1:], dtype=np.int64))
        width = np.dtype(entry.stored).itemsize
        with (self.folder / entry.file).open("rb", buffering=0) as stream:
            stream.seek(entry.offset + first * count * width)
            data = _read_all(stream, (end - first) * count * width)
        values = np.frombuffer(data, entry.stored).reshape(end - first, *entry.shape[1:])
        return self._readers[entry.name](values)


def _read_all(stream: IO[bytes], size: int) -> bytearray:
    """Return exactly `size` bytes: one read of the system gives 2 GiB at most."""
    data = bytearray(size)
    view, position = memoryview(data), 0
    while position < size:
        got = stream.readinto(view[position:])  # type: ignore[attr-defined]  # a file without a buffer has it
        if not got:
            raise MachineError(f"{getattr(stream, 'name', 'a file')} has been cut short while it was read")
        position += got
    return data


def _reader(entry: Entry) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns stored values into what the model takes."""
    if entry.picture is not None:
        from edgekit.images import ImageStep, Picture

        spec, step = entry.picture
        return Picture(spec, msgspec.convert(step, ImageStep)).samples
    if not entry.dtype:
        return lambda values: values
    wanted = "O" if entry.dtype == "bytes" else entry.dtype
    return lambda values: values.astype(wanted)


class SampleWriter:
    """Writes samples block by block into a new folder, for `SampleFolder` to read.

    Args:
        folder: Made here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._files = ExitStack()
        self._streams: dict[str, IO[bytes]] = {}
        self._entries: dict[str, Entry] = {}
        self._hashes: dict[str, Any] = {}

    def add(self, block: Mapping[str, np.ndarray]) -> None:
        """Write the next samples, arrays [k, …] by input name, each time of the same dtype and sample shape."""
        for name, array in block.items():
            if name not in self._streams:
                self._open(name, array)
            entry = self._entries[name]
            assert entry.stored == array.dtype.str
            assert entry.shape[1:] == array.shape[1:]
            for i in range(len(array)):
                data = array[i : i + 1].tobytes()
                self._streams[name].write(data)
                self._hashes[name].update(data)
            self._entries[name] = msgspec.structs.replace(
                entry, shape=(entry.shape[0] + len(array), *entry.shape[1:])
            )

    def _open(self, name: str, array: np.ndarray) -> None:
        file = f"{len(self._streams)}.raw"
        self._streams[name] = self._files.enter_context((self._folder / file).open("xb"))
        self._entries[name] = Entry(name, file, array.dtype.str, (0, *array.shape[1:]))
        self._hashes[name] = hashlib.sha256()

    def hash(self, name: str, block: np.ndarray) -> None:
        """Count values into the digest that stay where they are."""
        self._hashes.setdefault(name, hashlib.sha256()).update(block.tobytes())

    def close(
        self,
        *,
        in_place: Mapping[str, Entry] | None = None,
        dtypes: Mapping[str, str] | None = None,
        pictures: Mapping[str, tuple[TensorSpec, dict[str, Any]]] | None = None,
        whole: bool = False,
    ) -> SampleFolder:
        """Finish and return what was written.

        Args:
            in_place: Inputs whose samples stay in the user's own file.
            dtypes: By input name, what stored values become when they are read.
            pictures: By input name, how stored pixels become the input.
            whole: A call takes one sample as a whole (`edgekit.tensors.takes_whole`).
        """
        self._files.close()
        for name, dtype in (dtypes or {}).items():
            self._entries[name] = msgspec.structs.replace(self._entries[name], dtype=dtype)
        for name, picture in (pictures or {}).items():
            self._entries[name] = msgspec.structs.replace(self._entries[name], picture=picture)
        entries = [*self._entries.values(), *(in_place or {}).values()]
        digest = hashlib.sha256()
        for entry in sorted(entries, key=lambda e: e.name):
            unplaced = msgspec.structs.replace(entry, file="", offset=0)
            digest.update(msgspec.json.encode(unplaced, order="sorted") + self._hashes[entry.name].digest())
        index = _Index(entries, digest.hexdigest(), whole)
        (self._folder / _INDEX).write_bytes(msgspec.json.encode(index))
        return SampleFolder(self._folder)


def store_samples(folder: Path, arrays: Mapping[str, np.ndarray], *, whole: bool = False) -> Path:
    """Write arrays [N, …] by canonical name into a new folder, for `SampleFolder` to read; `whole` as in `close`."""
    writer = SampleWriter(folder)
    writer.add({name: text_as_units(array) for name, array in arrays.items()})
    writer.close(whole=whole, dtypes={name: "bytes" for name, a in arrays.items() if a.dtype == object})
    return folder
