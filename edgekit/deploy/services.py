"""The daemon as a service on the device, where its systemd and the login's rights allow; elsewhere what to do by hand."""

from __future__ import annotations

import posixpath
import shlex

from edgekit.daemon.units import NAME, Scope, daemon_unit, enable_commands, is_ours, unit_path
from edgekit.deploy.checks import Check
from edgekit.deploy.link import Link, plain
from edgekit.deploy.survey import Services, Survey
from edgekit.errors import MachineError, UsageError

__all__ = ["choose_scope", "enable_service"]

#: What `systemctl is-system-running` says of a systemd that takes orders.
_RUNNING = ("running", "degraded", "starting", "initializing")
_COMMAND_S, _START_S = 60.0, 960.0


def choose_scope(services: Services, wanted: str) -> tuple[Scope | None, str]:
    """Return where the unit goes, or why nowhere.

    Args:
        services: What is there.
        wanted: `auto`, `system`, `user` or `none`.
    """
    if wanted == "none":
        return None, "not asked for"
    root = Scope("system") if services.root else Scope("system", ("sudo", "-n")) if services.sudo else None
    if wanted in ("auto", "system") and services.system in _RUNNING and root is not None:
        return root, ""
    if wanted in ("auto", "user") and services.user in _RUNNING:
        return Scope("user"), ""
    if services.system not in _RUNNING:
        return None, "systemd does not run there"
    if wanted == "user":
        return None, "this login has no systemd of its own there"
    return (
        None,
        "this login is not root, may not sudo without a password, and has no systemd of its own there",
    )


def enable_service(link: Link, survey: Survey, wanted: str, command: list[str]) -> Check:
    """Write, enable and start the daemon's unit; return what was done, or what was not and how to start it by hand.

    Args:
        link: To the device, begun.
        survey: The device.
        wanted: `auto`, `system`, `user` or `none`.
        command: What runs the daemon.

    Raises:
        MachineError: `system` or `user` was asked for, and cannot be had; or a unit of that name is somebody else's.
    """
    scope, why = choose_scope(survey.services, wanted)
    by_hand = f"start it there by: {shlex.join(command)}"
    if scope is None and wanted in ("system", "user"):
        raise MachineError(
            f"no {wanted} service on {link.address}: {why}", hint=f"All else is installed; {by_hand}."
        )
    if scope is None:
        return Check("service", passed=True, said=f"none enabled ({why}); {by_hand}")
    target = unit_path(scope, survey.home)
    there = link.run(["cat", target], limit_s=_COMMAND_S)
    if there.code == 0 and not is_ours(there.out):
        raise MachineError(
            f"{target} on {link.address} was not written by EdgeKit", hint=f"Remove it, or {by_hand}."
        )
    user = survey.user if scope.kind == "system" else None
    try:
        unit = daemon_unit(scope, command, survey.state, user)
    except UsageError as error:
        return Check("service", passed=False, said=f"{error}; {by_hand}")
    link.ask("write", dict, name=NAME, text=unit)
    for words in enable_commands(scope, posixpath.join(survey.root, NAME), survey.home):
        done = link.run(words, limit_s=_START_S)
        if done.code or done.ending:
            return Check("service", passed=False, said=_failure(link, scope, words, done.ending or done.err))
    return Check(
        "service", passed=True, said=f"{NAME} ({scope.kind}) is enabled and runs" + _lingers(link, scope)
    )


def _failure(link: Link, scope: Scope, words: list[str], said: str) -> str:
    last = plain((said.strip().splitlines() or ["no message"])[-1])
    journal = [
        "journalctl",
        *(["--user"] if scope.kind == "user" else []),
        "-u",
        NAME,
        "-n",
        "3",
        "-o",
        "cat",
        "--no-pager",
    ]
    log = link.run([*scope.prefix, *journal], limit_s=_COMMAND_S)
    tail = f"; its log ends: {plain(log.out)}" if log.code == 0 and log.out.strip() else ""
    return f"`{shlex.join(words)}` failed: {last}{tail}"


def _lingers(link: Link, scope: Scope) -> str:
    """A user's services end with the last login, unless the user may linger."""
    if scope.kind == "system" or link.run(["loginctl", "enable-linger"], limit_s=_COMMAND_S).code == 0:
        return ""
    return ", but only while this user is logged in; as root there: loginctl enable-linger USER"
