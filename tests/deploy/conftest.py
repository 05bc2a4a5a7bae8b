"""One loopback device for all that deploys, and the wheels for it kept between runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekit.state import cache_folder
from tests.conversions import command, environment
from tests.corpus import corpus_folder
from tests.deploy.quadrants import quadrants
from tests.loopback import Device, loopback_device


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


@pytest.fixture(scope="session", autouse=True)
def _kept_wheels(_own_folders: None) -> None:
    """Keep what was fetched for devices in the checkout's cache, as the emulator's is."""
    kept = corpus_folder() / "device-wheels"
    kept.mkdir(parents=True, exist_ok=True)
    cache_folder().mkdir(parents=True, exist_ok=True)
    link = cache_folder() / "device-wheels"
    if not link.is_symlink():
        link.symlink_to(kept)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose name no shell would leave alone."""
    return quadrants(tmp_path_factory.mktemp("bundles") / 'it\'s a $(bundle) "here"')


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device that nothing was deployed to but what tests deploy."""
    with loopback_device(tmp_path_factory.mktemp("a device")) as made:
        yield made


@pytest.fixture(scope="session")
def ready(device: Device, bundle: Path) -> Device:
    """The device with an environment on it."""
    done = run("deploy", bundle, device.address, *device.options())
    assert done.code == 0, done.err
    return device


@pytest.fixture(autouse=True)
def _well_behaved(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the device behave again after each test."""
    yield
    if "device" in request.fixturenames:
        made: Device = request.getfixturevalue("device")
        made.behave()


def run(*words: object, more: Sequence[object] = (), timeout_s: float = 300) -> Answer:
    """Run `edgekit` in a process of its own."""
    done = subprocess.run(
        command(*words, *more),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout_s,
        check=False,
        cwd=os.path.sep,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
