"""What is installed on a device: EdgeKit itself as a wheel made here, and the wheels of its extras for that system.

Nothing is fetched by the device: it may have no internet.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec

import edgekit
from edgekit.atomic import staged
from edgekit.choose import EXTRAS
from edgekit.errors import UnavailableError
from edgekit.manifest import Manifest
from edgekit.state import cache_folder
from edgekit.wheels import DeviceSystem, download, requirements

__all__ = ["Packages", "device_extras", "fetch", "own_wheel"]

_DISTRIBUTION = "edgekit-deploy"
_ROOMS = ("converters", "devices", "runtimes")
#: The earliest that a zip can hold, so that the same files give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


class Packages(msgspec.Struct, frozen=True):
    """Everything for one environment.

    Attributes:
        wheels: Their files here; EdgeKit's own is the first, pip's is among them.
        key: Of their contents: an environment with that name is this one.
        bytes: To send.
        unpacked_bytes: On the device's disk, once installed.
        notes: What the user should know about the choice.
    """

    wheels: tuple[Path, ...]
    key: str
    bytes: int
    unpacked_bytes: int
    notes: tuple[str, ...] = ()


def device_extras(runtime: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the extras that a device needs to run a bundle in a runtime, under the daemon and with its key.

    Args:
        runtime: The plan's.
        manifest: The bundle's: preprocessing of pictures or texts needs more.
    """
    kinds = {step.get("kind") for step in manifest.preprocess}
    more = [each for each in ("image", "text") if each in kinds]
    own = [EXTRAS[runtime]] if runtime in EXTRAS else []
    return (*own, "daemon", "agent", *more)


def fetch(system: DeviceSystem, extras: tuple[str, ...], tell: Callable[[str], None]) -> Packages:
    """Return the packages for a system, from the cache where they have been fetched before.

    The versions are those of this machine, with which the bundle was judged; where one of them has no wheel for the
    system, the newest that has.

    Raises:
        UnavailableError: Something has no wheel for the system.
        MachineError: The index cannot be reached.
    """
    notes: tuple[str, ...] = ()
    try:
        others = _cached(system, requirements(extras, as_here=True, python=system.python), tell)
    except UnavailableError as error:
        others = _cached(system, requirements(extras, python=system.python), tell)
        notes = (f"{error.what}: another version is taken",)
    own = own_wheel(cache_folder() / "device-wheels")
    wheels = (own, *others)
    digest = hashlib.sha256("".join(map(_sha256, wheels)).encode()).hexdigest()
    return Packages(wheels, digest[:16], sum(map(_size, wheels)), sum(map(_unpacked, wheels)), notes)


def _cached(system: DeviceSystem, wanted: list[str], tell: Callable[[str], None]) -> list[Path]:
    wanted = [*wanted, "pip"]  # it installs the others there, where Python may have come without
    key = hashlib.sha256(msgspec.json.encode([str(system), wanted])).hexdigest()[:16]
    folder = cache_folder() / "device-wheels" / key
    if not folder.is_dir():
        tell(f"fetching wheels for {system}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
            made = Path(scratch) / key
            made.mkdir()
            download(system, wanted, made)
            if not folder.is_dir():  # another process may have been faster
                made.rename(folder)
    return sorted(folder.glob("*.whl"))


def own_wheel(folder: Path) -> Path:
    """Write this very EdgeKit as a wheel, be it a checkout or an installation; the same files give the same bytes.

    Args:
        folder: Where to.
    """
    about = metadata.distribution(_DISTRIBUTION)
    name = f"edgekit_deploy-{about.version}"
    files = {f"edgekit/{inner}": path.read_bytes() for inner, path in _package()}
    # a checkout that was built in has setuptools' own folder, which comes first and calls it so
    described = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""
    files[f"{name}.dist-info/METADATA"] = described.encode()
    files[f"{name}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{name}.dist-info/entry_points.txt"] = b"[console_scripts]\nedgekit = edgekit.cli:main\n"
    record = f"{name}.dist-info/RECORD"
    lines = [f"{each},sha256={_record_hash(data)},{len(data)}" for each, data in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    out = folder / f"{name}-py3-none-any.whl"
    with (
        staged(out, overwrite=True, replaceable=Path.is_file) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        for each, data in files.items():
            info = zipfile.ZipInfo(each, _DATE)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return out


def _package() -> Iterator[tuple[str, Path]]:
    """Yield the package's files by name; three of its folders may lie elsewhere, with or without a link to them."""
    yield from _modules(Path(edgekit.__file__).parent)
    for room in _ROOMS:
        spec = find_spec(f"edgekit.{room}")
        assert spec is not None
        assert spec.origin is not None
        yield from _modules(Path(spec.origin).parent, f"{room}/")


def _modules(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.name == "__pycache__" or prefix + path.name in _ROOMS:
            continue
        if path.is_dir():
            yield from _modules(path, f"{prefix}{path.name}/")
        elif path.is_file() and path.suffix not in (".pyc", ".pyo"):
            yield prefix + path.name, path


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size


def _unpacked(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist())
