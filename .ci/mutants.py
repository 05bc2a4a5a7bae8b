"""Break core modules on purpose, one small change at a time, and count the changes that their tests notice.

    python .ci/mutants.py [edgekit/gate.py …] [--jobs 2]

Each module is worked on in its own copy under mutants/, with the tests that mirror it and none that need a
converter. Look at a survivor with `cd mutants/edgekit.gate && ../../.venv/bin/mutmut show NAME`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIES = ROOT / "mutants"
MODULES = (
    "edgekit/gate.py",
    "edgekit/parity.py",
    "edgekit/ladder.py",
    "edgekit/boxes.py",
    "edgekit/postprocess.py",
    "edgekit/bounds.py",
    "edgekit/choose.py",
    "edgekit/bundle.py",
    "edgekit/monitor/buckets.py",
    "edgekit/monitor/edetector.py",
    "edgekit/monitor/estimate.py",
)
FOLDERS = ("edgekit", "converters", "runtimes", "devices", "tests")
GOAL = 0.8


def main() -> None:
    """Score the modules that are named, or all, and print a table."""
    parser = argparse.ArgumentParser(description="Mutation scores of core modules.")
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="edgekit/….py")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at once")
    options = parser.parse_args()
    scores = []
    for module in options.modules:
        began = time.monotonic()
        counts = try_mutants(module, options.jobs)
        scores.append(score(counts))
        print(f"{module:<32} {describe(counts)}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"lowest {min(scores):.1%}, goal {GOAL:.0%}")
    sys.exit(min(scores) < GOAL)


def try_mutants(module: str, jobs: int) -> Mapping[str, int]:
    """Return mutmut's counts for one module: `total`, `killed`, `survived`, `no_tests`, `timeout`, …."""
    name = module.removesuffix(".py").replace("/", ".")
    copy = copy_project(name)
    tests = mirrored_tests(module)
    with (copy / "pyproject.toml").open("a", encoding="utf-8") as project:
        project.write(
            "\n[tool.mutmut]\n"
            f"source_paths = {json.dumps([module])}\n"
            f"also_copy = {json.dumps(FOLDERS)}\n"
            f"pytest_add_cli_args_test_selection = {json.dumps(tests)}\n"
            'pytest_add_cli_args = ["-m", "not soak and not convert", "-p", "no:cacheprovider"]\n'
        )
    log = copy / "mutmut.log"
    mutmut = str(Path(sys.executable).with_name("mutmut"))
    with log.open("wb") as stream:
        # its progress is drawn for a terminal; the log is for when something goes wrong
        done = subprocess.run(
            [mutmut, "run", "--max-children", str(jobs)],
            cwd=copy,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        sys.exit(f"mutmut failed on {module} with {', '.join(tests)}: see {log.relative_to(ROOT)}")
    subprocess.run([mutmut, "export-cicd-stats"], cwd=copy, check=True, stdout=subprocess.DEVNULL)
    counts: dict[str, int] = json.loads(
        (copy / "mutants" / "mutmut-cicd-stats.json").read_text(encoding="utf-8")
    )
    return counts


def copy_project(name: str) -> Path:
    """Return a fresh copy of what tests need, so that nothing is broken in the checkout itself."""
    copy = COPIES / name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return copy


def mirrored_tests(module: str) -> list[str]:
    """Return the test files of a module: `tests/monitor/test_buckets*.py` for `edgekit/monitor/buckets.py`."""
    path = Path(module)
    folder = ROOT / "tests" / path.parent.relative_to("edgekit")
    found = sorted(folder.glob(f"test_{path.stem}.py")) + sorted(folder.glob(f"test_{path.stem}_*.py"))
    if not found:
        sys.exit(f"{module} has no tests: expected {folder.relative_to(ROOT)}/test_{path.stem}.py")
    return [str(file.relative_to(ROOT)) for file in found]


def score(counts: Mapping[str, int]) -> float:
    """Return the share of mutants that a test noticed; a mutant that no test reaches counts as unnoticed."""
    return (counts["killed"] + counts["timeout"]) / max(1, counts["total"])


def describe(counts: Mapping[str, int]) -> str:
    """Return one module's line."""
    missed = counts["survived"] + counts["no_tests"]
    return f"{score(counts):6.1%} of {counts['total']} ({missed} unnoticed, {counts['no_tests']} of them unreached)"


if __name__ == "__main__":
    main()
