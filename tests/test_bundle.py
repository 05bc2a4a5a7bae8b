"""Bundles: closed, deterministic, whole or not there; one flipped byte anywhere is found and named."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import atomic
from edgekit import bundle as bundle_module
from edgekit.archive import read_archive, write_archive
from edgekit.bundle import Bundle, open_bundle, pack, slice_bundle, unpack, write_bundle
from edgekit.errors import InvalidFileError, MachineError, UsageError
from edgekit.manifest import digest_of, encode_manifest
from tests import bundle_samples
from tests.bundle_samples import artifact, files, golden, manifest, write

pytestmark = pytest.mark.device

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "bundle")


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def flip(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cache"}


# Round trips


def test_what_is_written_is_opened(bundle: Bundle, tmp_path: Path) -> None:
    again = open_bundle(tmp_path / "bundle")
    assert again == bundle
    assert again.digest == digest_of((again.root / "manifest.json").read_bytes())
    assert (again.root / "manifest.sha256").read_text() == f"{again.digest}  manifest.json\n"
    assert again.kept == {"tflite-fp32", "onnx-fp16"}
    assert again.manifest.files["golden.npz"].bytes == (again.root / "golden.npz").stat().st_size
    model = again.model_files("onnx-fp16")
    assert model.path.read_bytes() == model.path.relative_to(again.root).as_posix().encode() * 20
    assert model.golden == again.root / "golden.npz"
    assert again.golden().n == 32
    assert again.references() == {}


def test_sha256sum_agrees(bundle: Bundle) -> None:
    command = ["sha256sum", "--check", "manifest.sha256"]
    assert subprocess.run(command, cwd=bundle.root, check=False, capture_output=True).returncode == 0


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert tree(first.root) == tree(second.root)
    pack(first, tmp_path / "a.edgekit")
    for path in second.root.rglob("*"):
        os.utime(path, (1, 1))
    pack(second, tmp_path / "b.edgekit")
    assert (tmp_path / "a.edgekit").read_bytes() == (tmp_path / "b.edgekit").read_bytes()


def test_folder_and_archive_are_the_same(bundle: Bundle, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "b.edgekit")
    opened = open_bundle(archive)
    assert (opened.digest, opened.kept, opened.manifest) == (bundle.digest, bundle.kept, bundle.manifest)
    assert tree(opened.root) == tree(bundle.root)
    assert tree(unpack(archive, tmp_path / "back").root) == tree(bundle.root)
    made = bundle_samples.manifest(golden())
    direct = write_bundle(tmp_path / "direct.edgekit", made, files(golden(), made))
    assert (tmp_path / "direct.edgekit").read_bytes() == archive.read_bytes()
    assert direct.digest == bundle.digest


def test_any_zip_tool_reads_the_archive(bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path / "b.edgekit")) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == tree(bundle.root)
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


def test_a_slice_keeps_the_digest(bundle: Bundle, tmp_path: Path) -> None:
    part = slice_bundle(bundle, ["onnx-fp16"], tmp_path / "part")
    assert (part.digest, part.kept) == (bundle.digest, frozenset({"onnx-fp16"}))
    gone = {"artifacts/tflite-fp32/model.tflite", "artifacts/tflite-fp32/weights.bin"}
    assert set(tree(part.root)) == set(tree(bundle.root)) - gone | {"slice.json"}
    assert (part.root / "slice.json").read_bytes() == b'{"artifacts":["onnx-fp16"]}\n'
    with pytest.raises(UsageError, match=r"tflite-fp32.*not in this slice.*onnx-fp16"):
        part.model_files("tflite-fp32")
    with pytest.raises(UsageError, match="cannot slice to tflite-fp32"):
        slice_bundle(part, ["tflite-fp32"], tmp_path / "other")


def test_a_slice_and_its_whole_do_not_share_a_cache(bundle: Bundle, tmp_path: Path) -> None:
    part = slice_bundle(bundle, ["onnx-fp16"], tmp_path / "part.edgekit")
    whole = open_bundle(pack(bundle, tmp_path / "whole.edgekit"))
    assert part.root != whole.root
    assert open_bundle(tmp_path / "part.edgekit").kept == {"onnx-fp16"}
    assert open_bundle(tmp_path / "whole.edgekit").kept == {"onnx-fp16", "tflite-fp32"}


def test_slice_to_nothing_or_to_the_unknown(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot slice to nothing"):
        slice_bundle(bundle, [], tmp_path / "part")
    with pytest.raises(UsageError, match="cannot slice to nope: expected some of onnx-fp16, tflite-fp32"):
        slice_bundle(bundle, ["nope"], tmp_path / "part")
    with pytest.raises(UsageError, match="'nope' is unknown"):
        bundle.model_files("nope")


def test_a_file_that_two_artifacts_share_stays_in_a_slice(tmp_path: Path) -> None:
    shared = ("artifacts/shared.bin",)
    made = {
        name: artifact(name, files=(artifact(name).path, *shared)) for name in ("tflite-fp32", "onnx-fp16")
    }
    part = slice_bundle(write(tmp_path / "b", artifacts=made), ["onnx-fp16"], tmp_path / "part")
    assert "artifacts/shared.bin" in tree(part.root)


# Damage


def every_file(root: Path) -> list[str]:
    return sorted(tree(root))


@pytest.mark.parametrize("kind", ["whole", "slice"])
@SETTINGS
@given(data=st.data())
def test_a_flipped_byte_in_a_folder_is_found_and_named(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = cached_bundle(kind, tmp_path_factory)
    name = data.draw(st.sampled_from(every_file(root)))
    path = root / name
    whole = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(flip(whole, position, bit))
    try:
        with pytest.raises(InvalidFileError, match=re.escape(name)):
            open_bundle(root)
    finally:
        path.write_bytes(whole)
    open_bundle(root)


_CACHED: dict[str, Path] = {}


def cached_bundle(kind: str, factory: pytest.TempPathFactory) -> Path:
    if kind not in _CACHED:
        folder = factory.mktemp(kind)
        bundle = write(folder / "bundle")
        _CACHED[kind] = bundle.root
        if kind == "slice":
            _CACHED[kind] = slice_bundle(bundle, ["onnx-fp16"], folder / "part").root
    return _CACHED[kind]


@pytest.mark.parametrize("kind", ["whole", "slice"])
@SETTINGS
@given(data=st.data())
def test_a_flipped_byte_in_an_archive_is_found(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = cached_bundle(kind, tmp_path_factory)
    path = root.parent / f"{kind}.edgekit"
    if not path.exists():
        pack(open_bundle(root), path)
    whole = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    with path.open("rb") as stream:
        holder = [m.name for m in read_archive(stream, "x") if m.offset <= position < m.offset + m.size]
    broken = path.with_name(f"broken-{kind}.edgekit")
    broken.write_bytes(flip(whole, position, bit))
    with pytest.raises(InvalidFileError, match=re.escape((holder or ["broken"])[0])):
        open_bundle(broken)


@SETTINGS
@given(data=st.data())
def test_a_truncated_or_longer_archive_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = cached_bundle("whole", tmp_path_factory)
    path = root.parent / "whole-cut.edgekit"
    path.unlink(missing_ok=True)
    whole = pack(open_bundle(root), path).read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:size])
    with pytest.raises(InvalidFileError, match=r"whole-cut\.edgekit"):
        open_bundle(path)
    path.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=40)))
    with pytest.raises(InvalidFileError, match=r"whole-cut\.edgekit"):
        open_bundle(path)
    path.write_bytes(b"x" + whole)
    with pytest.raises(InvalidFileError, match=r"whole-cut\.edgekit"):
        open_bundle(path)


def test_a_truncated_file_is_named_with_its_size(bundle: Bundle) -> None:
    path = bundle.root / "artifacts/onnx-fp16/model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidFileError, match=r"model\.onnx is damaged: got \d+ bytes, expected \d+ bytes"):
        open_bundle(bundle.root)


def test_the_cache_is_checked_each_time(bundle: Bundle, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "b.edgekit")
    root = open_bundle(archive).root
    (root / "golden.npz").write_bytes(b"tampered")
    (root / "stray").write_bytes(b"")
    assert tree(open_bundle(archive).root) == tree(bundle.root)
    shutil.rmtree(root / "artifacts")
    assert tree(open_bundle(archive).root) == tree(bundle.root)


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(bundle, tmp_path / "b.edgekit")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MachineError, match=r"into the cache.*XDG_CACHE_HOME.*bundle unpack"):
        open_bundle(archive)


def test_nothing_is_written_into_the_bundle_itself(bundle: Bundle) -> None:
    before = tree(bundle.root)
    for attempt in (
        lambda: pack(bundle, bundle.root / "b.edgekit"),
        lambda: slice_bundle(bundle, bundle.kept, bundle.root / "artifacts" / "slice"),
    ):
        with pytest.raises(UsageError, match="in the bundle itself"):
            attempt()
    assert tree(bundle.root) == before


def test_an_output_below_a_file_is_one_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot write .*Not a directory"):
        pack(bundle, tmp_path / "file" / "b.edgekit")


def test_a_damaged_archive_is_refused_though_the_cache_is_whole(bundle: Bundle, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "b.edgekit")
    open_bundle(archive)
    whole = archive.read_bytes()
    archive.write_bytes(
        whole.replace(b"artifacts/onnx-fp16/model.onnx" * 2, b"Artifacts/onnx-fp16/model.onnx" * 2)
    )
    with pytest.raises(InvalidFileError, match=r"model\.onnx"):
        open_bundle(archive)


# Closedness


@pytest.mark.parametrize("name", ["notes.txt", "artifacts/onnx-fp16/extra.bin", ".hidden"])
def test_an_unlisted_file_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.root / name).write_bytes(b"")
    with pytest.raises(InvalidFileError, match=re.escape(f"{name} is not listed by manifest.json")):
        open_bundle(bundle.root)


@pytest.mark.parametrize("name", ["golden.npz", "reference.json", "artifacts/onnx-fp16/weights.bin"])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.root / name).unlink()
    with pytest.raises(InvalidFileError, match=re.escape(f"{name} is missing: manifest.json lists it")):
        open_bundle(bundle.root)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_without_its_manifest_it_is_no_bundle(bundle: Bundle, name: str) -> None:
    (bundle.root / name).unlink()
    with pytest.raises(InvalidFileError, match=f"is not a bundle: {name} is missing"):
        open_bundle(bundle.root)


def test_an_empty_folder_is_refused(bundle: Bundle) -> None:
    (bundle.root / "artifacts" / "more").mkdir()
    with pytest.raises(InvalidFileError, match="artifacts/more/ is empty"):
        open_bundle(bundle.root)


def test_links_and_special_files_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.root / "artifacts/onnx-fp16/weights.bin"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidFileError, match=r"weights\.bin is a symbolic link"):
        open_bundle(bundle.root)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidFileError, match=r"weights\.bin is a special file"):
        open_bundle(bundle.root)


def test_a_linked_folder_inside_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.root / "artifacts" / "onnx-fp16"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidFileError, match="onnx-fp16 is a symbolic link"):
        open_bundle(bundle.root)


def test_a_link_to_the_bundle_is_followed_once(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.root)
    assert open_bundle(tmp_path / "current").root == bundle.root


@pytest.mark.parametrize(
    "text",
    [
        b"{}\n",
        b'{"artifacts":[]}\n',
        b'{"artifacts":["nope"]}\n',
        b'{"artifacts":["onnx-fp16"]}',
        b'{"artifacts": ["onnx-fp16"]}\n',
        b'{"artifacts":["onnx-fp16","onnx-fp16"]}\n',
        b'{"artifacts":["onnx-fp16"],"more":[]}\n',
        b'{"artifacts":["onnx-fp16","tflite-fp32"]}\n',
        b'{"artifacts":["tflite-fp32"]}\n',
        b"not json",
        b'[["onnx-fp16"]]',
    ],
)
def test_a_slice_that_says_something_else_is_refused(bundle: Bundle, tmp_path: Path, text: bytes) -> None:
    part = slice_bundle(bundle, ["onnx-fp16"], tmp_path / "part")
    (part.root / "slice.json").write_bytes(text)
    with pytest.raises(InvalidFileError, match=r"slice\.json"):
        open_bundle(part.root)


def test_nothing_there_and_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no bundle at .*nowhere"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "text.edgekit").write_text("hello, this is text and not an archive at all")
    with pytest.raises(InvalidFileError, match=r"text\.edgekit is not an EdgeKit archive"):
        open_bundle(tmp_path / "text.edgekit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidFileError, match=r"empty is not a bundle: manifest\.json is missing"):
        open_bundle(tmp_path / "empty")


# Manifests that lie


def rewrite(root: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the manifest and its digest, as an attacker can who makes a bundle."""
    data = change((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_bytes(data)
    (root / "manifest.sha256").write_text(f"{digest_of(data)}  manifest.json\n")


@pytest.mark.parametrize(
    "evil",
    [
        "../golden.npz",
        "/golden.npz",
        "a//golden.npz",
        "./golden.npz",
        "a\\\\b",
        "a\\u0000b",
        "manifest.json",
        "a/..",
    ],
)
def test_improper_names_are_refused(bundle: Bundle, evil: str) -> None:
    rewrite(bundle.root, lambda data: data.replace(b'"golden.npz"', f'"{evil}"'.encode()))
    with pytest.raises(InvalidFileError, match=r"manifest\.json.*is no name for a file of a bundle"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"version":1}', b'"version":0}', "expected a positive integer"),
        (b'"artifact":"tflite-fp32"', b'"artifact":"nope"', "'nope', which is not there"),
        (b'"file":"golden.npz"', b'"file":"absent.npz"', "golden set absent.npz is missing"),
        (b'"path":"artifacts/onnx-fp16/', b'"path":"artifacts/other/', "which is none of its files"),
        (b'"schema":1', b'"schema":99', "newer schema: got 99"),
        (b'"name":"quadrants",', b"", "is not a manifest"),
    ],
)
def test_contradictions_are_refused(bundle: Bundle, old: bytes, new: bytes, fault: str) -> None:
    assert old in (bundle.root / "manifest.json").read_bytes()
    rewrite(bundle.root, lambda data: data.replace(old, new))
    with pytest.raises(InvalidFileError, match=fault):
        open_bundle(bundle.root)


def test_a_huge_manifest_is_not_read(bundle: Bundle) -> None:
    with (bundle.root / "manifest.json").open("r+b") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(InvalidFileError, match=r"manifest\.json is too big"):
        open_bundle(bundle.root)


# Hostile archives


def hostile(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_a_foreign_zip_is_refused_with_the_way_out(bundle: Bundle, tmp_path: Path) -> None:
    path = hostile(tmp_path / "foreign.edgekit", list(tree(bundle.root).items()))
    with pytest.raises(InvalidFileError, match=r"damaged or foreign.*edgekit bundle pack"):
        open_bundle(path)


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with path.open("wb") as stream:
        write_archive(stream, members, lambda name: (members[name],))
    return path


@pytest.mark.parametrize("evil", ["../evil", "/tmp/evil", "a/../../evil", "extra.txt"])
def test_nothing_is_unpacked_outside_or_beside(bundle: Bundle, tmp_path: Path, evil: str) -> None:
    path = archive_of(tmp_path / "slip.edgekit", tree(bundle.root) | {evil: b"owned"})
    before = names_in(tmp_path)
    with pytest.raises(InvalidFileError, match=re.escape(evil) + " is not listed"):
        open_bundle(path)
    with pytest.raises(InvalidFileError, match=re.escape(evil) + " is not listed"):
        unpack(path, tmp_path / "out")
    assert names_in(tmp_path) == before
    assert not (tmp_path / "cache").exists()


def test_a_member_that_comes_twice_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    members = tree(bundle.root)
    path = tmp_path / "twice.edgekit"
    with path.open("wb") as stream:
        write_archive(stream, [*members, "golden.npz"], lambda name: (members[name],))
    with pytest.raises(InvalidFileError, match=r"'golden\.npz' comes twice or out of order"):
        open_bundle(path)


def test_a_bomb_is_refused_before_anything_is_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.edgekit"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"0" * (64 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(InvalidFileError, match="damaged or foreign"):
        open_bundle(path)


def test_a_link_in_an_archive_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = pack(bundle, tmp_path / "link.edgekit")
    regular, link = (0o100644 << 16).to_bytes(4, "little"), (0o120777 << 16).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(regular, link))
    with pytest.raises(InvalidFileError, match="damaged or foreign"):
        open_bundle(path)


@SETTINGS
@given(members=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=20), st.binary(max_size=300)))
def test_archives_round_trip(members: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    write_archive(stream, members, lambda name: (members[name],))
    found = read_archive(stream, "x")
    data = stream.getvalue()
    assert {m.name: data[m.offset : m.offset + m.size] for m in found} == members


# Writing


def test_what_exists_is_not_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    before = tree(bundle.root)
    with pytest.raises(UsageError, match=r"bundle exists.*--overwrite"):
        write(tmp_path / "bundle", version=2)
    assert tree(bundle.root) == before
    assert write(tmp_path / "bundle", version=2, overwrite=True).manifest.version == 2
    assert names_in(tmp_path) == {"bundle"}


def test_overwriting_an_archive_or_the_other_kind(bundle: Bundle, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "b.edgekit")
    with pytest.raises(UsageError, match="exists"):
        pack(bundle, archive)
    other = write(tmp_path / "other", version=2)
    pack(other, archive, overwrite=True)
    assert open_bundle(archive).manifest.version == 2
    shutil.move(bundle.root, tmp_path / "folder.edgekit")
    pack(other, tmp_path / "folder.edgekit", overwrite=True)
    assert (tmp_path / "folder.edgekit").is_file()
    assert names_in(tmp_path) == {"b.edgekit", "other", "folder.edgekit"}


def test_only_bundles_are_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "manifest.json").write_text("{}")
    (home / "thesis.tex").write_text("three years of work")
    with pytest.raises(UsageError, match="home is not something that EdgeKit wrote"):
        slice_bundle(bundle, ["onnx-fp16"], home, overwrite=True)
    (tmp_path / "link").symlink_to(bundle.root)
    with pytest.raises(UsageError, match="link is not something"):
        write(tmp_path / "link", overwrite=True)
    (tmp_path / "notes.edgekit").write_text("text")
    with pytest.raises(UsageError, match=r"notes\.edgekit is not something"):
        pack(bundle, tmp_path / "notes.edgekit", overwrite=True)
    assert (home / "thesis.tex").read_text() == "three years of work"


def test_a_damaged_bundle_and_an_empty_folder_are_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "manifest.json").write_text("damaged")
    write(tmp_path / "bundle", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", overwrite=True)
    assert open_bundle(tmp_path / "empty").digest == open_bundle(tmp_path / "bundle").digest


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert write(tmp_path / "a" / "b" / "bundle").kept


@pytest.mark.parametrize("name", ["golden.npz", "artifacts/onnx-fp16/model.onnx"])
def test_files_the_manifest_speaks_of_must_be_given(tmp_path: Path, name: str) -> None:
    made = manifest(golden())
    contents = files(golden(), made)
    del contents[name]
    with pytest.raises(UsageError, match=re.escape(name) + ".* is missing"):
        write_bundle(tmp_path / "b", made, contents)
    assert names_in(tmp_path) == set()


def test_files_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    made = manifest(golden())
    contents = files(golden(), made)
    for name, fault in (
        ("artifacts/stray", "belongs to no artifact"),
        ("../x", "no name"),
        ("golden.npz/x", "both"),
    ):
        with pytest.raises(UsageError, match=fault):
            write_bundle(tmp_path / "b", made, contents | {name: b""})
    with pytest.raises(UsageError, match=r"reference\.json is missing: got .*/nowhere"):
        write_bundle(tmp_path / "b", made, contents | {"reference.json": tmp_path / "nowhere"})
    assert names_in(tmp_path) == set()


def test_an_artifact_outside_its_folder_is_refused(tmp_path: Path) -> None:
    made = {"tflite-fp32": artifact("tflite-fp32", path="model.tflite", files=("model.tflite",))}
    with pytest.raises(UsageError, match=r"model\.tflite of tflite-fp32 is not in artifacts/"):
        write(tmp_path / "b", artifacts=made)


def test_names_that_fit_their_kind(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.edgekit"):
        pack(bundle, tmp_path / "b.zip")
    archive = pack(bundle, tmp_path / "b.edgekit")
    with pytest.raises(UsageError, match=r"does not end in \.edgekit"):
        unpack(archive, tmp_path / "c.edgekit")
    with pytest.raises(UsageError, match="no archive at"):
        unpack(bundle.root, tmp_path / "c")


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = manifest(golden())
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    contents = files(golden(), made) | {"artifacts/onnx-fp16/weights.bin": weights}
    write_folder = bundle_module._write_folder

    def late(*arguments: object) -> None:
        weights.write_bytes(b"two")
        write_folder(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_module, "_write_folder", late)
    with pytest.raises(InvalidFileError, match=r"weights\.bin is damaged"):
        write_bundle(tmp_path / "b", made, contents)
    assert names_in(tmp_path) == {"weights"}


# Failures while writing


def failing_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> None:
    """Make the n-th fsync fail: it stands for the disk that fills, and for Ctrl-C."""
    count = iter(range(1, 1000))
    fsync = os.fsync

    def fails(handle: int) -> None:
        if next(count) == call:
            raise error
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize("out", ["new", "bundle"])
@pytest.mark.parametrize("call", range(1, 12))
def test_an_interrupt_leaves_nothing_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, call: int
) -> None:
    before = tree(bundle.root)
    failing_at(monkeypatch, call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / out, version=2, overwrite=True)
    assert names_in(tmp_path) == {"bundle"}
    assert tree(bundle.root) == before


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, 3, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"))
    with pytest.raises(
        MachineError, match=r"cannot write .*/b: No space left on device.*Nothing was replaced"
    ):
        write(tmp_path / "b")
    assert names_in(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB; skipped where this user may not mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", ["", ".edgekit"])
def test_a_disk_that_is_really_full(small_disk: Path, suffix: str) -> None:
    first = small_disk / f"bundle{suffix}"
    write(first)
    digest = open_bundle(first).digest
    chosen = golden()
    made = manifest(chosen, version=2)
    big = files(chosen, made) | {"artifacts/onnx-fp16/weights.bin": os.urandom(512 << 10)}
    for out in (first, small_disk / f"new{suffix}"):
        with pytest.raises(MachineError, match="No space left on device") as caught:
            write_bundle(out, made, big, overwrite=True)
        assert caught.value.exit_code == 1
    assert names_in(small_disk) == {first.name}
    assert open_bundle(first).digest == digest


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.bundle_samples import golden, manifest, files
from edgekit.bundle import write_bundle
from edgekit.errors import MachineError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
made = manifest(golden())
big = files(golden(), made) | {"artifacts/onnx-fp16/weights.bin": bytes(200_000)}
try:
    write_bundle(Path(sys.argv[1]), made, big)
except MachineError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("name", ["b", "b.edgekit"])
def test_a_file_that_may_not_grow(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / name)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stdout
    assert names_in(tmp_path) == set()


_SLOW = """
import sys, time
from pathlib import Path
from edgekit import bundle as module
from tests.bundle_samples import write
write_folder = module._write_folder
def slow(contents, folder):
    chunks = contents.chunks
    def one(name):
        print(name, flush=True)
        yield from chunks(name)
        time.sleep(0.3)
    contents.chunks = one
    write_folder(contents, folder)
module._write_folder = slow
write(Path(sys.argv[1]), version=2, overwrite=True)
"""


@pytest.mark.parametrize("out", ["new", "bundle"])
def test_ctrl_c_between_two_files(bundle: Bundle, tmp_path: Path, out: str) -> None:
    before = tree(bundle.root)
    command = [sys.executable, "-c", _SLOW, str(tmp_path / out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline()
        assert any(name.endswith(".tmp") for name in names_in(tmp_path))
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
        assert child.returncode != 0
    assert names_in(tmp_path) == {"bundle"}
    assert tree(bundle.root) == before


# Replacing


def test_a_reader_always_finds_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write(out)
    code = """
import sys
from pathlib import Path
from tests.bundle_samples import write
for version in range(2, 42):
    write(Path(sys.argv[1]), version=version, overwrite=True)
"""
    looks = 0
    with subprocess.Popen([sys.executable, "-c", code, str(out)]) as child:
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            assert out.is_dir()  # one look-up of one name; a path through it may meet the old one's removal
            looks += 1
        assert child.wait() == 0
    assert looks > 0
    assert open_bundle(out).manifest.version == 41
    assert names_in(tmp_path) == {"bundle"}


def test_without_renameat2_a_failure_brings_the_old_one_back(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_rename", lambda *_: False)
    assert write(tmp_path / "bundle", version=2, overwrite=True).manifest.version == 2
    assert write(tmp_path / "new").manifest.version == 1
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "bundle", version=3, overwrite=True)
    assert open_bundle(tmp_path / "bundle").manifest.version == 2
    assert names_in(tmp_path) == {"bundle", "new"}


@pytest.mark.parametrize("known", [True, False])
def test_what_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(atomic, "_rename", lambda *_: False)
    write(tmp_path / "other", version=7)
    fsync_tree = atomic.fsync_tree

    def late(path: Path) -> None:
        fsync_tree(path)
        (tmp_path / "other").rename(tmp_path / "b")

    monkeypatch.setattr(atomic, "fsync_tree", late)
    with pytest.raises(UsageError, match="appeared meanwhile"):
        write(tmp_path / "b")
    assert open_bundle(tmp_path / "b").manifest.version == 7
    assert names_in(tmp_path) == {"b"}


def test_the_kernel_refuses_to_replace_what_it_was_not_told_to(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="appeared meanwhile"):
        atomic._rename(tmp_path / "new", tmp_path / "out", atomic._RENAME_NOREPLACE)
    with pytest.raises(FileNotFoundError):
        atomic._rename(tmp_path / "gone", tmp_path / "out2", atomic._RENAME_NOREPLACE)


def test_the_manifest_lists_exactly_what_is_there(bundle: Bundle) -> None:
    listed = set(bundle.manifest.files)
    assert set(tree(bundle.root)) == listed | {"manifest.json", "manifest.sha256"}
    assert encode_manifest(bundle.manifest) == (bundle.root / "manifest.json").read_bytes()
