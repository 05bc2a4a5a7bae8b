"""The emulator as tests use it: prepared once per checkout, as a user does it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.emulator import create, emulator_folder
from tests.corpus import corpus_folder, made_once

__all__ = ["prepared"]


@contextmanager
def prepared() -> Iterator[Path]:
    """Give the environment's folder, with `$XDG_CACHE_HOME` set to where it is."""
    if shutil.which("apt-get") is None:
        pytest.skip("the emulator is made with Debian's apt-get, which is not here")
    home = corpus_folder() / "emulator"
    with pytest.MonkeyPatch.context() as patch:
        with made_once(home) as unfinished:
            if unfinished is not None:
                patch.setenv("XDG_CACHE_HOME", str(unfinished))
                create()
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield emulator_folder()
