"""The package list, the links, the locks and the public names agree with what is there."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("converters", "devices", "runtimes")
LOCKS = ("convert", "device", "tflite-runtime", "clients")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _modules() -> list[str]:
    files = sorted(
        {*(ROOT / "edgekit").glob("**/*.py"), *(f for room in ROOMS for f in (ROOT / room).glob("*.py"))}
    )
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return sorted({"edgekit." + name if name.split(".")[0] in ROOMS else name for name in names})


def test_the_package_list_is_the_folders() -> None:
    setuptools = _project()["tool"]["setuptools"]
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "edgekit").rglob("__init__.py")
        if not any(part.is_symlink() for part in file.parents)
    }
    assert sorted(setuptools["packages"]) == sorted(folders | {f"edgekit.{room}" for room in ROOMS})
    assert setuptools["package-dir"] == {f"edgekit.{room}": room for room in ROOMS}


def test_every_folder_with_modules_is_a_package() -> None:
    homes = {file.parent for file in (ROOT / "edgekit").rglob("*.py")}
    assert [str(home) for home in homes if not (home / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_links_point_at_the_rooms(room: str) -> None:
    link = ROOT / "edgekit" / room
    assert str(link.readlink()) == f"../{room}"
    assert link.resolve() == ROOT / room


def test_data_files_are_all_packaged() -> None:
    data = _project()["tool"]["setuptools"]["package-data"]
    packaged = {
        file
        for package, patterns in data.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).resolve().glob(pattern)
    }
    listed = subprocess.run(
        ["git", "ls-files", "edgekit", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    committed = {ROOT / name for name in listed if not name.endswith(".py")} - {
        ROOT / "edgekit" / r for r in ROOMS
    }
    assert sorted(map(str, committed - packaged)) == []


def test_one_version() -> None:
    edgekit = importlib.import_module("edgekit")
    assert edgekit.__version__ == _project()["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changes or f"## [{edgekit.__version__}]" in changes


def test_all_is_every_installable_extra_but_the_frozen_one() -> None:
    extras = _project()["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.search(r"\[(.*)\]", everything)[1].split(","))  # type: ignore[index]
    assert named == set(extras) - {"all", "tflite-runtime"}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_exact_pins_and_no_address(name: str) -> None:
    lines = (ROOT / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert lines[2].startswith(f"# Written by `python3.11 .ci/lock.py {name}`")
    wrong = [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+!]+(; python_version [^;]+)?", pin)]
    assert wrong == []
    assert pins == sorted(pins, key=str.lower)


@pytest.mark.parametrize("name", ["convert", "device", "tflite-runtime"])
def test_a_lock_pins_the_core_dependencies(name: str) -> None:
    lock = (ROOT / f"requirements-{name}.txt").read_text(encoding="utf-8").lower()
    needed = [re.split(r"\W", line)[0] for line in _project()["project"]["dependencies"]]
    if name != "device":
        needed.remove("tomli")  # Python 3.10 only
    assert [package for package in needed if f"\n{package}==" not in lock] == []


@pytest.mark.parametrize("module", _modules())
def test_public_names_exist(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = {name for node in tree.body for name in _bound(node)}
    public = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and _bound(node) == ["__all__"]
    )
    names = ast.literal_eval(next(public, ast.List([])))
    assert [name for name in names if name not in defined] == []
    assert len(names) == len(set(names))


def _bound(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement binds; those under TYPE_CHECKING count, they load lazily."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        targets = [name for target in node.targets for name in ast.walk(target)]
        return [name.id for name in targets if isinstance(name, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.If):
        return [name for child in (*node.body, *node.orelse) for name in _bound(child)]
    return []


def test_lazy_public_names_load() -> None:
    edgekit = importlib.import_module("edgekit")
    assert [name for name in edgekit.__all__ if getattr(edgekit, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgekit.nothing


def test_typed_marker() -> None:
    assert (ROOT / "edgekit" / "py.typed").exists()
