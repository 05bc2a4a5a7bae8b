"""The tables of operators that were measured: read once, from the TOML files beside this module."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["table"]


@cache
def table(name: str) -> dict[str, Any]:
    """Return a table: `onnxruntime`, `openvino`, `tensorflow`, `torch` or `sklearn`."""
    return tomllib.loads((Path(__file__).parent / f"ops_{name}.toml").read_text(encoding="utf-8"))
