"""The bundle: what is deployed. A closed folder, or the same as one `.edgekit` archive.

`manifest.json` lists every file with its SHA-256; `manifest.sha256` holds the manifest's own, which is the
bundle's digest. A slice keeps both and the shared files, drops the files of some artifacts, and says in
`slice.json` which it kept. Nothing is believed before its hash has been checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.archive import write_archive
from edgekit.atomic import staged
from edgekit.contents import ArchiveContents, Contents, FolderContents, GivenContents, read_member
from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, UsageError
from edgekit.manifest import Artifact, FileEntry, Manifest, decode_manifest, digest_of, encode_manifest
from edgekit.runtimes.base import ModelFiles
from edgekit.state import cache_folder

if TYPE_CHECKING:
    from edgekit.golden import GoldenSet
    from edgekit.monitor.reference import Reference

__all__ = ["SUFFIX", "Bundle", "open_bundle", "pack", "slice_bundle", "unpack", "write_bundle"]

#: How the name of a bundle in one file ends.
SUFFIX = ".edgekit"

_MANIFEST, _DIGEST, _SLICE = "manifest.json", "manifest.sha256", "slice.json"
_RESERVED = (_MANIFEST, _DIGEST, _SLICE)
_LARGEST_MANIFEST = 16 << 20
_LONGEST_NAME = 1024
_AGAIN = "Fetch or make the bundle again."


class Bundle(msgspec.Struct, frozen=True):
    """An opened bundle: every file's hash was right when it was opened.

    Attributes:
        root: Its folder; of an archive, the folder that it was unpacked to.
        manifest: What it holds.
        digest: SHA-256 of the manifest in hexadecimal: the same for every slice.
        kept: Names of the artifacts whose files are here; all of them, unless it is a slice.
    """

    root: Path
    manifest: Manifest
    digest: str
    kept: frozenset[str]

    def model_files(self, artifact: str) -> ModelFiles:
        """Return what a runtime needs to open `artifact`.

        Raises:
            UsageError: The bundle has no such artifact, or this slice does not keep it.
        """
        found = self.manifest.artifacts.get(artifact)
        if found is None or artifact not in self.kept:
            why = "is not in this slice" if found else "is unknown"
            raise UsageError(
                f"artifact {artifact!r} {why}", expected="one of " + ", ".join(sorted(self.kept))
            )
        return ModelFiles(
            path=self.root / found.path,
            inputs=found.inputs,
            outputs=found.outputs,
            input_names=found.input_names,
            output_names=found.output_names,
            golden=self.root / self.manifest.golden.file,
        )

    def golden(self) -> GoldenSet:
        """Return the self-test that travels with the bundle."""
        from edgekit.golden import read_golden

        golden = self.manifest.golden
        found = read_golden(self.root / golden.file, golden.origin)
        if found.n != golden.n:
            raise InvalidFileError(
                f"{golden.file} does not fit manifest.json", got=found.n, expected=golden.n
            )
        return found

    def references(self) -> dict[str, Reference]:
        """Return what normal looks like, by artifact name; empty where nothing was recorded."""
        name = self.manifest.reference
        if name not in self.manifest.files:
            return {}
        from edgekit.monitor.reference import decode_references

        return decode_references((self.root / name).read_bytes(), name)


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle, a folder or an `.edgekit` archive, after checking every file's hash.

    An archive is unpacked into the cache, and checked each time.

    Raises:
        UsageError: There is nothing at `path`.
        InvalidFileError: A file is damaged, missing or not listed; the message names it.
    """
    root = Path(path)
    if root.is_dir():
        return _check(FolderContents(root.resolve(), str(root)), root.resolve())
    if not root.exists():
        raise UsageError(f"no bundle at {root}", hint="Give a bundle's folder or its .edgekit file.")
    if not root.is_file():  # to open a pipe would wait for whoever writes to it
        raise UsageError(f"{root} is neither a folder nor a file", expected="a bundle")
    with root.open("rb") as stream:
        contents = ArchiveContents(stream, str(root))
        checked = _check(contents, root)
        return _cached(contents, checked)


def _cached(contents: ArchiveContents, checked: Bundle) -> Bundle:
    """Return the archive's bundle unpacked in the cache, unpacking it if it is not there as it should be."""
    part = "" if _SLICE not in contents.sizes() else "-" + _slice_key(checked.kept)
    folder = cache_folder() / "bundles" / (checked.digest + part)
    try:
        return _check(FolderContents(folder), folder)
    except (EdgeKitError, OSError):
        pass  # absent, or someone tidied half of it away: the archive has just proved whole
    try:
        with suppress(UsageError):  # another process was faster
            _store(contents, folder, overwrite=True, replaceable=lambda _: True)
    except MachineError as error:
        raise MachineError(
            f"{contents.where} cannot be unpacked into the cache: {error.what}",
            hint="Set $XDG_CACHE_HOME to a folder that can be written, or unpack it: edgekit bundle unpack.",
        ) from error
    return _check(FolderContents(folder), folder)


def _slice_key(kept: Iterable[str]) -> str:
    return hashlib.sha256(_encode_slice(kept)).hexdigest()[:16]


def write_bundle(
    out: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        out: Its folder; a name that ends in `.edgekit` makes the archive.
        manifest: What it holds; `files` is filled in here.
        files: Content by name relative to the bundle: every artifact's files, the golden set, the reference.
        overwrite: Whether a bundle at `out` may be replaced.

    Raises:
        UsageError: `out` exists, or `files` is not what the manifest speaks of.
        MachineError: The disk is full or may not be written; nothing is left behind.
    """
    given = GivenContents(files, "files")
    sizes = given.sizes()
    listed = {name: FileEntry(_sha256(given, name), sizes[name]) for name in sorted(files)}
    full = msgspec.structs.replace(manifest, files=listed)
    fault = _manifest_fault(full)
    if fault:
        raise UsageError(f"cannot write {out}: {fault}")
    data = encode_manifest(full)
    contents = {**files, _MANIFEST: data, _DIGEST: _encode_digest(data)}
    return _write(GivenContents(contents, str(out)), Path(out), overwrite=overwrite)


def pack(bundle: Bundle, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a bundle as one `.edgekit` archive; the same bundle gives the same bytes."""
    target = Path(out)
    if target.suffix != SUFFIX:
        raise UsageError(f"{target} is no name for an archive", expected=f"a name that ends in {SUFFIX}")
    _check_outside(bundle, target)
    _store(FolderContents(bundle.root), target, overwrite=overwrite)
    return target


def unpack(path: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False) -> Bundle:
    """Write an `.edgekit` archive as a folder."""
    source, target = Path(path), Path(out)
    if not source.is_file():
        raise UsageError(f"no archive at {source}", expected=f"a {SUFFIX} file")
    if target.suffix == SUFFIX:
        raise UsageError(
            f"{target} is no name for a folder", expected=f"a name that does not end in {SUFFIX}"
        )
    with source.open("rb") as stream:
        contents = ArchiveContents(stream, str(source))
        _check(contents, source)
        return _write(contents, target, overwrite=overwrite)


def slice_bundle(
    bundle: Bundle,
    artifacts: Collection[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with the files of some artifacts only; it has the same manifest and digest.

    Raises:
        UsageError: No artifact is named, or one that `bundle` does not hold.
    """
    unknown = sorted(set(artifacts) - bundle.kept)
    if unknown or not artifacts:
        raise UsageError(
            f"cannot slice to {', '.join(unknown) or 'nothing'}",
            expected="some of " + ", ".join(sorted(bundle.kept)),
        )
    _check_outside(bundle, Path(out))
    names = _expected_files(bundle.manifest, frozenset(artifacts)) | {_MANIFEST, _DIGEST}
    files: dict[str, Path | bytes] = {name: bundle.root / name for name in names}
    files[_SLICE] = _encode_slice(artifacts)
    return _write(GivenContents(files, str(out)), Path(out), overwrite=overwrite)


def _check_outside(bundle: Bundle, out: Path) -> None:
    if bundle.root.resolve() in out.resolve().parents:
        raise UsageError(f"{out} would be in the bundle itself", hint="Give a path outside of it.")


# Checking


def _check(contents: Contents, root: Path) -> Bundle:
    """Return the bundle, if every byte of it is what its manifest says."""
    sizes = contents.sizes()
    manifest, digest = _read_manifest(contents, sizes)
    kept = _read_slice(contents, sizes, manifest)
    expected = _expected_files(manifest, kept)
    present = set(sizes) - set(_RESERVED)
    for name in sorted(present - expected):
        raise InvalidFileError(
            f"{contents.where}: {name} is not listed by {_listed_by(sizes)}",
            hint="Remove it, or fetch the bundle again.",
        )
    for name in sorted(expected - present):
        raise InvalidFileError(
            f"{contents.where}: {name} is missing: {_listed_by(sizes)} lists it", hint=_AGAIN
        )
    for name in sorted(expected):
        _check_file(contents, name, sizes[name], manifest.files[name])
    return Bundle(root, manifest, digest, kept)


def _listed_by(sizes: Mapping[str, int]) -> str:
    return _SLICE if _SLICE in sizes else _MANIFEST


def _read_manifest(contents: Contents, sizes: Mapping[str, int]) -> tuple[Manifest, str]:
    for name in (_MANIFEST, _DIGEST):
        if name not in sizes:
            raise InvalidFileError(f"{contents.where} is not a bundle: {name} is missing")
    data = read_member(contents, _MANIFEST, sizes[_MANIFEST], _LARGEST_MANIFEST)
    stored = read_member(contents, _DIGEST, sizes[_DIGEST], _LONGEST_NAME)
    if stored != _encode_digest(data):
        raise InvalidFileError(
            f"{contents.where}: {_MANIFEST} and {_DIGEST} do not fit each other; one of them was changed",
            hint=_AGAIN,
        )
    manifest = decode_manifest(data, f"{contents.where}: {_MANIFEST}")
    fault = _manifest_fault(manifest)
    if fault:
        raise InvalidFileError(f"{contents.where}: {_MANIFEST}: {fault}")
    return manifest, digest_of(data)


def _encode_digest(manifest: bytes) -> bytes:
    """Return what `sha256sum manifest.json` prints, so that `sha256sum -c` can check it too."""
    return f"{digest_of(manifest)}  {_MANIFEST}\n".encode()


def _encode_slice(artifacts: Iterable[str]) -> bytes:
    return msgspec.json.encode({"artifacts": sorted(set(artifacts))}) + b"\n"


def _read_slice(contents: Contents, sizes: Mapping[str, int], manifest: Manifest) -> frozenset[str]:
    everything = frozenset(name for name, artifact in manifest.artifacts.items() if artifact.files)
    if _SLICE not in sizes:
        return everything
    data = read_member(contents, _SLICE, sizes[_SLICE], _LARGEST_MANIFEST)
    try:
        names = frozenset(msgspec.json.decode(data, type=dict[str, list[str]]).get("artifacts", ()))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"{contents.where}: {_SLICE} is damaged: {error}", hint=_AGAIN) from error
    if data != _encode_slice(names) or not names or not names <= everything:
        raise InvalidFileError(
            f"{contents.where}: {_SLICE} is damaged",
            got=sorted(names),
            expected=f"some of {sorted(everything)}",
        )
    return names


def _expected_files(manifest: Manifest, kept: frozenset[str]) -> set[str]:
    """Return the listed files that a bundle with the artifacts `kept` must have."""
    mine = {file for name in kept for file in manifest.artifacts[name].files}
    others = {file for name, artifact in manifest.artifacts.items() for file in artifact.files}
    return set(manifest.files) - (others - mine)


def _check_file(contents: Contents, name: str, size: int, entry: FileEntry) -> None:
    if size != entry.bytes:
        raise InvalidFileError(
            f"{contents.where}: {name} is damaged",
            got=f"{size} bytes",
            expected=f"{entry.bytes} bytes",
            hint=_AGAIN,
        )
    if _sha256(contents, name) != entry.sha256:
        raise InvalidFileError(f"{contents.where}: {name} is damaged: its SHA-256 is wrong", hint=_AGAIN)


def _sha256(contents: Contents, name: str) -> str:
    digest = hashlib.sha256()
    for chunk in contents.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


def _manifest_fault(manifest: Manifest) -> str:
    """Return what is wrong with the manifest's own account of its files; empty when nothing is."""
    return next(_manifest_faults(manifest), "")


def _manifest_faults(manifest: Manifest) -> Iterator[str]:
    files = set(manifest.files)
    yield from (f"{name!r} is no name for a file of a bundle" for name in sorted(files) if not _proper(name))
    folders = {parent for name in files for parent in _parents(name)}
    yield from (f"{name} is both a file and a folder" for name in sorted(files & folders))
    owned = {manifest.golden.file, manifest.reference}
    for name, artifact in sorted(manifest.artifacts.items()):
        yield from _artifact_faults(name, artifact, files)
        owned |= set(artifact.files)
    if manifest.golden.file not in files:
        yield f"the golden set {manifest.golden.file} is missing"
    yield from (f"{name} belongs to no artifact" for name in sorted(files - owned))
    if manifest.plan.artifact not in manifest.artifacts:
        yield f"the plan speaks of the artifact {manifest.plan.artifact!r}, which is not there"
    if manifest.version < 1:
        yield f"version is {manifest.version}, expected a positive integer"


def _artifact_faults(name: str, artifact: Artifact, files: Collection[str]) -> Iterator[str]:
    yield from (f"file {file} of {name} is missing" for file in artifact.files if file not in files)
    yield from (
        f"file {file} of {name} is not in artifacts/" for file in artifact.files if file[:10] != "artifacts/"
    )
    if artifact.files and artifact.path not in artifact.files:
        yield f"{name} opens {artifact.path}, which is none of its files"


def _proper(name: str) -> bool:
    parts = name.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and name.isprintable()
        and "\\" not in name
        and name not in _RESERVED
        and len(name.encode("utf-8", "replace")) <= _LONGEST_NAME
    )


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


# Writing


def _write(contents: Contents, out: Path, *, overwrite: bool) -> Bundle:
    _store(contents, out, overwrite=overwrite)
    return open_bundle(out)


def _store(
    contents: Contents, out: Path, *, overwrite: bool, replaceable: Callable[[Path], bool] | None = None
) -> None:
    """Write the files as a folder or an archive, check what was written, and only then put it in place."""
    with staged(out, overwrite=overwrite, replaceable=replaceable or _is_ours) as temporary:
        if out.suffix == SUFFIX:
            with temporary.open("xb") as stream:
                write_archive(stream, contents.sizes(), contents.chunks)
            with temporary.open("rb") as stream:
                _check(ArchiveContents(stream, contents.where), out)
        else:
            _write_folder(contents, temporary)
            _check(FolderContents(temporary, contents.where), out)


def _write_folder(contents: Contents, folder: Path) -> None:
    folder.mkdir()
    for name in sorted(contents.sizes()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as stream:
            for chunk in contents.chunks(name):
                stream.write(chunk)


def _is_ours(path: Path) -> bool:
    """Tell whether a bundle, even a damaged one, is there: `--overwrite` must never eat a home folder."""
    if path.is_file():
        with path.open("rb") as stream:
            return path.suffix == SUFFIX and stream.read(2) in (b"PK", b"")
    names = {entry.name for entry in path.iterdir()}
    return not names or (
        _MANIFEST in names and names <= {*_RESERVED, "artifacts", "golden.npz", "reference.json"}
    )
