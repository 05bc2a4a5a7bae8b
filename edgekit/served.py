"""A daemon of our own for one plan: started on a Unix socket in a folder of its own, stopped and removed again."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.daemon_cost import Served
from edgekit.errors import UnavailableError, UsageError
from edgekit.manifest import Plan
from edgekit.pins import Pin, write_pin
from edgekit.process import python_command

__all__ = ["served"]

_READY_S = 120.0
_STOP_S = 15.0


@contextmanager
def served(bundle: Bundle, plan: Plan, device: str) -> Iterator[Served]:
    """Run `edgekit serve` with just this plan until the block ends.

    Args:
        bundle: The bundle.
        plan: What is pinned for it, threads included.
        device: The detected device's profile.

    Raises:
        UsageError: The bundle has a state, which the daemon keeps between requests.
        UnavailableError: The daemon did not start, or serves another plan.
    """
    if bundle.manifest.state:
        raise UsageError("--through-daemon does not fit a bundle with a state", got=bundle.manifest.name)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        state, path = folder / "state", folder / "s"
        write_pin(Pin(1, bundle.digest, device, plan, 0.0, __version__), state)
        command = python_command(
            "-m", "edgekit", "serve", str(bundle.root), "--http", "off", "--socket", str(path),
            "--state-dir", str(state),
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(child, folder / "log", f"ready: {bundle.manifest.name} version", plan)
            yield Served(path, bundle.manifest.name, child.pid)
        finally:
            _stop(child)


def _wait(child: subprocess.Popen[bytes], log: Path, ready: str, plan: Plan) -> None:
    """Wait until the daemon says that it is ready, with the plan that was meant."""
    until = time.monotonic() + _READY_S
    text = ""
    while time.monotonic() < until and child.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        line = next((line for line in text.splitlines() if line.startswith(ready)), None)
        if line is not None and f", {plan.artifact} on {plan.runtime} for " in line:
            return
        if line is not None:
            raise UnavailableError(
                "the daemon serves another plan", got=line, expected=f"{plan.artifact} on {plan.runtime}"
            )
        time.sleep(0.02)
    said = (
        text.strip().splitlines()[-1:] or log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    )
    raise UnavailableError("the daemon did not become ready" + "".join(f": {line}" for line in said))


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
