"""Model files that a script damaged: a clear error for each, no crash, no bundle.

A damage that leaves a model which its own framework reads and runs (a weight with another value, say) makes
another model, not a broken file: that one must convert like any other.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.convert import ConvertRequest, convert
from edgekit.errors import EdgeKitError
from edgekit.factory import Factory
from edgekit.process import WorkerDiedError, WorkerLimits
from edgekit.sources import SourceOptions, identify
from tests.small_sources import SMALL, small_source

pytestmark = pytest.mark.convert

MUTATIONS = 50
#: A twentieth, but two of each at least.
SOME = (7, 31)
_OPTIONS = {"torchscript": SourceOptions(input_shapes={"input_0": (-1, 8)})}


def damaged(data: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Return a file's bytes after one damage, and what it was."""
    kind = int(random.integers(0, 6))
    place = int(random.integers(0, max(1, len(data))))
    length = int(random.integers(1, 256))
    if kind == 0:
        return data[:place], f"cut at {place}"
    if kind == 1:
        return data[:place] + bytes(length) + data[place + length :], f"{length} zeros at {place}"
    if kind == 2:
        noise = random.bytes(length)
        return data[:place] + noise + data[place + length :], f"{length} bytes of noise at {place}"
    if kind == 3:
        return data[:place] + data[place + length :], f"{length} bytes missing at {place}"
    if kind == 4:
        return data[:place] + data[place : place + length] + data[place:], f"{length} bytes twice at {place}"
    flipped = bytearray(data)
    for _ in range(8):
        at = int(random.integers(0, len(flipped)))
        flipped[at] ^= 1 << int(random.integers(0, 8))
    return bytes(flipped), "eight bits flipped"


def mutated(kind: str, number: int, folder: Path) -> tuple[Path, str]:
    """Write mutation `number` of the small model of one kind."""
    random = np.random.default_rng([number, list(SMALL).index(kind)])
    source, path = small_source(kind), folder / f"{number}-{SMALL[kind]}"
    if source.is_file():
        data, said = damaged(source.read_bytes(), random)
        path.write_bytes(data)
        return path, said
    shutil.copytree(source, path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    victim = files[int(random.integers(len(files)))]
    data, said = damaged(victim.read_bytes(), random)
    victim.write_bytes(data)
    return path, f"{victim.name}: {said}"


@pytest.fixture(name="factory")
def _factory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Factory]:
    (tmp_path / "factory").mkdir()
    options = _OPTIONS.get(request.node.callspec.params["kind"], SourceOptions())
    factory = Factory(tmp_path / "factory", WorkerLimits(time_s=120, memory_mib=4096), 1, options)
    yield factory
    factory.close()


def verdict(kind: str, number: int, factory: Factory, folder: Path) -> str:
    """Return what becomes of one damaged file: `refused`, `died`, or `another model` that converted as it should."""
    path, said = mutated(kind, number, folder)
    try:
        found = identify(path)
        described = factory.describe(found, path)
        feed = {
            spec.name: np.random.default_rng(1).random((4, *spec.shape[1:])).astype(spec.dtype)
            for spec in described.inputs
        }
        answers = factory.run_source(found, path, feed)
    except EdgeKitError as error:
        return "died" if isinstance(error, WorkerDiedError) else judged(str(error), said)
    return convert_other(kind, path, folder, finite=all(np.isfinite(a).all() for a in answers.values()))


def judged(line: str, said: str) -> str:
    """Return `refused` for an error that people can read."""
    return "refused" if 1 <= len(line) <= 2000 and "Traceback" not in line else f"{said}: {line}"


def convert_other(kind: str, path: Path, folder: Path, *, finite: bool) -> str:
    """Convert a damaged file that still is a model; a bundle may only come of one with finite answers."""
    out = folder / f"{path.name}.bundle"
    request = ConvertRequest(
        path,
        "x86-64",
        out,
        formats=("onnx",),
        task="other",
        source_options=_OPTIONS.get(kind, SourceOptions()),
        jobs=1,
    )
    try:
        convert(request)
    except EdgeKitError as error:
        return judged(str(error), path.name) if not out.exists() else "left a bundle"
    assert finite
    return "another model"


@pytest.mark.parametrize("kind", SMALL)
def test_some_mutations_of_every_kind(kind: str, factory: Factory, tmp_path: Path) -> None:
    for number in SOME:
        assert verdict(kind, number, factory, tmp_path) in ("refused", "died", "another model")


@pytest.mark.soak
@pytest.mark.parametrize("kind", SMALL)
def test_fifty_mutations_of_every_kind(
    kind: str, factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Counter(verdict(kind, number, factory, tmp_path) for number in range(MUTATIONS))
    with capsys.disabled():
        print(f"\n{MUTATIONS} mutations of {SMALL[kind]}: {dict(seen)}")
    assert set(seen) <= {"refused", "died", "another model"}
    assert seen["refused"] >= MUTATIONS // 4


@pytest.mark.parametrize("kind", SMALL)
def test_the_undamaged_file_converts(kind: str, factory: Factory, tmp_path: Path) -> None:
    assert identify(small_source(kind)) == kind
    assert convert_other(kind, small_source(kind), tmp_path, finite=True) == "another model"
