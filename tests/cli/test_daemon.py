from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.client import Client
from edgekit.errors import NetworkError
from tests.daemon.serving import PLAIN, Running, adder, affine
from tests.daemon.test_extensions import Shelf

pytestmark = pytest.mark.device


def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    shelf.put(affine())
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with Running(shelf.offers, PLAIN, tmp_path, shelf=shelf, socket=tmp_path / "edgekit.sock") as running:
        shelf.put(adder())
        url = f"unix:{running.listening.socket}"
        with Client(url) as client:
            client.predict("affine", np.ones((3, 4), np.float32))
        shown = CliRunner().invoke(cli, ["daemon", "status"])
        assert shown.exit_code == 0, shown.output
        lines = shown.output.splitlines()
        assert lines[0] == f"{url}: ready"
        assert lines[1].split() == ["model", "version", "inferences", "mean", "ms", "failed", "state"]
        assert lines[2].split() == ["adder", "1", "UNAVAILABLE:", "not", "loaded"]
        assert lines[3].split()[:3] == ["affine", "1", "3"]
        told = json.loads(CliRunner().invoke(cli, ["daemon", "status", "--url", url, "--json"]).output)
        assert (told["url"], told["ready"]) == (url, True)
        assert told["models"][1]["mean_ms"] > 0
        assert told["models"][0] == {
            "name": "adder",
            "version": "1",
            "state": "UNAVAILABLE",
            "reason": "not loaded",
        }


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="does not answer"):
        CliRunner().invoke(
            cli, ["daemon", "status", "--url", f"unix:{tmp_path}/absent"], catch_exceptions=False
        )
