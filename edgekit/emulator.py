"""The target's instruction set on this machine: QEMU's user-mode emulation of its CPU, with the real wheels of its ISA.

An environment in the user's cache holds what that takes: QEMU from Debian, a small arm64 Debian with Python, and the
aarch64 wheels of a device's extras, at the versions that this machine has. Nothing is installed outside the folder, no
root and no container is needed; x86-64 CPUs are emulated with this machine's own Python. What runs there is right or
wrong as on the device; how long it takes says nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

import edgekit
from edgekit.atomic import remove
from edgekit.devices import DeviceProfile, load_profile, profile_ids
from edgekit.errors import MachineError, UnavailableError, UsageError
from edgekit.process import Interpreter
from edgekit.state import cache_folder
from edgekit.wheels import DeviceSystem, install, requirements

__all__ = ["Contents", "Emulator", "create", "delete", "emulator_folder", "emulator_of", "is_ready"]

#: Of the folder's layout: another one is made anew.
_FORM = 1
#: Debian's releases: QEMU 7.2 of bookworm crashes ONNX Runtime and LiteRT at import, 10.0 of trixie does not; the
#: Python of bookworm is the one of Raspberry Pi OS.
_QEMU_SUITE, _ROOT_SUITE, _ROOT_GLIBC, _PYTHON = "trixie", "bookworm", "2.36", "3.11"
_ROOT_PACKAGES = ("python3", "libstdc++6", "ca-certificates")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_EXTRAS = ("tflite", "onnx", "daemon", "agent", "image", "text")
_BINARIES = {"aarch64": "qemu-aarch64", "x86-64": "qemu-x86_64"}
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}

Progress = Callable[[str, int, int], None]


class Contents(msgspec.Struct, frozen=True):
    """What an environment holds: versions by name."""

    form: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Emulator:
    """One profile's CPU, emulated.

    Attributes:
        profile: Whose CPU.
        name: What runs, for the evidence: such as `qemu 10.0.13, cortex-a72`.
        interpreter: Starts a Python with EdgeKit there.
        versions: Of what is in the environment, by name; for x86-64, of QEMU alone: the rest is this machine's.
    """

    profile: DeviceProfile
    name: str
    interpreter: Interpreter
    versions: dict[str, str]

    def run(self, *arguments: str, timeout_s: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run the emulated Python.

        Raises:
            MachineError: It gave no answer in time.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        words = [*self.interpreter.words, *arguments]
        try:
            return subprocess.run(
                words,
                env={**kept, **self.interpreter.environment},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.name} gave no answer within {timeout_s:g} s") from error


def emulator_folder() -> Path:
    """Return where the environment is or would be."""
    return cache_folder() / "emulator"


def is_ready() -> bool:
    """Tell whether the environment is there."""
    return _contents(emulator_folder()) is not None


def emulator_of(profile: DeviceProfile) -> Emulator:
    """Return the emulator of a profile's CPU.

    Raises:
        UsageError: The profile's CPU cannot be emulated.
        UnavailableError: The environment has not been created.
    """
    if not profile.qemu_cpu:
        able = [each for each in profile_ids() if load_profile(each).qemu_cpu]
        raise UsageError(
            f"{profile.id} cannot be emulated: its profile names no CPU that QEMU has",
            expected="one of " + ", ".join(able),
        )
    folder = emulator_folder()
    contents = _contents(folder)
    if contents is None:
        raise UnavailableError(
            "the emulator has not been prepared here", hint="Prepare it: edgekit env create emulator."
        )
    qemu = [str(folder / "qemu" / _BINARIES[profile.arch]), "-cpu", profile.qemu_cpu]
    paths, python = [str(_linked(folder))], sys.executable
    if profile.arch == "aarch64":
        qemu += ["-L", str(folder / "root")]
        python = str(folder / "root" / "usr" / "bin" / f"python{_PYTHON}")
        paths.append(str(folder / "wheels"))
    environment = {
        # children inside must be started by the same words, see `edgekit.process.python_command`
        "EDGEKIT_LAUNCHER": shlex.join(qemu),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    own = contents.versions if profile.arch == "aarch64" else {"qemu-user": contents.versions["qemu-user"]}
    return Emulator(
        profile,
        f"qemu {contents.versions['qemu-user']}, {profile.qemu_cpu}",
        Interpreter((*qemu, python), environment),
        own,
    )


def _linked(folder: Path) -> Path:
    """Return a folder that holds this very EdgeKit and none of the packages beside it."""
    package = Path(edgekit.__file__).resolve().parent
    app = folder / f"app-{hashlib.sha256(str(package).encode()).hexdigest()[:12]}"
    with suppress(FileExistsError):
        app.mkdir()
    with suppress(FileExistsError):
        (app / "edgekit").symlink_to(package)
    return app


def _contents(folder: Path) -> Contents | None:
    try:
        found = msgspec.json.decode((folder / "contents.json").read_bytes(), type=Contents)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.form == _FORM else None


def create(progress: Progress = lambda _what, _done, _all: None, *, mirror: str | None = None) -> Contents:
    """Make the environment, or what is missing of it: a step that was done once is not done again.

    Args:
        progress: Is told (phrase, steps done, steps in all).
        mirror: A Debian mirror's address; None for the one in this machine's apt sources.

    Returns:
        What it holds.

    Raises:
        UnavailableError: apt-get, dpkg, pip or Debian's keyring is missing, or no mirror is known.
        MachineError: Something could not be fetched; says what and why. The finished steps are kept.
    """
    folder = emulator_folder()
    there = _contents(folder)
    if there is not None:
        return there
    _check_tools()
    mirror = mirror or _own_mirror(Path("/etc/apt"))
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[Path], None]] = {
        "qemu": lambda out: _unpack_qemu(mirror, out),
        "root": lambda out: _unpack_root(mirror, out),
        "wheels": _install_wheels,
    }
    for done, (name, make) in enumerate(steps.items()):
        progress(f"preparing the emulator: {name}", done, len(steps))
        if not (folder / name).is_dir():
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
                made = Path(scratch) / name
                made.mkdir()
                make(made)
                made.rename(folder / name)
    contents = Contents(_FORM, _versions(folder))
    (folder / "contents.json").write_bytes(msgspec.json.encode(contents))
    progress("preparing the emulator", len(steps), len(steps))
    return contents


def delete() -> bool:
    """Remove the environment; return whether there was one."""
    folder = emulator_folder()
    was_there = folder.exists()
    remove(folder)
    return was_there


def _check_tools() -> None:
    lacking = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if lacking:
        raise UnavailableError(
            f"the emulator is made with Debian's tools, and {' and '.join(lacking)} is not here",
            expected="a Debian or Ubuntu system",
        )
    if not _KEYRING.exists():
        raise UnavailableError(
            f"{_KEYRING} is missing, by which Debian's packages are checked",
            hint="Install it: apt-get install debian-archive-keyring.",
        )


def _own_mirror(folder: Path) -> str:
    """Return the first Debian mirror in apt's sources, of either form."""
    for path in (folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for address in re.findall(r"^(?:URIs:\s*|deb\s+(?:\[[^\]]*\]\s+)?)(\S+)", text, re.MULTILINE):
            if address.rstrip("/").endswith("/debian"):
                return str(address)
    raise UnavailableError(
        "this machine's apt sources name no Debian mirror",
        hint="Give one with --mirror: its address ends in /debian.",
    )


def _unpack_qemu(mirror: str, out: Path) -> None:
    """Put QEMU's two programs, which are linked statically, and the package's version into a folder."""
    architecture = _DEBIAN.get(platform.machine(), platform.machine())
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        apt = _Apt(Path(scratch), mirror, _QEMU_SUITE, architecture)
        (package,) = apt.download(["qemu-user"], alone=True)
        tree = Path(scratch) / "tree"
        _need(["dpkg", "-x", str(package), str(tree)], "unpacking QEMU")
        for binary in _BINARIES.values():
            (tree / "usr" / "bin" / binary).rename(out / binary)
        (out / "version").write_text(_debian_version(package), encoding="utf-8")


def _unpack_root(mirror: str, out: Path) -> None:
    """Unpack Python and all that it needs; nothing is configured, for nothing of it but Python runs."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        apt = _Apt(Path(scratch), mirror, _ROOT_SUITE, "arm64")
        for package in apt.download(_ROOT_PACKAGES):
            _need(["dpkg", "-x", str(package), str(out)], f"unpacking {package.name}")


def _debian_version(package: Path) -> str:
    done = _need(["dpkg-deb", "--field", str(package), "Version"], "reading QEMU's version")
    return re.sub(r"^\d+:|[+-].*$", "", done.stdout.strip())


class _Apt:
    """apt-get for another suite and architecture, in a folder of its own: the machine's packages stay as they are."""

    def __init__(self, folder: Path, mirror: str, suite: str, architecture: str) -> None:
        self._folder, self._what = folder, f"Debian {suite} for {architecture}"
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(
            f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n", encoding="utf-8"
        )
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::Parts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
        }
        (folder / "apt.conf").write_text(
            "".join(f'{key} "{value}";\n' for key, value in settings.items()), encoding="utf-8"
        )
        self._apt("update")

    def download(self, packages: Iterable[str], *, alone: bool = False) -> list[Path]:
        """Fetch packages with all that they need, or without."""
        if alone:
            self._apt("download", *packages)
            return sorted(self._folder.glob("*.deb"))
        self._apt("--yes", "--download-only", "install", *packages)
        return sorted((self._folder / "archives").glob("*.deb"))

    def _apt(self, *words: str) -> None:
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf")}
        _need(["apt-get", "-qq", *words], f"fetching from {self._what}", self._folder, environment)


def _install_wheels(out: Path) -> None:
    """Install what a device needs for arm64, each at the version that this machine has, where it has one."""
    system = DeviceSystem("aarch64", _ROOT_GLIBC, _PYTHON)
    install(system, requirements(_EXTRAS, as_here=True), out)


def _versions(folder: Path) -> dict[str, str]:
    """Return the versions of QEMU, Python and every wheel."""
    wheels = {d.metadata["Name"]: d.version for d in metadata.distributions(path=[str(folder / "wheels")])}
    emulated = [str(folder / "qemu" / _BINARIES["aarch64"]), "-L", str(folder / "root")]
    python = [
        str(folder / "root" / "usr" / "bin" / f"python{_PYTHON}"),
        "-c",
        "import sys; print(sys.version.split()[0])",
    ]
    said = _need([*emulated, *python], "starting Python under QEMU").stdout.strip()
    return {
        "qemu-user": (folder / "qemu" / "version").read_text(encoding="utf-8"),
        "python": said,
        **dict(sorted(wheels.items())),
    }


def _run(
    words: Sequence[str], what: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MachineError(f"{what} failed: {error.strerror}") from error


def _need(
    words: Sequence[str], what: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool; what it says last is the reason where it fails."""
    done = _run(words, what, folder, environment)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        first = next((line for line in said if line.startswith(("E:", "ERROR"))), said[-1])
        raise MachineError(
            f"{what} failed: {first[:300]}", hint="Run the command again: what is done is kept."
        )
    return done
