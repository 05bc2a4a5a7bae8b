"""What device this is."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["isa_name"]

#: The features that change what integer kernels compute or how fast, strongest first.
_ISA_LEVELS = {
    "x86-64": ("amx-int8", "avx512-vnni", "avx-vnni", "avx512", "avx2"),
    "aarch64": ("i8mm", "asimddp"),
}


def isa_name(arch: str, features: Collection[str]) -> str:
    """Return the name of an instruction set: two machines with the same one run the same integer kernels.

    Args:
        arch: `x86-64` or `aarch64`.
        features: CPU features, as in a profile's `isa`.

    Example:
        >>> isa_name("x86-64", ("avx2", "avx512", "avx512-vnni"))
        'x86-64+avx512-vnni'
        >>> isa_name("aarch64", ("neon",))
        'aarch64'
    """
    level = next((each for each in _ISA_LEVELS.get(arch, ()) if each in features), None)
    return f"{arch}+{level}" if level else arch
