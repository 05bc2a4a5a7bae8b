"""The unmodified tritonclient against the daemon; its pins need an environment of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.daemon.serving import FAST, PLAIN, Flavour, Running, adder, affine, echo, slow

pytestmark = pytest.mark.device

CLIENTS_PYTHON = os.environ.get("EDGEKIT_CLIENTS_PYTHON", "")


@pytest.mark.skipif(not CLIENTS_PYTHON, reason="EDGEKIT_CLIENTS_PYTHON names no environment [clients]")
@pytest.mark.parametrize("flavour", [FAST, PLAIN], ids=lambda flavour: flavour.name)
def test_tritonclient_http(flavour: Flavour, tmp_path: Path) -> None:
    if flavour is FAST:
        pytest.importorskip("httptools")
        pytest.importorskip("uvloop")
    models = [affine(), adder(), echo("bytes"), echo("bool"), echo("float16"), slow(0.01)]
    with Running(models, flavour, tmp_path) as running:
        host, port = running.address
        done = subprocess.run(
            [CLIENTS_PYTHON, str(Path(__file__).with_name("triton_http.py")), f"{host}:{port}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
