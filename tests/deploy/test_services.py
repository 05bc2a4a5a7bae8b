"""The daemon as a service of a device: chosen on data; up to the call of systemctl, which no test machine has."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from edgekit.deploy.services import choose_scope
from edgekit.deploy.survey import Services
from tests.conversions import run_main
from tests.loopback import Device

ROOT = Services("running", "", root=True, sudo=False)
SUDO = Services("degraded", "running", root=False, sudo=True)
USER = Services("running", "running", root=False, sudo=False)
NONE = Services("running", "", root=False, sudo=False)
OFFLINE = Services("offline", "", root=True, sudo=False)


@pytest.mark.parametrize(
    ("services", "wanted", "kind", "why"),
    [
        (ROOT, "auto", "system", ""),
        (ROOT, "system", "system", ""),
        (ROOT, "user", None, "no systemd of its own"),
        (ROOT, "none", None, "not asked for"),
        (SUDO, "auto", "sudo system", ""),
        (SUDO, "user", "user", ""),
        (USER, "auto", "user", ""),
        (USER, "system", None, "not root"),
        (NONE, "auto", None, "may not sudo without a password"),
        (OFFLINE, "auto", None, "systemd does not run there"),
        (Services(), "auto", None, "systemd does not run there"),
        (Services("\x1b[2J", "?", root=True, sudo=True), "auto", None, "systemd does not run there"),
    ],
)
def test_where_the_unit_goes(services: Services, wanted: str, kind: str | None, why: str) -> None:
    scope, said = choose_scope(services, wanted)
    found = " ".join([*scope.prefix[:1], scope.kind]) if scope else None
    assert found == kind
    assert why in said
    assert bool(said) == (scope is None)


@pytest.fixture
def systemd(ready: Device, tmp_path: Path) -> Path:
    """Give the device a systemctl that writes down what it is told; return the folder of its commands."""
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("systemctl", "loginctl", "journalctl"):
        log, answer = shlex.quote(str(tmp_path / "log")), shlex.quote(str(tmp_path / f"{name}.sh"))
        (tmp_path / f"{name}.sh").write_text("")
        (shims / name).write_text(f'#!/bin/sh\ncase "$*" in *is-system-running*) echo running; exit;; esac\n'
                                  f'echo {name} "$@" >> {log}\n. {answer}\n')  # fmt: skip
        (shims / name).chmod(0o755)
    ready.behave(f'PATH={shims}:$PATH; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    return tmp_path


def deploy(
    device: Device, bundle: Path, capsys: pytest.CaptureFixture[str], service: str
) -> tuple[int, str, str]:
    options = ["--ssh-config", device.config, "--service", service]
    said = run_main(["deploy", bundle, device.address, *options], capsys)
    return said.code, said.out, said.err


def test_a_users_service_is_enabled(
    ready: Device, bundle: Path, systemd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = deploy(ready, bundle, capsys, "user")
    assert code == 0, err
    assert "service:         edgekit.service (user) is enabled and runs\n" in out
    unit = ready.home / ".config/systemd/user/edgekit.service"
    current = ready.home / ".local/share/edgekit/current/bin/python"
    assert f'ExecStart="{current}" "-m" "edgekit" "serve"' in unit.read_text()
    assert (systemd / "log").read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable edgekit.service",
        "systemctl --user restart edgekit.service",
        "loginctl enable-linger",
    ]
    unit.write_text("[Unit]\nDescription=mine\n")
    code, out, err = deploy(ready, bundle, capsys, "user")
    assert code == 1
    assert "was not written by EdgeKit" in err
    assert unit.read_text() == "[Unit]\nDescription=mine\n"
    unit.unlink()


def test_a_service_that_does_not_start_is_told(
    ready: Device, bundle: Path, systemd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (systemd / "systemctl.sh").write_text(
        'case "$*" in *restart*) echo "Job failed: \033[2Jx" >&2; exit 1;; esac'
    )
    (systemd / "journalctl.sh").write_text("echo no model here")
    code, out, err = deploy(ready, bundle, capsys, "user")
    assert code == 1
    assert (
        "`systemctl --user restart edgekit.service` failed: Job failed: ?[2Jx; its log ends: no model here"
        in err
    )
    assert "everything is installed" in err
    assert "\033[2J" not in out + err
    (ready.home / ".config/systemd/user/edgekit.service").unlink()


def test_without_systemd_the_command_is_told(
    ready: Device, bundle: Path, systemd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (systemd / "shims" / "systemctl").write_text("#!/bin/sh\necho offline\n")
    code, out, err = deploy(ready, bundle, capsys, "auto")
    assert code == 0, err
    assert "none enabled (systemd does not run there); start it there by: " in out
    code, out, err = deploy(ready, bundle, capsys, "user")
    assert code == 1
    assert "no user service" in err
