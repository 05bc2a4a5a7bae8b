"""`edgekit --help` beside `import click`: what a user waits before the first word.

    python benchmarks/cli_start.py [--runs 20]

Budget: at most twice `python -c "import click"`. The two are run in turn, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c 'pass'": [sys.executable, "-c", "pass"],
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "edgekit --help": [sys.executable, "-m", "edgekit", "--help"],
}


def main() -> None:
    """Run each command in turn and print medians, spread and the ratio that the budget is about."""
    parser = argparse.ArgumentParser(description="Time edgekit --help beside import click.")
    parser.add_argument("--runs", type=int, default=20, help="runs of each command")
    runs = parser.parse_args().runs
    for command in COMMANDS.values():  # bytecode and page cache
        wall_s(command)
    times = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(wall_s(command))
    for name, seen in times.items():
        print(f"{name:<26} median {1e3 * statistics.median(seen):6.1f} ms, best {1e3 * min(seen):6.1f} ms")
    _, click, ours = (statistics.median(seen) for seen in times.values())
    print(f"edgekit --help is {ours / click:.2f} x import click (budget 2), {runs} runs each")


def wall_s(command: list[str]) -> float:
    """Return how long a command takes, in seconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
