"""Take a picture of a web page with headless Chromium: `python screenshot.py URL OUT.png [WIDTHxHEIGHT] [--dark]`.

Exits 5, saying so, when no Chromium or Chrome is on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def command(browser: str, url: str, out: Path, size: str, profile: str, *, dark: bool) -> list[str]:
    width, _, height = size.partition("x")
    return [
        browser,
        "--headless",
        "--no-sandbox",  # containers rarely allow Chromium's own sandbox, and the page is ours
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",  # lets the charts fetch and draw
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--screenshot={out}",
        url,
    ]


def take(browser: str, url: str, out: Path, size: str, *, dark: bool) -> None:
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            command(browser, url, out.resolve(), size, profile, dark=dark),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    if done.returncode or not out.exists():
        sys.exit(f"{browser} made no picture of {url}:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a web page with headless Chromium.")
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("size", nargs="?", default="1280x1000", help="WIDTHxHEIGHT in CSS pixels")
    parser.add_argument("--dark", action="store_true", help="as a browser with the dark colour scheme")
    arguments = parser.parse_args()
    browser = find_browser()
    if browser is None:
        print(f"no screenshot: none of {', '.join(BROWSERS)} is on the PATH", file=sys.stderr)
        sys.exit(5)
    take(browser, arguments.url, arguments.out, arguments.size, dark=arguments.dark)
    print(arguments.out)


if __name__ == "__main__":
    main()
