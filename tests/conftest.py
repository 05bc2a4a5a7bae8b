"""What holds for every test: folders of its own, no deadline, and in CI no silent skip of a lane."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.corpus import ReferenceCnn, reference_cnn

#: The extra that a module comes with, for skips that name the module only.
EXTRA_OF_MODULE = {
    "ai_edge_litert": "tflite",
    "tflite_runtime": "tflite-runtime",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "httptools": "daemon",
    "uvloop": "daemon",
    "PIL": "image",
    "tokenizers": "text",
    "pyarrow": "convert",
    "torch": "torch",
    "litert_torch": "torch",
    "cryptography": "agent",
    "urllib3": "agent",
    "packaging": "deploy",
    "fastapi": "sync",
    "sqlalchemy": "sync",
    "tensorflow": "convert",
    "keras": "convert",
    "sklearn": "convert",
    "onnx": "convert",
    "nncf": "convert",
    "matplotlib": "profile",
    "tritonclient": "clients",
}

# Machines differ by a factor of ten, and an emulated one by fifty.
settings.register_profile("edgekit", deadline=None)
settings.load_profile("edgekit")


def pytest_configure() -> None:
    """Hear Ctrl-C even where a shell started this run in the background, with the signal ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep state and caches of tests, and of the children they start, out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture(scope="session", name="reference_cnn")
def _reference_cnn() -> ReferenceCnn:
    """Give the reference CNN, trained once per checkout."""
    return reference_cnn()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without device tests when only those are asked for: the others may not import here."""
    only_device = re.match(r"device\b", config.option.markexpr or "")
    if only_device and collection_path.is_file() and collection_path.name.startswith("test_"):
        return "mark.device" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that CI requires and that was skipped."""
    report = yield
    _refuse_required_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that CI requires and that was skipped as a whole."""
    report = yield
    _refuse_required_skip(report)
    return report


def _refuse_required_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (os.environ.get("CI") and report.outcome == "skipped" and isinstance(report.longrepr, tuple)):
        return
    missing = required_but_missing(report.longrepr[2], os.environ.get("EDGEKIT_MAY_LACK", ""))
    if missing and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but this lane must have the extra [{missing}]: {report.longrepr[2]}"


def required_but_missing(reason: str, may_lack: str) -> str | None:
    """Return the extra that a skip was for, unless the lane may lack it.

    Args:
        reason: The skip's reason: `needs edgekit-deploy[onnx]`, or pytest's own `could not import 'PIL'`.
        may_lack: Extras, separated by commas.
    """
    named = re.search(r"\[([a-z-]+)\]", reason)
    module = re.search(r"could not import '(\w+)", reason)
    extra = named[1] if named else EXTRA_OF_MODULE.get(module[1], module[1]) if module else None
    return None if extra in may_lack.split(",") else extra
