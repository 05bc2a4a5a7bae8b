"""A device on this machine: a real sshd on a free port of the loopback, with keys and a home of its own in a folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Debian keeps it where only root's PATH leads.
_SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


@dataclass
class Device:
    """A loopback device.

    Attributes:
        folder: Of keys and configuration.
        home: The login's home there.
        port: On 127.0.0.1.
        config: The ssh configuration that leads to it.
        identity: The private key that it lets in.
        server: Of the listening sshd.
    """

    folder: Path
    home: Path
    port: int
    config: Path
    identity: Path
    server: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """What `edgekit deploy` takes."""
        return f"ssh://127.0.0.1:{self.port}"

    def options(self) -> list[str]:
        """Return the options that lead there, and that keep this machine's own services out of it."""
        return ["--ssh-config", str(self.config), "--service", "none"]

    def behave(self, script: str = 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"') -> None:
        """Set what a login does, a shell script."""
        home = shlex.quote(str(self.home))
        python = Path(sys.executable).resolve().parent  # with venv, where the system's may lack it
        text = f"#!/bin/sh\nexport HOME={home} XDG_STATE_HOME= XDG_CACHE_HOME= PATH={python}:/usr/bin:/bin\ncd {home}\n{script}\n"
        path = self.folder / "login.sh"
        path.write_text(text)
        path.chmod(0o755)

    def cut(self) -> int:
        """Kill the sshd processes of open connections, not the one that listens; return how many there were."""
        cut = [pid for pid in _descendants(self.server.pid) if _name(pid).startswith("sshd")]
        for pid in cut:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(cut)

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Return size and time of change of all that is in the home."""
        there = [path for path in self.home.rglob("*") if not path.is_symlink()]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in there}


def _descendants(pid: int) -> list[int]:
    try:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*found, *(each for child in found for each in _descendants(child))]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@contextmanager
def loopback_device(folder: Path) -> Iterator[Device]:
    """Start a device; skip, naming what CI must have, where there is no sshd."""
    if _SSHD is None:
        pytest.skip("no sshd here: a loopback device needs openssh-server, see .ci/run [sshd]")
    for name in ("host", "client", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (home := folder / "home").mkdir()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd wants it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _write_configuration(folder, port)
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    device = Device(folder, home, port, folder / "ssh_config", folder / "client", server)
    device.behave()
    try:
        _wait(device)
        yield device
    finally:
        device.cut()
        server.terminate()
        server.wait(10)


def _write_configuration(folder: Path, port: int) -> None:
    def quoted(name: str) -> str:
        return f'"{folder / name}"'

    (folder / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1
        Port {port}
        HostKey {quoted("host")}
        AuthorizedKeysFile {quoted("authorized_keys")}
        PidFile none
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin prohibit-password
        MaxStartups 100
        PermitUserEnvironment no
        ForceCommand {shlex.quote(str(folder / "login.sh"))}
        """
    )
    key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
    (folder / "ssh_config").write_text(
        f"""
        Host *
            IdentityFile {quoted("client")}
            IdentitiesOnly yes
            UserKnownHostsFile {quoted("known_hosts")}
            GlobalKnownHostsFile /dev/null
            StrictHostKeyChecking yes
        """
    )


def _wait(device: Device) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and device.server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", device.port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"sshd does not start: {(device.folder / 'sshd.log').read_text()}")
