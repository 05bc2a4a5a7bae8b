"""The daemon's systemd unit, and where it goes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.daemon.starts import MOST_STARTS, WITHIN_S
from edgekit.daemon.trial import TIME_LIMIT_S
from edgekit.daemon.units import (
    NAME,
    Scope,
    daemon_unit,
    enable_commands,
    is_ours,
    start_command,
    unit_path,
)
from edgekit.errors import UsageError

pytestmark = pytest.mark.device

SYSTEM, SUDO, USER = Scope("system"), Scope("system", ("sudo", "-n")), Scope("user")


def lines(scope: Scope, user: str | None = "pi") -> list[str]:
    command = start_command("/opt/e/bin/python", "/var/state", ("--runtime", "litert"))
    return daemon_unit(scope, command, "/var/state", user).splitlines()


def test_the_systems_unit_may_write_to_its_state_alone() -> None:
    unit = lines(SYSTEM)
    assert (
        'ExecStart="/opt/e/bin/python" "-m" "edgekit" "serve" "--state-dir" "/var/state" "--runtime" "litert"'
        in unit
    )
    assert {"Type=notify", "User=pi", "NoNewPrivileges=yes", "CapabilityBoundingSet="} <= set(unit)
    assert {"ProtectSystem=strict", "ProtectHome=read-only", 'ReadWritePaths="/var/state"'} <= set(unit)
    assert "WantedBy=multi-user.target" in unit
    assert not [
        line for line in unit if line.startswith(("PrivateDevices", "DeviceAllow", "ProtectClock"))
    ], "accelerators are devices"


def test_a_users_unit_has_nothing_that_only_root_may_set_up() -> None:
    unit = lines(USER, None)
    assert not [
        line for line in unit if line.startswith(("User=", "Protect", "ReadWritePaths", "PrivateTmp"))
    ]
    assert {"NoNewPrivileges=yes", "WantedBy=default.target"} <= set(unit)


def test_one_who_knows_it_may_replace_it() -> None:
    assert is_ours("\n".join(lines(SYSTEM)))
    assert not is_ours("[Unit]\nDescription=mine\n")


def test_commands_of_each_scope() -> None:
    assert enable_commands(SUDO, "/r/u", "/home/pi") == [
        ["sudo", "-n", "install", "-D", "-m", "0644", "/r/u", f"/etc/systemd/system/{NAME}"],
        ["sudo", "-n", "systemctl", "daemon-reload"],
        ["sudo", "-n", "systemctl", "enable", NAME],
        ["sudo", "-n", "systemctl", "restart", NAME],
    ]
    user = enable_commands(USER, "/r/u", "/home/pi")
    assert user[0][-1] == unit_path(USER, "/home/pi") == f"/home/pi/.config/systemd/user/{NAME}"
    assert user[-1] == ["systemctl", "--user", "restart", NAME]


@pytest.mark.parametrize("state", ["/a\nExecStartPre=/bin/evil", "/a\x1b", "/a\0"])
def test_no_path_becomes_another_line(state: str) -> None:
    with pytest.raises(UsageError, match="a unit cannot hold this"):
        daemon_unit(SYSTEM, start_command("/p", state), state, "pi")


@pytest.mark.parametrize("user", ["pi\nX", "a b", "%i", "-x;"])
def test_no_user_becomes_something_else(user: str) -> None:
    with pytest.raises(UsageError, match="no name of a user"):
        daemon_unit(SYSTEM, start_command("/p", "/s"), "/s", user)


@pytest.mark.parametrize("program", ["/a'b/python", '/a"b/python', "/a\\b/python"])
def test_a_program_that_systemd_would_not_take(program: str) -> None:
    with pytest.raises(UsageError, match="quotes or backslashes"):
        daemon_unit(SYSTEM, start_command(program, "/s"), "/s", "pi")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("scope", [SYSTEM, USER], ids=["system", "user"])
@pytest.mark.parametrize("odd", ["plain", "a b", "50% $x", "a;b #c"])
def test_systemd_reads_it(tmp_path: Path, scope: Scope, odd: str) -> None:
    folder = tmp_path / odd
    folder.mkdir()
    program = folder / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "units").mkdir()
    unit = tmp_path / "units" / NAME
    user = "root" if scope.kind == "system" else None
    state = str(tmp_path / f'{odd} "it\'s" \\ 5%n $y')
    unit.write_text(daemon_unit(scope, start_command(str(program), state), state, user))
    done = subprocess.run(
        ["systemd-analyze", f"--{scope.kind}", "verify", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_daemon_comes_to_its_own_way_out_before_systemd_gives_up() -> None:
    """A trial that hangs, and a crash loop, end with the version before: systemd must not stop the daemon first."""
    unit = daemon_unit(Scope("user"), start_command("/opt/python", "/state"), "/state", None)
    values = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] != "#")
    assert float(values["TimeoutStartSec"]) > TIME_LIMIT_S + 120
    assert int(values["StartLimitBurst"]) > MOST_STARTS
    assert float(values["StartLimitIntervalSec"]) <= WITHIN_S
    assert MOST_STARTS * float(values["RestartSec"]) < WITHIN_S
    assert values["Restart"] == "on-failure"
