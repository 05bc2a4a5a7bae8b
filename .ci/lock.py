"""Write a lock: resolve an environment afresh with every Python it serves, and pin what came out.

    python3.11 .ci/lock.py convert|device|tflite-runtime|clients …

Needs a package index and the Pythons named in ENVIRONMENTS. A pin that is not the same for every Python
gets a marker.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """What goes into one lock.

    Attributes:
        pythons: Minor versions, oldest first.
        extras: Of the project; empty for an environment that the project is not installed in.
        groups: Dependency groups of pyproject.toml.
        like: A lock to agree with, for the Pythons that it serves or newer ones: what was proven is deployed.
        hold: Exact pins of versions that were proven to work together, where newer ones exist.
        use: How the lock is used, for its header.
    """

    pythons: tuple[str, ...]
    extras: tuple[str, ...]
    groups: tuple[str, ...]
    use: str
    like: str = ""
    hold: tuple[str, ...] = ()


ENVIRONMENTS = {
    "convert": Environment(
        ("3.11",),
        (
            "tflite",
            "onnx",
            "openvino",
            "daemon",
            "image",
            "grpc",
            "agent",
            "convert",
            "torch",
            "deploy",
            "profile",
            "sync",
        ),
        ("test", "editable", "dev"),
        "A workstation: converters, sync server, device side and development tools (.venv of `make setup`).",
        hold=("onnxruntime==1.31.1",),
    ),
    "device": Environment(
        ("3.10", "3.11", "3.12", "3.13"),
        ("tflite", "onnx", "openvino", "daemon", "image", "grpc", "agent"),
        ("test",),
        "A device. Constraints: pip install -c requirements-device.txt 'edgekit-deploy[tflite,daemon,agent]'.",
        like="convert",
    ),
    "tflite-runtime": Environment(
        ("3.11",),
        ("tflite-runtime", "daemon", "image"),
        ("test", "editable"),
        "The frozen tflite-runtime 2.14 with numpy 1 (.venv-tflite-runtime of `make setup`).",
    ),
    "clients": Environment(
        ("3.11",),
        (),
        ("clients",),
        "Clients of the Open Inference Protocol, whose own pins exclude ours (.venv-clients of `make setup`).",
    ),
}


def main() -> None:
    """Write the locks that are named."""
    parser = argparse.ArgumentParser(description="Resolve and pin an environment.")
    parser.add_argument("names", nargs="+", choices=ENVIRONMENTS, metavar="|".join(ENVIRONMENTS))
    for name in parser.parse_args().names:
        environment = ENVIRONMENTS[name]
        wanted = requirements(environment, tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")))
        pins = {
            python: resolve(python, [*wanted, *environment.hold, *agree(environment, python)])
            for python in environment.pythons
        }
        lock = ROOT / f"requirements-{name}.txt"
        lock.write_text(header(name, environment) + "\n".join(merge(pins)) + "\n", encoding="utf-8")
        print(f"wrote {lock.name}")


def requirements(environment: Environment, project: Mapping[str, dict[str, object]]) -> list[str]:
    """Return the requirements that the environment's extras and groups add up to."""
    extras = project["project"]["optional-dependencies"]
    core = project["project"]["dependencies"] if environment.extras else []
    groups = project["dependency-groups"]
    assert isinstance(extras, dict)
    assert isinstance(core, list)
    parts = [
        core,
        *(extras[name] for name in environment.extras),
        *(groups[name] for name in environment.groups),
    ]
    return list(itertools.chain.from_iterable(parts))


def agree(environment: Environment, python: str) -> list[str]:
    """Return pip's option that holds an environment to the lock it should agree with."""
    if not environment.like or python < min(ENVIRONMENTS[environment.like].pythons):
        return []
    return ["-c", str(ROOT / f"requirements-{environment.like}.txt")]


def resolve(python: str, wanted: Sequence[str]) -> list[str]:
    """Return the pins (`name==version`) of a fresh environment with what is wanted."""
    print(f"resolving with Python {python} …", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([interpreter(python), "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *wanted], check=True)
        frozen = subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True).stdout
    brought_by_venv = {"pip", "setuptools"} - {re.split(r"\W", requirement)[0] for requirement in wanted}
    # a local version (torch==2.13.0+cpu) is one machine's build of the release that everyone can get
    pins = [line.partition("+")[0] for line in frozen.splitlines()]
    return [pin for pin in pins if pin.partition("==")[0] not in brought_by_venv]


def interpreter(python: str) -> str:
    """Return a Python of that minor version that works; pyenv's shims may be there and fail.

    Raises:
        SystemExit: There is none.
    """
    installed = sorted(map(str, Path("~/.pyenv/versions").expanduser().glob(f"{python}.*/bin/python")))
    for candidate in filter(None, [shutil.which(f"python{python}"), *installed]):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise SystemExit(f"this lock needs Python {python}, and there is none that works on PATH or in ~/.pyenv.")


def merge(pins: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one list of pins for several Pythons; those that are not common to all get markers.

    >>> merge({"3.10": ["a==1", "b==1"], "3.11": ["a==1", "b==2"], "3.12": ["a==1", "b==2"]})
    ['a==1', "b==1; python_version == '3.10'", "b==2; python_version >= '3.11'"]
    """
    pythons = list(pins)
    where: dict[str, list[str]] = {}
    for python, lines in pins.items():
        for line in lines:
            where.setdefault(line, []).append(python)
    return [
        line + marker(pythons, found)
        for line, found in sorted(where.items(), key=lambda item: item[0].lower())
    ]


def marker(pythons: Sequence[str], found: Sequence[str]) -> str:
    """Return the marker for a pin found in some of the Pythons."""
    if list(found) == list(pythons):
        return ""
    if list(found) == list(pythons[-len(found) :]):
        return f"; python_version >= '{found[0]}'"
    return "; " + " or ".join(f"python_version == '{python}'" for python in found)


def header(name: str, environment: Environment) -> str:
    """Return the lock's first lines."""
    return (
        f"# {environment.use}\n"
        f"# Resolved with Python {', '.join(environment.pythons)} on Linux.\n"
        f"# Written by `python3.11 .ci/lock.py {name}`; change ranges in pyproject.toml, not here.\n"
    )


if __name__ == "__main__":
    main()
