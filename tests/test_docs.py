"""The documentation agrees with what is there: links, commands, decisions, examples."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from edgekit.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def _pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split() if (path := ROOT / name).exists()]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))


@pytest.mark.parametrize("page", _pages(), ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", _pages(), ids=_name)
def test_headings_that_links_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text):
        there = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = [
            re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-")
            for line in there.splitlines()
            if line.startswith("#")
        ]
        wrong += [anchor] if anchor not in headings else []
    assert wrong == []


def test_the_command_reference_is_fresh() -> None:
    # in a process of its own: commands remember the help options that other tests called them with
    command = [sys.executable, str(ROOT / ".ci" / "cli_reference.py"), "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0, "run: make docs"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"\n## edgekit {command}\n" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = {
        target
        for page in _pages()
        for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert named - targets == set()


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(len(DECISIONS)))


@pytest.mark.parametrize("path", DECISIONS, ids=_name)
def test_a_decision_says_what_why_and_what_follows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]
    assert re.search(
        r"^Status: (accepted|refused|replaced by \[\d{4}\]\(.*\)|template)$", text, flags=re.MULTILINE
    )
    assert len(text.splitlines()) <= 50, "half a page"


def test_the_changelog_is_in_keep_a_changelog_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE))
    assert text.startswith("# Changelog\n")
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^## \[Unreleased\]", text, flags=re.MULTILINE)


def _with_examples() -> list[str]:
    rooms = ("converters", "devices", "runtimes")
    files = [
        *(ROOT / "edgekit").rglob("*.py"),
        *(file for room in rooms for file in (ROOT / room).rglob("*.py")),
    ]
    found = [file.relative_to(ROOT) for file in files if ">>> " in file.read_text(encoding="utf-8")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found}
    return sorted(f"edgekit.{name}" if name.split(".")[0] in rooms else name for name in names)


@pytest.mark.parametrize("module", _with_examples())
def test_examples_in_docstrings_run(module: str) -> None:
    failed, tried = doctest.testmod(import_module(module))
    assert tried > 0
    assert failed == 0


@pytest.mark.usefixtures("_scripts")
def test_the_lock_script_merges_pins_as_its_example_says() -> None:
    failed, tried = doctest.testmod(import_module("lock"))
    assert (failed, tried > 0) == (0, True)
