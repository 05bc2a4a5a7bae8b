"""`edgekit sync serve`: where it listens, and what it refuses."""

from __future__ import annotations

import ssl
import subprocess
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import NameOID

from edgekit.errors import UsageError
from edgekit.monitor.outbox import Outbox
from edgekit.sync.app import is_loopback
from edgekit.sync.serve import Listen, check_listen, parse_listen
from tests.sync.fleet import ServerProcess, edgekit, environment, window


def _serve(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        edgekit("sync", "serve", *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(state),
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--listen", "0.0.0.0:0"), "beyond this machine"),
        (("--listen", "[::]:0"), "beyond this machine"),
        (("--listen", "192.0.2.7:8090"), "beyond this machine"),
        (("--listen", "8090"), "--listen"),
        (("--listen", "127.0.0.1:99999"), "--listen"),
        (("--db", "nonsense"), "not a database URL"),
        (("--db", "postgresql://h/d"), "SQLite"),
        (("--tls-cert", "nowhere.pem"), "nowhere.pem"),
    ],
)
def test_requests_that_cannot_be_meant(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    done = _serve(*arguments, state=tmp_path)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stdout == ""


def test_taken_address_is_named(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "sync.sqlite") as running:
        done = _serve("--listen", running.url.removeprefix("http://"), state=tmp_path)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr


@pytest.mark.parametrize(
    ("listen", "accepted"),
    [
        (Listen("127.0.0.1", 1), True),
        (Listen("127.8.8.8", 1), True),
        (Listen("::1", 1), True),
        (Listen("localhost", 1), True),
        (Listen("0.0.0.0", 1), False),
        (Listen("::", 1), False),
        (Listen("fleet.example", 1), False),
        (Listen("127.0.0.1.example", 1), False),
        (Listen("0.0.0.0", 1, behind_proxy=True), True),
        (Listen("0.0.0.0", 1, Path("c"), Path("k")), True),
        (Listen("127.0.0.1", 1, Path("c"), None), False),
        (Listen("0.0.0.0", 1, None, Path("k"), behind_proxy=True), False),
    ],
)
def test_where_it_may_listen(listen: Listen, accepted: bool) -> None:
    if accepted:
        check_listen(listen)
        return
    with pytest.raises(UsageError):
        check_listen(listen)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("localhost", False), ("", False)],
)
def test_loopback_is_an_address_not_a_name(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_listen_addresses() -> None:
    assert parse_listen("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_listen("[fe80::1]:0") == ("fe80::1", 0)
    assert Listen("::1", 7, Path("c"), Path("k")).url == "https://[::1]:7"


def test_database_is_in_the_state_folder_unless_given(tmp_path: Path) -> None:
    with subprocess.Popen(
        edgekit("sync", "serve", "--listen", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
            process.terminate()  # at once: the server is hardly up
            assert process.wait(30) == 0
            assert (tmp_path / "edgekit" / "sync.sqlite").exists()
        finally:
            process.kill()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgekit test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def test_tls_from_enrolment_to_report(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    database = f"sqlite:///{tmp_path / 'sync.sqlite'}"
    device = tmp_path / "device"
    device.mkdir()
    with Outbox(device / "outbox.sqlite") as outbox:
        outbox.append(window(1))
    serve = edgekit("sync", "serve", "--db", database, "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        [*serve, "--tls-cert", str(certificate), "--tls-key", str(key)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            assert url.startswith("https://")
            enroll = subprocess.run(
                edgekit("fleet", "enroll", "--db", database),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            agent = edgekit("agent", "--sync", url, "--once", "--state-dir", str(device))
            agent += ["--enroll-token", enroll.stdout.strip()]
            distrustful = subprocess.run(agent, capture_output=True, text=True, timeout=60, check=False)
            assert distrustful.returncode == 7
            assert "certificate" in distrustful.stderr.lower()
            trusting = [*agent, "--ca-file", str(certificate)]
            done = subprocess.run(trusting, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            context = ssl.create_default_context(cafile=str(certificate))
            with urllib3.PoolManager(ssl_context=context) as pool:
                reply = pool.request("GET", f"{url}/api/v1/devices").json()
            assert [one["models"][0]["model"] for one in reply["devices"]] == ["digits"]
        finally:
            process.terminate()
            process.wait(30)
