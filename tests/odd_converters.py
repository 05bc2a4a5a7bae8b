"""Converters that behave as frameworks do on a bad day; none converts. For the worker's own tests."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from edgekit.converters.base import Converted, SourceModel
from edgekit.errors import InvalidFileError, UnavailableError
from edgekit.manifest import Recipe


def part(path: str, **tools: str) -> Converted:
    return Converted(path=path, files=(), inputs=(), outputs=(), tools=tools)


class _Odd:
    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Mapping[str, Any] | None, out: Path
    ) -> Iterator[Converted]:
        for recipe in recipes:
            yield self.one(recipe)

    def one(self, recipe: Recipe) -> Converted:
        raise NotImplementedError


class Telltale(_Odd):
    """Tells what it can see."""

    def one(self, recipe: Recipe) -> Converted:
        namespace = os.readlink("/proc/self/ns/net")  # noqa: PTH115  # no file is there to resolve
        parent = os.readlink(f"/proc/{os.getppid()}/ns/net")  # noqa: PTH115
        return part(
            "",
            pid=str(os.getpid()),
            cwd=str(Path.cwd()),
            variables=" ".join(os.environ),
            left_network=str(namespace != parent),
            interfaces=" ".join(sorted(line.split(":")[0].strip() for line in _net_dev())),
            **{
                k: os.environ.get(k, "")
                for k in ("HOME", "TMPDIR", "EDGEKIT_ODD", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES")
            },
        )


def _net_dev() -> list[str]:
    return Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]


class Chatterbox(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        print("{not an answer}", flush=True)
        os.write(1, b'{"done":true}\n')
        return part("")


class Killed(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return part("")


class KilledAtSecond(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        if recipe.precision == "fp16":
            os.kill(os.getpid(), signal.SIGKILL)
        return part(recipe.precision)


class Quitter(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        os._exit(7)


class Crasher(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        import ctypes

        ctypes.string_at(0)
        return part("")


class Slow(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        time.sleep(2.0)
        return part("")


class Sleeper(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        time.sleep(600.0)
        return part("")


class Hoarder(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        hoard = []
        for _ in range(40):
            hoard.append(bytearray(os.urandom(1 << 20)) * 100)
            time.sleep(0.05)
        return part("")


class Parent(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        return part(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))


class Unavailable(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        raise UnavailableError("no such tool")


class Uninstalled(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        return part(str(import_module("no_such.package")))


class Invalid(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        raise InvalidFileError("bad file")


class FullDisk(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")


class HiddenFullDisk(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        raise RuntimeError("SaveV2: /tmp/x; No space left on device [Op:SaveV2]")


class Verbose(_Odd):
    def one(self, recipe: Recipe) -> Converted:
        raise RuntimeError("\n".join(f"line {i}" for i in range(1000)))
