"""Packages that stand in front of a runtime's own and break, each in another way."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BROKEN", "put_broken"]

_CRASH = "import ctypes\nctypes.string_at(0)\n"  # a segmentation fault, by a read at address 0

#: Way to (the package's text, what the probe says of it as onnxruntime).
BROKEN = {
    "segfault": (_CRASH, "was killed by SIGSEGV while it was imported"),
    "import error": (
        "raise ImportError('libcudart.so.13: cannot open shared object file')\n",
        "libcudart.so.13: cannot open shared object file",
    ),
    "another error": ("raise RuntimeError('built for numpy 1')\n", "RuntimeError: built for numpy 1"),
    "exit": (
        "import sys\nsys.exit('libfoo.so: wrong ELF class')\n",
        "ended with exit code 1 while it was imported: libfoo.so: wrong ELF class",
    ),
    "hang": ("import time\ntime.sleep(600)\n", "gave no answer within 5 s while it was imported"),
    "segfault in a session": (
        """
__version__ = "1.31.1"
def disable_telemetry_events(): pass
def get_available_providers(): return ["CPUExecutionProvider"]
class ExecutionMode: ORT_SEQUENTIAL = 0
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
def InferenceSession(*arguments, **words):
    import ctypes
    ctypes.string_at(0)
""",
        "was killed by SIGSEGV while it opened a model",
    ),
    "wrong answer": (
        """
import numpy
from types import SimpleNamespace as Node
__version__ = "1.31.1"
def disable_telemetry_events(): pass
def get_available_providers(): return ["CPUExecutionProvider"]
class ExecutionMode: ORT_SEQUENTIAL = 0
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
class InferenceSession:
    def __init__(self, *arguments, **words): pass
    def get_providers(self): return ["CPUExecutionProvider"]
    def get_inputs(self): return [Node(name="image", type="tensor(float)")]
    def get_outputs(self): return [Node(name="probabilities", type="tensor(float)")]
    def run(self, names, feed): return [numpy.full((1, 4), 0.25, numpy.float32)]
""",
        "it computed a wrong answer for a model of four layers: 0.25, 0.25, 0.25, 0.25",
    ),
}


def put_broken(folder: Path, way: str, package: str = "onnxruntime") -> Path:
    """Write a package that breaks in one of the ways, and return the folder to search for it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(BROKEN[way][0])
    return folder
