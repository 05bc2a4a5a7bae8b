"""Run the long suites in full and write down what was seen, with commit and machine.

    python .ci/soak.py [TESTS…]

Writes docs/soak/<commit>.md, and ends with pytest's own exit code. With tests named, those only: the page says so.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "soak"


def main() -> None:
    """Run pytest's soak tests, with what they print, and write the page."""
    commit, began = git("rev-parse", "--short=12", "HEAD"), time.monotonic()
    dirty = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    chosen = sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-m", "soak", "-rA", "--durations=0", "-p", "no:cacheprovider"]
    code, seen = run_shown([*command, *chosen])
    FOLDER.mkdir(parents=True, exist_ok=True)
    page = FOLDER / f"{commit}.md"
    page.write_text(
        f"# Soak of {commit}{dirty}\n\n"
        f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC, "
        f"{time.monotonic() - began:.0f} s, exit code {code}.\n\n"
        f"Machine: {machine()}.\n\n"
        + (f"Only {', '.join(chosen)}.\n\n" if chosen else "")
        + f"```\n{without_paths(seen).strip()}\n```\n",
        encoding="utf-8",
    )
    print(f"wrote {page.relative_to(ROOT)}")
    sys.exit(code)


def git(*arguments: str) -> str:
    """Return what git prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def run_shown(command: list[str]) -> tuple[int, str]:
    """Return (exit code, output) of a command whose output is shown as it comes."""
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return child.returncode, "".join(lines)


def without_paths(text: str) -> str:
    """Return the output without this checkout's own path, which says nothing to others."""
    return re.sub(rf"{re.escape(str(ROOT))}/?", "", text)


def machine() -> str:
    """Return processor, cores, memory, system and Python."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
