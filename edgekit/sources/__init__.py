"""Source models: what kind a file is, what it takes and gives, and what it answers in its own framework.

`identify` looks at bytes and imports nothing; a source imports its framework when it is opened, in a worker.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import msgspec

from edgekit.errors import InvalidFileError, UsageError
from edgekit.sources.archives import ARCHIVES, identify_archive
from edgekit.sources.base import Source, SourceOptions

__all__ = [
    "SOURCES",
    "Source",
    "SourceOptions",
    "check_options",
    "hash_source",
    "identify",
    "open_source",
    "source_class",
]

#: Kind to class. Adding a source is one file, a line here and one in `identify`, and a test.
SOURCES = {
    "keras": "edgekit.sources.keras:KerasSource",
    "keras2": "edgekit.sources.keras2:Keras2Source",
    "savedmodel": "edgekit.sources.keras:SavedModelSource",
    "tflite": "edgekit.sources.tflite:TfliteSource",
    "onnx": "edgekit.sources.onnx:OnnxSource",
    "torch-export": "edgekit.sources.torch:TorchExportSource",
    "torchscript": "edgekit.sources.torch:TorchScriptSource",
    "sklearn": "edgekit.sources.sklearn:SklearnSource",
}

_KINDS = "a .keras, .h5, .onnx, .tflite, .pt2, TorchScript .pt or .skops file, or a SavedModel folder"
_NOT_YET = {
    ".pb": "frozen graphs",
}


def identify(path: Path) -> str:
    """Return the kind of source at `path`: a key of `SOURCES`.

    Raises:
        UsageError: Nothing is there.
        InvalidFileError: The kind is not supported, or the file is not what its name says.
    """
    if not path.exists():
        raise UsageError(f"no model at {path}", expected=_KINDS)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise InvalidFileError(f"{path} is not a SavedModel", expected="a saved_model.pb in the folder")
    suffix = path.suffix.lower()
    if suffix in _NOT_YET:
        raise InvalidFileError(
            f"{path.name}: {_NOT_YET[suffix]} are not supported yet",
            expected=_KINDS,
            hint=_how_to_save(),
        )
    if suffix == ".keras":
        return _identify_keras(path)
    if suffix in (".h5", ".hdf5"):
        return _identify_by(path, "keras2", 0, b"\x89HDF\r\n\x1a\n", "an HDF5 file")
    if suffix == ".tflite":
        return _identify_by(path, "tflite", 4, b"TFL3", "a TFLite file")
    if suffix == ".onnx":
        return "onnx"
    if suffix in ARCHIVES:
        return identify_archive(path)
    raise InvalidFileError(f"{path.name} is of no known kind", expected=_KINDS)


def _how_to_save() -> str:
    return "Save a Keras model with model.save('model.keras')."


def _identify_by(path: Path, kind: str, offset: int, mark: bytes, what: str) -> str:
    """Return `kind` where the file has `mark` at `offset`."""
    with path.open("rb") as stream:
        start = stream.read(offset + len(mark))
    if start[offset:] != mark:
        raise InvalidFileError(
            f"{path.name} is not {what}",
            got=f"a file that starts with {start!r}",
            expected=f"{mark!r} at {offset}",
        )
    return kind


def _identify_keras(path: Path) -> str:
    wanted = {"config.json", "model.weights.h5", "metadata.json"}
    try:
        with zipfile.ZipFile(path) as archive:
            missing = wanted - set(archive.namelist())
    except zipfile.BadZipFile as error:
        with path.open("rb") as stream:
            start = stream.read(16)
        raise InvalidFileError(
            f"{path.name} is not a Keras 3 file",
            got=f"a file that starts with {start!r}",
            expected="a zip archive",
            hint="Save the model with model.save('model.keras').",
        ) from error
    if missing:
        raise InvalidFileError(f"{path.name} is not a Keras 3 file: {min(missing)} is missing in it")
    return "keras"


def hash_source(path: Path, beside: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a file, or of a folder's sorted (path, hash) lines, in hexadecimal.

    Args:
        path: The model.
        beside: Files that belong to it: then it is that of the hashes of all of them.
    """
    if beside:
        parts = [hash_source(path), *(hash_source(Path(file)) for file in sorted(beside))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    lines = sorted(
        f"{file.relative_to(path).as_posix()}\0{hash_source(file)}\n"
        for file in path.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_options(kind: str, options: SourceOptions) -> None:
    """Refuse an option that would be ignored.

    Raises:
        UsageError: Naming the option.
    """
    heeded = source_class(kind).heeds
    for name, value in msgspec.structs.asdict(options).items():
        if value and name not in heeded:
            option = "--" + name.removesuffix("s" if name == "input_shapes" else "").replace("_", "-")
            raise UsageError(f"{option} means nothing to a source of the kind {kind}", hint="Leave it out.")


def source_class(kind: str) -> type[Source]:
    """Return the class that opens sources of a kind; this imports no framework."""
    module, _, attribute = SOURCES[kind].partition(":")
    found: type[Source] = getattr(import_module(module), attribute)
    return found


def open_source(kind: str, path: Path, options: SourceOptions) -> Source:
    """Open a source in its framework; in a worker only."""
    return source_class(kind)(path, options)
