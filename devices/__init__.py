"""Device profiles: one TOML file each, read strictly into one frozen structure.

A profile says what a device is and what suits it; decisions about it are made elsewhere, on this data. A
family (`jetson`) is a profile too: what is safe on every member. `extends` names the parent: tables are
merged key by key, notes add up, everything else is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgekit.errors import InvalidFileError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "DeviceProfile",
    "Int8Policy",
    "MatchSignals",
    "RuntimePreference",
    "load_profile",
    "load_target",
    "profile_ids",
    "read_profile",
]

#: Runtime to the formats that it opens; the first is the one made for it. A test holds this against the
#: runtimes' own declarations; it stands here so that reading a profile imports no runtime.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "litert": ("tflite",),
    "onnxruntime": ("onnx",),
    "openvino": ("openvino",),
    "null": ("tflite", "onnx", "openvino"),
}

#: Every precision, in the order in which one is tried that no profile speaks of.
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int16x8")

#: x86 features that accumulate u8 x s8 products in 32 bits; without one of them, pairs of products saturate
#: in 16 bits (Intel SDM, VPMADDUBSW) unless the weights keep to 7 bits.
DOT_PRODUCT_X86 = ("avx-vnni", "avx512-vnni", "amx-int8")

#: Keys that speak of one file only, never of what extends it. (Notes add up instead.)
_OWN_KEYS = ("extends", "match", "qemu_cpu", "verified", "withdrawn")

Precision = Literal["fp32", "fp16", "int8-dynamic", "int8", "int16x8"]
Feature = Literal[
    "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx-int8",
]  # fmt: skip
Option = str | int | float | bool


class Int8Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a static int8 ONNX or OpenVINO artifact must be quantized to be right on the device.

    Attributes:
        activation: Integer type of the activations.
        weights: Integer type of the weights.
        symmetric_activations: Zero points of the activations must be 0.
        reduce_range: Weights keep to 7 bits.
    """

    activation: Literal["uint8", "int8"]
    weights: Literal["int8"]
    symmetric_activations: bool
    reduce_range: bool


class RuntimePreference(msgspec.Struct, frozen=True):
    """One runtime that suits the device.

    Attributes:
        runtime: Its name in the table of runtimes.
        precisions: Precisions in order of preference.
        providers: Execution providers or devices in order of preference; empty for the CPU.
        threads: Intra-op threads, 0 for the runtime's own choice.
        options: Further options of the runtime.
        precision_options: Precision to the options that it needs besides, such as a builder's flag.
    """

    runtime: str
    precisions: tuple[str, ...]
    providers: tuple[str, ...] = ()
    threads: int = 0
    options: Mapping[str, Option] = {}
    precision_options: Mapping[str, Mapping[str, Option]] = {}

    def options_for(self, precision: str) -> dict[str, Option]:
        """Return the options for an artifact of one precision."""
        return {**self.options, **self.precision_options.get(precision, {})}


_BusId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4}:[0-9a-f]{4}$")]


class MatchSignals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What tells the device on a running system: one of the identities, and every condition.

    Attributes:
        compatible: Device-tree `compatible` strings; one is enough (identity).
        model: Parts of the device-tree model's name; one is enough (identity).
        cpu_name: Parts of an x86 CPU's model name; one is enough (identity).
        usb: `vendor:product` in hexadecimal; one is enough (identity).
        pci: `vendor:device` in hexadecimal; one is enough (identity).
        l4t_min: Major release of NVIDIA's L4T; at least this one is an identity, an older one forbids.
        driver: Kernel driver that must be bound to the PCI device (condition on `pci`).
        node: Folder under /dev of the node that the driver must have made (condition on `pci`).
    """

    compatible: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    cpu_name: tuple[str, ...] = ()
    usb: tuple[_BusId, ...] = ()
    pci: tuple[_BusId, ...] = ()
    l4t_min: int | None = None
    driver: str | None = None
    node: str | None = None


class DeviceProfile(msgspec.Struct, frozen=True):
    """What a device is and what suits it.

    Attributes:
        id: The file's name without `.toml`.
        name: As people call it.
        family: Id of the family; a family's own is its id.
        arch: `aarch64` or `x86-64`, of the userland.
        isa: CPU features that kernels depend on and that every such device has.
        cores: CPU cores; None where the members differ.
        clock_mhz: Highest CPU clock; None where the members differ.
        ram_mib: The least RAM that it is sold with; None where nothing can be said.
        accelerators: `fpga`, `gpu`, `npu`.
        runtimes: In order of preference.
        int8: How static int8 must be made.
        static_shapes: The accelerator takes fixed shapes only.
        max_opset: Highest ONNX opset that its oldest supported runtime reads.
        max_ir: Highest ONNX IR version, likewise.
        install: `full`, or `export-only` where EdgeKit itself cannot run.
        verified: How far this profile was tried: on the `hardware`, `emulated`, or on a `fixture` only.
        qemu_cpu: The CPU model by which QEMU emulates it; empty where it has none that does.
        withdrawn: Why nothing can be made for it any more, and the way out; empty where something can.
        notes: What an integrator should know.
        libraries: Shared library that its accelerator needs to what gives it, for a system where it is missing.
        match: What tells the device on a running system; None for those that catch the rest.
        lineage: Ids of the profiles that it extends, nearest first.
    """

    id: str
    name: str
    family: str
    arch: str
    isa: tuple[str, ...]
    cores: int | None
    clock_mhz: int | None
    ram_mib: int | None
    accelerators: tuple[str, ...]
    runtimes: tuple[RuntimePreference, ...]
    int8: Int8Policy
    static_shapes: bool
    max_opset: int
    max_ir: int
    install: str
    verified: str
    qemu_cpu: str = ""
    withdrawn: str = ""
    notes: tuple[str, ...] = ()
    libraries: Mapping[str, str] = {}
    match: MatchSignals | None = None
    lineage: tuple[str, ...] = ()

    @property
    def is_family(self) -> bool:
        """Whether this profile stands for several devices."""
        return self.id == self.family

    def formats(self) -> tuple[str, ...]:
        """Return the formats made for the device: one for each runtime, in order of preference."""
        return tuple(dict.fromkeys(FORMATS[preference.runtime][0] for preference in self.runtimes))

    def precisions(self, artifact_format: str | None = None) -> tuple[str, ...]:
        """Return the precisions made for the device, fp32 first, of one format or of all."""
        wanted = [
            precision
            for preference in self.runtimes
            if artifact_format in (None, FORMATS[preference.runtime][0])
            for precision in preference.precisions
        ]
        return tuple(dict.fromkeys(["fp32", *wanted]))

    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Return the (format, precision) pairs that `convert` makes when nothing is asked for by name."""
        return tuple((form, precision) for form in self.formats() for precision in self.precisions(form))

    def on(self, isa: Collection[str]) -> DeviceProfile:
        """Return this profile for a device whose CPU features are known to be `isa`.

        A generic x86-64 profile must assume that u8 x s8 saturates; a CPU with VNNI need not.
        """
        policy = self.int8
        if self.arch == "x86-64" and policy.activation == "uint8":
            policy = msgspec.structs.replace(policy, reduce_range=not set(DOT_PRODUCT_X86) & set(isa))
        return msgspec.structs.replace(self, isa=tuple(isa), int8=policy)


class _RuntimeTable(msgspec.Struct, forbid_unknown_fields=True):
    runtime: Literal["litert", "onnxruntime", "openvino"]
    precisions: Annotated[tuple[Precision, ...], msgspec.Meta(min_length=1)]
    providers: tuple[str, ...] = ()
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    options: dict[str, Option] = {}
    precision_options: dict[Precision, dict[str, Option]] = {}


class _ProfileTable(msgspec.Struct, forbid_unknown_fields=True):
    """One whole profile; the bounds on sizes catch a value given in another unit."""

    name: str
    family: str
    arch: Literal["aarch64", "x86-64"]
    runtimes: Annotated[tuple[_RuntimeTable, ...], msgspec.Meta(min_length=1)]
    int8: Int8Policy
    max_opset: Annotated[int, msgspec.Meta(ge=7, le=30)]
    max_ir: Annotated[int, msgspec.Meta(ge=3, le=20)]
    verified: Literal["hardware", "emulated", "fixture"]
    extends: str = ""
    isa: tuple[Feature, ...] = ()
    cores: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    clock_mhz: Annotated[int, msgspec.Meta(ge=100, le=10_000)] | None = None
    ram_mib: Annotated[int, msgspec.Meta(ge=64, le=16_777_216)] | None = None
    accelerators: tuple[Literal["fpga", "gpu", "npu"], ...] = ()
    static_shapes: bool = False
    install: Literal["full", "export-only"] = "full"
    qemu_cpu: str = ""
    withdrawn: str = ""
    notes: tuple[str, ...] = ()
    libraries: dict[Annotated[str, msgspec.Meta(pattern=r"^lib[\w.+-]+\.so[\w.]*$")], str] = {}
    match: MatchSignals | None = None


_FOLDER = Path(__file__).parent


def profile_ids(folder: Path = _FOLDER) -> tuple[str, ...]:
    """Return the known profile ids, sorted."""
    return tuple(sorted(path.stem for path in folder.iterdir() if path.suffix == ".toml"))


@lru_cache(maxsize=64)
def load_profile(profile_id: str) -> DeviceProfile:
    """Return the profile of a device or a family that EdgeKit knows.

    Raises:
        UsageError: No profile has that id; the message lists those that there are.
    """
    return read_profile(profile_id)


def load_target(profile_id: str) -> DeviceProfile:
    """Return the profile of a device that something can be made for.

    Raises:
        UsageError: No profile has that id, or it is kept only to say why nothing can be made for it.
    """
    profile = load_profile(profile_id)
    if profile.withdrawn:
        raise UsageError(f"{profile.name} is no target any more", hint=f"{profile.withdrawn}.")
    return profile


def read_profile(profile_id: str, folder: Path = _FOLDER) -> DeviceProfile:
    """Read one profile and what it extends from `folder`.

    Raises:
        UsageError: No profile has that id.
        InvalidFileError: A file is not TOML, a key is unknown or missing, a value has the wrong type or
            unit, a parent is unknown, or the parents form a circle. The message names file and key.
    """
    known = profile_ids(folder)
    if profile_id not in known:
        raise UsageError(
            f"unknown device {profile_id!r}",
            expected="one of " + ", ".join(known),
            hint=_nearest(profile_id, known),
        )
    chain = list(_chain(profile_id, folder))
    merged: dict[str, Any] = {}
    for _, table in reversed(chain):
        merged = _merge({key: value for key, value in merged.items() if key not in _OWN_KEYS}, table)
    table = _decode(merged, chain)
    return _profile(profile_id, table, tuple(name for name, _ in chain[1:]))


def _nearest(word: str, known: Collection[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else None


def _chain(profile_id: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the profile's own table, then its parents', nearest first."""
    seen: list[str] = []
    name, child = profile_id, ""
    while name:
        if name in seen:
            raise InvalidFileError(
                f"{child}.toml: key 'extends' closes a circle", got=" -> ".join([*seen, name])
            )
        path = folder / f"{name}.toml"
        if not path.is_file():
            known = profile_ids(folder)
            raise InvalidFileError(
                f"{child}.toml: key 'extends' names an unknown profile",
                got=repr(name),
                expected="one of " + ", ".join(known),
                hint=_nearest(name, known),
            )
        seen.append(name)
        table = _read_toml(path)
        yield name, table
        child, name = name, table.get("extends", "")


def _read_toml(path: Path) -> dict[str, Any]:
    """Read one file; its keys are checked here, where the file that holds a wrong one can be named."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"{path.name} is not TOML: {error}") from error
    fields = tuple(_ProfileTable.__struct_fields__)
    for key in table:
        if key not in fields:
            raise InvalidFileError(
                f"{path.name}: unknown key {key!r}",
                expected="one of " + ", ".join(fields),
                hint=_nearest(key, fields),
            )
    if not isinstance(table.get("extends", ""), str):
        raise InvalidFileError(
            f"{path.name}: key 'extends' has the wrong type", got=table["extends"], expected="a profile's id"
        )
    return table


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        inherited = merged.get(key)
        both = isinstance(value, dict) and isinstance(inherited, dict)
        merged[key] = _merge(inherited, value) if both and isinstance(inherited, dict) else value
    if isinstance(parent.get("notes"), list) and isinstance(child.get("notes"), list):
        merged["notes"] = [*child["notes"], *parent["notes"]]
    return merged


def _decode(merged: dict[str, Any], chain: Sequence[tuple[str, dict[str, Any]]]) -> _ProfileTable:
    try:
        return msgspec.convert(merged, type=_ProfileTable)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        top = re.split(r"[.\[]", key)[0]
        # The nearest file that has the key is the one whose value was taken.
        where = next((name for name, table in chain if top in table), chain[0][0])
        raise InvalidFileError(f"{where}.toml: {f'key {key!r}: ' if key else ''}{sentence}") from error


def _profile(profile_id: str, table: _ProfileTable, lineage: tuple[str, ...]) -> DeviceProfile:
    """Turn a checked table into what the rest of EdgeKit sees."""
    plain = {name: getattr(table, name) for name in table.__struct_fields__}
    del plain["extends"]
    plain["runtimes"] = tuple(RuntimePreference(**msgspec.structs.asdict(each)) for each in table.runtimes)
    return DeviceProfile(id=profile_id, lineage=lineage, **plain)
