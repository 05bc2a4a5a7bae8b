"""The unmodified tritonclient against the daemon; its pins need an environment of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import edgekit
from tests.daemon.serving import FAST, PLAIN, Flavour, Running, adder, affine, echo, slow

pytestmark = pytest.mark.device

CLIENTS_PYTHON = os.environ.get("EDGEKIT_CLIENTS_PYTHON", "")
needs_clients = pytest.mark.skipif(
    not CLIENTS_PYTHON, reason="EDGEKIT_CLIENTS_PYTHON names no environment [clients]"
)


def drive(script: str, *arguments: str) -> None:
    """Run a script in the clients' environment; it prints `done` at its end."""
    done = subprocess.run(
        [CLIENTS_PYTHON, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@needs_clients
@pytest.mark.parametrize("flavour", [FAST, PLAIN], ids=lambda flavour: flavour.name)
def test_tritonclient_http(flavour: Flavour, tmp_path: Path) -> None:
    if flavour is FAST:
        pytest.importorskip("httptools")
        pytest.importorskip("uvloop")
    models = [affine(), adder(), echo("bytes"), echo("bool"), echo("float16"), slow(0.01)]
    with Running(models, flavour, tmp_path, shared_memory=True, repository_control=True) as running:
        drive("triton_http.py", "{}:{}".format(*running.address))


@needs_clients
def test_tritonclient_grpc(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    models = [affine(), adder(), echo("bytes"), echo("bool"), echo("float16"), echo("float32"), slow(0.01)]
    settings = {"grpc": ("127.0.0.1", 0), "shared_memory": True, "repository_control": True}
    with Running(models, PLAIN, tmp_path, **settings) as running:
        assert running.listening.grpc is not None
        drive(
            "triton_grpc.py", "{}:{}".format(*running.listening.grpc), str(Path(edgekit.__file__).parents[1])
        )
