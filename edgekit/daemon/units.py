"""systemd units for the inference daemon: their text, and the commands that put them in their place. Pure functions.

The daemon needs its state folder and its sockets and nothing else, so the unit takes the rest away. What needs root to
set up stays out of a user's own unit: older systemd would refuse to start it.
"""

from __future__ import annotations

import msgspec

from edgekit.daemon.starts import MOST_STARTS, WITHIN_S
from edgekit.errors import UsageError

__all__ = ["NAME", "Scope", "daemon_unit", "enable_commands", "is_ours", "start_command", "unit_path"]

NAME = "edgekit.service"
_MARK = "# Written by EdgeKit; changes belong into a drop-in: systemctl edit edgekit.service\n"

#: Loading and the golden self-test may compile an engine.
_START_LIMIT_S = 900
_WATCHDOG_S = 60

_ALWAYS = (
    "LockPersonality=yes",
    "NoNewPrivileges=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "UMask=0077",
)
#: Devices stay within reach, for accelerators are among them: ProtectClock= would close all but its own. Memory may be
#: made executable: runtimes compile kernels.
_SYSTEM = (
    "CapabilityBoundingSet=",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=read-only",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectSystem=strict",
)


class Scope(msgspec.Struct, frozen=True):
    """Where units go.

    Attributes:
        kind: `system`, or `user` for the login's own.
        prefix: What stands in front of commands that need root.
    """

    kind: str
    prefix: tuple[str, ...] = ()

    def systemctl(self, *words: str) -> list[str]:
        """Return a systemctl command."""
        return [*self.prefix, "systemctl", *(["--user"] if self.kind == "user" else []), *words]


def start_command(python: str, state: str, more: tuple[str, ...] = ()) -> list[str]:
    """Return the command that runs the daemon.

    Args:
        python: The environment's interpreter.
        state: The state folder.
        more: Further words for `edgekit serve`.
    """
    return [python, "-m", "edgekit", "serve", "--state-dir", state, *more]


def daemon_unit(scope: Scope, command: list[str], state: str, user: str | None) -> str:
    """Return the daemon's unit.

    Args:
        scope: Where it goes.
        command: What `start_command` returns.
        state: The state folder, the only one that it may write to.
        user: Whose rights it has; None in the user's own scope.

    Raises:
        UsageError: A path or a name holds what no unit can.
    """
    if set(command[0]) & set("\"'\\"):
        raise UsageError("systemd takes no program whose path holds quotes or backslashes", got=command[0])
    sandbox = (
        sorted((*_ALWAYS, *_SYSTEM, f"ReadWritePaths={_quoted(state)}"))
        if scope.kind == "system"
        else _ALWAYS
    )
    lines = [
        "[Unit]",
        "Description=EdgeKit inference daemon",
        "After=network.target",
        # the daemon itself goes back to the version before at the third start in five minutes: let it come to that
        f"StartLimitIntervalSec={WITHIN_S:.0f}",
        f"StartLimitBurst={MOST_STARTS + 2}",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={' '.join([_quoted(command[0]), *map(_word, command[1:])])}",
        *([f"User={_name(user)}"] if user else []),
        "Restart=on-failure",
        "RestartSec=5",
        f"TimeoutStartSec={_START_LIMIT_S}",
        f"WatchdogSec={_WATCHDOG_S}",
        "RuntimeDirectory=edgekit",
        "",
        *sandbox,
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if scope.kind == 'system' else 'default.target'}",
        "",
    ]
    return _MARK + "\n".join(lines)


def is_ours(text: str) -> bool:
    """Tell whether a unit was written here, and may be replaced."""
    return text.startswith("# Written by EdgeKit")


def unit_path(scope: Scope, home: str) -> str:
    """Return where the unit belongs."""
    return f"/etc/systemd/system/{NAME}" if scope.kind == "system" else f"{home}/.config/systemd/user/{NAME}"


def enable_commands(scope: Scope, source: str, home: str) -> list[list[str]]:
    """Return the commands that install the unit's file from `source`, enable it, and start it anew."""
    return [
        [*scope.prefix, "install", "-D", "-m", "0644", source, unit_path(scope, home)],
        scope.systemctl("daemon-reload"),
        scope.systemctl("enable", NAME),
        scope.systemctl("restart", NAME),
    ]


def _word(text: str) -> str:
    r"""Return a word of a command line (systemd.service(5), "Command lines"): quoted, `%` and `$` taken literally.

    The first word, the program, knows no `$`.

    >>> _word("/opt/50% off/$x")
    '"/opt/50%% off/$$x"'
    """
    return _quoted(text).replace("$", "$$")


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise UsageError("a unit cannot hold this", got=repr(text), expected="printable characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _name(user: str) -> str:
    if not user.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError("no name of a user", got=repr(user))
    return user
