"""Links that do not come about, and devices that do not mean well: each a clear error, and nothing else."""

from __future__ import annotations

import json
import platform
import re
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.deploy import link as links
from edgekit.deploy.address import Address, parse_address
from edgekit.deploy.link import connected, plain
from edgekit.deploy.survey import look
from edgekit.errors import MachineError, NetworkError, UsageError
from tests.conversions import Said, run_main
from tests.loopback import Device

Deploy = Callable[..., Said]


@pytest.fixture
def deploy(device: Device, bundle: Path, capsys: pytest.CaptureFixture[str]) -> Deploy:
    def run(*more: object, address: str = device.address) -> Said:
        return run_main(["deploy", bundle, address, *device.options(), *more], capsys)

    return run


def config(device: Device, tmp_path: Path, *lines: str) -> Path:
    """Return the device's ssh configuration with other lines first, which count."""
    path = tmp_path / "ssh_config"
    path.write_text("\n".join(["Host *", *lines, device.config.read_text()]))
    return path


# No link


def test_a_host_key_that_changed(device: Device, deploy: Deploy, tmp_path: Path) -> None:
    stranger = " ".join((device.folder / "stranger.pub").read_text().split()[:2])
    (tmp_path / "known").write_text(f"[127.0.0.1]:{device.port} {stranger}\n")
    other = config(device, tmp_path, f'UserKnownHostsFile "{tmp_path / "known"}"')
    said = deploy("--ssh-config", other)
    assert said.code == 7
    assert "the host key of 127.0.0.1 is not the one that your ssh knows" in said.line
    assert "ssh-keygen -R" in said.line


@pytest.mark.parametrize("strict", ["yes", "ask"])
def test_a_host_key_that_nobody_knows(device: Device, deploy: Deploy, tmp_path: Path, strict: str) -> None:
    other = config(
        device, tmp_path, f'UserKnownHostsFile "{tmp_path / "none"}"', f"StrictHostKeyChecking {strict}"
    )
    said = deploy("--ssh-config", other)
    assert said.code == 7
    assert f"Connect once by hand and compare it: ssh -p {device.port} 127.0.0.1." in said.line


def test_a_login_that_is_refused(device: Device, deploy: Deploy, tmp_path: Path) -> None:
    text = device.config.read_text().replace(str(device.identity), str(device.folder / "stranger"))
    (tmp_path / "ssh_config").write_text(text)
    said = deploy("--ssh-config", tmp_path / "ssh_config")
    assert said.code == 7
    assert "127.0.0.1 refused this login" in said.line
    assert f"ssh-copy-id -p {device.port} 127.0.0.1" in said.line


def test_the_key_given_by_hand_lets_in(device: Device, deploy: Deploy, tmp_path: Path) -> None:
    text = device.config.read_text().replace(str(device.identity), str(device.folder / "stranger"))
    (other := tmp_path / "ssh_config").write_text(text)
    assert deploy("--ssh-config", other, "--identity", device.identity, "--dry-run").code == 0


def test_a_host_that_does_not_answer(deploy: Deploy) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"ssh://127.0.0.1:{closed.getsockname()[1]}"
        said = deploy(address=address)
    assert said.code == 7
    assert "127.0.0.1 cannot be reached" in said.line
    assert "Connection refused" in said.line


def test_a_name_that_is_not_known(deploy: Deploy) -> None:
    said = deploy(address="ssh://no-such-device.invalid")
    assert said.code == 7
    assert "no-such-device.invalid is not known" in said.line


def test_the_users_aliases_count(device: Device, deploy: Deploy, tmp_path: Path) -> None:
    text = f"Host shelf\n HostName 127.0.0.1\n Port {device.port}\n{device.config.read_text()}"
    (tmp_path / "aliases").write_text(text)
    said = deploy("--ssh-config", tmp_path / "aliases", "--dry-run", address="ssh://shelf")
    assert said.code == 0, said.err


@pytest.mark.parametrize("lacking", ["packaging", "cryptography"])
def test_without_its_extra(deploy: Deploy, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "find_spec", lambda name: None if name == lacking else object())
    said = deploy()
    assert said.code == 5
    assert "pip install 'edgekit-deploy[deploy]'" in said.line


def test_without_ssh(deploy: Deploy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = deploy()
    assert said.code == 5
    assert "ssh is not installed here" in said.line


def test_no_python_there(device: Device, deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    device.behave(f'PATH={tmp_path}; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    said = deploy()
    assert said.code == 5
    assert "expected Python 3.10 or newer" in said.line


def test_a_python_that_makes_no_environments_can_still_look(
    device: Device, deploy: Deploy, tmp_path: Path
) -> None:
    shy = tmp_path / "python3"
    real = shlex.quote(sys.executable)
    shy.write_text(f'#!/bin/sh\ncase "$3" in *venv*) exit 1;; esac\nexec {real} "$@"\n')
    shy.chmod(0o755)
    (tmp_path / "sh").symlink_to("/bin/sh")
    device.behave(f'PATH={tmp_path}; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    assert f"CPython {platform.python_version()}" in deploy("--dry-run").out


@pytest.mark.parametrize(
    "text",
    [
        "pi@raspberry",
        "http://raspberry",
        "ssh://",
        "ssh://-oProxyCommand=touch%20pwned",
        "ssh://-oProxyCommand=x@host",
        "ssh://host/path",
        "ssh://host:0x16",
        "ssh://host:99999",
        "ssh://a b",
        "ssh://host;reboot",
        "ssh://$(reboot)",
        "ssh://us`er@host",
        "ssh://host?x=1",
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected ssh://\[USER@\]HOST\[:PORT\]"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://shelf", Address("shelf")),
        ("ssh://pi@10.0.0.7:22", Address("10.0.0.7", "pi", 22)),
        ("ssh://pi@[fe80::1%25eth0]:2222", Address("fe80::1%25eth0", "pi", 2222)),
        ("ssh://[::1]", Address("::1")),
    ],
)
def test_an_address_is_the_same_there_and_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


# Names


def test_no_name_is_a_shells_business(device: Device) -> None:
    with connected(parse_address(device.address), config=device.config) as link:
        for folder in ("a 'b' $(touch pwned) `touch pwned` \"c\"", "-rf", "é ✓", "~"):
            link.ask("begin", dict, root=folder)
            link.ask("write", dict, name="it's $(here)", text="x")
            ran = link.run(["printf", "%s", "$(touch pwned) '\""], limit_s=30)
            assert ran.out == "$(touch pwned) '\""
            assert (device.home / folder / "it's $(here)").read_text() == "x"
    assert not list(device.home.rglob("pwned"))


def test_no_name_leads_out_of_the_folder(device: Device, tmp_path: Path) -> None:
    (folder := device.home / "walled").mkdir()
    (folder / "door").symlink_to(tmp_path)
    with connected(parse_address(device.address), config=device.config) as link:
        with pytest.raises(MachineError, match="begin comes first"):
            link.ask("remove", dict, name="x")
        link.ask("begin", dict, root="walled")
        for name in ("../x", "a/../../x", "/etc/x", "a//b", "", ".", "a\0b", "door/x"):
            for do in ({"do": "write", "text": "x"}, {"do": "remove"}, {"do": "link", "target": "a"}):
                with pytest.raises(MachineError, match="cannot do it"):
                    link.ask(kind=dict, name=name, **do)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_is_not_used(device: Device) -> None:
    open_to_all = device.home / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    refused = pytest.raises(MachineError, match="others may write there")
    with connected(parse_address(device.address), config=device.config) as link, refused:
        link.ask("begin", dict, root="open")


def test_one_deployment_at_a_time(device: Device) -> None:
    address = parse_address(device.address)
    with connected(address, config=device.config) as one, connected(address, config=device.config) as two:
        one.ask("begin", dict, root="busy")
        with pytest.raises(MachineError, match="another deployment is under way"):
            two.ask("begin", dict, root="busy")
    with connected(address, config=device.config) as three:
        three.ask("begin", dict, root="busy")


def test_a_child_ends_with_its_link_and_at_its_limits(device: Device) -> None:
    with connected(parse_address(device.address), config=device.config) as link:
        link.ask("begin", dict, root="children")
        late = link.run(["sleep", "60"], limit_s=0.5)
        assert late.ending == "it took longer than 0.5 s"
        assert late.code == -9
        loud = link.run(["yes"], limit_s=30)
        assert loud.ending == "it said too much"
        assert len(loud.out) <= 4 << 20
        assert link.run(["false"], limit_s=30).code == 1
        with pytest.raises(MachineError, match="No such file"):
            link.run(["no-such-command"], limit_s=30)


# A device that does not mean well


HOSTILE = """
import json, sys
print('{"edgekit": 1}', flush=True)
for line in sys.stdin.buffer:
    %s
"""


def hostile(device: Device, tmp_path: Path, body: str) -> None:
    """Let the device run another program in place of ours."""
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE % body)
    device.behave(f"exec {shlex.quote(sys.executable)} -I -u {shlex.quote(str(path))}")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec yes", "its login says too much"),
        ("exec cat /dev/zero", "it says too much"),
        ("exit 0", "broke off|cannot be reached"),
        ("echo edgekit-no-python; printf '\\033[2J\\007evil'; echo", "got [?].2J[?]evil"),
        ("head -c 200000 /dev/urandom", "says too much|broke off|cannot be reached"),
    ],
)
def test_a_login_that_talks_nonsense(device: Device, deploy: Deploy, script: str, said: str) -> None:
    device.behave(script)
    done = deploy()
    assert done.code in (5, 7)
    assert re.search(said, done.line), done.line
    assert "\033" not in done.err


def test_a_login_script_may_speak_first(device: Device, deploy: Deploy) -> None:
    device.behave('echo welcome; echo; echo "{}"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    assert deploy("--dry-run").code == 0


@pytest.mark.parametrize(
    "answer",
    [
        "print('x' * (40 << 20))",
        "print('{\"answer\": ' + '[' * 100000)",
        "print('[]')",
        "print('{}')",
        "print('{\"answer\": {}}')",
        'print(\'{"answer": {"refused": 7}}\')',
        "sys.stdout.buffer.write(b'\\xff\\xfe\\n')",
        "sys.exit()",
    ],
)
def test_an_answer_that_is_none(device: Device, deploy: Deploy, tmp_path: Path, answer: str) -> None:
    hostile(device, tmp_path, answer)
    done = deploy()
    assert done.code == 7, done.err
    assert len(done.line) < 500


def test_silence_has_an_end(device: Device, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_GREETING_S", 0.5)
    device.behave("exec sleep 60")
    done = deploy()
    assert done.code == 7
    assert "no answer within 0.5 s" in done.line


def survey_of(**changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "python": "3.11.2",
        "implementation": "CPython",
        "venv": True,
        "bits": 64,
        "machine": "aarch64",
        "glibc": "2.36",
        "user": "pi",
        "home": "/home/pi",
        "root": "/home/pi/x",
        "state": "/home/pi/y",
        "free_bytes": 1 << 34,
        "ram_kib": 1 << 22,
        "files": {},
        "pci": {},
        "usb": [],
        "environments": [],
        "current": "",
        "services": {},
    }
    return {**told, **changes}


def tells(device: Device, tmp_path: Path, told: dict[str, Any]) -> None:
    (tmp_path / "told.json").write_text(json.dumps({"answer": told}))
    hostile(device, tmp_path, f"print(open({str(tmp_path / 'told.json')!r}).read(), flush=True)")


def test_what_it_tells_stays_in_its_tree(device: Device, tmp_path: Path) -> None:
    evil = {"vendor": "0x8086", "device": "0x643e", "driver": "intel_vpu", "nodes": {}, "made": []}
    node = "../../../../../../../../tmp/edgekit-escaped"
    told = survey_of(
        files={
            "../../../../tmp/edgekit-escaped": "eA==",
            "/tmp/edgekit-escaped": "eA==",
            "etc/passwd": "eA==",
        },
        pci={
            node: evil,
            "0000:00:0b.0": {**evil, "made": [node], "nodes": {node: True}, "driver": "a\nDRIVER=b"},
        },
        usb=[["../../x", "y"]],
    )
    tells(device, tmp_path, told)
    with connected(parse_address(device.address), config=device.config) as link:
        seen = look(link, "x", "y")
    assert seen.detection.profile_id == "generic-aarch64"
    assert not list(Path("/tmp").glob("edgekit-escaped*"))


@pytest.mark.parametrize(
    "change",
    [
        {"root": "relative"},
        {"root": "/home/\x1b[2J"},
        {"state": "/a\nb"},
        {"python": "3" * 1000},
        {"environments": ["x"] * 10_000},
        {"bits": "64"},
        {"files": {"proc/cpuinfo": "A" * 500_000}},
        {"usb": [["1"]]},
    ],
)
def test_what_cannot_be_is_refused(device: Device, tmp_path: Path, change: dict[str, Any]) -> None:
    tells(device, tmp_path, survey_of(**change))
    with connected(parse_address(device.address), config=device.config) as link, pytest.raises(NetworkError):
        look(link, "x", "y")


def test_a_pi_is_recognised_from_here(device: Device, tmp_path: Path) -> None:
    """The signals of a recorded Raspberry Pi 4, told over a real link."""
    import base64

    tree = Path(__file__).parents[1] / "devices" / "trees" / "raspberry-pi-4"
    told = {
        str(path.relative_to(tree)): base64.b64encode(path.read_bytes()).decode()
        for path in tree.rglob("*")
        if path.is_file()
    }
    tells(device, tmp_path, survey_of(files=told))
    with connected(parse_address(device.address), config=device.config) as link:
        seen = look(link, "x", "y")
    assert seen.detection.profile_id == "raspberry-pi-4"
    assert seen.detection.arch == "aarch64"
    tells(device, tmp_path, survey_of(files=told, bits=32))
    with connected(parse_address(device.address), config=device.config) as link:
        assert look(link, "x", "y").detection.arch == "armv7l"


def test_words_of_a_device_are_plain() -> None:
    assert plain("a\x1b[31mb\u202ec\td\n\ne" + "x" * 1000) == ("a?[31mb?c d e" + "x" * 1000)[:300]
