"""EdgeKit: a trained model, taken to the device it must run on, proven there, run there, watched there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.model import Model, load

__all__ = ["Model", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # numpy and the runtimes are imported when a model is loaded, not when a command prints its help
    if name in ("Model", "load"):
        from edgekit import model

        return getattr(model, name)
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # what is not imported yet is there to be completed too
